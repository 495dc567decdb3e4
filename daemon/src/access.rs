//! What a sandboxed app may do and see: the one place that decides.
//!
//! Every RPC has a rule here; one without a rule is refused to sandboxed apps, and a test fails.
//! Processes of one user outside a sandbox are no security boundary: they may do everything.

use hearth_proto::v1;
use http::Extensions;
use tonic::Status;

use crate::peer::Peer;
use crate::status;

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Sandboxed apps too.
    All,
    /// What runs outside a sandbox.
    Unconfined,
}

/// The rule for the RPC with this path, such as `/hearth.v1.Inference/Chat`.
pub(crate) fn callers(path: &str) -> Option<Callers> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        (
            "hearth.v1.Inference",
            "Chat" | "Generate" | "Tokenize" | "Detokenize" | "CountTokens" | "Embed",
        )
        | ("hearth.v1.Models", "List" | "Show")
        // What these two tell a sandboxed app is cut down by `own_view`.
        | ("hearth.v1.Daemon", "GetStatus" | "WatchStatus")
        | ("grpc.health.v1.Health", "Check" | "Watch")
        | ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo") => Some(Callers::All),
        ("hearth.v1.Models", "Import" | "Pull" | "Load" | "Unload" | "Pin" | "Unpin" | "Delete")
        | ("hearth.v1.Daemon", "OpenAppSocket" | "SetPowerMode") => Some(Callers::Unconfined),
        _ => None,
    }
}

/// Whether this peer may call the RPC with this path.
///
/// # Errors
/// PERMISSION_DENIED, reason SANDBOXED.
pub(crate) fn check_call(peer: &Peer, path: &str) -> Result<(), Status> {
    if peer.sandbox.is_none() || callers(path) == Some(Callers::All) {
        return Ok(());
    }
    let call = path.rsplit_once('.').map_or(path, |(_, call)| call);
    Err(status::sandboxed(&call.replace('/', "."), &peer.app))
}

/// Whether the caller may ask for these settings. What other apps have asked before must not show
/// in how fast a sandboxed app is answered.
///
/// # Errors
/// PERMISSION_DENIED, reason SANDBOXED.
pub(crate) fn check_options(
    caller: &Extensions,
    options: Option<&v1::GenerationOptions>,
) -> Result<(), Status> {
    match (sandboxed(caller), options) {
        (Some(app), Some(options)) if options.cache_scope() == v1::CacheScope::Shared => Err(
            status::sandboxed("options.cache_scope CACHE_SCOPE_SHARED", app),
        ),
        (Some(app), Some(options)) if options.keep_alive.is_some() => {
            Err(status::sandboxed("options.keep_alive", app))
        }
        _ => Ok(()),
    }
}

/// The caller's app, if it is sandboxed.
pub(crate) fn sandboxed(caller: &Extensions) -> Option<&str> {
    let peer = caller.get::<Peer>()?;
    peer.sandbox.as_ref().map(|_| peer.app.as_str())
}

/// What a sandboxed app is told of a model: nothing of where the user keeps files.
pub(crate) fn own_model(model: v1::ShowResponse) -> v1::ShowResponse {
    v1::ShowResponse {
        path: String::new(),
        files: Vec::new(),
        source: None,
        memory: model.memory.map(|need| v1::MemoryNeed {
            // The machine's, and others change it.
            available_bytes: None,
            ..need
        }),
        ..model
    }
}

