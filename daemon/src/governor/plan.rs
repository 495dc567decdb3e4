//! From levels to what they allow. Pure; the stricter of power and memory wins in each field.

use std::time::Duration;

use hearth_engine::{Allowance, Class};

use super::signals::PowerMode;
use crate::config::Governor;

/// How much power may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PowerLevel {
    /// On mains.
    Mains,
    /// On battery.
    Battery,
    /// Battery low, machine hot, or the person chose to save.
    Saver,
    /// Battery or temperature critical.
    Critical,
}

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MemoryLevel {
    /// Enough.
    Calm,
    /// Some pressure.
    Some,
    /// High pressure.
    High,
    /// Critical.
    Critical,
}

/// What the engine has, with everything allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// Slots.
    pub(crate) slots: u32,
    /// Longest context, in tokens.
    pub(crate) context_len: u32,
    /// Most prompt tokens in a step.
    pub(crate) prefill_chunk: u32,
}

/// What is allowed now, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Level of power; `None`: not watched, or not known yet.
    pub(crate) power: Option<PowerLevel>,
    /// Level of memory; `None`: not watched.
    pub(crate) memory: Option<MemoryLevel>,
    /// Whether power comes from the battery, whatever a person chose.
    pub(crate) on_battery: bool,
    /// What a person chose.
    pub(crate) mode: PowerMode,
    /// Why, in words, and who told.
    pub(crate) reason: String,
    /// The engine's part.
    pub(crate) allowance: Allowance,
    /// Whether weights may be in memory.
    pub(crate) keep_weights: bool,
    /// After how long without requests they go; `None`: never.
    pub(crate) unload_after_idle: Option<Duration>,
    /// Whether that holds against what a person asked for.
    pub(crate) unload_strict: bool,
    /// Whether downloads wait.
    pub(crate) pulls_paused: bool,
}

impl Plan {
    /// Everything is allowed: before anything is known.
    pub(crate) fn unbounded(reason: &str, settings: &Governor) -> Self {
        Self {
            power: None,
            memory: None,
            on_battery: false,
            mode: PowerMode::Auto,
            reason: reason.to_owned(),
            allowance: Allowance::default(),
            keep_weights: true,
            unload_after_idle: wait(settings.keep_alive),
            unload_strict: false,
            pulls_paused: false,
        }
    }
}

/// What a level does. Two of them join by the stricter of each field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Effects {
    /// The engine's part.
    pub(crate) allowance: Allowance,
    /// After how long without requests weights go; `None`: never.
    pub(crate) unload_after_idle: Option<Duration>,
    /// Whether that holds against what a person asked for.
    pub(crate) unload_strict: bool,
    /// Whether downloads wait.
    pub(crate) pulls_paused: bool,
}

impl Effects {
    /// What a level of power does.
    pub(crate) fn of_power(level: PowerLevel, base: Base, settings: &Governor) -> Self {
        let all = Allowance::default();
        let chunk = |divisor: u32| (base.prefill_chunk / divisor).max(1);
        let (allowance, keep_alive, strict) = match level {
            PowerLevel::Mains => (all, settings.keep_alive, false),
            PowerLevel::Battery => {
                let allowance = Allowance {
                    slots: (base.slots / 2).max(1),
                    prefill_chunk_max: chunk(2),
                    background_pace: settings.battery_background_pace,
                    ..all
                };
                (allowance, settings.keep_alive_battery, false)
            }
            PowerLevel::Saver => {
                let allowance = Allowance {
                    slots: settings.saver_slots.min((base.slots / 2).max(1)),
                    context_len_max: settings.saver_context_len,
                    prefill_chunk_max: chunk(4),
                    least_class: Class::Interactive,
                    pace: settings.saver_pace,
                    background_pace: settings.saver_pace.min(settings.battery_background_pace),
                    ..all
                };
                (allowance, settings.keep_alive_battery, false)
            }
            PowerLevel::Critical => {
                let pace = settings.critical_pace.min(settings.saver_pace);
                let allowance = Allowance {
                    slots: 1,
                    context_len_max: settings.saver_context_len,
                    prefill_chunk_max: chunk(4),
                    least_class: Class::Interactive,
                    pace,
                    background_pace: pace.min(settings.battery_background_pace),
                    ..all
                };
                (allowance, settings.critical_unload, true)
            }
        };
        Self {
            allowance,
            unload_after_idle: wait(keep_alive).or(strict.then_some(keep_alive)),
            unload_strict: strict,
            pulls_paused: level >= PowerLevel::Saver,
        }
    }

    /// What a level of memory does.
    pub(crate) fn of_memory(level: MemoryLevel, base: Base, settings: &Governor) -> Self {
        let all = Allowance::default();
        let allowance = match level {
            MemoryLevel::Calm => all,
            // KV takes memory as contexts grow: new ones stay short.
            MemoryLevel::Some => Allowance {
                prefix_cache_share: 0.5,
                context_len_max: (base.context_len / 2).max(settings.memory_context_len),
                ..all
            },
            MemoryLevel::High | MemoryLevel::Critical => Allowance {
                slots: 1,
                context_len_max: settings.memory_context_len,
                prefix_cache_share: 0.0,
                keep_waiting_kv: false,
                ..all
            },
        };
        Self {
            allowance,
            unload_after_idle: None,
            unload_strict: false,
            pulls_paused: false,
        }
    }

    /// The stricter of both, field by field.
    pub(crate) fn stricter(self, other: Self) -> Self {
        let (a, b) = (self.allowance, other.allowance);
        // A time beats none; of two the shorter counts.
        let idle = match (self.unload_after_idle, other.unload_after_idle) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            allowance: Allowance {
                slots: a.slots.min(b.slots),
                context_len_max: a.context_len_max.min(b.context_len_max),
                prefill_chunk_max: a.prefill_chunk_max.min(b.prefill_chunk_max),
                least_class: a.least_class.min(b.least_class),
                pace: a.pace.min(b.pace),
                background_pace: a.background_pace.min(b.background_pace),
                prefix_cache_share: a.prefix_cache_share.min(b.prefix_cache_share),
                keep_waiting_kv: a.keep_waiting_kv && b.keep_waiting_kv,
            },
            unload_after_idle: idle,
            unload_strict: self.unload_strict || other.unload_strict,
            pulls_paused: self.pulls_paused || other.pulls_paused,
        }
    }
}

/// A time of zero means never.
fn wait(time: Duration) -> Option<Duration> {
    Some(time).filter(|time| !time.is_zero())
}
