//! What can go wrong between an app and the daemon, with the daemon's error details decoded.
//! It does not know how errors are shown, or which exit code they get.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use hearth_proto::endpoint::EndpointError;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A failure to reach the daemon, or its answer to a request that it did not fulfil.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not clear where the socket is.
    #[error("cannot tell where the daemon's socket is")]
    Endpoint(#[from] EndpointError),
    /// No daemon runs: there is no socket, or nobody listens and nobody holds the lock.
    #[error("the daemon is not running (no one listens on {socket})", socket = socket.display())]
    NotRunning {
        /// Where it would listen.
        socket: PathBuf,
    },
    /// A daemon seems to run, but does not take the connection.
    #[error(
        "the daemon{who} does not answer on {socket}",
        who = pid.map(|pid| format!(" runs as pid {pid}, but")).unwrap_or_default(),
        socket = socket.display()
    )]
    Refused {
        /// The socket that was tried.
        socket: PathBuf,
        /// Its process id, as its lock file says.
        pid: Option<u32>,
        /// What connecting said.
        source: io::Error,
    },
    /// The socket or its directory belongs to someone else.
    #[error("no permission to use the socket {socket}", socket = socket.display())]
    Denied {
        /// The socket that was tried.
        socket: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// The daemon was to be started, but its program is nowhere to be found.
    #[error("the program hearthd is neither beside this one nor in PATH")]
    ProgramNotFound,
    /// The daemon's program could not be run.
    #[error("cannot start {program}", program = program.display())]
    Spawn {
        /// The program that was tried.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon was started and ended at once.
    #[error("the daemon ended at its start ({status}){last_line}")]
    DaemonExited {
        /// How it ended.
        status: ExitStatus,
        /// The last line of its log with `: ` before it, or nothing.
        last_line: String,
        /// Its log.
        log: PathBuf,
    },
    /// The daemon was started, but did not answer in time.
    #[error("the daemon was started as pid {pid}, but did not answer within {waited_ms} ms")]
    StartTimeout {
        /// Its process id.
        pid: u32,
        /// How long it was waited for.
        waited_ms: u128,
        /// Its log.
        log: PathBuf,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Rpc(#[from] Box<RpcError>),
    /// The daemon's answer breaks the contract.
    #[error("the daemon's answer is not what hearth.v1 promises: {0}")]
    Protocol(&'static str),
}

/// An error that the daemon answered, with its google.rpc details.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", text(.code, .message, .violations))]
pub struct RpcError {
    /// The gRPC status code.
    pub code: Code,
    /// The daemon's words.
    pub message: String,
    /// The reason in its ErrorInfo, such as `CONTEXT_OVERFLOW`.
    pub reason: Option<String>,
    /// The facts in its ErrorInfo, sorted by name.
    pub metadata: Vec<(String, String)>,
    /// Fields that were wrong, each with what is wrong about it.
    pub violations: Vec<(String, String)>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
}

/// The message, then every violation it does not mention.
fn text(code: &Code, message: &str, violations: &[(String, String)]) -> String {
    let mut text = match message {
        "" => format!("the daemon gave no reason ({})", code.description()),
        message => message.to_owned(),
    };
    for (field, what) in violations {
        if !field.is_empty()
            && ![field, what]
                .iter()
                .any(|part| message.contains(part.as_str()))
        {
            text.push_str(&format!("; {field}: {what}"));
        }
    }
    text
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let mut metadata: Vec<(String, String)> = info
            .map(|info| {
                info.metadata
                    .iter()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            })
            .unwrap_or_default();
        metadata.sort();
        Self::Rpc(Box::new(RpcError {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info
                .map(|info| info.reason.clone())
                .filter(|reason| !reason.is_empty()),
            metadata,
            violations: details
                .bad_request()
                .map(|bad| {
                    bad.field_violations
                        .iter()
                        .map(|v| (v.field.clone(), v.description.clone()))
                        .collect()
                })
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn details_are_decoded() {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            "CONTEXT_OVERFLOW",
            "hearth.v1",
            HashMap::from([("prompt_tokens".to_owned(), "9000".to_owned())]),
        );
        details.set_retry_info(Some(Duration::from_secs(3)));
        details.add_bad_request_violation("sampling.top_p", "must be at most 1");
        let status = Status::with_error_details(Code::InvalidArgument, "too much", details);
        let Error::Rpc(rpc) = Error::from(status) else {
            panic!("an RPC error")
        };
        assert_eq!(rpc.reason.as_deref(), Some("CONTEXT_OVERFLOW"));
        assert_eq!(rpc.retry_after, Some(Duration::from_secs(3)));
        assert_eq!(
            rpc.metadata,
            [("prompt_tokens".to_owned(), "9000".to_owned())]
        );
        assert_eq!(
            rpc.to_string(),
            "too much; sampling.top_p: must be at most 1"
        );
    }

    #[test]
    fn a_violation_that_repeats_the_message_is_said_once() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("messages", "too long");
        let status = Status::with_error_details(Code::InvalidArgument, "too long", details);
        assert_eq!(Error::from(status).to_string(), "too long");
    }

    #[test]
    fn a_bare_status_is_its_message() {
        let Error::Rpc(rpc) = Error::from(Status::new(Code::Internal, "")) else {
            panic!("an RPC error")
        };
        assert!(
            rpc.to_string().starts_with("the daemon gave no reason ("),
            "{rpc}"
        );
        assert_eq!(rpc.reason, None);
    }
}
