//! What can go wrong with a hub. It does not know exit codes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A pull that does not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// A variable of the environment has an unusable value.
    #[error("{name} {problem}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// What was asked for is no source.
    #[error("{0}")]
    Source(String),
    /// There are several files to choose from, or none.
    #[error("{0}")]
    Choice(String),
    /// No network may be used.
    #[error("{what} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// What is missing.
        what: String,
    },
    /// No answer.
    #[error("{host} cannot be reached")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// Too little, too late.
    #[error("{host} went silent, or sends next to nothing")]
    Stalled {
        /// The host.
        host: String,
    },
    /// Not there.
    #[error("the hub has no {what}")]
    NotFound {
        /// What.
        what: String,
    },
    /// The hub wants to know who asks, or knows and refuses.
    #[error("the hub does not give {what} to {who}", who = if *.known { "this account" } else { "strangers" })]
    Denied {
        /// What.
        what: String,
        /// Whether a token was shown.
        known: bool,
    },
    /// Too many requests.
    #[error("the hub is asked too often")]
    TooOften {
        /// When to try again, if it said.
        retry_after: Option<Duration>,
    },
    /// Another status.
    #[error("{host} answered with status {status}")]
    Status {
        /// The host.
        host: String,
        /// The status.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {why}")]
    Redirect {
        /// The host.
        host: String,
        /// Where to.
        why: &'static str,
    },
    /// An answer that is not what a hub answers.
    #[error("the hub's answer is not sound: {0}")]
    Answer(String),
    /// A file that is not the one that was published.
    #[error("{file} is not what was published: {why}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// The disk is too small.
    #[error("{needed_bytes} bytes are needed, the disk of the store has {free_bytes} left")]
    NoSpace {
        /// Needed.
        needed_bytes: u64,
        /// Free.
        free_bytes: u64,
    },
    /// Another process fetches the same.
    #[error("the same is being fetched by another process")]
    Busy,
    /// The disk fails, or what lies there is not what it should be.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HubError {
    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !matches!(
                source.as_ref(),
                ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::LargeResponseHeader(..)
            ),
            Self::Stalled { .. } => true,
            _ => false,
        }
    }
}

/// Makes an error of the disk.
pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> HubError + use<'a> {
    move |source| HubError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}
