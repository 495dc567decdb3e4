//! The daemon's own cgroup: how much its limits leave, and when it went over the soft one. The kernel
//! tells of the latter by a change of `memory.events`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use tokio::sync::mpsc;

use super::events::Events;
use super::{Free, MemoryEvent, share};
use crate::config::Governor;
use crate::governor::Signal;

const ROOT: &str = "/sys/fs/cgroup";

/// The folder of the cgroup whose limits hold; `None`: none that limits memory.
pub(crate) fn folder(settings: &Governor) -> Option<PathBuf> {
    let dir = match &settings.cgroup_dir {
        Some(dir) => dir.clone(),
        None => Path::new(ROOT).join(own(&fs::read_to_string("/proc/self/cgroup").ok()?)?),
    };
    dir.join("memory.max").is_file().then_some(dir)
}

/// The cgroup that a process says it is in, relative to the root. The root has no limits.
fn own(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path).filter(|path| !path.is_empty() && !path.split('/').any(|part| part == ".."))
}

/// What the limits of the cgroup leave. `None`: it has none.
pub(crate) fn free(dir: &Path) -> Option<Free> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
    };
    // `max` is no number: no limit.
    let limit = match (number("memory.high"), number("memory.max")) {
        (Some(high), Some(max)) => high.min(max),
        (high, max) => high.or(max)?,
    };
    let current = number("memory.current")?;
    // Pages of files that nobody used lately are given back when others need them.
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let idle = figure(&stat, "inactive_file").unwrap_or(0);
    let used = current.saturating_sub(idle);
    share(limit.saturating_sub(used), limit, "the cgroup")
}

/// A line's number in the kernel's flat lists.
fn figure(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then_some(value)
    })?;
    line.trim().parse().ok()
}

/// Tells whenever the cgroup went over its soft limit again.
pub(crate) async fn follow(dir: PathBuf, signals: mpsc::Sender<Signal>) {
    let path = dir.join("memory.events");
    let changes = match watch(&path) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "the cgroup tells of no events");
            return;
        }
    };
    let mut known = highs(&path);
    while changes.next().await.is_ok() {
        let now = highs(&path);
        let rose = now > known;
        known = now;
        let event = Signal::Memory(MemoryEvent::CgroupHigh);
        if rose && signals.send(event).await.is_err() {
            return;
        }
    }
}

fn highs(path: &Path) -> Option<u64> {
    figure(&fs::read_to_string(path).ok()?, "high")
}

fn watch(path: &Path) -> io::Result<Events> {
    let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
    Events::to_read(changes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_says_where_it_is() {
        let own_of = |text: &'static str| own(text);
        assert_eq!(
            own_of("0::/user.slice/a.service\n"),
            Some("user.slice/a.service")
        );
        assert_eq!(own_of("4:memory:/x\n0::/y\n"), Some("y"));
        for text in ["", "0::/\n", "4:memory:/x\n", "0::/../../etc\n"] {
            assert_eq!(own_of(text), None, "{text:?}");
        }
    }

    #[test]
    fn limits_leave_so_much() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(free(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.high", "max\n");
        write("memory.current", "500\n");
        assert_eq!(free(dir.path()), None, "no limit");
        write("memory.high", "1000\n");
        let percent = || free(dir.path()).unwrap().percent;
        assert!((percent() - 50.0).abs() < 1e-9);
        write(
            "memory.stat",
            "anon 300\ninactive_file 100\nactive_file 100\n",
        );
        assert!((percent() - 60.0).abs() < 1e-9, "idle pages can be had");
        write("memory.max", "400\n");
        assert!(percent().abs() < 1e-9, "over the limit, nothing is left");
    }

    #[tokio::test]
    async fn more_events_are_told_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.events");
        fs::write(&path, "low 0\nhigh 3\nmax 0\n").unwrap();
        let (signals, mut heard) = mpsc::channel(8);
        let task = tokio::spawn(follow(dir.path().to_owned(), signals));
        // The watch is set up by the time of the first answer: write until it comes.
        let mut count = 3;
        let first = loop {
            count += 1;
            fs::write(&path, format!("low 0\nhigh {count}\nmax 0\n")).unwrap();
            match tokio::time::timeout(Duration::from_millis(100), heard.recv()).await {
                Ok(signal) => break signal.unwrap(),
                Err(_) => assert!(count < 200, "never told"),
            }
        };
        assert!(matches!(first, Signal::Memory(MemoryEvent::CgroupHigh)));
        task.abort();
    }
}
