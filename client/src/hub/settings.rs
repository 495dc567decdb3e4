//! What the environment says about the hub: the variables that its own tools know too.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::Uri;

use super::error::HubError;
use super::limits::{SILENCE, SILENCE_MAX, TOKEN_BYTES_MAX};

/// The hub, unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";

/// How to reach the hub.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Scheme and host, without a slash at the end.
    pub(crate) endpoint: String,
    /// What tells the hub who asks.
    pub(super) token: Option<String>,
    /// The local cache of the hub's own tools.
    pub(super) cache: Option<PathBuf>,
    /// Whether no network may be used.
    pub(crate) offline: bool,
    /// How long the hub may be silent.
    pub(super) silence: Duration,
    /// Root certificates to trust in the place of the system's.
    pub(super) roots: Option<PathBuf>,
}

impl std::fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT` and `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// One has an unusable value.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let path = |name| set(name).map(PathBuf::from);
        let text = |name: &'static str| match set(name).map(OsString::into_string) {
            Some(Err(_)) => Err(unusable(name, "is not UTF-8")),
            Some(Ok(text)) => Ok(Some(text)),
            None => Ok(None),
        };
        let on = |name| {
            let value = set(name).map(|value| value.to_string_lossy().to_ascii_lowercase());
            matches!(value.as_deref(), Some("1" | "true" | "yes" | "on"))
        };
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let token = match text("HF_TOKEN")? {
            Some(token) => Some(token),
            None if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => path("HF_TOKEN_PATH")
                .or_else(|| below_home("token"))
                .and_then(|path| small_text(&path)),
        };
        let silence = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            Some(seconds) => seconds
                .parse()
                .ok()
                .map(Duration::from_secs)
                .filter(|time| !time.is_zero() && *time <= SILENCE_MAX)
                .ok_or_else(|| unusable("HF_HUB_DOWNLOAD_TIMEOUT", "must be 1 to 3600 seconds"))?,
            None => SILENCE,
        };
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT")?)?,
            token: token.map(checked_token).transpose()?,
            cache: path("HF_HUB_CACHE").or_else(|| below_home("hub")),
            offline: on("HF_HUB_OFFLINE"),
            silence,
            roots: path("SSL_CERT_FILE"),
        })
    }
}

fn unusable(name: &'static str, problem: &str) -> HubError {
    HubError::Setting {
        name,
        problem: problem.to_owned(),
    }
}

/// An address that may be asked: HTTPS, or plain HTTP to this machine.
fn endpoint(asked: Option<String>) -> Result<String, HubError> {
    let asked = asked.unwrap_or_else(|| ENDPOINT.to_owned());
    let asked = asked.trim_end_matches('/');
    let uri: Option<Uri> = asked.parse().ok();
    let sound = uri.as_ref().is_some_and(|uri| {
        let plain = uri.path().trim_matches('/').is_empty() && uri.query().is_none();
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => uri.host().is_some_and(is_this_machine),
            _ => false,
        };
        plain && host && secure && !asked.contains('@')
    });
    if sound {
        Ok(asked.to_owned())
    } else {
        let problem = "must be https://HOST (or http:// to this machine)";
        Err(unusable("HF_ENDPOINT", problem))
    }
}

/// Whether a host is this machine, by its name.
pub(super) fn is_this_machine(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// A token goes into a header: visible ASCII alone.
fn checked_token(token: String) -> Result<String, HubError> {
    let token = token.trim();
    if token.bytes().all(|byte| byte.is_ascii_graphic()) && token.len() <= 512 {
        Ok(token.to_owned())
    } else {
        Err(unusable("HF_TOKEN", "is no token"))
    }
}

/// The text of a small file, if there is one.
fn small_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::read(&|name| {
            let found = variables.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_environment_is_heard() {
        let none = read(&[("HOME", "/home/a")]).unwrap();
        assert_eq!(none.endpoint, ENDPOINT);
        assert_eq!(
            none.cache.unwrap(),
            Path::new("/home/a/.cache/huggingface/hub")
        );
        assert!(none.token.is_none() && !none.offline);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_abc\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let set = read(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "1")]).unwrap();
        assert_eq!(set.token.as_deref(), Some("hf_abc"));
        assert!(set.offline && !format!("{set:?}").contains("hf_abc"));
        let quiet = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(read(&quiet).unwrap().token, None);
        let cache = read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", home)]).unwrap();
        assert_eq!(cache.cache.unwrap(), Path::new("/c"));
        for good in [
            "https://mirror.example/",
            "http://127.0.0.1:80",
            "http://[::1]:80",
        ] {
            assert!(read(&[("HF_ENDPOINT", good)]).is_ok(), "{good}");
        }
        for (name, bad) in [
            ("HF_ENDPOINT", "http://mirror.example"),
            ("HF_ENDPOINT", "file:///etc"),
            ("HF_ENDPOINT", "https://a@b"),
            ("HF_ENDPOINT", "https://a/b"),
            ("HF_ENDPOINT", "x"),
            ("HF_TOKEN", "a\nb"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "x"),
        ] {
            assert!(read(&[(name, bad)]).is_err(), "{name}={bad}");
        }
    }
}
