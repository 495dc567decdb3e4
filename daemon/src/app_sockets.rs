//! The app sockets that are open: who opened each for whom, and its life from the launcher's call
//! to its end. What comes through them is handed to `server.rs`; where they lie is `socket/app.rs`'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_proto::v1;
use interprocess::local_socket::tokio::Stream;
use interprocess::local_socket::traits::tokio::Listener as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::{Code, Status};

use crate::lifecycle::State;
use crate::limits::{APP_SOCKETS_MAX, ARRIVALS_WAITING_MAX};
use crate::peer::{self, Peer, PeerError};
use crate::socket::app::{self, AppListener};
use crate::state::Shared;
use crate::status;

/// A connection through an app socket, accepted and not yet admitted.
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    label: Arc<Label>,
    /// Becomes true when the socket is closed by its launcher.
    pub(crate) revoked: watch::Receiver<bool>,
}

impl Arrival {
    /// Who it is: what the launcher said, if the user may speak.
    ///
    /// # Errors
    /// As [`peer::identify`].
    pub(crate) fn identify(&self) -> Result<Peer, PeerError> {
        peer::identify_sandboxed(
            &self.stream,
            &self.label.app,
            self.label.instance.as_deref(),
        )
    }
}

/// What a launcher said of an app.
#[derive(Debug)]
pub(crate) struct Label {
    pub(crate) app: String,
    pub(crate) instance: Option<String>,
    /// The launcher's process, where it is known.
    pub(crate) launcher_pid: Option<u32>,
}

/// One open socket, as others see it.
#[derive(Debug)]
struct Entry {
    label: Arc<Label>,
    /// Each connection holds a receiver.
    revoked: watch::Sender<bool>,
}

/// The sockets that are open.
#[derive(Debug)]
pub(crate) struct AppSockets {
    /// The folder of the main socket.
    folder: PathBuf,
    arrivals: mpsc::Sender<Arrival>,
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    by_number: BTreeMap<u64, Entry>,
    next_number: u64,
}

impl AppSockets {
    /// None yet; they will lie beneath `folder`, that of the main socket. What comes through them
    /// is to be taken from the second value.
    pub(crate) fn new(folder: &Path) -> (Self, mpsc::Receiver<Arrival>) {
        let (arrivals, incoming) = mpsc::channel(ARRIVALS_WAITING_MAX);
        let sockets = Self {
            folder: folder.to_owned(),
            arrivals,
            places: Arc::new(Semaphore::new(APP_SOCKETS_MAX)),
            open: Arc::default(),
        };
        (sockets, incoming)
    }

    /// Makes a socket.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED or FAILED_PRECONDITION, as the contract says.
    pub(crate) fn open(&self, label: Label) -> Result<AppSocket, Status> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let message = format!("{APP_SOCKETS_MAX} app sockets are open, and no more may be");
            let reason = "TOO_MANY_APP_SOCKETS";
            return Err(status::fault(Code::ResourceExhausted, reason, message).status());
        };
        if cfg!(not(unix)) {
            return Err(status::not_in_this_version("OpenAppSocket on this system"));
        }
        let listener = app::bind(&self.folder).map_err(|error| {
            tracing::warn!(error = status::chain(&error), "no app socket could be made");
            status::of_socket(&error)
        })?;
        tracing::info!(
            app = label.app,
            launcher = label.launcher_pid,
            path = %listener.path().display(),
            "an app socket is open"
        );
        let label = Arc::new(label);
        let mut open = self.lock();
        let number = open.next_number;
        open.next_number += 1;
        let entry = Entry {
            label: Arc::clone(&label),
            revoked: watch::Sender::new(false),
        };
        let revoked = entry.revoked.clone();
        open.by_number.insert(number, entry);
        drop(open);
        Ok(AppSocket {
            listener,
            _entry: OpenEntry {
                number,
                open: Arc::clone(&self.open),
            },
            label,
            revoke: Revoke(Some(revoked)),
            _place: place,
        })
    }

    /// The sockets that are open, oldest first.
    pub(crate) fn list(&self) -> Vec<v1::AppSocketStatus> {
        let row = |entry: &Entry| v1::AppSocketStatus {
            app: entry.label.app.clone(),
            instance: entry.label.instance.clone(),
            launcher_pid: entry.label.launcher_pid.unwrap_or_default(),
            connections: u32::try_from(entry.revoked.receiver_count()).unwrap_or(u32::MAX),
        };
        self.lock().by_number.values().map(row).collect()
    }

    /// Waits until all are gone, which they are soon after the drain begins; at most `bound`.
    pub(crate) async fn gone(&self, bound: Duration) {
        let all = u32::try_from(APP_SOCKETS_MAX).unwrap_or(u32::MAX);
        let all = self.places.acquire_many(all);
        if tokio::time::timeout(bound, all).await.is_err() {
            tracing::warn!("app sockets are left behind");
        }
        app::remove_folder(&self.folder);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that is open. Dropping it removes it and ends what runs through it.
pub(crate) struct AppSocket {
    // Fields are dropped in this order: no new connections, then no old ones; then it is gone from
    // the list, and another may be opened.
    listener: AppListener,
    revoke: Revoke,
    _entry: OpenEntry,
    label: Arc<Label>,
    _place: OwnedSemaphorePermit,
}

/// Ends the connections when dropped; `None`: they may go on.
struct Revoke(Option<watch::Sender<bool>>);

impl Drop for Revoke {
    fn drop(&mut self) {
        if let Some(revoked) = &self.0 {
            revoked.send_replace(true);
        }
    }
}

/// A row of the list, which goes when this is dropped.
struct OpenEntry {
    number: u64,
    open: Arc<Mutex<Open>>,
}

impl Drop for OpenEntry {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_number.remove(&self.number);
    }
}

impl AppSocket {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Keeps it open until its launcher drops `replies` or the daemon drains.
    pub(crate) async fn hold<T>(
        mut self,
        shared: Arc<Shared>,
        replies: mpsc::Sender<Result<T, Status>>,
    ) {
        shared.activity.send_replace(());
        let mut life = shared.lifecycle.watch();
        tokio::select! {
            () = replies.closed() => {}
            _ = life.wait_for(|phase| phase.state >= State::Draining) => {
                // Streams through it may finish, like those of everybody else.
                self.revoke.0 = None;
            }
            () = self.accept(&shared.app_sockets.arrivals) => {}
        }
        tracing::info!(app = self.label.app, path = %self.path().display(), "an app socket closes");
        drop(self);
        shared.activity.send_replace(());
        if shared.lifecycle.is_draining() {
            let _ = replies.send(Err(status::draining())).await;
        }
    }

    /// Hands connections on. Ends when nobody takes them any more.
    async fn accept(&self, arrivals: &mpsc::Sender<Arrival>) {
        let Some(revoked) = &self.revoke.0 else {
            return;
        };
        loop {
            match self.listener.listener().accept().await {
                Ok(stream) => {
                    let arrival = Arrival {
                        stream,
                        label: Arc::clone(&self.label),
                        revoked: revoked.subscribe(),
                    };
                    if arrivals.send(arrival).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, app = self.label.app, "cannot accept a connection");
                    // Out of descriptors or memory: others must end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
