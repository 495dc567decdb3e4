//! What a failure to talk with the daemon means to the person: which kind it is and what to do. It does
//! not know which command ran, nor how a failure is shown.

use hearth::{Error, RpcError};
use tonic::Code;

use crate::duration::seconds;
use crate::exit::{Failure, Kind};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, hint) = match &error {
            Error::Endpoint(_) => (
                Kind::Usage,
                Some("set HEARTH_SOCKET, or give --socket, an absolute and short path".to_owned()),
            ),
            Error::NotRunning { .. } => (
                Kind::Unreachable,
                Some(
                    "start it with `hearthd`; commands that need it do so by themselves, unless --no-start or HEARTH_AUTOSTART=0 forbids it"
                        .to_owned(),
                ),
            ),
            Error::Refused { pid, .. } => (
                Kind::Unreachable,
                Some(match pid {
                    Some(pid) => {
                        format!("look at its log, or end it with `kill {pid}` and try again")
                    }
                    None => "`hearth doctor` looks for the cause".to_owned(),
                }),
            ),
            Error::Denied { .. } => (
                Kind::Denied,
                Some(
                    "the daemon serves one user: run as that user, or start a daemon of your own"
                        .to_owned(),
                ),
            ),
            Error::ProgramNotFound => (
                Kind::Unreachable,
                Some("put `hearthd` beside `hearth` or in PATH".to_owned()),
            ),
            Error::Spawn { .. } => (Kind::Unreachable, None),
            Error::DaemonExited { log, .. } | Error::StartTimeout { log, .. } => (
                Kind::Unreachable,
                Some(format!("its log is {}", log.display())),
            ),
            Error::Rpc(rpc) => (kind_of_rpc(rpc), hint_of_rpc(rpc)),
            Error::Protocol(_) => (Kind::Runtime, None),
        };
        Self {
            kind,
            source: Box::new(error),
            hint,
        }
    }
}

/// Kind of an RPC error: the reason in its ErrorInfo first, then its code.
fn kind_of_rpc(rpc: &RpcError) -> Kind {
    match rpc.reason.as_deref() {
        Some("CONTEXT_OVERFLOW") => return Kind::ContextOverflow,
        Some("SCHEMA_UNMET") => return Kind::SchemaUnmet,
        Some("LOAD_IN_PROGRESS" | "STORE_BUSY") => return Kind::Busy,
        Some("OUT_OF_GPU_MEMORY" | "BAD_MODEL_FILE") => return Kind::ModelUnavailable,
        Some("STORAGE" | "SOCKET") => return Kind::Runtime,
        Some(reason) if reason.contains("DEFERRED") => return Kind::Deferred,
        _ => {}
    }
    match rpc.code {
        Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists => Kind::Usage,
        Code::PermissionDenied | Code::Unauthenticated => Kind::Denied,
        Code::NotFound | Code::FailedPrecondition => Kind::ModelUnavailable,
        Code::ResourceExhausted => Kind::Busy,
        // The daemon says why it is not available; silence means that the connection broke.
        Code::Unavailable if rpc.reason.is_some() || rpc.retry_after.is_some() => {
            Kind::ModelUnavailable
        }
        Code::Unavailable => Kind::Unreachable,
        _ => Kind::Runtime,
    }
}

