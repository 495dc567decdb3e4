//! Engine words to contract words: events, ends, adapters, models. Pure.

mod usage;

use std::time::Duration;

use hearth_engine::{
    Activations, AdapterInfo, AdapterKind, Class, Condition, EndReport, EngineStats, Event,
    FinishReason, TokenOutput,
};
use hearth_proto::v1;
use hearth_proto::v1::generation_event::Event as WireEvent;
use tonic::Status;

use crate::energy::Meter;
use crate::governor::{Base, MemoryLevel, Plan, PowerLevel, PowerMode};
use crate::lifecycle::{LoadingNow, State};
use crate::limits::RETRY_DELAY;
use crate::status;
use crate::store::{Manifest, ModelFacts};

pub(crate) use usage::{apps, sequence};

/// What `End` tells beyond the engine's own account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    /// Name of the model.
    pub(crate) model: String,
    /// The seed that was used.
    pub(crate) seed: u64,
    /// Time waiting for the model to load.
    pub(crate) load_time: Option<Duration>,
    /// What was cut from the prompt.
    pub(crate) truncation: Option<v1::Truncation>,
    /// What told the energy.
    pub(crate) meter: Option<Meter>,
}

/// An event of a stream, or the status it ends with.
pub(crate) fn event(event: Event, account: &Account) -> Result<v1::GenerationEvent, Status> {
    let event = match event {
        Event::Queued { ahead } => WireEvent::Queued(v1::Queued { ahead }),
        Event::Prefill { done, total } => WireEvent::Prefill(v1::Prefill { done, total }),
        Event::Echo { text, tokens } => WireEvent::Echo(v1::Echo {
            text,
            tokens: tokens.into_iter().map(token).collect(),
        }),
        Event::Delta { text, tokens } => WireEvent::Delta(v1::Delta {
            text,
            tokens: tokens.into_iter().map(token).collect(),
        }),
        Event::End(report) => WireEvent::End(end(&report, account)?),
    };
    Ok(v1::GenerationEvent { event: Some(event) })
}

/// A `loading` event.
pub(crate) fn loading_event(fraction: f32) -> v1::GenerationEvent {
    v1::GenerationEvent {
        event: Some(WireEvent::Loading(v1::Loading { fraction })),
    }
}

fn token(token: TokenOutput) -> v1::Token {
    let alternative = |top: hearth_engine::TokenLogprob| v1::TokenLogprob {
        id: top.id,
        logprob: top.logprob,
    };
    v1::Token {
        id: token.id,
        logprob: token.logprob,
        top: token.top.into_iter().map(alternative).collect(),
    }
}

fn end(report: &EndReport, account: &Account) -> Result<v1::End, Status> {
    Ok(v1::End {
        finish_reason: finish_reason(report.reason)?.into(),
        stop_index: report
            .stop_index
            .and_then(|index| u32::try_from(index).ok()),
        prompt_tokens: report.prompt_tokens,
        cached_tokens: report.cached_tokens,
        generated_tokens: report.generated_tokens,
        context_len: report.context_len,
        seed: account.seed,
        model: account.model.clone(),
        queue_time: Some(duration(report.queue_time)),
        load_time: account.load_time.map(duration),
        prefill_time: Some(duration(report.prefill_time)),
        decode_time: Some(duration(report.decode_time)),
        truncation: account.truncation,
        energy: account
            .meter
            .as_ref()
            .zip(report.energy_uj)
            .map(|(meter, energy)| meter.energy(energy)),
    })
}

/// A reason that is an end, or the status of one that is a failure.
fn finish_reason(reason: FinishReason) -> Result<v1::FinishReason, Status> {
    match reason {
        FinishReason::Eos => Ok(v1::FinishReason::Eos),
        FinishReason::Stop => Ok(v1::FinishReason::Stop),
        FinishReason::Length => Ok(v1::FinishReason::Length),
        FinishReason::ContextFull => Ok(v1::FinishReason::ContextFull),
        FinishReason::Deadline => Ok(v1::FinishReason::Deadline),
        FinishReason::Shutdown => Err(status::fault(
            tonic::Code::Unavailable,
            "MODEL_GONE",
            "the daemon stops or changes its model",
        )
        .retry(RETRY_DELAY)
        .status()),
        FinishReason::Stalled => Err(status::reader_stalled()),
        FinishReason::Fault => Err(status::gpu_lost()),
    }
}

