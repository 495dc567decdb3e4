//! Who is at the other end of a connection, and what its app is called.
//!
//! The uid decides whether it may speak at all. The name is a label for fairness and accounts:
//! processes of one user can lie about it, and are no security boundary. The label of an app socket
//! is its launcher's word, and nothing that the process says of itself is asked for.

use interprocess::local_socket::tokio::Stream;
use interprocess::local_socket::traits::StreamCommon as _;

use crate::limits::APP_NAME_BYTES_MAX;

/// The process at the other end of a connection, as it was when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its process id, where the system tells.
    pub pid: Option<u32>,
    /// Its app: the label of the app socket it came through; else the systemd scope or service,
    /// else the command's name (of which Linux keeps 15 bytes), else `unknown`.
    pub app: String,
    /// Whether it came through an app socket, and may do less.
    pub sandbox: Option<Sandbox>,
}

/// What is known of a sandboxed app besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Which instance of the app it is, as its launcher says.
    pub instance: Option<String>,
}

/// A connection that is not served.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The system does not say who it is.
    #[error("cannot tell who connects")]
    Unknown(#[source] std::io::Error),
    /// Another user.
    #[error("user {uid} is neither this user ({own}) nor root")]
    Foreign {
        /// Who it is.
        uid: u32,
        /// Who we are.
        own: u32,
    },
}

/// Finds out who is at the other end and whether they may speak.
///
/// The label is read once, here. Between the peer's connect and this read lies about a millisecond,
/// in which it could end and its process id be given to another, whose label the connection would
/// get. The kernel can hand out a handle of the peer that rules this out (`SO_PEERPIDFD`, Linux
/// 6.5), but no crate wraps it without `unsafe`, and the label is no security boundary.
///
/// # Errors
/// They may not.
pub fn identify(stream: &Stream) -> Result<Peer, PeerError> {
    let pid = admitted_pid(stream)?;
    Ok(Peer {
        pid,
        app: pid.map_or_else(unknown, app_of),
        sandbox: None,
    })
}

/// As [`identify`], for a connection through the app socket of `app`.
///
/// # Errors
/// They may not: the uid counts here too.
pub fn identify_sandboxed(
    stream: &Stream,
    app: &str,
    instance: Option<&str>,
) -> Result<Peer, PeerError> {
    Ok(Peer {
        pid: admitted_pid(stream)?,
        app: app.to_owned(),
        sandbox: Some(Sandbox {
            instance: instance.map(str::to_owned),
        }),
    })
}

/// Whether a launcher may give this label: `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`.
pub fn is_label(text: &str) -> bool {
    text.len() <= APP_NAME_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The process at the other end, where the system tells, if its user may speak.
fn admitted_pid(stream: &Stream) -> Result<Option<u32>, PeerError> {
    let credentials = stream.peer_creds().map_err(PeerError::Unknown)?;
    #[cfg(unix)]
    {
        let own = rustix::process::geteuid().as_raw();
        match credentials.euid() {
            Some(uid) if may_speak(uid, own) => {}
            Some(uid) => return Err(PeerError::Foreign { uid, own }),
            None => {
                let kind = std::io::ErrorKind::Unsupported;
                return Err(PeerError::Unknown(kind.into()));
            }
        }
    }
    // 0: a process of a namespace that this one cannot see into.
    Ok(credentials
        .pid()
        .and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid != 0))
}