/// Advice for an RPC error.
fn hint_of_rpc(rpc: &RpcError) -> Option<String> {
    if let Some(after) = rpc.retry_after {
        let again = format!("try again in {}", seconds(after));
        return Some(match rpc.reason.as_deref() {
            Some("QUEUE_FULL" | "APP_QUEUE_FULL") => {
                format!("{again}; `hearth run --wait` does so by itself")
            }
            _ => again,
        });
    }
    // The daemon's own words may name the command that helps.
    if rpc.message.contains("`hearth ") {
        return None;
    }
    match rpc.reason.as_deref() {
        Some("NO_CHAT_TEMPLATE") => {
            return Some("`hearth run --raw` continues a text without a chat template".to_owned());
        }
        Some("OUT_OF_GPU_MEMORY") => {
            return Some(
                "a smaller model, or a shorter context in the daemon's settings, may fit"
                    .to_owned(),
            );
        }
        Some("BAD_MODEL_FILE" | "STORAGE" | "SOCKET") => return None,
        _ => {}
    }
    match kind_of_rpc(rpc) {
        Kind::Usage if rpc.code == Code::AlreadyExists => {
            Some("give it another name with --name".to_owned())
        }
        Kind::ContextOverflow => Some(
            "shorten the prompt, or use --allow-truncation to drop its oldest part".to_owned(),
        ),
        Kind::ModelUnavailable => Some(
            "`hearth ls` shows the models, `hearth import FILE` adds one, `hearth load NAME` makes it warm"
                .to_owned(),
        ),
        Kind::Unreachable => {
            Some("the daemon went away; `hearth status` tells whether it runs again".to_owned())
        }
        Kind::Busy => Some("try again in a moment".to_owned()),
        Kind::Runtime if rpc.code == Code::DeadlineExceeded => {
            Some("give it longer with --timeout".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::path::PathBuf;
    use std::time::Duration;

    fn rpc(code: Code, reason: Option<&str>, retry_after: Option<Duration>) -> RpcError {
        RpcError {
            code,
            message: "the message".to_owned(),
            reason: reason.map(str::to_owned),
            metadata: Vec::new(),
            violations: Vec::new(),
            retry_after,
        }
    }

    fn failure(code: Code, reason: Option<&str>, retry_after: Option<Duration>) -> Failure {
        Failure::from(Error::Rpc(Box::new(rpc(code, reason, retry_after))))
    }

    #[test]
    fn rpc_errors_have_the_right_kind() {
        let soon = Some(Duration::from_secs(2));
        let table = [
            (
                Code::InvalidArgument,
                Some("CONTEXT_OVERFLOW"),
                None,
                Kind::ContextOverflow,
            ),
            (Code::InvalidArgument, None, None, Kind::Usage),
            (Code::PermissionDenied, None, None, Kind::Denied),
            (
                Code::PermissionDenied,
                Some("SANDBOXED"),
                None,
                Kind::Denied,
            ),
            (
                Code::FailedPrecondition,
                Some("SOCKET"),
                None,
                Kind::Runtime,
            ),
            (
                Code::NotFound,
                Some("MODEL_NOT_FOUND"),
                None,
                Kind::ModelUnavailable,
            ),
            (
                Code::FailedPrecondition,
                Some("NO_MODEL"),
                None,
                Kind::ModelUnavailable,
            ),
            (
                Code::ResourceExhausted,
                Some("QUEUE_FULL"),
                soon,
                Kind::Busy,
            ),
            (
                Code::ResourceExhausted,
                Some("DEFERRED_BY_POWER"),
                soon,
                Kind::Deferred,
            ),
            (Code::Unavailable, None, soon, Kind::ModelUnavailable),
            (Code::Unavailable, None, None, Kind::Unreachable),
            (
                Code::FailedPrecondition,
                Some("SCHEMA_UNMET"),
                None,
                Kind::SchemaUnmet,
            ),
            (Code::Internal, None, None, Kind::Runtime),
            (Code::Unimplemented, None, None, Kind::Runtime),
        ];
        for (code, reason, retry, kind) in table {
            assert_eq!(
                failure(code, reason, retry).kind,
                kind,
                "{code:?} {reason:?}"
            );
        }
    }

    #[test]
    fn the_hint_stands_after_a_blank_line() {
        let text = failure(
            Code::ResourceExhausted,
            None,
            Some(Duration::from_millis(1500)),
        )
        .render();
        assert_eq!(text, "hearth: the message\n\nhint: try again in 2 s\n");
    }

    #[test]
    fn not_running_and_refused_differ() {
        let socket = PathBuf::from("/run/user/1/hearth/hearthd.sock");
        let no = Failure::from(Error::NotRunning {
            socket: socket.clone(),
        });
        assert_eq!(no.kind, Kind::Unreachable);
        assert!(no.message().contains("not running"), "{}", no.message());
        let refused = Failure::from(Error::Refused {
            socket,
            pid: Some(42),
            source: io::Error::from(io::ErrorKind::ConnectionRefused),
        });
        assert!(
            refused.message().contains("pid 42"),
            "{}",
            refused.message()
        );
        assert!(refused.render().contains("kill 42"));
    }
}
