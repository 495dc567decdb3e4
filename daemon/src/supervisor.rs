//! What the service manager is told: ready, how it goes, stopping, and that the daemon still lives.
//! systemd's protocol; without it nobody is told anything and no timer runs.
//!
//! Alive means that the async runtime turns, which this task is part of, and that the engine's
//! thread does: a turn that takes too long is a GPU that hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::lifecycle::{Phase, State};
use crate::limits::{
    DRAIN_MAX, FLUSH_MAX, WATCHDOG_LOAD_PERIODS, WATCHDOG_PINGS, WATCHDOG_TURN_PERIODS,
};
use crate::state::Shared;

/// The service manager, if one listens. The default is none.
#[derive(Debug, Default)]
pub struct Supervisor {
    listens: bool,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that started this process, by its environment.
    pub fn from_environment() -> Self {
        #[cfg(target_os = "linux")]
        {
            let watchdog = sd_notify::watchdog_enabled();
            Self {
                listens: std::env::var_os("NOTIFY_SOCKET").is_some(),
                watchdog: watchdog.filter(|period| !period.is_zero()),
            }
        }
        #[cfg(not(target_os = "linux"))]
        Self::default()
    }

    /// After which silence the daemon is restarted; `None`: nobody watches.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.listens)
    }

    /// Tells how the daemon is until it stops. The API must answer already.
    pub(crate) async fn inform(&self, shared: Arc<Shared>) {
        if !self.listens {
            return;
        }
        let mut life = shared.lifecycle.watch();
        let mut pulse = self.watchdog().map(|period| Pulse::new(period, &shared));
        let mut said = String::new();
        tell(&["READY=1"]);
        loop {
            let phase = life.borrow_and_update().clone();
            let words = describe(&phase, &shared);
            if words != said {
                tell(&[&format!("STATUS={words}")]);
                said = words;
            }
            if phase.state == State::Stopped {
                return;
            }
            tokio::select! {
                changed = life.changed() => if changed.is_err() { return },
                () = beat(&mut pulse) => {}
            }
        }
    }

    /// Tells that the daemon stops, and how long that may take.
    pub(crate) fn stopping(&self) {
        if self.listens {
            // The GPU's start, the engine's drain, app sockets, connections.
            let most = 2 * (DRAIN_MAX + FLUSH_MAX);
            let extend = format!("EXTEND_TIMEOUT_USEC={}", most.as_micros());
            tell(&["STOPPING=1", &extend]);
        }
    }
}

#[cfg(target_os = "linux")]
fn tell(lines: &[&str]) {
    let states: Vec<_> = lines
        .iter()
        .map(|line| sd_notify::NotifyState::Custom(line))
        .collect();
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, "the service manager does not hear");
    }
}

#[cfg(not(target_os = "linux"))]
fn tell(_lines: &[&str]) {}

/// The daemon in a few words, on one line. A load's progress is left out: it changes all the time.
fn describe(phase: &Phase, shared: &Shared) -> String {
    let words = match (phase.state, &phase.loading) {
        (State::Starting, _) => "opening the GPU".to_owned(),
        (State::Loading, Some(loading)) => format!("loading {}", loading.name),
        (State::Loading, None) => "loading".to_owned(),
        (State::Ready, _) => {
            let models = shared.models();
            let names: Vec<_> = models.iter().map(|warm| warm.name.as_str()).collect();
            match names.as_slice() {
                [] => "ready, no model is warm".to_owned(),
                [name] => format!("ready, {name} is warm"),
                names => format!("ready, {} are warm", names.join(", ")),
            }
        }
        (State::Draining, _) => "draining: what runs may finish".to_owned(),
        (State::Stopped, _) => "stopped".to_owned(),
    };
    let words = match &phase.reason {
        Some(reason) => format!("{words}: {reason}"),
        None => words,
    };
    words.replace(['\n', '\r'], " ")
}

/// Waits for the next sign of life that is due, and gives it; for ever where nobody watches.
async fn beat(pulse: &mut Option<Pulse>) {
    match pulse {
        Some(pulse) => pulse.beat().await,
        None => std::future::pending().await,
    }
}

/// Signs of life at half the period: the one timer that runs while the daemon is idle, and only
/// where a service manager watches.
struct Pulse {
    shared: Arc<Shared>,
    timer: tokio::time::Interval,
    period: Duration,
    /// Sees what a load reports.
    life: watch::Receiver<Phase>,
    progress: Instant,
    was_alive: bool,
}

impl Pulse {
    fn new(period: Duration, shared: &Arc<Shared>) -> Self {
        let mut timer = tokio::time::interval(period / WATCHDOG_PINGS);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            timer,
            period,
            life: shared.lifecycle.watch(),
            shared: Arc::clone(shared),
            progress: Instant::now(),
            was_alive: true,
        }
    }

    async fn beat(&mut self) {
        self.timer.tick().await;
        let now = Instant::now();
        if self.life.has_changed().unwrap_or(false) {
            self.progress = now;
        }
        let state = self.life.borrow_and_update().state;
        let busy_since = self.shared.engine().and_then(|engine| engine.busy_since());
        let silence = silence(state, busy_since, self.progress, now);
        let alive = is_alive(state, silence, self.period);
        if alive {
            tell(&["WATCHDOG=1"]);
        } else if self.was_alive {
            let seconds = silence.as_secs();
            tracing::error!(seconds, "the engine's thread does not advance");
        }
        self.was_alive = alive;
    }
}

/// How long nothing has been seen of the engine's thread. While it sleeps, nothing is to be seen.
fn silence(state: State, busy_since: Option<Instant>, progress: Instant, now: Instant) -> Duration {
    let last = match state {
        State::Starting | State::Loading => Some(busy_since.unwrap_or(progress).max(progress)),
        _ => busy_since,
    };
    last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last))
}

/// Whether that is no longer than a turn, or a part of a load, may take.
fn is_alive(state: State, silence: Duration, period: Duration) -> bool {
    let periods = match state {
        State::Starting | State::Loading => WATCHDOG_LOAD_PERIODS,
        _ => WATCHDOG_TURN_PERIODS,
    };
    silence <= period * periods
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn alive(state: State, busy_s: Option<u64>, progress_s: u64) -> bool {
        let now = Instant::now() + Duration::from_secs(100_000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        let silence = silence(state, busy_s.map(ago), ago(progress_s), now);
        is_alive(state, silence, PERIOD)
    }

    #[test]
    fn a_turn_may_take_four_periods_and_sleep_for_ever() {
        assert!(alive(State::Ready, Some(120), 90_000));
        assert!(!alive(State::Ready, Some(121), 0));
        assert!(!alive(State::Draining, Some(121), 0));
        assert!(alive(State::Ready, None, 90_000));
    }

    #[test]
    fn a_load_lives_by_its_progress() {
        for state in [State::Starting, State::Loading] {
            assert!(alive(state, Some(90_000), 600), "{state:?}");
            assert!(!alive(state, Some(90_000), 601), "{state:?}");
            assert!(!alive(state, None, 601), "{state:?}");
            assert!(alive(state, Some(1), 601), "{state:?}");
        }
    }
}
