//! The metrics file: replaced as a whole while something changes, and once at the end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::text::{self, Format};
use crate::changes::Changes;
use crate::state::Shared;

/// A file that follows the daemon's state.
pub(super) struct FileExport {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl FileExport {
    /// Starts to write `path`, at most once in `interval`.
    pub(super) fn start(shared: Arc<Shared>, path: PathBuf, interval: Duration) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(follow(shared, path, interval, stopped));
        Self { stop, task }
    }

    /// Writes it a last time.
    pub(super) async fn finish(self) {
        let _ = self.stop.send(());
        if self.task.await.is_err() {
            tracing::error!("a bug: the metrics file's writer panicked");
        }
    }
}

async fn follow(
    shared: Arc<Shared>,
    path: PathBuf,
    interval: Duration,
    mut stopped: oneshot::Receiver<()>,
) {
    let path: Arc<Path> = path.into();
    let mut failing = false;
    let mut changes = Changes::new(Arc::clone(&shared), interval, |status| status);
    loop {
        tokio::select! {
            status = changes.next() => write(&path, status, &mut failing).await,
            _ = &mut stopped => break,
        }
    }
    write(&path, shared.describe(), &mut failing).await;
}

/// Writes a status. A failure is logged once, until a write succeeds: the next may.
async fn write(path: &Arc<Path>, status: v1::DaemonStatus, failing: &mut bool) {
    let to = Arc::clone(path);
    let written = tokio::task::spawn_blocking(move || {
        let text = text::encode(&status, Format::Prometheus).map_err(io::Error::other)?;
        replace(&to, &text)
    });
    let written = written.await.map_err(io::Error::other);
    match written.and_then(|result| result) {
        Ok(()) => *failing = false,
        Err(error) if !*failing => {
            *failing = true;
            tracing::warn!(path = %path.display(), %error, "the metrics file cannot be written");
        }
        Err(_) => {}
    }
}

/// Replaces a file by way of one beside it, so that nobody ever reads half of it. A new file is
/// its owner's alone; one that is there keeps its mode, so that another user's collector can be let
/// in once and for all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    match fs::remove_file(&part) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let written = write_new(&part, text)
        .and_then(|()| keep_mode(path, &part))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Writes a file that must not be there yet: nothing is followed, nothing overwritten.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(unix)]
fn keep_mode(old: &Path, new: &Path) -> io::Result<()> {
    match old.symlink_metadata() {
        Ok(found) if found.is_file() => fs::set_permissions(new, found.permissions()),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn keep_mode(_old: &Path, _new: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_private_replaced_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth.prom");
        replace(&path, "one").unwrap();
        let first = path.metadata().unwrap();
        assert_eq!(first.mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let held = fs::File::open(&path).unwrap();
        replace(&path, "two").unwrap();
        let second = path.metadata().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(second.mode() & 0o777, 0o644);
        assert_ne!(first.ino(), second.ino(), "another file took its place");
        assert_eq!(
            io::read_to_string(held).unwrap(),
            "one",
            "who reads the old one reads it whole"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth.prom");
        let precious = dir.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, dir.path().join("hearth.prom.part")).unwrap();
        symlink(&precious, &path).unwrap();
        replace(&path, "text").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert!(!path.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        fs::create_dir_all(path.join("full")).unwrap();
        assert!(replace(&path, "text").is_err());
        assert!(!dir.path().join("folder.part").exists());
        assert!(replace(&dir.path().join("none/x.prom"), "text").is_err());
    }
}
