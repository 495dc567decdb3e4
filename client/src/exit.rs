//! How a command fails: one kind, one cause, one hint, and the exit code that goes with the kind.
//! It does not know which command ran.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

/// What kind of failure ended a command. Scripts see it as the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything that has no kind of its own.
    Runtime,
    /// The command line or a parameter is wrong.
    Usage,
    /// The caller may not do that.
    Denied,
    /// The prompt is longer than the context.
    ContextOverflow,
    /// No model is loaded, or not this one, or it is not ready.
    ModelUnavailable,
    /// The queue is full or a quota is spent.
    Busy,
    /// The reply does not fit the schema that was asked for.
    SchemaUnmet,
    /// No daemon answers on the socket.
    Unreachable,
    /// The power plan put the request off.
    Deferred,
    /// The user pressed Ctrl-C.
    Interrupted,
    /// A command that was run failed, with this exit code. It has said why itself.
    Command(u8),
    /// The reader of our output went away: no failure at all, so nothing is said.
    PipeClosed,
}

impl Kind {
    /// Name in `--json` output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Usage => "usage",
            Self::Denied => "denied",
            Self::ContextOverflow => "context_overflow",
            Self::ModelUnavailable => "model_unavailable",
            Self::Busy => "busy",
            Self::SchemaUnmet => "schema_unmet",
            Self::Unreachable => "unreachable",
            Self::Deferred => "deferred",
            Self::Interrupted => "interrupted",
            Self::Command(_) => "command",
            Self::PipeClosed => "pipe_closed",
        }
    }

    /// The exit code of a process that failed so: the only place that says which.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::PipeClosed => 0,
            Self::Runtime => 1,
            Self::Usage => 2,
            Self::Denied => 3,
            Self::ContextOverflow => 4,
            Self::ModelUnavailable => 5,
            Self::Busy => 6,
            Self::SchemaUnmet => 7,
            Self::Unreachable => 8,
            Self::Deferred => 9,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }
}

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Its kind, which decides the exit code.
    pub(crate) kind: Kind,
    /// What went wrong. Never holds a prompt or a reply.
    pub(crate) source: Box<dyn StdError + Send + Sync>,
    /// What the user can do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(kind: Kind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: source.into(),
            hint: None,
        }
    }

    /// A wrong command line or parameter.
    pub(crate) fn usage(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Kind::Usage, source)
    }

    /// The same failure, with advice.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The user pressed Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// Whether anything is to be said on stderr.
    pub(crate) const fn is_quiet(&self) -> bool {
        matches!(
            self.kind,
            Kind::PipeClosed | Kind::Interrupted | Kind::Command(_)
        )
    }

    /// The message with its causes, on one line.
    pub(crate) fn message(&self) -> String {
        let mut message = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many libraries repeat their cause in their own message.
            if !message.contains(&text) {
                let _ = write!(message, ": {text}");
            }
            cause = error.source();
        }
        message
    }

    /// The whole text for stderr, ending with a newline.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("hearth: {}\n", self.message());
        if let Some(hint) = &self.hint {
            let _ = write!(text, "\nhint: {hint}\n");
        }
        text
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::PipeClosed,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Runtime,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
        let table = [
            (Kind::PipeClosed, 0),
            (Kind::Runtime, 1),
            (Kind::Usage, 2),
            (Kind::Denied, 3),
            (Kind::ContextOverflow, 4),
            (Kind::ModelUnavailable, 5),
            (Kind::Busy, 6),
            (Kind::SchemaUnmet, 7),
            (Kind::Unreachable, 8),
            (Kind::Deferred, 9),
            (Kind::Interrupted, 130),
            (Kind::Command(42), 42),
        ];
        for (kind, code) in table {
            assert_eq!(kind.exit_code(), code, "{}", kind.name());
        }
    }

    #[test]
    fn a_failure_without_a_hint_is_one_line() {
        assert_eq!(Failure::usage("no prompt").render(), "hearth: no prompt\n");
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_a_success() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.is_quiet());
        assert_eq!(failure.kind.exit_code(), 0);
    }
}