/// A duration; longer than the contract can say becomes the longest.
pub(crate) fn duration(time: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(315_576_000_000);
    let nanos = i32::try_from(time.subsec_nanos()).unwrap_or(0);
    prost_types::Duration { seconds, nanos }
}

/// What to say of the engine's condition, if anything.
pub(crate) fn condition(condition: &Condition) -> Option<String> {
    match condition {
        Condition::Well => None,
        Condition::Suspended => {
            Some("memory is short: the model is off the GPU, replies wait".to_owned())
        }
        Condition::Careful => {
            Some("the GPU was lost several times: prompts are read in smaller steps".to_owned())
        }
        Condition::Rebuilding { reason } => {
            Some(format!("the GPU was lost and is opened again ({reason})"))
        }
        Condition::Failed { reason } => Some(format!("the GPU does not come back ({reason})")),
    }
}

/// An adapter.
pub(crate) fn adapter(adapter: &AdapterInfo) -> v1::Adapter {
    let kind = match adapter.kind {
        AdapterKind::Integrated => v1::AdapterKind::Integrated,
        AdapterKind::Discrete => v1::AdapterKind::Discrete,
        AdapterKind::Virtual => v1::AdapterKind::Virtual,
        AdapterKind::Software => v1::AdapterKind::Software,
        AdapterKind::Other => v1::AdapterKind::Unspecified,
    };
    v1::Adapter {
        name: adapter.name.clone(),
        driver: adapter.driver.clone(),
        backend: adapter.backend.clone(),
        kind: kind.into(),
        software: adapter.kind == AdapterKind::Software,
        subgroup_size: adapter.subgroup_size,
        binding_bytes_max: adapter.binding_bytes_max,
    }
}

/// The activations that run.
pub(crate) fn activations(activations: Activations) -> v1::Activations {
    match activations {
        Activations::Auto => v1::Activations::Unspecified,
        Activations::Float => v1::Activations::Float,
        Activations::Int8 => v1::Activations::Int8,
    }
}

/// A state.
pub(crate) fn state(state: State) -> v1::LifecycleState {
    match state {
        State::Starting => v1::LifecycleState::Starting,
        State::Loading => v1::LifecycleState::Loading,
        State::Ready => v1::LifecycleState::Ready,
        State::Draining => v1::LifecycleState::Draining,
        State::Stopped => v1::LifecycleState::Stopped,
    }
}

/// A load in progress.
pub(crate) fn loading(loading: LoadingNow) -> v1::LoadingModel {
    v1::LoadingModel {
        name: loading.name,
        done_bytes: loading.done_bytes,
        total_bytes: loading.total_bytes,
    }
}

/// The counters.
pub(crate) fn counters(stats: &EngineStats, refused: u64, meter: Option<&Meter>) -> v1::Counters {
    v1::Counters {
        requests: stats.requests,
        refused,
        cancelled: stats.cancelled,
        prompt_tokens: stats.prompt_tokens,
        cached_tokens: stats.cached_tokens,
        generated_tokens: stats.generated_tokens,
        drafted_tokens: stats.drafted_tokens,
        accepted_tokens: stats.accepted_tokens,
        steps: stats.steps,
        prefill_time: Some(duration(Duration::from_micros(stats.prefill_us))),
        decode_time: Some(duration(Duration::from_micros(stats.decode_us))),
        energy: meter.map(|meter| meter.energy(stats.energy_uj)),
        device_rebuilds: stats.device_rebuilds,
        preempted: stats.preempted,
        replayed_tokens: stats.replayed_tokens,
    }
}

