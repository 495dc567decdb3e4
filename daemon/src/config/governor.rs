//! Settings of the governor: where it looks, from which figures on it acts, and what it then allows.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Apply, Key, number};
use crate::limits::KEEP_ALIVE;

/// Where power is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerSource {
    /// From the system's services, and from the kernel where there are none.
    Auto,
    /// From the kernel alone.
    Sysfs,
    /// Nowhere.
    None,
}

/// Everything about the governor that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Governor {
    /// Where power is asked for.
    pub power_source: PowerSource,
    /// The kernel's folder of power supplies.
    pub power_supply_dir: PathBuf,
    /// The kernel's folder of thermal zones.
    pub thermal_dir: PathBuf,
    /// How long more need to save must last before it counts.
    pub power_down: Duration,
    /// How long less need to save must last before it counts.
    pub power_up: Duration,
    /// Least time between two looks at batteries in the kernel's folder.
    pub power_look: Duration,
    /// Below this charge in per cent the battery is low.
    pub battery_low_percent: f64,
    /// From this charge in per cent it is low no more.
    pub battery_low_leave_percent: f64,
    /// Below this charge in per cent the battery is critical.
    pub battery_critical_percent: f64,
    /// From this charge in per cent it is critical no more.
    pub battery_critical_leave_percent: f64,
    /// Heat is serious this many degrees below the temperature at which the machine turns itself off.
    pub thermal_serious_margin_c: f64,
    /// Heat is critical this many degrees below that temperature.
    pub thermal_critical_margin_c: f64,
    /// Pace of background requests on battery: share of the time in which the GPU works.
    pub battery_background_pace: f32,
    /// Most sequences at once at the level `saver`.
    pub saver_slots: u32,
    /// Longest context of new requests at the level `saver`, in tokens.
    pub saver_context_len: u32,
    /// Pace at the level `saver`.
    pub saver_pace: f32,
    /// Pace at the level `critical` of power.
    pub critical_pace: f32,
    /// Time without requests after which weights go at the level `critical` of power.
    pub critical_unload: Duration,
    /// Whether memory is watched.
    pub memory_watch: bool,
    /// The kernel's report of memory pressure, or a FIFO whose every write is a report.
    pub pressure_file: PathBuf,
    /// The kernel's account of memory.
    pub meminfo_file: PathBuf,
    /// Folder of the cgroup whose limits hold. `None`: the daemon's own.
    pub cgroup_dir: Option<PathBuf>,
    /// Some tasks stalled for this long in 2 s: level `some`.
    pub memory_some_stall: Duration,
    /// All tasks stalled for this long in 2 s: level `high`.
    pub memory_high_stall: Duration,
    /// All tasks stalled for this long in 2 s, twice: level `critical`.
    pub memory_critical_stall: Duration,
    /// Below this share of free memory, in per cent: level `some`.
    pub memory_some_percent: f64,
    /// Below this share of free memory, in per cent: level `high`.
    pub memory_high_percent: f64,
    /// Below this share of free memory, in per cent: level `critical`.
    pub memory_critical_percent: f64,
    /// Calm that takes memory back by a level.
    pub memory_calm: Duration,
    /// Time between two looks at memory and temperature while requests run or something is short.
    pub look: Duration,
    /// Longest context of new requests at the level `high` of memory, in tokens.
    pub memory_context_len: u32,
    /// Weights that went come back only if this share of memory stays free, in per cent.
    pub reload_free_percent: f64,
    /// Least time until weights that went may come back; it doubles when they go again soon.
    pub reload_wait: Duration,
    /// Most of that time.
    pub reload_wait_max: Duration,
    /// Time without requests after which weights go; zero: never.
    pub keep_alive: Duration,
    /// The same on battery.
    pub keep_alive_battery: Duration,
}

impl Default for Governor {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            power_source: PowerSource::Auto,
            power_supply_dir: PathBuf::from("/sys/class/power_supply"),
            thermal_dir: PathBuf::from("/sys/class/thermal"),
            power_down: seconds(2),
            power_up: seconds(30),
            power_look: seconds(30),
            battery_low_percent: 20.0,
            battery_low_leave_percent: 25.0,
            battery_critical_percent: 5.0,
            battery_critical_leave_percent: 10.0,
            thermal_serious_margin_c: 7.0,
            thermal_critical_margin_c: 2.0,
            battery_background_pace: 0.5,
            saver_slots: 2,
            saver_context_len: 4096,
            saver_pace: 0.7,
            critical_pace: 0.5,
            critical_unload: seconds(30),
            memory_watch: true,
            pressure_file: PathBuf::from("/proc/pressure/memory"),
            meminfo_file: PathBuf::from("/proc/meminfo"),
            cgroup_dir: None,
            memory_some_stall: Duration::from_millis(200),
            memory_high_stall: Duration::from_millis(100),
            memory_critical_stall: Duration::from_millis(400),
            memory_some_percent: 15.0,
            memory_high_percent: 10.0,
            memory_critical_percent: 5.0,
            memory_calm: seconds(60),
            look: seconds(10),
            memory_context_len: 2048,
            reload_free_percent: 20.0,
            reload_wait: seconds(10),
            reload_wait_max: seconds(600),
            keep_alive: KEEP_ALIVE,
            keep_alive_battery: seconds(300),
        }
    }
}

/// A setting of the governor, which has no variable of its own.
const fn key(name: &'static str, apply: Apply) -> Key {
    Key {
        name,
        variable: None,
        apply,
    }
}

