//! Sources of power: who is asked, and how their words become signals.

#[cfg(not(target_os = "linux"))]
pub(super) mod battery;
#[cfg(target_os = "linux")]
pub(super) mod profiles;
#[cfg(target_os = "linux")]
pub(super) mod sysfs;
#[cfg(target_os = "linux")]
pub(super) mod upower;