#[cfg_attr(
    not(unix),
    allow(dead_code, reason = "named pipes are for one user by themselves")
)]
fn may_speak(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn app_of(pid: u32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    read("cgroup")
        .and_then(|text| app_of_cgroup(&text))
        .or_else(|| read("comm").and_then(|text| printable(text.trim_end())))
        .unwrap_or_else(unknown)
}

/// The app in a process's cgroup, after the convention
/// `app[-LAUNCHER]-ID-RANDOM.scope` or `app[-LAUNCHER]-ID[@RANDOM].service`.
fn app_of_cgroup(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unit = path.rsplit('/').find(|part| part.starts_with("app-"))?;
    let name = unit.strip_prefix("app-")?;
    let name = if let Some(name) = name.strip_suffix(".scope") {
        name.rsplit_once('-')?.0
    } else {
        let name = name.strip_suffix(".service")?;
        name.split_once('@').map_or(name, |(name, _)| name)
    };
    // Identifiers have their own hyphens escaped, so the last part is the identifier.
    let id = name.rsplit('-').next()?.replace("\\x2d", "-");
    printable(&id)
}

fn printable(text: &str) -> Option<String> {
    let mut name = String::new();
    for letter in text.chars() {
        let letter = if letter.is_control() || letter.is_whitespace() {
            '_'
        } else {
            letter
        };
        if name.len() + letter.len_utf8() > APP_NAME_BYTES_MAX {
            break;
        }
        name.push(letter);
    }
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_user_and_root_may_speak() {
        assert!(may_speak(1000, 1000));
        assert!(may_speak(0, 1000));
        assert!(!may_speak(1001, 1000));
        assert!(!may_speak(65_534, 0));
    }

    #[test]
    fn apps_are_known_by_their_unit() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/";
        let cases = [
            (
                "app-gnome-org.gnome.Terminal-4711.scope",
                Some("org.gnome.Terminal"),
            ),
            ("app-firefox-99.scope", Some("firefox")),
            ("app-flatpak-org.x.My\\x2dApp-1.scope", Some("org.x.My-App")),
            ("app-org.kde.kate@8ab.service", Some("org.kde.kate")),
            ("app-org.kde.kate.service", Some("org.kde.kate")),
            ("app-gnome-x-1.scope/child", Some("x")),
            ("session-3.scope", None),
            ("app-.scope", None),
        ];
        for (unit, wanted) in cases {
            assert_eq!(
                app_of_cgroup(&format!("{user}{unit}\n")).as_deref(),
                wanted,
                "{unit}"
            );
        }
        assert_eq!(app_of_cgroup("1:cpu:/x\n"), None);
    }

    #[test]
    fn names_are_short_and_printable() {
        assert_eq!(printable("a b\nc").as_deref(), Some("a_b_c"));
        assert_eq!(
            printable(&"ä".repeat(100)).unwrap().len(),
            APP_NAME_BYTES_MAX
        );
        assert_eq!(printable(""), None);
    }

    #[test]
    fn labels_at_their_edges() {
        for sound in ["a", "0", "org.example.App", "A_b-c.9", &"x".repeat(64)] {
            assert!(is_label(sound), "{sound}");
        }
        let long = "x".repeat(65);
        for bad in [
            "", ".a", "-a", "_a", "a b", "a/b", "ä", "a\n", "(others)", &long,
        ] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_process_is_known_by_its_own_name() {
        use interprocess::local_socket::traits::tokio::{Listener as _, Stream as _};
        use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName as _};
        use std::process::{Command, Stdio};
        const SOCKET: &str = "HEARTH_TEST_CONNECT_TO";

        // The same program under another name: it connects and waits to be told to end.
        if let Some(path) = std::env::var_os(SOCKET) {
            let name = path.to_fs_name::<GenericFilePath>().unwrap();
            let _stream = Stream::connect(name).await.unwrap();
            std::io::stdin().read_line(&mut String::new()).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("an-app-of-a-long-name");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let path = dir.path().join("s.sock");
        let name = path.as_path().to_fs_name::<GenericFilePath>().unwrap();
        let listener = ListenerOptions::new().name(name).create_tokio().unwrap();
        let mut child = Command::new(&program)
            .args(["--exact", "peer::tests::a_process_is_known_by_its_own_name"])
            .env(SOCKET, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stream = listener.accept().await.unwrap();
        let peer = identify(&stream).unwrap();
        assert_eq!(peer.pid, Some(child.id()));
        assert_eq!(peer.sandbox, None);
        // Where tests run within an app's unit, that is the app, and rightly so.
        let unit = app_of_cgroup(&std::fs::read_to_string("/proc/self/cgroup").unwrap());
        assert_eq!(
            peer.app,
            unit.unwrap_or_else(|| "an-app-of-a-lon".to_owned())
        );

        // Through an app socket the launcher's word counts.
        let peer = identify_sandboxed(&stream, "org.example.App", Some("two")).unwrap();
        assert_eq!(
            (peer.app.as_str(), peer.pid),
            ("org.example.App", Some(child.id()))
        );
        assert_eq!(peer.sandbox.unwrap().instance.as_deref(), Some("two"));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        // The process is gone: nobody else's name is taken for its own.
        assert_eq!(identify(&stream).unwrap().app, "unknown");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_name() {
        assert_ne!(app_of(std::process::id()), "unknown");
    }
}
