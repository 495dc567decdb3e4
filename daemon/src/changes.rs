//! Following the daemon's state: each status that differs from the last one, at most one in an
//! interval, and no timer while nothing happens.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::lifecycle::Phase;
use crate::state::Shared;

/// A follower of the daemon's state as `view` shows it.
pub(crate) struct Changes<V> {
    shared: Arc<Shared>,
    interval: Duration,
    view: V,
    life: watch::Receiver<Phase>,
    activity: watch::Receiver<()>,
    told: Option<v1::DaemonStatus>,
    looked: Option<Instant>,
}

impl<V: Fn(v1::DaemonStatus) -> v1::DaemonStatus> Changes<V> {
    /// One that has been told nothing yet.
    pub(crate) fn new(shared: Arc<Shared>, interval: Duration, view: V) -> Self {
        Self {
            life: shared.lifecycle.watch(),
            activity: shared.activity.subscribe(),
            shared,
            interval,
            view,
            told: None,
            looked: None,
        }
    }

    /// Waits for a status that differs from the last one; the first comes at once. Uptime,
    /// memory of the process and the time to the unloading change by themselves and are no difference.
    ///
    /// While requests run or wait, counters change all the time and a timer sets the pace. After
    /// that it looks until nothing differs any more, and then only an event wakes it. Dropping the
    /// future loses nothing.
    pub(crate) async fn next(&mut self) -> v1::DaemonStatus {
        loop {
            if let Some(looked) = self.looked {
                tokio::time::sleep_until(looked + self.interval).await;
            }
            self.life.mark_unchanged();
            self.activity.mark_unchanged();
            let status = self.shared.describe();
            self.looked = Some(Instant::now());
            let busy = status
                .queue
                .is_some_and(|queue| queue.active + queue.waiting > 0);
            // What the view hides is no difference: not even the time of a message tells of it.
            let status = (self.view)(status);
            let state = still(&status);
            if self.told.as_ref() != Some(&state) {
                self.told = Some(state);
                return status;
            }
            if !busy {
                tokio::select! {
                    _ = self.life.changed() => {}
                    _ = self.activity.changed() => {}
                }
            }
        }
    }
}

/// A status without what changes by itself.
fn still(status: &v1::DaemonStatus) -> v1::DaemonStatus {
    let mut still = v1::DaemonStatus {
        uptime: None,
        rss_bytes: None,
        ..status.clone()
    };
    for model in still.model.iter_mut().chain(&mut still.models) {
        model.unloads_in = None;
    }
    still
}
