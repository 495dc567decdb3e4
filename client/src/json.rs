//! The JSON of `--json`: one object for each event, model, status or failure. Names are those of the
//! contract; enum values lose their prefix; times are in milliseconds. It writes nothing.

mod status;

use hearth::v1::{self, generation_event::Event};
use serde_json::{Map, Value, json};

use crate::exit::Failure;

pub(crate) use status::{plan, status, usage};

/// An enum value's name without its prefix, in lower case; `unknown` for one of a newer contract.
pub(crate) fn enum_name(name: Option<&str>, prefix: &str) -> String {
    name.map_or_else(
        || "unknown".to_owned(),
        |name| {
            name.strip_prefix(prefix)
                .unwrap_or(name)
                .to_ascii_lowercase()
        },
    )
}

/// Why a generation ended, as a word.
pub(crate) fn finish_reason(value: i32) -> String {
    enum_name(
        v1::FinishReason::try_from(value)
            .ok()
            .map(|v| v.as_str_name()),
        "FINISH_REASON_",
    )
}

/// Where the daemon is in its life, as a word.
pub(crate) fn lifecycle(value: i32) -> String {
    enum_name(
        v1::LifecycleState::try_from(value)
            .ok()
            .map(|v| v.as_str_name()),
        "LIFECYCLE_STATE_",
    )
}

/// Where a model stands, as a word.
pub(crate) fn model_state(value: i32) -> String {
    enum_name(
        v1::ModelState::try_from(value)
            .ok()
            .map(|v| v.as_str_name()),
        "MODEL_STATE_",
    )
}

/// What kind of adapter it is, as a word.
pub(crate) fn adapter_kind(value: i32) -> String {
    enum_name(
        v1::AdapterKind::try_from(value)
            .ok()
            .map(|v| v.as_str_name()),
        "ADAPTER_KIND_",
    )
}

/// How activations enter products, as a word.
pub(crate) fn activations(value: i32) -> String {
    enum_name(
        v1::Activations::try_from(value)
            .ok()
            .map(|v| v.as_str_name()),
        "ACTIVATIONS_",
    )
}

/// How urgent a request is, as a word.
pub(crate) fn class(value: i32) -> String {
    enum_name(
        v1::Class::try_from(value).ok().map(|v| v.as_str_name()),
        "CLASS_",
    )
}

/// A duration in milliseconds.
pub(crate) fn ms(duration: Option<prost_types::Duration>) -> Option<f64> {
    duration.map(|d| {
        // Exact far beyond any time a request can take.
        #[expect(clippy::cast_precision_loss, reason = "seconds of a request are small")]
        let seconds = d.seconds as f64;
        seconds.mul_add(1000.0, f64::from(d.nanos) / 1e6)
    })
}

