//! What the sources have told so far, and what that means together.

use super::memory::Free;
use super::signals::{
    Battery, MemoryEvents, MemorySignals, PowerMode, PowerSignals, Profile, Signals, Thermal,
};
use crate::config::{Governor, PowerSource};

/// The latest word of each source.
#[derive(Debug, Clone, Default)]
pub(super) struct Readings {
    /// UPower's. Outside: nobody has asked yet; inside: it is not there.
    pub(super) upower: Option<Option<Battery>>,
    /// The kernel's.
    pub(super) kernel: Option<Battery>,
    /// The power profile, under each of its service's names.
    pub(super) profiles: [Profile; 2],
    /// The hottest part.
    pub(super) thermal: Option<Thermal>,
    /// Free memory.
    pub(super) free: Option<Free>,
    /// What happened to memory since the last step.
    pub(super) events: MemoryEvents,
    /// Memory that the model takes when it is warm, in bytes; nothing if the GPU has its own.
    pub(super) model_bytes: u64,
    /// Whether the GPU takes its memory from the machine's.
    pub(super) shares_memory: bool,
}

impl Readings {
    /// Whether the kernel must be asked for the battery.
    pub(super) fn needs_kernel(&self, settings: &Governor) -> bool {
        match settings.power_source {
            PowerSource::None => false,
            PowerSource::Sysfs => true,
            PowerSource::Auto => self.upower == Some(None) || !cfg!(target_os = "linux"),
        }
    }

    /// All that is known, together.
    pub(super) fn signals(&self, settings: &Governor, mode: PowerMode) -> Signals {
        let watched = settings.power_source != PowerSource::None;
        let (battery, source) = match self.upower {
            _ if !watched => (None, ""),
            Some(Some(battery)) => (Some(battery), names::UPOWER),
            Some(None) => (self.kernel, names::KERNEL_INSTEAD),
            None => (self.kernel, names::KERNEL),
        };
        let profiles = &self.profiles;
        Signals {
            power: PowerSignals {
                watched,
                source,
                battery,
                saver: profiles.iter().any(|profile| profile.saver),
                degraded: profiles.iter().find_map(|profile| profile.degraded.clone()),
            },
            thermal: self.thermal.clone(),
            memory: MemorySignals {
                watched: settings.memory_watch,
                free_percent: self.free.map(|free| free.percent),
                source: self.free.map_or("", |free| free.source),
                events: self.events,
                model_percent: self.model_percent(),
                shares_memory: self.shares_memory,
            },
            mode,
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "the share of so many bytes is wanted to a per cent"
    )]
    fn model_percent(&self) -> f64 {
        self.free.map_or(0.0, |free| {
            self.model_bytes as f64 / free.total_bytes.max(1) as f64 * 100.0
        })
    }
}

/// Who tells, in the plan's reason.
#[cfg(target_os = "linux")]
mod names {
    pub(super) const UPOWER: &str = crate::governor::power::upower::NAME;
    pub(super) const KERNEL_INSTEAD: &str = crate::governor::power::sysfs::NAME;
    pub(super) const KERNEL: &str = crate::governor::power::sysfs::NAME_ALONE;
}

/// Who tells, in the plan's reason.
#[cfg(not(target_os = "linux"))]
mod names {
    pub(super) const UPOWER: &str = "";
    pub(super) const KERNEL_INSTEAD: &str = crate::governor::power::battery::NAME;
    pub(super) const KERNEL: &str = crate::governor::power::battery::NAME;
}
