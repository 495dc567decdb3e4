//! Where things live: the socket, the configuration, the models, the state. One answer for the
//! daemon and for every client.
//!
//! It only computes paths. It opens, creates and checks nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use directories::ProjectDirs;

/// Names the socket, over all else.
pub const SOCKET_VARIABLE: &str = "HEARTH_SOCKET";
/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "HEARTH_CONFIG";
/// Names the folder of models.
pub const MODELS_VARIABLE: &str = "HEARTH_MODELS";

/// File name of the socket.
pub const SOCKET_NAME: &str = "hearthd.sock";
/// File name of the lock beside the socket. The daemon writes its process id into it.
pub const LOCK_NAME: &str = "hearthd.lock";

/// Longest socket path, in bytes: `sun_path` holds 104 on some systems, with a closing zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 103;

/// A path that cannot be used or found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Nothing says whose folders to use.
    #[error("cannot tell the home directory, and {variable} is not set")]
    NoHome {
        /// The variable that would settle it.
        variable: &'static str,
    },
    /// The system cannot bind a path this long.
    #[error(
        "the socket path {path} has {bytes} bytes; at most {SOCKET_PATH_BYTES_MAX} are possible \
         (set {SOCKET_VARIABLE} to a shorter one)"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The path depends on the working directory, which two programs seldom share.
    #[error("{what} must be an absolute path, not {path}")]
    NotAbsolute {
        /// Which setting.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
}

/// The socket: `HEARTH_SOCKET`, else `$XDG_RUNTIME_DIR/hearth/hearthd.sock`, else
/// `run/hearthd.sock` in the state directory. On Windows a named pipe of the user's.
///
/// # Errors
/// See [`EndpointError`].
pub fn socket_path() -> Result<PathBuf, EndpointError> {
    socket_path_from(&|name| std::env::var_os(name))
}

/// Checks a socket path that came from elsewhere, such as a flag, and hands it back.
///
/// # Errors
/// It is relative or too long.
pub fn check_socket_path(path: PathBuf) -> Result<PathBuf, EndpointError> {
    if !is_absolute(&path) {
        return Err(EndpointError::NotAbsolute {
            what: "the socket path",
            path,
        });
    }
    let bytes = path.as_os_str().len();
    if cfg!(unix) && bytes > SOCKET_PATH_BYTES_MAX {
        return Err(EndpointError::TooLong { path, bytes });
    }
    Ok(path)
}

/// The lock that a daemon on `socket` holds while it lives.
pub fn lock_path(socket: &Path) -> PathBuf {
    socket.with_file_name(LOCK_NAME)
}

/// The configuration file: `HEARTH_CONFIG`, else `config.toml` in the configuration directory.
///
/// # Errors
/// See [`EndpointError`].
pub fn config_path() -> Result<PathBuf, EndpointError> {
    if let Some(path) = set(&|name| std::env::var_os(name), CONFIG_VARIABLE) {
        return absolute("HEARTH_CONFIG", path);
    }
    Ok(project_dirs(CONFIG_VARIABLE)?
        .config_dir()
        .join("config.toml"))
}

/// The folder of models: `HEARTH_MODELS`, else `models` in the data directory.
///
/// # Errors
/// See [`EndpointError`].
pub fn models_dir() -> Result<PathBuf, EndpointError> {
    if let Some(path) = set(&|name| std::env::var_os(name), MODELS_VARIABLE) {
        return absolute("HEARTH_MODELS", path);
    }
    Ok(project_dirs(MODELS_VARIABLE)?.data_dir().join("models"))
}

/// The folder for logs, histories and the fallback socket.
///
/// # Errors
/// See [`EndpointError`].
pub fn state_dir() -> Result<PathBuf, EndpointError> {
    let dirs = project_dirs(SOCKET_VARIABLE)?;
    Ok(dirs
        .state_dir()
        .unwrap_or_else(|| dirs.data_local_dir())
        .to_owned())
}

/// The folder for what can be made again, such as which kernels suit the GPU.
///
/// # Errors
/// See [`EndpointError`].
pub fn cache_dir() -> Result<PathBuf, EndpointError> {
    Ok(project_dirs(SOCKET_VARIABLE)?.cache_dir().to_owned())
}

fn socket_path_from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, EndpointError> {
    if let Some(path) = set(variable, SOCKET_VARIABLE) {
        return check_socket_path(path);
    }
    if cfg!(windows) {
        let user = variable("USERNAME").unwrap_or_else(|| OsString::from("user"));
        let mut pipe = OsString::from(r"\\.\pipe\hearthd-");
        pipe.push(user);
        return Ok(PathBuf::from(pipe));
    }
    // A relative runtime directory is to be ignored: the base directory specification says so.
    match set(variable, "XDG_RUNTIME_DIR").filter(|path| path.is_absolute()) {
        Some(runtime) => check_socket_path(runtime.join("hearth").join(SOCKET_NAME)),
        None => check_socket_path(state_dir()?.join("run").join(SOCKET_NAME)),
    }
}

fn set(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    variable(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn absolute(what: &'static str, path: PathBuf) -> Result<PathBuf, EndpointError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(EndpointError::NotAbsolute { what, path })
    }
}

fn is_absolute(path: &Path) -> bool {
    path.is_absolute() || (cfg!(windows) && path.starts_with(r"\\.\pipe\"))
}

fn project_dirs(variable: &'static str) -> Result<ProjectDirs, EndpointError> {
    ProjectDirs::from("", "", "hearth").ok_or(EndpointError::NoHome { variable })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<PathBuf, EndpointError> {
        socket_path_from(&|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_variable_wins() {
        let path = with(&[
            ("HEARTH_SOCKET", "/a/b.sock"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
        ]);
        assert_eq!(path.unwrap(), PathBuf::from("/a/b.sock"));
    }

    #[test]
    fn the_runtime_directory_comes_next() {
        let path = with(&[("HEARTH_SOCKET", ""), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(
            path.unwrap(),
            PathBuf::from("/run/user/1/hearth/hearthd.sock")
        );
    }

    #[test]
    fn the_fallback_is_a_state_directory_and_never_tmp() {
        for runtime in ["", "relative"] {
            let path = with(&[("XDG_RUNTIME_DIR", runtime)]).unwrap();
            assert!(path.ends_with("run/hearthd.sock"), "{path:?}");
            assert!(!path.starts_with("/tmp"));
        }
    }

    #[test]
    fn a_long_path_is_refused_at_its_edge() {
        let longest = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX - 1));
        assert!(with(&[("HEARTH_SOCKET", &longest)]).is_ok());
        let longer = format!("{longest}x");
        let error = with(&[("HEARTH_SOCKET", &longer)]).unwrap_err();
        assert!(error.to_string().contains("at most 103"), "{error}");
    }

    #[test]
    fn a_relative_path_is_refused() {
        assert!(matches!(
            with(&[("HEARTH_SOCKET", "x.sock")]),
            Err(EndpointError::NotAbsolute { .. })
        ));
    }
}