/// A number with the digits that a 32-bit float has, not those of its widening to 64 bits.
fn float(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

/// One event of a reply.
pub(crate) fn event(event: &Event) -> Value {
    match event {
        Event::Queued(queued) => json!({ "event": "queued", "ahead": queued.ahead }),
        Event::Loading(loading) => {
            json!({ "event": "loading", "fraction": float(loading.fraction) })
        }
        Event::Prefill(prefill) => {
            json!({ "event": "prefill", "done": prefill.done, "total": prefill.total })
        }
        Event::Echo(echo) => {
            json!({ "event": "echo", "text": echo.text, "tokens": tokens(&echo.tokens) })
        }
        Event::Delta(delta) => {
            json!({ "event": "delta", "text": delta.text, "tokens": tokens(&delta.tokens) })
        }
        Event::End(account) => end(account),
    }
}

fn tokens(tokens: &[v1::Token]) -> Value {
    let one = |token: &v1::Token| {
        let mut object = Map::new();
        object.insert("id".to_owned(), token.id.into());
        if let Some(logprob) = token.logprob {
            object.insert("logprob".to_owned(), float(logprob));
        }
        if !token.top.is_empty() {
            let top = token
                .top
                .iter()
                .map(|t| json!({ "id": t.id, "logprob": float(t.logprob) }));
            object.insert("top".to_owned(), top.collect());
        }
        Value::Object(object)
    };
    tokens.iter().map(one).collect()
}

fn end(end: &v1::End) -> Value {
    let mut value = json!({
        "event": "end",
        "finish_reason": finish_reason(end.finish_reason),
        "model": end.model,
        "prompt_tokens": end.prompt_tokens,
        "cached_tokens": end.cached_tokens,
        "generated_tokens": end.generated_tokens,
        "context_len": end.context_len,
        "seed": end.seed,
        "queue_ms": ms(end.queue_time),
        "prefill_ms": ms(end.prefill_time),
        "decode_ms": ms(end.decode_time),
    });
    if let Some(load) = ms(end.load_time) {
        value["load_ms"] = load.into();
    }
    if let Some(index) = end.stop_index {
        value["stop_index"] = index.into();
    }
    if let Some(cut) = &end.truncation {
        value["truncation"] = json!({
            "offered_tokens": cut.offered_tokens,
            "kept_tokens": cut.kept_tokens,
            "dropped_tokens": cut.dropped_tokens,
            "dropped_messages": cut.dropped_messages,
        });
    }
    if let Some(energy) = &end.energy {
        value["energy"] = energy_value(energy);
    }
    value
}

fn energy_value(energy: &v1::Energy) -> Value {
    let source = v1::EnergySource::try_from(energy.source)
        .ok()
        .map(|v| v.as_str_name());
    json!({ "joules": energy.joules, "source": enum_name(source, "ENERGY_SOURCE_") })
}

/// A model.
pub(crate) fn model(info: &v1::ModelInfo) -> Value {
    json!({
        "name": info.name,
        "state": model_state(info.state),
        "architecture": info.architecture,
        "format": info.format,
        "quantization": info.quantization,
        "parameter_count": info.parameter_count,
        "file_bytes": info.file_bytes,
        "sha256": info.sha256,
        "context_len": info.context_len,
        "vocab_size": info.vocab_size,
        "n_layers": info.n_layers,
        "hidden_dim": info.hidden_dim,
        "license": info.license,
        "title": info.title,
        "has_chat_template": info.has_chat_template,
        "pinned": info.pinned,
        "imported_at_unix_s": info.imported_at.map(|at| at.seconds),
    })
}

/// A file of a model.
pub(crate) fn model_file(file: &v1::ModelFile) -> Value {
    json!({ "name": file.name, "sha256": file.sha256, "bytes": file.bytes })
}

/// What a model takes of the GPU's memory.
pub(crate) fn memory_need(need: &v1::MemoryNeed) -> Value {
    json!({
        "weights_bytes": need.weights_bytes,
        "kv_bytes": need.kv_bytes,
        "scratch_bytes": need.scratch_bytes,
        "context_len": need.context_len,
        "measured": need.measured,
        "available_bytes": need.available_bytes,
    })
}

/// Progress of a copy or a load.
pub(crate) fn progress(progress: &v1::TransferProgress) -> Value {
    json!({
        "event": "progress",
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
    })
}

/// A failure.
pub(crate) fn failure(failure: &Failure) -> Value {
    json!({
        "event": "error",
        "kind": failure.kind.name(),
        "message": failure.message(),
        "hint": failure.hint,
        "exit_code": failure.kind.exit_code(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enum_values_lose_their_prefix() {
        assert_eq!(
            finish_reason(v1::FinishReason::ContextFull.into()),
            "context_full"
        );
        assert_eq!(finish_reason(9999), "unknown");
    }

    #[test]
    fn a_delta_carries_text_and_tokens() {
        let delta = v1::Delta {
            text: "a\nb".to_owned(),
            tokens: vec![v1::Token {
                id: 7,
                logprob: Some(-0.5),
                top: vec![v1::TokenLogprob {
                    id: 8,
                    logprob: -1.5,
                }],
            }],
        };
        assert_eq!(
            event(&Event::Delta(delta)).to_string(),
            r#"{"event":"delta","text":"a\nb","tokens":[{"id":7,"logprob":-0.5,"top":[{"id":8,"logprob":-1.5}]}]}"#
        );
    }

    #[test]
    fn floats_keep_their_own_digits() {
        assert_eq!(float(-11.507_425).to_string(), "-11.507425");
        assert_eq!(float(0.0).to_string(), "0.0");
        assert_eq!(float(f32::NAN), Value::Null);
        assert_eq!(float(f32::NEG_INFINITY), Value::Null);
    }

    #[test]
    fn the_end_leaves_out_what_did_not_happen() {
        let value = event(&Event::End(v1::End {
            finish_reason: v1::FinishReason::Eos.into(),
            decode_time: Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            ..Default::default()
        }));
        assert_eq!(value["finish_reason"], "eos");
        assert_eq!(value["decode_ms"], 1500.0);
        for absent in ["truncation", "stop_index", "load_ms", "energy"] {
            assert!(value.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_failure_says_its_exit_code() {
        let value = failure(&Failure::usage("no prompt").with_hint("give one"));
        assert_eq!(
            value.to_string(),
            r#"{"event":"error","kind":"usage","message":"no prompt","hint":"give one","exit_code":2}"#
        );
    }
}
