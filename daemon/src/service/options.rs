//! The settings of a generation: from the contract's words to the engine's, each field checked.
//!
//! Ranges that the engine checks are checked by the engine's own code; here is what it cannot
//! know: defaults, deadlines, fields of later versions.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use hearth_engine::limits::{LOGPROBS_TOP_MAX, STOP_TEXT_BYTES_MAX, STOP_TEXTS_MAX};
use hearth_engine::{CacheScope, Caller, Class, GenerateRequest, SamplingParams};
use hearth_proto::v1;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::deferral::{StartWhen, start_when};
use crate::limits::{DURATION_MAX, KEEP_ALIVE_MAX, MAX_TOKENS_DEFAULT, STOP_TOKENS_MAX};
use crate::status::{bad_field, not_in_this_version};

/// Checked settings.
pub(super) struct Settings {
    /// The engine's request, its prompt still empty.
    pub(super) request: GenerateRequest,
    /// Whether a prompt may be cut.
    pub(super) allow_truncation: bool,
    /// When it may start.
    pub(super) start_when: StartWhen,
    /// How long the model stays warm after it.
    pub(super) keep_alive: Option<Duration>,
}

/// Checks settings. `received` is when the request came, `metadata` its gRPC headers.
///
/// # Errors
/// INVALID_ARGUMENT naming the field, or UNIMPLEMENTED.
pub(super) fn check(
    options: Option<v1::GenerationOptions>,
    received: Instant,
    metadata: &MetadataMap,
    caller: Caller,
) -> Result<Settings, Status> {
    let options = options.unwrap_or_default();
    refuse_later_fields(&options)?;
    let start_when = start_when(options.start_when)?;
    let class = class(options.class, start_when)?;
    let keep_alive = keep_alive("options.keep_alive", options.keep_alive)?;
    let cache_scope = cache_scope(options.cache_scope)?;
    if options.logprobs.is_some_and(|n| n > LOGPROBS_TOP_MAX) {
        let problem = format!("must be from 0 to {LOGPROBS_TOP_MAX}");
        return Err(bad_field("options.logprobs", problem));
    }
    check_stops(&options)?;
    let deadline = match options.deadline {
        Some(time) => Some(received + positive_duration("options.deadline", time)?),
        None => None,
    };
    let sampling = sampling(options.sampling.unwrap_or_default())?;
    Ok(Settings {
        request: GenerateRequest {
            prompt: Vec::new(),
            max_tokens: Some(options.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT)),
            sampling,
            stop: options.stop,
            stop_tokens: options.stop_token_ids,
            ignore_eos: options.ignore_eos,
            logprobs: options.logprobs,
            new_text: false,
            echo: options.echo,
            deadline: [deadline, grpc_deadline(metadata, received)]
                .into_iter()
                .flatten()
                .min(),
            caller,
            class,
            cache_scope,
        },
        allow_truncation: options.allow_truncation,
        start_when,
        keep_alive,
    })
}

/// Nobody waits at the screen for what may start later, unless the request says otherwise.
fn class(class: i32, start_when: StartWhen) -> Result<Class, Status> {
    match v1::Class::try_from(class) {
        Ok(v1::Class::Unspecified) if start_when != StartWhen::Now => Ok(Class::Background),
        Ok(v1::Class::Unspecified | v1::Class::Interactive) => Ok(Class::Interactive),
        Ok(v1::Class::Utility) => Ok(Class::Utility),
        Ok(v1::Class::Background) => Ok(Class::Background),
        Err(_) => Err(bad_field("options.class", "is not a known class")),
    }
}

fn cache_scope(scope: i32) -> Result<CacheScope, Status> {
    match v1::CacheScope::try_from(scope) {
        Ok(v1::CacheScope::Unspecified | v1::CacheScope::App) => Ok(CacheScope::App),
        Ok(v1::CacheScope::Shared) => Ok(CacheScope::Shared),
        Ok(v1::CacheScope::None) => Ok(CacheScope::Nobody),
        Err(_) => Err(bad_field("options.cache_scope", "is not a known scope")),
    }
}

/// Checks how long a model is to stay warm.
///
/// # Errors
/// INVALID_ARGUMENT naming `field`.
pub(super) fn keep_alive(
    field: &str,
    asked: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    match Duration::try_from(asked) {
        Ok(time) if time <= KEEP_ALIVE_MAX => Ok(Some(time)),
        _ => Err(bad_field(
            field,
            format!(
                "must be from 0 to {} days",
                KEEP_ALIVE_MAX.as_secs() / 86_400
            ),
        )),
    }
}

