//! Sources of memory: the kernel's reports of pressure, the cgroup's limits, and what is free.

#[cfg(target_os = "linux")]
pub(super) mod cgroup;
#[cfg(target_os = "linux")]
mod events;
#[cfg(target_os = "linux")]
pub(super) mod psi;

use super::signals::MemoryEvents;
use crate::config::Governor;

/// What of memory can still be had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Free {
    /// In per cent.
    pub(super) percent: f64,
    /// Of so many bytes.
    pub(super) total_bytes: u64,
    /// Who tells.
    pub(super) source: &'static str,
}

/// An event of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "other systems give no notice of memory")
)]
pub(crate) enum MemoryEvent {
    /// Some tasks stalled.
    Some,
    /// All tasks stalled.
    Full,
    /// All tasks stalled for long.
    FullLong,
    /// The cgroup went over its soft limit.
    CgroupHigh,
}

impl MemoryEvents {
    /// Adds an event.
    pub(super) fn add(&mut self, event: MemoryEvent) {
        match event {
            MemoryEvent::Some => self.some = true,
            MemoryEvent::Full => self.full = true,
            MemoryEvent::FullLong => self.full_long = true,
            MemoryEvent::CgroupHigh => self.cgroup_high = true,
        }
    }
}

/// What is free now: on the machine, or in the cgroup if that has less. Blocks for a moment. `None`:
/// nobody tells.
#[cfg(target_os = "linux")]
pub(super) fn free(settings: &Governor) -> Option<Free> {
    let text = std::fs::read_to_string(&settings.meminfo_file).ok();
    let machine = text.as_deref().and_then(meminfo);
    let own = cgroup::folder(settings).and_then(|dir| cgroup::free(&dir));
    match (machine, own) {
        (Some(machine), Some(own)) if own.percent < machine.percent => Some(own),
        (machine, own) => machine.or(own),
    }
}

/// What is free now. Blocks for a moment. `None`: nobody tells.
#[cfg(not(target_os = "linux"))]
pub(super) fn free(_settings: &Governor) -> Option<Free> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    share(
        system.available_memory(),
        system.total_memory(),
        "the system",
    )
}

/// What the kernel's account of memory says.
#[cfg(target_os = "linux")]
fn meminfo(text: &str) -> Option<Free> {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let total = kilobytes("MemTotal:")?.checked_mul(1024)?;
    let available = kilobytes("MemAvailable:")?.checked_mul(1024)?;
    share(available, total, "meminfo")
}

/// Bytes of memory that can be had now. Blocks for a moment. `None`: nobody tells.
pub(crate) fn free_bytes(settings: &Governor) -> Option<u64> {
    let free = free(settings)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a total is no more than that, and need not be exact"
    )]
    let bytes = (free.total_bytes as f64 * free.percent.clamp(0.0, 100.0) / 100.0) as u64;
    Some(bytes)
}

/// Whether memory stays above its first level with `bytes` less of it; where nobody tells, that is taken
/// for granted. Blocks for a moment.
pub(crate) fn stays_calm(settings: &Governor, bytes: u64) -> bool {
    let Some(free) = free(settings).filter(|_| settings.memory_watch) else {
        return true;
    };
    free.after(bytes) >= settings.memory_some_percent
}

impl Free {
    /// What can still be had, in per cent, when `bytes` of it are taken.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the share of so many bytes is wanted to a per cent"
    )]
    fn after(&self, bytes: u64) -> f64 {
        self.percent - bytes as f64 / self.total_bytes as f64 * 100.0
    }
}

/// A share of a total that is not zero.
#[expect(
    clippy::cast_precision_loss,
    reason = "the share of so many bytes is wanted to a per cent"
)]
fn share(free: u64, total_bytes: u64, source: &'static str) -> Option<Free> {
    (total_bytes > 0).then(|| Free {
        percent: (free.min(total_bytes) as f64 / total_bytes as f64) * 100.0,
        total_bytes,
        source,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const RECORDED: &str = "MemTotal:       16000000 kB\nMemFree:          211000 kB\n\
                            MemAvailable:    2000000 kB\nBuffers:             0 kB\nHugePages_Total:  0\n";

    #[test]
    fn what_is_available_counts_not_what_is_free() {
        let free = meminfo(RECORDED).unwrap();
        assert!((free.percent - 12.5).abs() < 1e-9);
        assert_eq!(free.total_bytes, 16_000_000 * 1024);
    }

    #[test]
    fn what_a_model_takes_is_a_part_of_all() {
        let free = meminfo(RECORDED).unwrap();
        assert!((free.after(0) - 12.5).abs() < 1e-9);
        assert!((free.after(1_600_000 * 1024) - 2.5).abs() < 1e-9);
        assert!(free.after(u64::MAX) < 0.0);
    }

    #[test]
    fn nonsense_tells_nothing() {
        for text in [
            "",
            "MemTotal: 1 kB\n",
            "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
            "MemTotal: x kB\nMemAvailable: 1 kB\n",
            "MemTotal: 1\nMemAvailable: 1\n",
            "MemTotal: 99999999999999999999 kB\nMemAvailable: 1 kB\n",
        ] {
            assert_eq!(meminfo(text), None, "{text:?}");
        }
        let more = meminfo("MemTotal: 10 kB\nMemAvailable: 11 kB\n").unwrap();
        assert!((more.percent - 100.0).abs() < 1e-9);
    }

    #[test]
    fn the_scarcer_of_machine_and_cgroup_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("meminfo");
        std::fs::write(&file, RECORDED).unwrap();
        for (name, text) in [
            ("memory.max", "1000000\n"),
            ("memory.current", "950000\n"),
            ("memory.stat", "anon 1\ninactive_file 0\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let settings = Governor {
            meminfo_file: file,
            cgroup_dir: Some(dir.path().to_owned()),
            ..Governor::default()
        };
        let free_now = free(&settings).unwrap();
        assert_eq!(free_now.source, "the cgroup");
        assert!((free_now.percent - 5.0).abs() < 1e-9, "{free_now:?}");
        std::fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(free(&settings).unwrap().source, "meminfo");
    }
}
