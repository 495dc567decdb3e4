//! The policy: signals in, plan out. A pure state machine; it reads no clock and starts no timer, but
//! tells when it must be asked again.
//!
//! Each cause to save power has a latch. It closes when its cause has lasted for `power_down`, and opens
//! when the cause has been gone for `power_up`; the level is that of the strictest closed latch. So
//! no signal, however it flaps, changes the level faster than that.

use std::time::Duration;

use super::plan::{Base, Effects, MemoryLevel, Plan, PowerLevel};
use super::signals::{Heat, MemorySignals, PowerMode, PowerSignals, Signals, Warning};
use super::words;
use crate::config::Governor;

/// Within this time two long stalls are twice: the kernel reports at most once in 2 s.
const TWICE_WITHIN: Duration = Duration::from_secs(10);

/// What can ask for less power, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Power comes from the battery.
    OnBattery,
    /// The person chose the power saver.
    SaverProfile,
    /// The machine slowed itself down.
    Degraded,
    /// The battery is low.
    Low,
    /// The machine is hot.
    Hot,
    /// The battery is nearly empty.
    Empty,
    /// The machine is about to turn itself off.
    TooHot,
}

impl Cause {
    /// All of them, in order.
    pub(super) const ALL: [Self; 7] = [
        Self::OnBattery,
        Self::SaverProfile,
        Self::Degraded,
        Self::Low,
        Self::Hot,
        Self::Empty,
        Self::TooHot,
    ];

    fn level(self) -> PowerLevel {
        match self {
            Self::OnBattery => PowerLevel::Battery,
            Self::SaverProfile | Self::Degraded | Self::Low | Self::Hot => PowerLevel::Saver,
            Self::Empty | Self::TooHot => PowerLevel::Critical,
        }
    }

    /// Whether it holds against a person's word: heat does, an empty battery is the person's own.
    fn is_heat(self) -> bool {
        matches!(self, Self::Hot | Self::TooHot)
    }

    /// Whether the signals show it. A battery or a temperature that was low, or high, has to get
    /// farther to be well again (`closed`).
    fn shows(self, signals: &Signals, settings: &Governor, closed: bool) -> bool {
        let power = &signals.power;
        let heat = signals.thermal.as_ref().map_or(Heat::Nominal, |t| t.heat);
        match self {
            Self::OnBattery => power.battery.is_some_and(|battery| battery.on_battery),
            Self::SaverProfile => power.saver,
            Self::Degraded => power.degraded.is_some(),
            Self::Low => {
                let leave = settings.battery_low_leave_percent;
                let enter = settings.battery_low_percent;
                is_below(power, enter, leave, Warning::Low, closed)
            }
            Self::Empty => {
                let leave = settings.battery_critical_leave_percent;
                let enter = settings.battery_critical_percent;
                is_below(power, enter, leave, Warning::Critical, closed)
            }
            Self::Hot => heat >= Heat::Serious,
            Self::TooHot => heat >= Heat::Critical,
        }
    }
}

fn is_below(p: &PowerSignals, enter: f64, leave: f64, warning: Warning, closed: bool) -> bool {
    let Some(battery) = p.battery.filter(|battery| battery.on_battery) else {
        return false;
    };
    let bound = if closed { leave.max(enter) } else { enter };
    battery.warning >= warning || battery.percent.is_some_and(|percent| percent < bound)
}

/// Whether a cause counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Latch {
    closed: bool,
    /// Since when its cause says otherwise.
    otherwise: Option<Duration>,
}

impl Latch {
    fn step(&mut self, shows: bool, now: Duration, settings: &Governor) {
        if shows == self.closed {
            self.otherwise = None;
            return;
        }
        let since = *self.otherwise.get_or_insert(now);
        if now >= since + self.dwell(settings) {
            *self = Self {
                closed: shows,
                otherwise: None,
            };
        }
    }

    fn dwell(&self, settings: &Governor) -> Duration {
        if self.closed {
            settings.power_up
        } else {
            settings.power_down
        }
    }

    fn due(&self, settings: &Governor) -> Option<Duration> {
        self.otherwise.map(|since| since + self.dwell(settings))
    }
}

/// What the policy remembers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct State {
    latches: [Latch; 7],
    /// Whether anybody has told of power: the first word counts at once.
    told: bool,
    memory: Memory,
}

/// What the policy remembers of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Memory {
    level: MemoryLevel,
    /// Since when nothing speaks for the level.
    calm: Duration,
    /// The last long stall of all tasks.
    long_stall: Option<Duration>,
    weights: Weights,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            level: MemoryLevel::Calm,
            calm: Duration::ZERO,
            long_stall: None,
            weights: Weights::default(),
        }
    }
}

/// Whether weights may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weights {
    gone: bool,
    /// Not before this may they come back.
    not_before: Duration,
    wait: Duration,
    /// When they were allowed back.
    back: Option<Duration>,
}

/// A plan, and when the policy must be asked again though no signal comes; `None`: not at all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// The plan.
    pub(crate) plan: Plan,
    /// When to ask again, in the same clock as `now`.
    pub(crate) again: Option<Duration>,
    /// Whether heat is among the causes: temperature must be looked at until it is not.
    pub(crate) hot: bool,
    /// Whether memory is short, or weights wait to come back: it must be looked at until it is not.
    pub(crate) short: bool,
}