/// What a sandboxed app is told of the daemon: the daemon, the model and itself, and no number from
/// which it could tell what others do. `connections` are its own. Every field is named, so that a
/// new one is decided on.
pub(crate) fn own_view(status: v1::DaemonStatus, app: &str, connections: u32) -> v1::DaemonStatus {
    let mut apps = status.apps;
    apps.retain(|row| row.app == app);
    let mut sequences = status.sequences;
    sequences.retain(|row| row.app == app);
    for row in &mut sequences {
        // Numbers are given in turn: a gap would count the requests of others.
        row.id = 0;
    }
    let mut deferred = status.deferred;
    deferred.retain(|row| row.app == app);
    let own = apps.first().cloned().unwrap_or_default();
    v1::DaemonStatus {
        state: status.state,
        // It may tell when others asked last.
        reason: None,
        version: status.version,
        pid: 0,
        uptime: status.uptime,
        adapter: status.adapter,
        activations: status.activations,
        model: status
            .model
            .map(|model| own_warm_model(model, &sequences, &own)),
        models: status
            .models
            .into_iter()
            .map(|model| own_warm_model(model, &sequences, &own))
            .collect(),
        loading: status.loading,
        counters: status.counters.map(|_| own_counters(&own)),
        queue: status.queue.map(|queue| v1::Queue {
            active: own.active,
            waiting: own.waiting,
            waiting_max: queue.waiting_max,
            slots: queue.slots,
            app_waiting_max: queue.app_waiting_max,
        }),
        plan: status.plan.map(own_plan),
        connections,
        apps,
        sequences,
        warnings: status.warnings,
        socket_path: String::new(),
        models_dir: String::new(),
        rss_bytes: None,
        app_sockets: Vec::new(),
        process: None,
        deferred,
    }
}

/// What is allowed, but not why: a charge in per cent tells a machine from others.
fn own_plan(plan: v1::Plan) -> v1::Plan {
    v1::Plan {
        reason: String::new(),
        ..plan
    }
}

fn own_warm_model(
    model: v1::WarmModel,
    own_sequences: &[v1::SequenceStatus],
    own: &v1::AppStatus,
) -> v1::WarmModel {
    let name = model.info.as_ref().map_or("", |info| info.name.as_str());
    let on_it = own_sequences.iter().filter(|row| row.model == name);
    v1::WarmModel {
        kv_blocks_used: on_it.map(|row| row.kv_blocks).sum(),
        info: model.info,
        context_len: model.context_len,
        weights_bytes: model.weights_bytes,
        kv_bytes: model.kv_bytes,
        scratch_bytes: model.scratch_bytes,
        kv_blocks_total: model.kv_blocks_total,
        // Requests of others put it off.
        unloads_in: None,
        pinned: false,
        // Told for no single model.
        kv_blocks_cached: own.kv_blocks_cached,
    }
}

