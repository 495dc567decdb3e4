//! What `hearth doctor` sees of the machine without asking the daemon: the program, the socket's folder,
//! memory and power.

use std::path::Path;

use super::doctor::Finding;
use crate::output::bytes;

/// Less free memory than this is too little for the smallest models.
const MEMORY_BYTES_LOW: u64 = 500_000_000;

/// Whether the daemon's program is there.
pub(super) fn program() -> Finding {
    match hearth::daemon_program() {
        Some(path) => Finding::good("program", path.display().to_string()),
        None => Finding::bad(
            "program",
            "hearthd is neither beside hearth nor in PATH",
            "install hearthd beside hearth",
        ),
    }
}

/// Whether the socket's folder is one that the daemon accepts.
#[cfg(unix)]
pub(super) fn directory(socket: &Path) -> Finding {
    use std::os::unix::fs::MetadataExt as _;

    const NAME: &str = "folder";
    let Some(dir) = socket.parent() else {
        return Finding::bad(
            NAME,
            "the socket has no folder",
            "set HEARTH_SOCKET to a path in a folder",
        );
    };
    let at = dir.display();
    let meta = match std::fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::good(NAME, format!("{at} (the daemon makes it)"));
        }
        Err(error) => {
            return Finding::bad(
                NAME,
                format!("{at}: {error}"),
                "make it readable, or set HEARTH_SOCKET",
            );
        }
    };
    let own = rustix::process::geteuid().as_raw();
    if meta.is_symlink() {
        Finding::bad(
            NAME,
            format!("{at} is a symbolic link"),
            format!("remove it: rm {at}"),
        )
    } else if !meta.is_dir() {
        Finding::bad(
            NAME,
            format!("{at} is no folder"),
            format!("remove it: rm {at}"),
        )
    } else if meta.uid() != own {
        let detail = format!("{at} belongs to user {}, not {own}", meta.uid());
        Finding::bad(NAME, detail, "remove it as that user, or set HEARTH_SOCKET")
    } else if meta.mode() & 0o077 != 0 {
        let detail = format!("{at} is open to others (mode {:o})", meta.mode() & 0o777);
        Finding::bad(NAME, detail, format!("chmod 700 {at}"))
    } else {
        Finding::good(NAME, at.to_string())
    }
}

#[cfg(not(unix))]
pub(super) fn directory(socket: &Path) -> Finding {
    Finding::good(
        "folder",
        format!("{} is a named pipe and needs none", socket.display()),
    )
}

/// Whether there is memory for a model; nothing where the system does not tell.
pub(super) fn memory() -> Option<Finding> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let free = memory_available(&text)?;
    Some(if free < MEMORY_BYTES_LOW {
        let detail = format!("{} are available", bytes(free));
        Finding::poor("memory", detail, "close something, or use a smaller model")
    } else {
        Finding::good("memory", format!("{} are available", bytes(free)))
    })
}

/// Bytes in the line `MemAvailable` of /proc/meminfo.
fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// Where the power comes from; nothing where the system does not tell.
pub(super) fn power() -> Option<Finding> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let (mut battery, mut mains) = (None, false);
    for entry in std::fs::read_dir("/sys/class/power_supply").ok()?.flatten() {
        let dir = entry.path();
        match read(&dir.join("type")).as_str() {
            // A mouse or a phone has a battery too, but does not feed this machine.
            "Battery" if read(&dir.join("scope")) != "Device" => {
                battery = Some((read(&dir.join("status")), read(&dir.join("capacity"))));
            }
            "Mains" | "USB" => mains |= read(&dir.join("online")) == "1",
            _ => {}
        }
    }
    Some(power_finding(battery, mains))
}

fn power_finding(battery: Option<(String, String)>, mains: bool) -> Finding {
    match battery {
        None => Finding::good("power", "no battery: on mains"),
        Some((status, capacity)) if mains || status != "Discharging" => {
            Finding::good("power", format!("on mains, battery at {capacity}%"))
        }
        Some((_, capacity)) => Finding::good("power", format!("on battery, at {capacity}%")),
    }
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use super::super::doctor::Verdict;
    use super::*;

    #[test]
    fn memory_is_read() {
        assert_eq!(
            memory_available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"),
            Some(2_097_152)
        );
        assert_eq!(memory_available("MemTotal: 9 kB\n"), None);
    }

    #[cfg(unix)]
    #[test]
    fn folders_are_judged_as_the_daemon_does() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(directory(&own.join("s")).verdict, Verdict::Good);
        assert_eq!(
            directory(&dir.path().join("absent/s")).verdict,
            Verdict::Good
        );
        let link = dir.path().join("link");
        symlink(&own, &link).unwrap();
        assert_eq!(directory(&link.join("s")).verdict, Verdict::Bad);
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
        let finding = directory(&own.join("s"));
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(
            finding
                .mend
                .is_some_and(|mend| mend.starts_with("chmod 700"))
        );
    }

    #[test]
    fn power_is_told() {
        let battery = |status: &str| Some((status.to_owned(), "40".to_owned()));
        assert!(power_finding(None, false).detail.contains("no battery"));
        assert!(
            power_finding(battery("Discharging"), false)
                .detail
                .contains("on battery")
        );
        assert!(
            power_finding(battery("Charging"), false)
                .detail
                .contains("on mains")
        );
    }
}
