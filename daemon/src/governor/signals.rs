//! What the governor knows of the machine: plain data, whoever told it.

/// How a system's power service judges the battery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Warning {
    /// Well, or not told.
    #[default]
    None,
    /// Low.
    Low,
    /// Critical, or about to turn the machine off.
    Critical,
}

/// Where the power comes from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Battery {
    /// Whether the machine has a battery.
    pub(crate) present: bool,
    /// Whether it runs from it.
    pub(crate) on_battery: bool,
    /// Its charge, from 0 to 100.
    pub(crate) percent: Option<f64>,
    /// What the system thinks of that.
    pub(crate) warning: Warning,
}

/// What one name of the power profiles' service tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Profile {
    /// The power saver is chosen.
    pub(crate) saver: bool,
    /// Why the machine has slowed itself down, in the system's word.
    pub(crate) degraded: Option<String>,
}

/// All about power.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PowerSignals {
    /// Whether power is watched at all.
    pub(crate) watched: bool,
    /// Who told of the battery.
    pub(crate) source: &'static str,
    /// The battery; `None`: nobody has told yet.
    pub(crate) battery: Option<Battery>,
    /// Whether the person chose to save power.
    pub(crate) saver: bool,
    /// Why the machine has slowed itself down, in the system's word.
    pub(crate) degraded: Option<String>,
}

/// How hot the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Heat {
    /// As it should be.
    #[default]
    Nominal,
    /// Close to what the machine can bear.
    Serious,
    /// About to turn itself off.
    Critical,
}

/// The hottest part.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Thermal {
    /// How hot.
    pub(crate) heat: Heat,
    /// In degrees Celsius.
    pub(crate) celsius: f64,
    /// Which sensor.
    pub(crate) source: String,
}

/// What happened to memory since the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryEvents {
    /// Some tasks stalled.
    pub(crate) some: bool,
    /// All tasks stalled.
    pub(crate) full: bool,
    /// All tasks stalled for long.
    pub(crate) full_long: bool,
    /// The cgroup went over its soft limit.
    pub(crate) cgroup_high: bool,
}

/// All about memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct MemorySignals {
    /// Whether memory is watched at all.
    pub(crate) watched: bool,
    /// Share of memory that can still be had, in per cent; `None`: nobody has looked.
    pub(crate) free_percent: Option<f64>,
    /// Who told of it.
    pub(crate) source: &'static str,
    /// What happened since the last step.
    pub(crate) events: MemoryEvents,
    /// Share of memory that the model's weights take, in per cent.
    pub(crate) model_percent: f64,
    /// Whether the model takes it from there: a GPU with memory of its own does not.
    pub(crate) shares_memory: bool,
}

/// What a person chose for power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum PowerMode {
    /// As the machine tells.
    #[default]
    Auto,
    /// Full power, whatever the battery says.
    Full,
    /// Save power, whatever the battery says.
    Saver,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Signals {
    /// Power.
    pub(crate) power: PowerSignals,
    /// Temperature; `None`: no sensor, or nobody has looked.
    pub(crate) thermal: Option<Thermal>,
    /// Memory.
    pub(crate) memory: MemorySignals,
    /// By hand.
    pub(crate) mode: PowerMode,
}
