//! Errors as gRPC statuses with `google.rpc` details: the one place that decides on codes.
//!
//! Every status carries an `ErrorInfo` with a stable reason. No message here quotes a prompt.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use hearth_engine::{EngineError, LoadError, SubmitError};
use hearth_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::limits::{MEMORY_RETRY_DELAY, POWER_RETRY_DELAY, RETRY_DELAY};
use crate::socket::SocketError;
use crate::store::StoreError;

/// An error with a reason that programs can rely on.
pub(crate) struct Fault {
    code: Code,
    message: String,
    details: ErrorDetails,
}

/// Begins a status.
pub(crate) fn fault(code: Code, reason: &str, message: impl Into<String>) -> Fault {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Fault {
        code,
        message: message.into(),
        details,
    }
}

impl Fault {
    /// Adds facts.
    pub(crate) fn facts<const N: usize>(mut self, facts: [(&str, String); N]) -> Self {
        if let Some(info) = self.details.error_info() {
            let reason = info.reason.clone();
            let facts: HashMap<String, String> = facts
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect();
            self.details.set_error_info(reason, ERROR_DOMAIN, facts);
        }
        self
    }

    /// Says when to try again.
    pub(crate) fn retry(mut self, delay: Duration) -> Self {
        self.details.set_retry_info(Some(delay));
        self
    }

    /// Names the field at fault.
    pub(crate) fn at(mut self, field: &str) -> Self {
        let message = self.message.clone();
        self.details.add_bad_request_violation(field, message);
        self
    }

    /// Ends it.
    pub(crate) fn status(self) -> Status {
        Status::with_error_details(self.code, self.message, self.details)
    }
}

/// A field that cannot be what it is.
pub(crate) fn bad_field(field: &str, problem: impl AsRef<str>) -> Status {
    let message = format!("{field}: {}", problem.as_ref());
    fault(Code::InvalidArgument, "BAD_FIELD", message)
        .at(field)
        .status()
}

/// Something that a later version brings.
pub(crate) fn not_in_this_version(what: &str) -> Status {
    let message = format!("{what} is not part of this version");
    fault(Code::Unimplemented, "NOT_IN_THIS_VERSION", message).status()
}

/// The daemon is about to stop.
pub(crate) fn draining() -> Status {
    fault(Code::Unavailable, "DRAINING", "the daemon is stopping")
        .retry(RETRY_DELAY)
        .status()
}

/// A sandboxed app asked for what it may not have.
pub(crate) fn sandboxed(what: &str, app: &str) -> Status {
    let message = format!(
        "{what} is not for sandboxed apps, and this connection came through the app socket of `{app}`"
    );
    fault(Code::PermissionDenied, "SANDBOXED", message)
        .facts([("app", app.to_owned())])
        .status()
}

/// An app socket could not be made.
pub(crate) fn of_socket(error: &SocketError) -> Status {
    fault(Code::FailedPrecondition, "SOCKET", chain(error)).status()
}

/// The model is on its way.
pub(crate) fn loading() -> Status {
    fault(Code::Unavailable, "LOADING", "the model is being loaded")
        .retry(RETRY_DELAY)
        .status()
}

/// There is nothing to answer with. `why`: a failed load or the like.
pub(crate) fn no_model(why: Option<&str>) -> Status {
    let mut message = "no model is warm; `hearth import FILE` brings one here, `hearth load NAME` \
                       warms it"
        .to_owned();
    if let Some(why) = why {
        let _ = write!(message, " ({why})");
    }
    fault(Code::FailedPrecondition, "NO_MODEL", message).status()
}

/// Nobody waits for it, and the battery is nearly empty.
pub(crate) fn deferred_by_power() -> Status {
    let message = "background requests are refused while the battery is nearly empty or the \
                   machine too hot";
    fault(Code::ResourceExhausted, "DEFERRED_BY_POWER", message)
        .retry(POWER_RETRY_DELAY)
        .status()
}

/// The model is unloaded and may not be loaded now. `why`: the plan's reason.
pub(crate) fn memory_short(why: &str) -> Status {
    let message = format!("the model is unloaded until memory is free again: {why}");
    fault(Code::Unavailable, "MEMORY_SHORT", message)
        .retry(MEMORY_RETRY_DELAY)
        .status()
}

