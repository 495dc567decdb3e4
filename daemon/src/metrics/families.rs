//! Which figures of a status are exported, and what they are called: counters and gauges, those of
//! the daemon first, those of each app last. Pure.

use hearth_proto::v1;
use prometheus_client::registry::Unit;

/// What a figure does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, until the daemon ends.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// A figure.
#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    /// A count.
    Whole(u64),
    /// A measure.
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

/// Seconds; no duration is 0.
fn seconds(time: Option<prost_types::Duration>) -> Number {
    let time = time.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "exact for millions of years")]
    let seconds = time.seconds as f64;
    Number::Real(seconds + f64::from(time.nanos) / 1e9)
}

/// Names of labels and their values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// Figures of one name: one without labels, or one for each set of them.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    pub(super) samples: Vec<(Labels, Number)>,
}

fn counter(name: &'static str, help: &'static str, number: impl Into<Number>) -> Family {
    Family {
        name,
        unit: None,
        kind: Kind::Counter,
        help,
        samples: vec![(Vec::new(), number.into())],
    }
}

fn gauge(name: &'static str, help: &'static str, number: impl Into<Number>) -> Family {
    Family {
        kind: Kind::Gauge,
        ..counter(name, help, number)
    }
}

impl Family {
    fn unit(self, unit: Unit) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }

    fn samples(self, samples: Vec<(Labels, Number)>) -> Self {
        Self { samples, ..self }
    }
}

/// All figures of a status, in a fixed order.
pub(super) fn families(status: &v1::DaemonStatus) -> Vec<Family> {
    let mut families = of_daemon(status);
    families.extend(of_queue(&status.queue.unwrap_or_default()));
    if !status.models.is_empty() {
        families.extend(of_models(&status.models));
    }
    families.extend(of_counters(&status.counters.unwrap_or_default()));
    families.extend(of_apps(&status.apps));
    families
}

fn of_daemon(status: &v1::DaemonStatus) -> Vec<Family> {
    use v1::LifecycleState as State;
    let version = vec![("version", status.version.clone())];
    let states = [
        State::Starting,
        State::Loading,
        State::Ready,
        State::Draining,
        State::Stopped,
    ];
    let of_state = |state: State| {
        let name = state.as_str_name().trim_start_matches("LIFECYCLE_STATE_");
        let label = vec![("state", name.to_ascii_lowercase())];
        (label, u32::from(status.state() == state).into())
    };
    let adapter = status.adapter.iter().map(|adapter| {
        let labels = vec![
            ("name", adapter.name.clone()),
            ("driver", adapter.driver.clone()),
            ("backend", adapter.backend.clone()),
            ("software", adapter.software.to_string()),
        ];
        (labels, 1_u32.into())
    });
    let memory = status.rss_bytes.map(|bytes| (Vec::new(), bytes.into()));
    vec![
        gauge("build_info", "The daemon's version.", 1_u32).samples(vec![(version, 1_u32.into())]),
        gauge("state", "1 for the state the daemon is in.", 0_u32)
            .samples(states.into_iter().map(of_state).collect()),
        gauge("adapter_info", "The GPU in use.", 1_u32).samples(adapter.collect()),
        gauge("resident_memory", "Memory of the daemon's process.", 0_u32)
            .unit(Unit::Bytes)
            .samples(memory.into_iter().collect()),
        gauge("connections", "Connections open now.", status.connections),
    ]
}

fn of_queue(queue: &v1::Queue) -> Vec<Family> {
    vec![
        gauge("sequences_running", "Sequences that run now.", queue.active),
        gauge("sequences_max", "Most sequences that may run.", queue.slots),
        gauge("requests_waiting", "Requests that wait now.", queue.waiting),
        gauge(
            "requests_waiting_max",
            "Most requests that may wait.",
            queue.waiting_max,
        ),
    ]
}

