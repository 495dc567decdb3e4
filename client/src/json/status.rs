//! The daemon's state as JSON. It writes nothing.

use hearth::v1;
use serde_json::{Value, json};

use super::{
    activations, adapter_kind, class, energy_value, enum_name, float, lifecycle, model, ms,
};

/// The daemon's state.
pub(crate) fn status(status: &v1::DaemonStatus) -> Value {
    let mut value = json!({
        "state": lifecycle(status.state),
        "reason": status.reason,
        "version": status.version,
        "pid": status.pid,
        "uptime_ms": ms(status.uptime),
        "socket_path": status.socket_path,
        "models_dir": status.models_dir,
        "connections": status.connections,
        "rss_bytes": status.rss_bytes,
        "warnings": status.warnings,
        "adapter": status.adapter.as_ref().map(adapter),
        "model": status.model.as_ref().map(warm_model),
        "models": status.models.iter().map(warm_model).collect::<Vec<_>>(),
    });
    if !status.app_sockets.is_empty() {
        value["app_sockets"] = status.app_sockets.iter().map(app_socket).collect();
    }
    if let Some(process) = &status.process {
        value["process"] = json!({
            "socket_activated": process.socket_activated,
            "watchdog_ms": ms(process.watchdog),
            "hardening": process.hardening,
        });
    }
    if status.model.is_some() {
        value["activations"] = activations(status.activations).into();
    }
    if let Some(loading) = &status.loading {
        value["loading"] = json!({
            "name": loading.name,
            "done_bytes": loading.done_bytes,
            "total_bytes": loading.total_bytes,
        });
    }
    if let Some(queue) = &status.queue {
        value["queue"] = json!({
            "active": queue.active,
            "waiting": queue.waiting,
            "waiting_max": queue.waiting_max,
            "slots": queue.slots,
            "app_waiting_max": queue.app_waiting_max,
        });
    }
    if let Some(counters) = &status.counters {
        value["counters"] = counters_value(counters);
    }
    if let Some(plan) = &status.plan {
        value["plan"] = self::plan(plan);
    }
    value["apps"] = status.apps.iter().map(app).collect();
    value["sequences"] = status.sequences.iter().map(sequence).collect();
    value["deferred"] = status.deferred.iter().map(deferred).collect();
    value
}

fn adapter(adapter: &v1::Adapter) -> Value {
    json!({
        "name": adapter.name,
        "driver": adapter.driver,
        "backend": adapter.backend,
        "kind": adapter_kind(adapter.kind),
        "software": adapter.software,
        "subgroup_size": adapter.subgroup_size,
        "binding_bytes_max": adapter.binding_bytes_max,
    })
}

fn warm_model(warm: &v1::WarmModel) -> Value {
    json!({
        "info": warm.info.as_ref().map(model),
        "context_len": warm.context_len,
        "weights_bytes": warm.weights_bytes,
        "kv_bytes": warm.kv_bytes,
        "scratch_bytes": warm.scratch_bytes,
        "kv_blocks_used": warm.kv_blocks_used,
        "kv_blocks_cached": warm.kv_blocks_cached,
        "kv_blocks_total": warm.kv_blocks_total,
        "unloads_in_ms": ms(warm.unloads_in),
        "pinned": warm.pinned,
    })
}

fn counters_value(counters: &v1::Counters) -> Value {
    json!({
        "requests": counters.requests,
        "refused": counters.refused,
        "cancelled": counters.cancelled,
        "prompt_tokens": counters.prompt_tokens,
        "cached_tokens": counters.cached_tokens,
        "generated_tokens": counters.generated_tokens,
        "drafted_tokens": counters.drafted_tokens,
        "accepted_tokens": counters.accepted_tokens,
        "steps": counters.steps,
        "prefill_ms": ms(counters.prefill_time),
        "decode_ms": ms(counters.decode_time),
        "energy": counters.energy.as_ref().map(energy_value),
        "device_rebuilds": counters.device_rebuilds,
        "preempted": counters.preempted,
        "replayed_tokens": counters.replayed_tokens,
    })
}

/// What the governor allows.
pub(crate) fn plan(plan: &v1::Plan) -> Value {
    let mode = v1::PowerMode::try_from(plan.mode)
        .ok()
        .map(|v| v.as_str_name());
    let power = v1::PowerLevel::try_from(plan.power)
        .ok()
        .map(|v| v.as_str_name());
    let memory = v1::MemoryLevel::try_from(plan.memory)
        .ok()
        .map(|v| v.as_str_name());
    json!({
        "power": enum_name(power, "POWER_LEVEL_"),
        "memory": enum_name(memory, "MEMORY_LEVEL_"),
        "reason": plan.reason,
        "slots": plan.slots,
        "context_len_max": plan.context_len_max,
        "prefill_chunk": plan.prefill_chunk,
        "pace": float(plan.pace),
        "background_pace": float(plan.background_pace),
        "classes": plan.classes.iter().map(|v| class(*v)).collect::<Vec<_>>(),
        "mode": enum_name(mode, "POWER_MODE_"),
        "prefix_cache_share": float(plan.prefix_cache_share),
        "keep_waiting_kv": plan.keep_waiting_kv,
        "keep_weights": plan.keep_weights,
        "unload_after_idle_ms": ms(plan.unload_after_idle),
        "pulls_paused": plan.pulls_paused,
    })
}

/// Who runs what, and who has used how much.
pub(crate) fn usage(status: &v1::DaemonStatus) -> Value {
    json!({
        "sequences": status.sequences.iter().map(sequence).collect::<Vec<_>>(),
        "deferred": status.deferred.iter().map(deferred).collect::<Vec<_>>(),
        "apps": status.apps.iter().map(app).collect::<Vec<_>>(),
    })
}

fn app_socket(socket: &v1::AppSocketStatus) -> Value {
    json!({
        "app": socket.app,
        "instance": socket.instance,
        "launcher_pid": socket.launcher_pid,
        "connections": socket.connections,
    })
}

fn app(app: &v1::AppStatus) -> Value {
    json!({
        "app": app.app,
        "connections": app.connections,
        "active": app.active,
        "waiting": app.waiting,
        "requests": app.requests,
        "prompt_tokens": app.prompt_tokens,
        "cached_tokens": app.cached_tokens,
        "generated_tokens": app.generated_tokens,
        "gpu_ms": ms(app.gpu_time),
        "kv_blocks": app.kv_blocks,
        "kv_blocks_cached": app.kv_blocks_cached,
        "energy": app.energy.as_ref().map(energy_value),
    })
}

fn deferred(request: &v1::DeferredStatus) -> Value {
    let start_when = request.start_when().as_str_name();
    json!({
        "app": request.app,
        "pid": Some(request.pid).filter(|pid| *pid != 0),
        "class": class(request.class),
        "start_when": enum_name(Some(start_when), "START_WHEN_"),
    })
}

fn sequence(sequence: &v1::SequenceStatus) -> Value {
    json!({
        "id": sequence.id,
        "model": sequence.model,
        "app": sequence.app,
        "pid": Some(sequence.pid).filter(|pid| *pid != 0),
        "class": class(sequence.class),
        "ahead": sequence.ahead,
        "replays": sequence.replays,
        "prompt_tokens": sequence.prompt_tokens,
        "cached_tokens": sequence.cached_tokens,
        "generated_tokens": sequence.generated_tokens,
        "kv_blocks": sequence.kv_blocks,
        "gpu_ms": ms(sequence.gpu_time),
    })
}