/// The plan, for an engine with `base`.
pub(crate) fn plan(plan: &Plan, base: Base) -> v1::Plan {
    let allowance = &plan.allowance;
    let power = match plan.power {
        None => v1::PowerLevel::Unspecified,
        Some(PowerLevel::Mains) => v1::PowerLevel::Mains,
        Some(PowerLevel::Battery) => v1::PowerLevel::Battery,
        Some(PowerLevel::Saver) => v1::PowerLevel::Saver,
        Some(PowerLevel::Critical) => v1::PowerLevel::Critical,
    };
    let memory = match plan.memory {
        None => v1::MemoryLevel::Unspecified,
        Some(MemoryLevel::Calm) => v1::MemoryLevel::Calm,
        Some(MemoryLevel::Some) => v1::MemoryLevel::Some,
        Some(MemoryLevel::High) => v1::MemoryLevel::High,
        Some(MemoryLevel::Critical) => v1::MemoryLevel::Critical,
    };
    let mode = match plan.mode {
        PowerMode::Auto => v1::PowerMode::Auto,
        PowerMode::Full => v1::PowerMode::Full,
        PowerMode::Saver => v1::PowerMode::Saver,
    };
    let classes = [
        (Class::Interactive, v1::Class::Interactive),
        (Class::Utility, v1::Class::Utility),
        (Class::Background, v1::Class::Background),
    ];
    let runs = classes
        .into_iter()
        .filter(|(class, _)| *class <= allowance.least_class);
    v1::Plan {
        power: power.into(),
        memory: memory.into(),
        reason: plan.reason.clone(),
        slots: allowance.slots.min(base.slots),
        context_len_max: allowance.context_len_max.min(base.context_len),
        prefill_chunk: allowance.prefill_chunk_max.min(base.prefill_chunk),
        classes: runs.map(|(_, class)| class.into()).collect(),
        keep_weights: plan.keep_weights,
        pace: allowance.pace,
        mode: mode.into(),
        background_pace: allowance.background_pace.min(allowance.pace),
        prefix_cache_share: allowance.prefix_cache_share,
        keep_waiting_kv: allowance.keep_waiting_kv,
        unload_after_idle: plan.unload_after_idle.map(duration),
        pulls_paused: plan.pulls_paused,
    }
}

/// A model of the store.
pub(crate) fn stored_model(model: &Manifest, state: v1::ModelState) -> v1::ModelInfo {
    let seconds = i64::try_from(model.imported_at_s).unwrap_or(i64::MAX);
    v1::ModelInfo {
        sha256: model.sha256(),
        imported_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..model_info(&model.name, &model.facts, model.file_bytes(), state)
    }
}

/// A model, stored or not.
pub(crate) fn model_info(
    name: &str,
    facts: &ModelFacts,
    file_bytes: u64,
    state: v1::ModelState,
) -> v1::ModelInfo {
    v1::ModelInfo {
        name: name.to_owned(),
        state: state.into(),
        architecture: facts.architecture.clone(),
        format: facts.format.clone(),
        quantization: facts.quantization.clone(),
        parameter_count: facts.parameter_count,
        file_bytes,
        sha256: String::new(),
        context_len: facts.context_len,
        vocab_size: facts.vocab_size,
        n_layers: facts.n_layers,
        hidden_dim: facts.hidden_dim,
        license: facts.license.clone(),
        title: facts.title.clone(),
        has_chat_template: facts.has_chat_template,
        pinned: false,
        imported_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(reason: FinishReason) -> EndReport {
        EndReport {
            reason,
            stop_index: Some(1),
            prompt_tokens: 2,
            cached_tokens: 3,
            generated_tokens: 4,
            context_len: 5,
            queue_time: Duration::from_millis(1500),
            prefill_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            energy_uj: Some(2_000_000),
        }
    }

    #[test]
    fn ends_are_ends_and_failures_are_statuses() {
        let ends = [
            (FinishReason::Eos, v1::FinishReason::Eos),
            (FinishReason::Stop, v1::FinishReason::Stop),
            (FinishReason::Length, v1::FinishReason::Length),
            (FinishReason::ContextFull, v1::FinishReason::ContextFull),
            (FinishReason::Deadline, v1::FinishReason::Deadline),
        ];
        for (reason, wanted) in ends {
            let end = end(&report(reason), &Account::default()).unwrap();
            assert_eq!(end.finish_reason(), wanted);
        }
        let failures = [
            (FinishReason::Shutdown, tonic::Code::Unavailable),
            (FinishReason::Stalled, tonic::Code::ResourceExhausted),
            (FinishReason::Fault, tonic::Code::Unavailable),
        ];
        for (reason, code) in failures {
            let status = end(&report(reason), &Account::default()).unwrap_err();
            assert_eq!(status.code(), code);
        }
    }

    #[test]
    fn the_account_is_complete() {
        let account = Account {
            model: "m".to_owned(),
            seed: 7,
            load_time: Some(Duration::from_secs(2)),
            truncation: None,
            meter: None,
        };
        let end = end(&report(FinishReason::Stop), &account).unwrap();
        assert_eq!(
            (end.seed, end.model.as_str(), end.stop_index),
            (7, "m", Some(1))
        );
        assert_eq!(
            (end.prompt_tokens, end.cached_tokens, end.generated_tokens),
            (2, 3, 4)
        );
        assert_eq!(
            end.queue_time.unwrap(),
            prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(end.load_time.unwrap().seconds, 2);
    }
}