/// The settings of the governor.
pub(super) static KEYS: [Key; 36] = [
    key("power_source", |c, v| {
        c.governor.power_source = match v {
            "auto" => PowerSource::Auto,
            "sysfs" => PowerSource::Sysfs,
            "none" => PowerSource::None,
            _ => return Err("auto, sysfs or none"),
        };
        Ok(())
    }),
    key("power_supply_dir", |c, v| {
        path(v).map(|v| c.governor.power_supply_dir = v)
    }),
    key("thermal_dir", |c, v| {
        path(v).map(|v| c.governor.thermal_dir = v)
    }),
    key("power_down_s", |c, v| {
        time(v).map(|v| c.governor.power_down = v)
    }),
    key("power_up_s", |c, v| {
        time(v).map(|v| c.governor.power_up = v)
    }),
    key("power_look_s", |c, v| {
        interval(v).map(|v| c.governor.power_look = v)
    }),
    key("battery_low_percent", |c, v| {
        percent(v).map(|v| c.governor.battery_low_percent = v)
    }),
    key("battery_low_leave_percent", |c, v| {
        percent(v).map(|v| c.governor.battery_low_leave_percent = v)
    }),
    key("battery_critical_percent", |c, v| {
        percent(v).map(|v| c.governor.battery_critical_percent = v)
    }),
    key("battery_critical_leave_percent", |c, v| {
        percent(v).map(|v| c.governor.battery_critical_leave_percent = v)
    }),
    key("thermal_serious_margin_c", |c, v| {
        degrees(v).map(|v| c.governor.thermal_serious_margin_c = v)
    }),
    key("thermal_critical_margin_c", |c, v| {
        degrees(v).map(|v| c.governor.thermal_critical_margin_c = v)
    }),
    key("battery_background_pace", |c, v| {
        pace(v).map(|v| c.governor.battery_background_pace = v)
    }),
    key("saver_slots", |c, v| {
        number(v, 1, 64, "from 1 to 64").map(|v| c.governor.saver_slots = v)
    }),
    key("saver_context_len", |c, v| {
        context(v).map(|v| c.governor.saver_context_len = v)
    }),
    key("saver_pace", |c, v| {
        pace(v).map(|v| c.governor.saver_pace = v)
    }),
    key("critical_pace", |c, v| {
        pace(v).map(|v| c.governor.critical_pace = v)
    }),
    key("critical_unload_s", |c, v| {
        time(v).map(|v| c.governor.critical_unload = v)
    }),
    key("memory_watch", |c, v| {
        let watch = v.parse().map_err(|_| "true or false")?;
        c.governor.memory_watch = watch;
        Ok(())
    }),
    key("pressure_file", |c, v| {
        path(v).map(|v| c.governor.pressure_file = v)
    }),
    key("meminfo_file", |c, v| {
        path(v).map(|v| c.governor.meminfo_file = v)
    }),
    key("cgroup_dir", |c, v| {
        path(v).map(|v| c.governor.cgroup_dir = Some(v))
    }),
    key("memory_some_stall_ms", |c, v| {
        stall(v).map(|v| c.governor.memory_some_stall = v)
    }),
    key("memory_high_stall_ms", |c, v| {
        stall(v).map(|v| c.governor.memory_high_stall = v)
    }),
    key("memory_critical_stall_ms", |c, v| {
        stall(v).map(|v| c.governor.memory_critical_stall = v)
    }),
    key("memory_some_percent", |c, v| {
        percent(v).map(|v| c.governor.memory_some_percent = v)
    }),
    key("memory_high_percent", |c, v| {
        percent(v).map(|v| c.governor.memory_high_percent = v)
    }),
    key("memory_critical_percent", |c, v| {
        percent(v).map(|v| c.governor.memory_critical_percent = v)
    }),
    key("memory_calm_s", |c, v| {
        interval(v).map(|v| c.governor.memory_calm = v)
    }),
    key("look_s", |c, v| interval(v).map(|v| c.governor.look = v)),
    key("memory_context_len", |c, v| {
        context(v).map(|v| c.governor.memory_context_len = v)
    }),
    key("reload_free_percent", |c, v| {
        percent(v).map(|v| c.governor.reload_free_percent = v)
    }),
    key("reload_wait_s", |c, v| {
        time(v).map(|v| c.governor.reload_wait = v)
    }),
    key("reload_wait_max_s", |c, v| {
        time(v).map(|v| c.governor.reload_wait_max = v)
    }),
    key("keep_alive_s", |c, v| {
        time(v).map(|v| c.governor.keep_alive = v)
    }),
    key("keep_alive_battery_s", |c, v| {
        time(v).map(|v| c.governor.keep_alive_battery = v)
    }),
];

fn path(value: &str) -> Result<PathBuf, &'static str> {
    Some(PathBuf::from(value))
        .filter(|path| path.is_absolute())
        .ok_or("an absolute path")
}

fn time(value: &str) -> Result<Duration, &'static str> {
    number(value, 0.0, 86_400.0, "from 0 to 86400 seconds").map(Duration::from_secs_f64)
}

/// A time that something is repeated in: never so short that it would be a busy loop.
fn interval(value: &str) -> Result<Duration, &'static str> {
    number(value, 0.1, 3600.0, "from 0.1 to 3600 seconds").map(Duration::from_secs_f64)
}

fn stall(value: &str) -> Result<Duration, &'static str> {
    number(value, 1, 2000, "from 1 to 2000 milliseconds").map(Duration::from_millis)
}

fn percent(value: &str) -> Result<f64, &'static str> {
    number(value, 0.0, 100.0, "from 0 to 100 per cent")
}

fn degrees(value: &str) -> Result<f64, &'static str> {
    number(value, 0.0, 100.0, "from 0 to 100 degrees")
}

fn context(value: &str) -> Result<u32, &'static str> {
    number(value, 16, 1 << 20, "from 16 to 1048576 tokens")
}

fn pace(value: &str) -> Result<f32, &'static str> {
    number(value, 0.05, 1.0, "from 0.05 to 1")
}