/// The GPU could not be opened.
pub(crate) fn no_gpu(why: &str) -> Status {
    let message = format!("the GPU could not be opened: {why}");
    fault(Code::FailedPrecondition, "NO_GPU", message).status()
}

/// The reason of [`model_pinned`].
const MODEL_PINNED: &str = "MODEL_PINNED";

/// The model that was asked for is not warm, and `other` is, or will be.
pub(crate) fn not_warm(asked: &str, other: &str) -> Status {
    let message = format!("model `{asked}` is not warm; `{other}` is");
    fault(Code::NotFound, "MODEL_NOT_WARM", message)
        .facts([("asked", asked.to_owned()), ("warm", other.to_owned())])
        .at("model")
        .status()
}

/// A pinned model makes way for no other.
pub(crate) fn model_pinned(name: &str) -> Status {
    let message = format!(
        "there is no room beside model `{name}`, which is pinned; `hearth unpin {name}` lets another \
         take its place"
    );
    fault(Code::FailedPrecondition, MODEL_PINNED, message)
        .facts([("pinned", name.to_owned())])
        .status()
}

/// The replies of a model that is to make way are not done in time.
pub(crate) fn model_busy(name: &str) -> Status {
    let message = format!(
        "model `{name}` still answers; try again later, or end its replies with `hearth unload {name}`"
    );
    fault(Code::Unavailable, "MODEL_BUSY", message)
        .facts([("busy", name.to_owned())])
        .retry(RETRY_DELAY)
        .status()
}

/// Whether what stopped a load may be otherwise soon: there was no room, or the GPU failed.
pub(crate) fn may_pass(status: &Status) -> bool {
    use tonic_types::StatusExt as _;
    let pinned = |info: tonic_types::ErrorInfo| info.reason == MODEL_PINNED;
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable)
        || status.get_details_error_info().is_some_and(pinned)
}

/// A bug of ours. The log has the details.
pub(crate) fn bug() -> Status {
    fault(
        Code::Internal,
        "BUG",
        "a bug of the daemon; its log says where",
    )
    .status()
}

/// A reply ended because the GPU does not come back; the log and the status say why.
pub(crate) fn gpu_lost() -> Status {
    let message = "the GPU failed, and the reply could not go on";
    fault(Code::Unavailable, "GPU_LOST", message)
        .retry(RETRY_DELAY)
        .status()
}

/// Too many conversations wait to be rendered.
pub(crate) fn renders_waiting() -> Status {
    let message = "too many conversations wait to be rendered";
    fault(Code::ResourceExhausted, "QUEUE_FULL", message)
        .retry(RETRY_DELAY)
        .status()
}

/// The stream's reader took nothing for too long.
pub(crate) fn reader_stalled() -> Status {
    fault(
        Code::ResourceExhausted,
        "READER_STALLED",
        "the reader took nothing for too long",
    )
    .status()
}

/// The deadline passed before the model could begin.
pub(crate) fn deadline_exceeded() -> Status {
    fault(
        Code::DeadlineExceeded,
        "DEADLINE",
        "the deadline passed before the model could begin",
    )
    .status()
}

/// The prompt does not fit the context; `context_len`: what it holds now, and when power and memory
/// allow all.
pub(crate) fn context_overflow(prompt_tokens: u64, context_len: [u32; 2], field: &str) -> Status {
    let [now, most] = context_len;
    let mut message = format!("the prompt has {prompt_tokens} tokens; the context holds {now}");
    if now < most {
        message += &format!(" to save power or memory, {most} otherwise");
    }
    fault(Code::InvalidArgument, "CONTEXT_OVERFLOW", message)
        .facts([
            ("prompt_tokens", prompt_tokens.to_string()),
            ("context_len", now.to_string()),
            ("model_context_len", most.to_string()),
        ])
        .at(field)
        .status()
}