fn refuse_later_fields(options: &v1::GenerationOptions) -> Result<(), Status> {
    if options.output_format.is_some() {
        return Err(not_in_this_version("options.output_format"));
    }
    Ok(())
}

fn check_stops(options: &v1::GenerationOptions) -> Result<(), Status> {
    if options.stop.len() > STOP_TEXTS_MAX {
        return Err(bad_field(
            "options.stop",
            format!("has more than {STOP_TEXTS_MAX} texts"),
        ));
    }
    for (i, stop) in options.stop.iter().enumerate() {
        if stop.is_empty() || stop.len() > STOP_TEXT_BYTES_MAX {
            let problem = format!("must have 1 to {STOP_TEXT_BYTES_MAX} bytes");
            return Err(bad_field(&format!("options.stop[{i}]"), problem));
        }
    }
    if options.stop_token_ids.len() > STOP_TOKENS_MAX {
        let problem = format!("has more than {STOP_TOKENS_MAX} tokens");
        return Err(bad_field("options.stop_token_ids", problem));
    }
    Ok(())
}

/// The defaults here are those that `types.proto` promises.
fn sampling(params: v1::SamplingParams) -> Result<SamplingParams, Status> {
    let params = SamplingParams {
        temperature: params.temperature.unwrap_or(0.7),
        top_k: params.top_k.unwrap_or(40),
        top_p: params.top_p.unwrap_or(0.95),
        min_p: params.min_p.unwrap_or(0.05),
        repeat_penalty: params.repeat_penalty.unwrap_or(1.0),
        frequency_penalty: params.frequency_penalty.unwrap_or(0.0),
        presence_penalty: params.presence_penalty.unwrap_or(0.0),
        seed: params.seed.unwrap_or_else(random_seed),
    };
    params.check().map_err(|error| {
        bad_field(
            &format!("options.sampling.{}", error.field),
            format!("must be {}, not {}", error.allowed, error.value),
        )
    })?;
    Ok(params)
}

/// A seed nobody chose. It need not be secret, only seldom the same: a hash with fresh keys will do.
fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Reads a duration that must be above 0.
///
/// # Errors
/// It is not, or too long to be meant.
pub(super) fn positive_duration(
    field: &str,
    time: prost_types::Duration,
) -> Result<Duration, Status> {
    Duration::try_from(time)
        .ok()
        .filter(|time| !time.is_zero() && *time <= DURATION_MAX)
        .ok_or_else(|| bad_field(field, "must be above 0 and at most 366 days"))
}

