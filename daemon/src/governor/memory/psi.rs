//! Memory pressure as the kernel reports it: a trigger a threshold, and an event when programs stalled
//! for longer. Where systemd names a file of its own (`MEMORY_PRESSURE_WATCH`), that one is watched.
//! Nothing is polled.

use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::sync::mpsc;

use super::MemoryEvent;
use super::events::Events;
use crate::config::Governor;
use crate::governor::Signal;

/// Names the file to watch instead of the machine's; systemd sets it.
const WATCH: &str = "MEMORY_PRESSURE_WATCH";
/// What to write into it first, in base64.
const WRITE: &str = "MEMORY_PRESSURE_WRITE";
/// The time in which stalls are summed. Without privileges the kernel takes multiples of 2 s alone.
const WINDOW_US: u32 = 2_000_000;

/// A file that tells of pressure.
pub(crate) struct Watch {
    events: Events,
    event: MemoryEvent,
}

/// Opens what is to be watched, as the environment and the settings say. Nothing where the system does
/// not tell.
pub(crate) fn open(settings: &Governor, variable: &dyn Fn(&str) -> Option<String>) -> Vec<Watch> {
    let stall = |event| trigger(event, settings);
    let mut watches = Vec::new();
    let mut add = |path: &Path, event, first: &[u8]| match Watch::open(path, event, first) {
        Ok(watch) => watches.push(watch),
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "memory pressure is not told here");
        }
    };
    let triggers = [MemoryEvent::Full, MemoryEvent::FullLong];
    match variable(WATCH) {
        // systemd's word for: do not watch.
        Some(path) if path == "/dev/null" => {}
        Some(path) => {
            let path = Path::new(&path);
            let first = variable(WRITE).map(|text| decode(&text));
            let own = stall(MemoryEvent::Some).into_bytes();
            let is_kernels = path.metadata().is_ok_and(|found| found.is_file());
            let first = first.unwrap_or(if is_kernels { own } else { Vec::new() });
            add(path, MemoryEvent::Some, &first);
            if is_kernels {
                for event in triggers {
                    add(path, event, stall(event).as_bytes());
                }
            }
        }
        None => {
            let path = settings.pressure_file.as_path();
            let is_kernels = path.metadata().is_ok_and(|found| found.is_file());
            if is_kernels {
                for event in [MemoryEvent::Some].into_iter().chain(triggers) {
                    add(path, event, stall(event).as_bytes());
                }
            } else {
                add(path, MemoryEvent::Some, &[]);
            }
        }
    }
    watches
}

/// The kernel's words for a threshold: which tasks, and microseconds of stall in a window of these.
fn trigger(event: MemoryEvent, settings: &Governor) -> String {
    let (who, stall) = match event {
        MemoryEvent::Some | MemoryEvent::CgroupHigh => ("some", settings.memory_some_stall),
        MemoryEvent::Full => ("full", settings.memory_high_stall),
        MemoryEvent::FullLong => ("full", settings.memory_critical_stall),
    };
    // The words end with a zero byte.
    format!(
        "{who} {} {WINDOW_US}\0",
        stall.min(Duration::from_secs(2)).as_micros()
    )
}

/// Base64, as systemd writes it; what is none of it is left out.
fn decode(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(value) {
        bits = (bits << 6 | u32::from(digit)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_le_bytes()[0]);
        }
    }
    bytes
}

impl Watch {
    /// Opens a file that reports `event`, and writes `first` into it.
    fn open(path: &Path, event: MemoryEvent, first: &[u8]) -> io::Result<Self> {
        let kind = path.metadata()?.file_type();
        if kind.is_socket() {
            let mut socket = UnixStream::connect(path)?;
            socket.write_all(first)?;
            socket.set_nonblocking(true)?;
            let events = Events::to_read(socket.into())?;
            return Ok(Self { events, event });
        }
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
        // Open for writing too, a FIFO never ends.
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        let events = if kind.is_fifo() {
            // What is written into a FIFO would come back to us.
            Events::to_read(file.into())?
        } else {
            file.write_all(first)?;
            Events::to_notice(file.into())?
        };
        Ok(Self { events, event })
    }