/// Why the engine did not take a request. `field`: where the prompt came from.
pub(crate) fn of_submit(error: &SubmitError, field: &str) -> Status {
    match error {
        SubmitError::NoModel => no_model(None),
        SubmitError::EmptyPrompt => bad_field(field, "has no tokens"),
        SubmitError::TokenOutOfRange {
            id,
            position,
            vocab_size,
        } => bad_field(
            &format!("{field}[{position}]"),
            format!("token {id} is not in the vocabulary of {vocab_size}"),
        ),
        SubmitError::ContextOverflow {
            prompt_tokens,
            context_len,
            model_context_len,
        } => context_overflow(
            u64::from(*prompt_tokens),
            [*context_len, *model_context_len],
            field,
        ),
        SubmitError::Param(error) => bad_field(
            &format!("options.sampling.{}", error.field),
            format!("must be {}, not {}", error.allowed, error.value),
        ),
        SubmitError::Field { field, problem } => bad_field(&format!("options.{field}"), problem),
        SubmitError::QueueFull {
            waiting,
            retry_after,
        } => fault(Code::ResourceExhausted, "QUEUE_FULL", error.to_string())
            .facts([("waiting", waiting.to_string())])
            .retry(*retry_after)
            .status(),
        SubmitError::AppQueueFull {
            waiting,
            waiting_max,
            retry_after,
        } => fault(Code::ResourceExhausted, "APP_QUEUE_FULL", error.to_string())
            .facts([
                ("waiting", waiting.to_string()),
                ("waiting_max", waiting_max.to_string()),
            ])
            .retry(*retry_after)
            .status(),
        SubmitError::Stopped => draining(),
    }
}

/// Why a model could not be loaded.
pub(crate) fn of_load(error: &LoadError) -> Status {
    let message = chain(error);
    match error {
        LoadError::Format(_)
        | LoadError::Model(_)
        | LoadError::Tokenizer(_)
        | LoadError::Template(_)
        | LoadError::ZeroPoint { .. }
        | LoadError::FileChanged => {
            fault(Code::FailedPrecondition, "BAD_MODEL_FILE", message).status()
        }
        LoadError::OutOfMemory {
            needed_bytes,
            granted_bytes,
        } => {
            let refusal = fault(Code::ResourceExhausted, "OUT_OF_GPU_MEMORY", message);
            let needed = ("needed_bytes", needed_bytes.to_string());
            match granted_bytes {
                Some(bytes) => refusal.facts([needed, ("granted_bytes", bytes.to_string())]),
                None => refusal.facts([needed]),
            }
            .status()
        }
        LoadError::Cancelled => fault(Code::Cancelled, "CANCELLED", message).status(),
        LoadError::Engine(error) => of_engine(error),
    }
}

/// Why the engine does not run.
pub(crate) fn of_engine(error: &EngineError) -> Status {
    match error {
        EngineError::NoAdapter { .. }
        | EngineError::AdapterGone { .. }
        | EngineError::AdapterLacks { .. } => no_gpu(&chain(error)),
        EngineError::Device(_) => fault(Code::Unavailable, "DEVICE", chain(error))
            .retry(RETRY_DELAY)
            .status(),
        EngineError::KernelRefused { .. } => {
            fault(Code::FailedPrecondition, "KERNEL_REFUSED", chain(error)).status()
        }
        EngineError::Thread(_) => bug(),
        EngineError::Stopped => draining(),
    }
}