fn of_models(models: &[v1::WarmModel]) -> Vec<Family> {
    let (mut infos, mut contexts, mut memory, mut kv_blocks) = (vec![], vec![], vec![], vec![]);
    for warm in models {
        let info = warm.info.clone().unwrap_or_default();
        let model = ("model", info.name.clone());
        let with = |key, value: &str| vec![model.clone(), (key, value.to_owned())];
        infos.push((
            vec![
                ("name", info.name),
                ("architecture", info.architecture),
                ("quantization", info.quantization),
            ],
            1_u32.into(),
        ));
        contexts.push((vec![model.clone()], warm.context_len.into()));
        for (part, bytes) in [
            ("weights", warm.weights_bytes),
            ("kv", warm.kv_bytes),
            ("scratch", warm.scratch_bytes),
        ] {
            memory.push((with("part", part), bytes.into()));
        }
        let (used, cached) = (warm.kv_blocks_used, warm.kv_blocks_cached);
        let taken = used.saturating_add(cached);
        for (state, blocks) in [
            ("used", used),
            ("cached", cached),
            ("free", warm.kv_blocks_total.saturating_sub(taken)),
        ] {
            kv_blocks.push((with("state", state), blocks.into()));
        }
    }
    vec![
        gauge("model_info", "A warm model.", 1_u32).samples(infos),
        gauge("context_tokens", "Longest context of a sequence.", 0_u32).samples(contexts),
        gauge("gpu_memory", "GPU memory of a warm model.", 0_u32)
            .unit(Unit::Bytes)
            .samples(memory),
        gauge("kv_blocks", "Blocks of a model's KV cache.", 0_u32).samples(kv_blocks),
    ]
}

fn of_counters(counters: &v1::Counters) -> Vec<Family> {
    vec![
        counter("requests", "Requests accepted.", counters.requests),
        counter("requests_refused", "Requests refused.", counters.refused),
        counter(
            "requests_cancelled",
            "Requests whose caller went away.",
            counters.cancelled,
        ),
        counter(
            "prompt_tokens",
            "Prompt tokens processed.",
            counters.prompt_tokens,
        ),
        counter(
            "cached_tokens",
            "Prompt tokens whose KV was reused.",
            counters.cached_tokens,
        ),
        counter(
            "generated_tokens",
            "Tokens generated.",
            counters.generated_tokens,
        ),
        counter(
            "drafted_tokens",
            "Tokens drafted and verified.",
            counters.drafted_tokens,
        ),
        counter(
            "accepted_tokens",
            "Drafted tokens that held.",
            counters.accepted_tokens,
        ),
        counter(
            "replayed_tokens",
            "Tokens computed again.",
            counters.replayed_tokens,
        ),
        counter(
            "preemptions",
            "Times a sequence made room for others.",
            counters.preempted,
        ),
        counter("steps", "Steps submitted to the GPU.", counters.steps),
        counter("prefill", "Time of prefill steps.", 0_u32)
            .unit(Unit::Seconds)
            .samples(vec![(Vec::new(), seconds(counters.prefill_time))]),
        counter("decode", "Time of decode steps.", 0_u32)
            .unit(Unit::Seconds)
            .samples(vec![(Vec::new(), seconds(counters.decode_time))]),
        counter(
            "device_rebuilds",
            "Times the GPU was lost and rebuilt.",
            counters.device_rebuilds,
        ),
    ]
}

fn of_apps(apps: &[v1::AppStatus]) -> Vec<Family> {
    let each = |figure: &dyn Fn(&v1::AppStatus) -> Number| {
        let sample = |app| (vec![("app", v1::AppStatus::clone(app).app)], figure(app));
        apps.iter().map(sample).collect::<Vec<_>>()
    };
    let gauge = |name, help, figure: &dyn Fn(&v1::AppStatus) -> u32| {
        gauge(name, help, 0_u32).samples(each(&|app| figure(app).into()))
    };
    let counter = |name, help, figure: &dyn Fn(&v1::AppStatus) -> u64| {
        counter(name, help, 0_u32).samples(each(&|app| figure(app).into()))
    };
    vec![
        gauge("app_connections", "An app's connections now.", &|app| {
            app.connections
        }),
        gauge(
            "app_sequences_running",
            "An app's sequences that run now.",
            &|app| app.active,
        ),
        gauge(
            "app_requests_waiting",
            "An app's requests that wait now.",
            &|app| app.waiting,
        ),
        gauge(
            "app_kv_blocks",
            "KV blocks of an app's sequences.",
            &|app| app.kv_blocks,
        ),
        gauge(
            "app_kv_blocks_cached",
            "KV blocks kept for an app.",
            &|app| app.kv_blocks_cached,
        ),
        counter("app_requests", "An app's requests accepted.", &|app| {
            app.requests
        }),
        counter("app_prompt_tokens", "An app's prompt tokens.", &|app| {
            app.prompt_tokens
        }),
        counter("app_cached_tokens", "Those whose KV was reused.", &|app| {
            app.cached_tokens
        }),
        counter(
            "app_generated_tokens",
            "Tokens generated for an app.",
            &|app| app.generated_tokens,
        ),
        self::counter("app_gpu", "An app's share of the GPU's time.", 0_u32)
            .unit(Unit::Seconds)
            .samples(each(&|app| seconds(app.gpu_time))),
    ]
}
