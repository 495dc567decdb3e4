//! The task that feeds the policy and makes its plan known: to the engine, to the model's warmth, to
//! watchers and to the log.

use std::sync::Arc;
use std::time::Duration;

use hearth_engine::{AdapterKind, Allowance};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::memory::{self, Free};
use super::plan::{Plan, PowerLevel};
use super::policy::{self, Decision};
use super::readings::Readings;
use super::signals::{Battery, MemoryEvents, Thermal};
use super::{Signal, thermal};
use crate::config;
use crate::state::Shared;
use crate::warmth::Keep;

/// Follows signals, requests and choices for ever.
pub(super) async fn run(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Signal>) {
    let mut activity = shared.activity.subscribe();
    let mut life = shared.lifecycle.watch();
    let mut mode = shared.governor.mode.subscribe();
    let mut task = Task::new(shared);
    loop {
        task.look().await;
        while let Ok(signal) = inbox.try_recv() {
            task.hear(signal);
        }
        activity.mark_unchanged();
        life.mark_unchanged();
        mode.mark_unchanged();
        let wake = task.step();
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = inbox.recv() => match signal {
                Some(signal) => task.hear(signal),
                None => return,
            },
            // The senders live as long as `shared`.
            _ = activity.changed() => {}
            _ = life.changed() => {}
            _ = mode.changed() => {}
            () = sleep => {}
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    begun: Instant,
    state: policy::State,
    readings: Readings,
    /// The last looks at the battery, and at memory and heat; `None`: now.
    looked: (Option<Instant>, Option<Instant>),
    decision: Option<Decision>,
    /// What the engine was told.
    allowed: Option<Allowance>,
}

impl Task {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            begun: Instant::now(),
            state: policy::State::default(),
            readings: Readings {
                shares_memory: true,
                ..Readings::default()
            },
            looked: (None, None),
            decision: None,
            allowed: None,
        }
    }

    fn settings(&self) -> &config::Governor {
        &self.shared.config.governor
    }

    fn hear(&mut self, signal: Signal) {
        match signal {
            Signal::Upower(battery) => self.readings.upower = Some(battery),
            Signal::Profile(which, profile) => self.readings.profiles[which] = profile,
            Signal::Memory(event) => {
                self.readings.events.add(event);
                // How much is free decides how bad it is.
                self.looked.1 = None;
            }
        }
    }

    /// When the battery, and memory and heat, are to be looked at next; `None`: not as things are.
    fn looks_due(&self) -> (Option<Instant>, Option<Instant>) {
        let settings = self.settings();
        let busy = !self.shared.warmth.is_idle();
        let decision = self.decision.as_ref();
        let saving = decision.is_some_and(|d| d.plan.power > Some(PowerLevel::Mains));
        let short = decision.is_some_and(|d| d.short || d.hot);
        let due = |looked: Option<Instant>, every: Duration, wanted: bool| match looked {
            None => Some(self.begun),
            Some(at) => wanted.then(|| at + every),
        };
        let power = self.readings.needs_kernel(settings);
        let power = power.then(|| due(self.looked.0, settings.power_look, busy || saving));
        let rest = due(self.looked.1, settings.look, busy || short);
        (power.flatten(), rest)
    }

    /// Looks at what tells nothing by itself, if it is time.
    async fn look(&mut self) {
        let now = Instant::now();
        let (power, rest) = self.looks_due();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let (power, rest) = (is_due(power), is_due(rest));
        if !power && !rest {
            return;
        }
        let settings = self.settings().clone();
        let looked = tokio::task::spawn_blocking(move || Seen::look(&settings, power, rest)).await;
        let now = Instant::now();
        if power {
            self.looked.0 = Some(now);
        }
        if rest {
            self.looked.1 = Some(now);
        }
        let Ok(seen) = looked else {
            tracing::error!("a bug: a look at the machine panicked");
            return;
        };
        if power {
            self.readings.kernel = seen.battery;
        }
        if rest {
            self.readings.free = seen.free;
            self.readings.thermal = seen.thermal;
        }
    }

    /// Decides, makes the decision known, and says when to go on if nothing happens.
    fn step(&mut self) -> Option<Instant> {
        let models = self.shared.models();
        if !models.is_empty() {
            let bytes = models.iter().map(|warm| {
                let model = &warm.model;
                model.weights_bytes + model.kv_bytes + model.scratch_bytes
            });
            self.readings.model_bytes = bytes.sum();
        }
        let engine = self.shared.engine();
        let kind = engine.map(|engine| engine.adapter().kind);
        self.readings.shares_memory = kind != Some(AdapterKind::Discrete);
        let settings = self.settings();
        let mode = *self.shared.governor.mode.borrow();
        let signals = self.readings.signals(settings, mode);
        let now = self.begun.elapsed();
        let base = self.shared.base();
        let (state, decision) = policy::step(self.state, &signals, now, settings, base);
        self.state = state;
        self.readings.events = MemoryEvents::default();
        self.allow(decision.plan.allowance);
        self.publish(&decision.plan);
        let again = decision.again.map(|at| self.begun + at);
        self.decision = Some(decision);
        let (power, rest) = self.looks_due();
        [again, power, rest].into_iter().flatten().min()
    }

    /// Tells the engine, as soon as there is one.
    fn allow(&mut self, allowance: Allowance) {
        let Some(engine) = self.shared.engine() else {
            return;
        };
        if self.allowed != Some(allowance) {
            engine.allow(allowance);
            self.allowed = Some(allowance);
        }
    }

    fn publish(&self, plan: &Plan) {
        let shared = &self.shared;
        let old = shared.governor.plan();
        if old == *plan {
            return;
        }
        if (old.power, old.memory, old.mode) != (plan.power, plan.memory, plan.mode)
            || old.keep_weights != plan.keep_weights
        {
            tracing::info!(
                power = ?plan.power,
                memory = ?plan.memory,
                keep_weights = plan.keep_weights,
                reason = plan.reason,
                "the plan changed"
            );
        }
        shared.warmth.set_keep(Keep {
            weights: plan.keep_weights,
            idle: plan.unload_after_idle,
            strict: plan.unload_strict,
            reason: plan.reason.clone(),
        });
        shared.governor.plan.send_replace(plan.clone());
        shared.activity.send_replace(());
    }
}

/// What a look at the machine shows.
struct Seen {
    battery: Option<Battery>,
    free: Option<Free>,
    thermal: Option<Thermal>,
}

impl Seen {
    /// Looks. Blocks.
    fn look(settings: &config::Governor, power: bool, rest: bool) -> Self {
        let memory = rest && settings.memory_watch;
        let heat = rest && settings.power_source != config::PowerSource::None;
        Self {
            battery: power.then(|| battery(settings)),
            free: memory.then(|| memory::free(settings)).flatten(),
            thermal: heat.then(|| thermal::read(settings)).flatten(),
        }
    }
}

#[cfg(target_os = "linux")]
fn battery(settings: &config::Governor) -> Battery {
    super::power::sysfs::read(&settings.power_supply_dir)
}

#[cfg(not(target_os = "linux"))]
fn battery(_settings: &config::Governor) -> Battery {
    super::power::battery::read()
}