/// Why the store did not do what was asked.
pub(crate) fn of_store(error: &StoreError) -> Status {
    let message = chain(error);
    let bad_path = |message| {
        fault(
            Code::InvalidArgument,
            "BAD_FIELD",
            format!("path: {message}"),
        )
        .at("path")
        .status()
    };
    match error {
        StoreError::Name(_) => fault(Code::InvalidArgument, "BAD_FIELD", message)
            .at("name")
            .status(),
        StoreError::NotFound { name } => fault(Code::NotFound, "MODEL_NOT_FOUND", message)
            .facts([("asked", name.clone())])
            .at("model")
            .status(),
        StoreError::NameTaken { name } => fault(Code::AlreadyExists, "NAME_TAKEN", message)
            .facts([("name", name.clone())])
            .at("name")
            .status(),
        StoreError::NotAbsolute
        | StoreError::NotAFile
        | StoreError::Several { .. }
        | StoreError::NotAPull
        | StoreError::Unopenable(_)
        | StoreError::Changed => bad_path(message),
        StoreError::BadModel(_) | StoreError::Quantize(_) | StoreError::NotAsPublished { .. } => {
            fault(Code::InvalidArgument, "BAD_MODEL_FILE", message)
                .at("path")
                .status()
        }
        StoreError::NoSpace {
            needed_bytes,
            free_bytes,
        } => fault(Code::FailedPrecondition, "STORAGE", message)
            .facts([
                ("needed_bytes", needed_bytes.to_string()),
                ("free_bytes", free_bytes.to_string()),
            ])
            .status(),
        StoreError::Full | StoreError::Io { .. } => {
            fault(Code::FailedPrecondition, "STORAGE", message).status()
        }
        StoreError::Cancelled => fault(Code::Cancelled, "CANCELLED", message).status(),
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: &Status) -> String {
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.domain, "hearth.v1");
        info.reason
    }

    #[test]
    fn overflow_tells_the_counts() {
        let error = SubmitError::ContextOverflow {
            prompt_tokens: 9000,
            context_len: 8192,
            model_context_len: 8192,
        };
        let status = of_submit(&error, "messages");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status), "CONTEXT_OVERFLOW");
        let facts = status.get_details_error_info().unwrap().metadata;
        assert_eq!(facts["prompt_tokens"], "9000");
        assert_eq!(facts["context_len"], "8192");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "messages");
    }

    #[test]
    fn refusals_for_load_say_when_to_come_back() {
        let retry_after = Duration::from_millis(2_500);
        let full = SubmitError::QueueFull {
            waiting: 256,
            retry_after,
        };
        let app_full = SubmitError::AppQueueFull {
            waiting: 9,
            waiting_max: 8,
            retry_after,
        };
        for (error, wanted) in [(full, "QUEUE_FULL 256 -"), (app_full, "APP_QUEUE_FULL 9 8")] {
            let status = of_submit(&error, "prompt");
            assert_eq!(status.code(), Code::ResourceExhausted);
            let told = status.get_details_error_info().unwrap().metadata;
            let fact = |key| told.get(key).map_or("-", String::as_str);
            let (waiting, most) = (fact("waiting"), fact("waiting_max"));
            assert_eq!(format!("{} {waiting} {most}", reason(&status)), wanted);
            let retry = status.get_details_retry_info().unwrap();
            assert_eq!(retry.retry_delay, Some(retry_after), "{wanted}");
        }
        for status in [draining(), loading(), gpu_lost()] {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.get_details_retry_info().is_some());
        }
    }

    #[test]
    fn a_parameter_is_named_by_its_path() {
        let params = hearth_engine::SamplingParams {
            top_p: f32::NAN,
            ..Default::default()
        };
        let error = SubmitError::Param(params.check().unwrap_err());
        let status = of_submit(&error, "prompt");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "options.sampling.top_p");
    }

    #[test]
    fn codes_of_loads() {
        let cases = [
            (
                LoadError::OutOfMemory {
                    needed_bytes: 2,
                    granted_bytes: Some(1),
                },
                Code::ResourceExhausted,
                "OUT_OF_GPU_MEMORY",
            ),
            (LoadError::Cancelled, Code::Cancelled, "CANCELLED"),
            (
                LoadError::Engine(EngineError::Stopped),
                Code::Unavailable,
                "DRAINING",
            ),
            (
                LoadError::Engine(EngineError::NoAdapter {
                    wanted: "discrete".to_owned(),
                    found: "none".to_owned(),
                }),
                Code::FailedPrecondition,
                "NO_GPU",
            ),
        ];
        for (error, code, wanted) in cases {
            let status = of_load(&error);
            assert_eq!((status.code(), reason(&status).as_str()), (code, wanted));
        }
    }

    #[test]
    fn what_is_to_come_says_so() {
        let status = not_in_this_version("Embed");
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.message(), "Embed is not part of this version");
    }
}