/// One step: what is allowed from `now` on, which must never go back.
pub(crate) fn step(
    mut state: State,
    signals: &Signals,
    now: Duration,
    settings: &Governor,
    base: Base,
) -> (State, Decision) {
    step_power(&mut state, signals, now, settings);
    let memory = &signals.memory;
    if memory.watched {
        step_memory(&mut state.memory, memory, now, settings);
    }
    let causes = causes(&state, signals.mode);
    let strictest = causes.last().copied();
    let mut level = strictest.map_or(PowerLevel::Mains, Cause::level);
    if signals.mode == PowerMode::Saver {
        level = level.max(PowerLevel::Saver);
    }
    let known = signals.power.watched && signals.power.battery.is_some();
    let tells = known || level > PowerLevel::Mains || signals.mode != PowerMode::Auto;
    let power = tells.then_some(level);
    let effects = Effects::of_power(level, base, settings).stricter(Effects::of_memory(
        state.memory.level,
        base,
        settings,
    ));
    let weights = state.memory.weights;
    let plan = Plan {
        power,
        memory: memory.watched.then_some(state.memory.level),
        on_battery: state.latches[Cause::OnBattery as usize].closed,
        mode: signals.mode,
        reason: words::reason(
            signals,
            strictest,
            state.memory.level,
            weights.gone,
            settings,
        ),
        allowance: effects.allowance,
        keep_weights: !weights.gone,
        unload_after_idle: effects.unload_after_idle,
        unload_strict: effects.unload_strict,
        pulls_paused: effects.pulls_paused,
    };
    let hot = Cause::ALL
        .iter()
        .zip(&state.latches)
        .any(|(cause, latch)| cause.is_heat() && (latch.closed || latch.otherwise.is_some()));
    let decision = Decision {
        plan,
        again: again(&state, now, settings),
        hot,
        short: state.memory.level > MemoryLevel::Calm || weights.gone,
    };
    (state, decision)
}

fn step_power(state: &mut State, signals: &Signals, now: Duration, settings: &Governor) {
    let first = !state.told && signals.power.battery.is_some();
    state.told |= first;
    for (cause, latch) in Cause::ALL.into_iter().zip(&mut state.latches) {
        let shows = cause.shows(signals, settings, latch.closed);
        if first {
            latch.closed |= shows;
        }
        latch.step(shows, now, settings);
    }
}

/// The causes that count, the strictest last.
fn causes(state: &State, mode: PowerMode) -> Vec<Cause> {
    let counts = |cause: &Cause| mode == PowerMode::Auto || cause.is_heat();
    // Saving by hand is no less than what the battery asks for.
    let counts = |cause: &Cause| counts(cause) || mode == PowerMode::Saver;
    let closed = Cause::ALL.into_iter().zip(&state.latches);
    closed
        .filter(|(_, latch)| latch.closed)
        .map(|(cause, _)| cause)
        .filter(counts)
        .collect()
}

fn step_memory(memory: &mut Memory, signals: &MemorySignals, now: Duration, settings: &Governor) {
    let asked = asked_of_memory(memory, signals, now, settings);
    if asked > memory.level {
        // A GPU with memory of its own would gain the machine nothing.
        if asked == MemoryLevel::Critical && signals.shares_memory {
            memory.weights.go(now, settings);
        }
        memory.level = asked;
        memory.calm = now;
    } else if asked == memory.level {
        memory.calm = now;
    } else if now >= memory.calm + settings.memory_calm {
        memory.level = one_less(memory.level);
        memory.calm = now;
    }
    let room = signals
        .free_percent
        .is_none_or(|free| free - signals.model_percent >= settings.reload_free_percent);
    let weights = &mut memory.weights;
    if weights.gone && memory.level < MemoryLevel::Critical && now >= weights.not_before && room {
        weights.gone = false;
        weights.back = Some(now);
    }
}

/// The level that the signals speak for.
fn asked_of_memory(
    memory: &mut Memory,
    signals: &MemorySignals,
    now: Duration,
    settings: &Governor,
) -> MemoryLevel {
    let events = signals.events;
    let below = |percent| signals.free_percent.is_some_and(|free| free < percent);
    let mut twice = false;
    if events.full_long {
        twice = memory
            .long_stall
            .is_some_and(|at| now.saturating_sub(at) <= TWICE_WITHIN);
        memory.long_stall = Some(now);
    }
    if twice || below(settings.memory_critical_percent) {
        MemoryLevel::Critical
    } else if events.full
        || events.full_long
        || events.cgroup_high
        || below(settings.memory_high_percent)
    {
        MemoryLevel::High
    } else if events.some || below(settings.memory_some_percent) {
        MemoryLevel::Some
    } else {
        MemoryLevel::Calm
    }
}

impl Weights {
    /// They go. When they were back for a short time only, they stay away for twice as long.
    fn go(&mut self, now: Duration, settings: &Governor) {
        if self.gone {
            return;
        }
        let soon = self
            .back
            .is_some_and(|back| now.saturating_sub(back) <= settings.reload_wait_max);
        let wait = if soon {
            (self.wait * 2).min(settings.reload_wait_max)
        } else {
            settings.reload_wait
        };
        self.gone = true;
        self.wait = wait;
        self.not_before = now + wait;
    }
}

fn one_less(level: MemoryLevel) -> MemoryLevel {
    match level {
        MemoryLevel::Calm | MemoryLevel::Some => MemoryLevel::Calm,
        MemoryLevel::High => MemoryLevel::Some,
        MemoryLevel::Critical => MemoryLevel::High,
    }
}

/// When time alone may change the plan.
fn again(state: &State, now: Duration, settings: &Governor) -> Option<Duration> {
    let memory = &state.memory;
    let calmer = (memory.level > MemoryLevel::Calm).then_some(memory.calm + settings.memory_calm);
    let weights = memory.weights;
    let back = (weights.gone && weights.not_before > now).then_some(weights.not_before);
    let latches = state.latches.iter().filter_map(|latch| latch.due(settings));
    latches.chain(calmer).chain(back).min()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