fn own_counters(own: &v1::AppStatus) -> v1::Counters {
    v1::Counters {
        requests: own.requests,
        refused: 0,
        cancelled: 0,
        prompt_tokens: own.prompt_tokens,
        cached_tokens: own.cached_tokens,
        generated_tokens: own.generated_tokens,
        steps: 0,
        prefill_time: None,
        decode_time: None,
        energy: own.energy,
        device_rebuilds: 0,
        drafted_tokens: 0,
        accepted_tokens: 0,
        preempted: 0,
        replayed_tokens: 0,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::peer::Sandbox;

    /// The paths of all RPCs that the daemon serves.
    fn all_paths() -> Vec<String> {
        let mut paths = Vec::new();
        for set in [
            hearth_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let service = service.name();
                        paths.push(format!("/{}.{service}/{}", file.package(), method.name()));
                    }
                }
            }
        }
        paths
    }

    fn peer(sandbox: Option<Sandbox>) -> Peer {
        Peer {
            pid: Some(7),
            app: "org.example.App".to_owned(),
            sandbox,
        }
    }

    #[test]
    fn every_rpc_has_a_rule() {
        let paths = all_paths();
        assert!(paths.len() > 16, "{paths:?}");
        for path in &paths {
            assert!(callers(path).is_some(), "{path} has no rule in access.rs");
        }
    }

    #[test]
    fn sandboxed_apps_may_do_this_and_no_more() {
        let confined = peer(Some(Sandbox { instance: None }));
        let mut allowed: Vec<String> = all_paths()
            .into_iter()
            .filter(|path| check_call(&confined, path).is_ok())
            .collect();
        let mut wanted = [
            "/hearth.v1.Daemon/GetStatus",
            "/hearth.v1.Daemon/WatchStatus",
            "/hearth.v1.Inference/Chat",
            "/hearth.v1.Inference/Generate",
            "/hearth.v1.Inference/Tokenize",
            "/hearth.v1.Inference/Detokenize",
            "/hearth.v1.Inference/CountTokens",
            "/hearth.v1.Inference/Embed",
            "/hearth.v1.Models/List",
            "/hearth.v1.Models/Show",
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ];
        allowed.sort();
        wanted.sort_unstable();
        assert_eq!(allowed, wanted);
    }

    #[test]
    fn what_has_no_rule_is_refused_to_the_sandboxed_alone() {
        let confined = peer(Some(Sandbox { instance: None }));
        for path in ["/hearth.v1.Daemon/Shutdown", "/x/y", "", "/", "Chat"] {
            let refused = check_call(&confined, path).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{path}");
            assert!(check_call(&peer(None), path).is_ok(), "{path}");
        }
        let refused = check_call(&confined, "/hearth.v1.Models/Load").unwrap_err();
        assert!(
            refused.message().starts_with("Models.Load is not"),
            "{refused}"
        );
    }

    #[test]
    fn the_own_view_holds_nothing_of_others() {
        let row = |app: &str, n: u64| v1::AppStatus {
            app: app.to_owned(),
            connections: 1,
            active: 2,
            requests: n,
            prompt_tokens: n,
            generated_tokens: n,
            kv_blocks: 3,
            ..Default::default()
        };
        let sequence = |app: &str| v1::SequenceStatus {
            id: 77,
            kv_blocks: if app == "own" { 3 } else { 77 },
            app: app.to_owned(),
            ..Default::default()
        };
        let deferred = |app: &str, pid| v1::DeferredStatus {
            app: app.to_owned(),
            pid,
            ..Default::default()
        };
        let warm = v1::WarmModel {
            kv_blocks_used: 77,
            kv_blocks_cached: 77,
            kv_blocks_total: 100,
            unloads_in: Some(prost_types::Duration::default()),
            pinned: true,
            ..Default::default()
        };
        let status = v1::DaemonStatus {
            pid: 77,
            model: Some(warm.clone()),
            models: vec![warm.clone(), warm],
            counters: Some(v1::Counters {
                requests: 77,
                refused: 77,
                steps: 77,
                ..Default::default()
            }),
            queue: Some(v1::Queue {
                active: 77,
                waiting: 77,
                waiting_max: 256,
                ..Default::default()
            }),
            apps: vec![row("other", 77), row("own", 5)],
            sequences: vec![sequence("other"), sequence("own")],
            deferred: vec![deferred("other", 77), deferred("own", 5)],
            socket_path: "77".to_owned(),
            models_dir: "77".to_owned(),
            connections: 77,
            rss_bytes: Some(77),
            app_sockets: vec![v1::AppSocketStatus::default()],
            process: Some(v1::ProcessStatus {
                hardening: vec!["77".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let view = own_view(status.clone(), "own", 1);
        assert!(!format!("{view:?}").contains("77"), "{view:?}");
        assert_eq!((view.apps.len(), view.sequences.len()), (1, 1));
        assert_eq!(view.deferred, [deferred("own", 5)]);
        assert_eq!(view.queue.unwrap().active, 2);
        assert_eq!(view.model.unwrap().kv_blocks_used, 3);
        assert_eq!(view.counters.unwrap().requests, 5);
        assert!(view.app_sockets.is_empty());
        // An app that has done nothing yet sees nothing.
        let view = own_view(status, "new", 1);
        assert!(view.apps.is_empty() && view.sequences.is_empty());
        assert_eq!(view.counters.unwrap(), v1::Counters::default());
    }
}
