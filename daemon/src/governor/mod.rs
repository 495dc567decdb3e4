//! The governor: how much the daemon may use of the machine now, by power, heat and memory.
//!
//! `power/`, `memory/`, `thermal.rs` and `sleep.rs` ask the machine, `policy.rs` decides, `plan.rs` says
//! what a level allows, `task.rs` brings them together. Sources tell by events. A timer runs only while
//! a level may change by time alone, or while requests run or something is short.

#[cfg(target_os = "linux")]
mod bus;
mod memory;
mod mode;
mod plan;
mod policy;
mod power;
mod readings;
mod signals;
#[cfg(target_os = "linux")]
mod sleep;
#[cfg(target_os = "linux")]
mod standby;
mod task;
mod thermal;
mod words;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
#[cfg(target_os = "linux")]
use tokio::time::Instant;

use crate::config;
use crate::limits::SIGNALS_WAITING_MAX;
#[cfg(target_os = "linux")]
use crate::limits::{BUS_RETRY_MAX, BUS_RETRY_MIN};
use crate::state::Shared;
pub(crate) use memory::{MemoryEvent, free_bytes, stays_calm};
pub(crate) use plan::{Base, MemoryLevel, Plan, PowerLevel};
pub(crate) use signals::PowerMode;
use signals::{Battery, Profile};

/// What a source tells.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(
        dead_code,
        reason = "other systems have no sources that tell by themselves"
    )
)]
pub(crate) enum Signal {
    /// UPower's word; `None`: it is not there.
    Upower(Option<Battery>),
    /// The power profile, under one of its service's names.
    Profile(usize, Profile),
    /// Something happened to memory.
    Memory(MemoryEvent),
}

/// Where the plan hangs for all to see, and where a person's choice is left.
#[derive(Debug)]
pub(crate) struct Board {
    plan: watch::Sender<Plan>,
    mode: watch::Sender<PowerMode>,
    mode_file: Option<PathBuf>,
}

impl Board {
    /// One on which everything is allowed until more is known.
    pub(crate) fn new(config: &config::Config) -> Self {
        let mode_file = config.state_dir.as_deref().map(mode::path);
        let chosen = mode_file.as_deref().map(mode::read).unwrap_or_default();
        let nothing_known = "nobody has told of power and memory yet";
        Self {
            plan: watch::Sender::new(Plan::unbounded(nothing_known, &config.governor)),
            mode: watch::Sender::new(chosen),
            mode_file,
        }
    }

    /// The plan now.
    pub(crate) fn plan(&self) -> Plan {
        self.plan.borrow().clone()
    }

    /// Watches the plan.
    pub(crate) fn watch(&self) -> watch::Receiver<Plan> {
        self.plan.subscribe()
    }

    /// Takes a person's choice, and the plan that follows from it. Blocks for a moment: the choice is
    /// kept first.
    ///
    /// # Errors
    /// The choice cannot be kept. It holds nevertheless, until the daemon ends.
    pub(crate) fn choose(&self, mode: PowerMode) -> io::Result<()> {
        let kept = match &self.mode_file {
            Some(path) => mode::write(path, mode),
            None => Err(io::Error::other("there is no folder for state")),
        };
        tracing::info!(mode = mode.word(), "power is chosen by hand");
        self.mode.send_replace(mode);
        kept
    }
}

/// The governor at work; it ends when this is dropped.
pub(crate) struct Governor {
    _tasks: JoinSet<()>,
}

impl Governor {
    /// Starts it, with all sources that the configuration asks for.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (signals, inbox) = mpsc::channel(SIGNALS_WAITING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(task::run(Arc::clone(shared), inbox));
        start_sources(shared, &signals, &mut tasks);
        // The governor's own: without any source its inbox stays open.
        tasks.spawn(async move { signals.closed().await });
        Self { _tasks: tasks }
    }
}

#[cfg(target_os = "linux")]
fn start_sources(shared: &Arc<Shared>, signals: &mpsc::Sender<Signal>, tasks: &mut JoinSet<()>) {
    let settings = &shared.config.governor;
    if settings.memory_watch {
        let variable = |name: &str| std::env::var(name).ok();
        for watch in memory::psi::open(settings, &variable) {
            tasks.spawn(watch.follow(signals.clone()));
        }
        if let Some(dir) = memory::cgroup::folder(settings) {
            tasks.spawn(memory::cgroup::follow(dir, signals.clone()));
        }
    }
    if settings.power_source == config::PowerSource::Auto {
        tasks.spawn(follow_bus(Arc::clone(shared), signals.clone()));
    }
}

#[cfg(not(target_os = "linux"))]
fn start_sources(_shared: &Arc<Shared>, _signals: &mpsc::Sender<Signal>, _tasks: &mut JoinSet<()>) {
}

/// Follows all services on the system's bus, and opens it again when it is lost. A system that has no
/// bus at the start will not get one: there is no timer for it.
#[cfg(target_os = "linux")]
async fn follow_bus(shared: Arc<Shared>, signals: mpsc::Sender<Signal>) {
    let mut bus = match bus::connect().await {
        Ok(bus) => bus,
        Err(error) => {
            tracing::info!(%error, "there is no system bus: power is read from the kernel");
            let _ = signals.send(Signal::Upower(None)).await;
            return;
        }
    };
    let mut wait = BUS_RETRY_MIN;
    loop {
        let begun = Instant::now();
        follow_services(&shared, bus, &signals).await;
        tracing::warn!("the system bus is lost: power is read from the kernel");
        // One that comes and goes is not opened more often for that.
        if begun.elapsed() > BUS_RETRY_MAX {
            wait = BUS_RETRY_MIN;
        }
        bus = loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BUS_RETRY_MAX);
            match bus::connect().await {
                Ok(bus) => break bus,
                Err(error) => tracing::debug!(%error, "the system bus is still lost"),
            }
        };
        tracing::info!("the system bus is back");
    }
}

/// Follows all services on this bus until it is lost. Each says so of itself at its end.
#[cfg(target_os = "linux")]
async fn follow_services(
    shared: &Arc<Shared>,
    bus: zbus::Connection,
    signals: &mpsc::Sender<Signal>,
) {
    let mut tasks = JoinSet::new();
    tasks.spawn(power::upower::follow(bus.clone(), signals.clone()));
    for which in 0..power::profiles::NAMES.len() {
        tasks.spawn(power::profiles::follow(bus.clone(), which, signals.clone()));
    }
    tasks.spawn(sleep::follow(bus, standby::Standby(Arc::clone(shared))));
    while tasks.join_next().await.is_some() {}
}