/// The `grpc-timeout` header as a point in time. One that cannot be read counts for nothing, as
/// other servers have it.
fn grpc_deadline(metadata: &MetadataMap, received: Instant) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    };
    received.checked_add(timeout.min(DURATION_MAX))
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    fn check_now(options: v1::GenerationOptions) -> Result<Settings, Status> {
        check(
            Some(options),
            Instant::now(),
            &MetadataMap::new(),
            Caller::default(),
        )
    }

    fn field_at_fault(options: v1::GenerationOptions) -> String {
        let status = check_now(options).err().expect("it must be refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        status.get_details_bad_request().unwrap().field_violations[0]
            .field
            .clone()
    }

    fn sampled(change: impl FnOnce(&mut v1::SamplingParams)) -> v1::GenerationOptions {
        let mut sampling = v1::SamplingParams::default();
        change(&mut sampling);
        v1::GenerationOptions {
            sampling: Some(sampling),
            ..Default::default()
        }
    }

    #[test]
    fn defaults_are_the_promised_ones() {
        let settings = check(None, Instant::now(), &MetadataMap::new(), Caller::default()).unwrap();
        let sampling = settings.request.sampling;
        assert_eq!((sampling.temperature, sampling.top_k), (0.7, 40));
        assert_eq!((sampling.top_p, sampling.min_p), (0.95, 0.05));
        assert_eq!(settings.request.max_tokens, Some(MAX_TOKENS_DEFAULT));
        assert!(settings.request.deadline.is_none());
        assert!(!settings.allow_truncation);
    }

    #[test]
    fn seeds_differ_unless_given() {
        let seed = |options| check_now(options).unwrap().request.sampling.seed;
        assert_ne!(seed(sampled(|_| {})), seed(sampled(|_| {})));
        assert_eq!(seed(sampled(|s| s.seed = Some(0))), 0);
    }

    #[test]
    fn bad_sampling_names_its_field() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -5.0, 11.0] {
            let cases = [
                ("temperature", sampled(|s| s.temperature = Some(bad))),
                ("top_p", sampled(|s| s.top_p = Some(bad))),
                ("min_p", sampled(|s| s.min_p = Some(bad))),
                ("repeat_penalty", sampled(|s| s.repeat_penalty = Some(bad))),
                (
                    "frequency_penalty",
                    sampled(|s| s.frequency_penalty = Some(bad)),
                ),
                (
                    "presence_penalty",
                    sampled(|s| s.presence_penalty = Some(bad)),
                ),
            ];
            for (name, options) in cases {
                assert_eq!(field_at_fault(options), format!("options.sampling.{name}"));
            }
        }
    }

    #[test]
    fn bad_settings_name_their_field() {
        let nothing = v1::GenerationOptions::default;
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let cases = [
            (
                "options.logprobs",
                v1::GenerationOptions {
                    logprobs: Some(21),
                    ..nothing()
                },
            ),
            (
                "options.stop",
                v1::GenerationOptions {
                    stop: vec!["x".into(); 17],
                    ..nothing()
                },
            ),
            (
                "options.stop[0]",
                v1::GenerationOptions {
                    stop: vec![String::new()],
                    ..nothing()
                },
            ),
            (
                "options.stop[1]",
                v1::GenerationOptions {
                    stop: vec!["x".into(), "x".repeat(257)],
                    ..nothing()
                },
            ),
            (
                "options.stop_token_ids",
                v1::GenerationOptions {
                    stop_token_ids: vec![1; 17],
                    ..nothing()
                },
            ),
            (
                "options.deadline",
                v1::GenerationOptions {
                    deadline: time(0, 0),
                    ..nothing()
                },
            ),
            (
                "options.deadline",
                v1::GenerationOptions {
                    deadline: time(-1, 0),
                    ..nothing()
                },
            ),
            (
                "options.deadline",
                v1::GenerationOptions {
                    deadline: time(i64::MAX, 0),
                    ..nothing()
                },
            ),
            (
                "options.class",
                v1::GenerationOptions {
                    class: 99,
                    ..nothing()
                },
            ),
            (
                "options.cache_scope",
                v1::GenerationOptions {
                    cache_scope: -1,
                    ..nothing()
                },
            ),
            (
                "options.start_when",
                v1::GenerationOptions {
                    start_when: 99,
                    ..nothing()
                },
            ),
        ];
        for (field, options) in cases {
            assert_eq!(field_at_fault(options), field);
        }
    }

    #[test]
    fn the_edges_are_allowed() {
        let options = v1::GenerationOptions {
            logprobs: Some(20),
            stop: vec!["x".repeat(256); 16],
            stop_token_ids: vec![1; 16],
            max_tokens: Some(0),
            ..Default::default()
        };
        assert!(check_now(options).is_ok());
    }

    #[test]
    fn later_fields_say_so() {
        let later = [v1::GenerationOptions {
            output_format: Some(v1::OutputFormat::default()),
            ..Default::default()
        }];
        for options in later {
            assert_eq!(
                check_now(options).err().unwrap().code(),
                Code::Unimplemented
            );
        }
    }

    #[test]
    fn the_sooner_deadline_counts() {
        let now = Instant::now();
        let after = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            let options = v1::GenerationOptions {
                deadline: Some(prost_types::Duration {
                    seconds: 60,
                    nanos: 0,
                }),
                ..Default::default()
            };
            let settings = check(Some(options), now, &metadata, Caller::default()).unwrap();
            settings.request.deadline.unwrap() - now
        };
        assert_eq!(after("5S"), Duration::from_secs(5));
        assert_eq!(after("2H"), Duration::from_secs(60));
        assert_eq!(after("250m"), Duration::from_millis(250));
        assert_eq!(after("99999999n"), Duration::from_nanos(99_999_999));
        for odd in ["5", "S", "-1S", "123456789S", "5x", "5 S"] {
            assert_eq!(after(odd), Duration::from_secs(60), "{odd}");
        }
    }
}