    /// Tells of each event, until there can be none any more.
    pub(crate) async fn follow(self, signals: mpsc::Sender<Signal>) {
        while self.events.next().await.is_ok() {
            if signals.send(Signal::Memory(self.event)).await.is_err() {
                return;
            }
        }
        tracing::warn!("memory pressure is not told any more");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("pressure");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &path,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .unwrap();
        path
    }

    async fn event(heard: &mut mpsc::Receiver<Signal>) -> MemoryEvent {
        let signal = tokio::time::timeout(Duration::from_secs(20), heard.recv());
        match signal.await.expect("an event in time").unwrap() {
            Signal::Memory(event) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kernel_is_told_thresholds_in_its_words() {
        let settings = Governor::default();
        let words = |event| trigger(event, &settings);
        assert_eq!(words(MemoryEvent::Some), "some 200000 2000000\0");
        assert_eq!(words(MemoryEvent::Full), "full 100000 2000000\0");
        assert_eq!(words(MemoryEvent::FullLong), "full 400000 2000000\0");
    }

    #[test]
    fn base64_is_read() {
        assert_eq!(
            decode("c29tZSAyMDAwMDAgMjAwMDAwMAA="),
            b"some 200000 2000000\0"
        );
        assert_eq!(decode("//79"), [0xff, 0xfe, 0xfd]);
        assert_eq!(decode(""), b"");
        assert_eq!(decode("%%%"), b"");
    }

    #[tokio::test]
    async fn every_write_into_a_fifo_is_an_event() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let settings = Governor {
            pressure_file: path.clone(),
            ..Governor::default()
        };
        let mut watches = open(&settings, &|_| None);
        assert_eq!(watches.len(), 1);
        let (signals, mut heard) = mpsc::channel(8);
        let task = tokio::spawn(watches.remove(0).follow(signals));
        for _ in 0..3 {
            // Writers come and go.
            std::fs::write(&path, "pressure\n").unwrap();
            assert_eq!(event(&mut heard).await, MemoryEvent::Some);
        }
        assert!(heard.try_recv().is_err(), "no event without a write");
        task.abort();
    }

    #[tokio::test]
    async fn systemd_names_the_file_and_what_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let variable = |name: &str| match name {
            WATCH => Some(path.display().to_string()),
            WRITE => Some("aGVsbG8=".to_owned()),
            _ => None,
        };
        let mut watches = open(&Governor::default(), &variable);
        assert_eq!(watches.len(), 1);
        let (mut other, _) = listener.accept().unwrap();
        let mut hello = [0; 5];
        other.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        let (signals, mut heard) = mpsc::channel(8);
        let task = tokio::spawn(watches.remove(0).follow(signals));
        other.write_all(b"x").unwrap();
        assert_eq!(event(&mut heard).await, MemoryEvent::Some);
        drop(other);
        let ended = tokio::time::timeout(Duration::from_secs(20), task);
        ended.await.expect("it ends with its other end").unwrap();
        let off = |name: &str| (name == WATCH).then(|| "/dev/null".to_owned());
        assert!(open(&Governor::default(), &off).is_empty());
    }

    #[tokio::test]
    async fn the_kernel_takes_the_triggers_where_it_has_them() {
        let path = Path::new("/proc/pressure/memory");
        let mut options = std::fs::OpenOptions::new();
        if options.read(true).write(true).open(path).is_err() {
            // A system without pressure reports, or a container that hides them.
            assert!(open(&Governor::default(), &|_| None).is_empty());
            return;
        }
        let watches = open(&Governor::default(), &|_| None);
        let events: Vec<_> = watches.iter().map(|watch| watch.event).collect();
        // Some kernels take none without a privilege; then there is none.
        let all = [MemoryEvent::Some, MemoryEvent::Full, MemoryEvent::FullLong];
        assert!(events == all || events.is_empty(), "{events:?}");
    }
}
