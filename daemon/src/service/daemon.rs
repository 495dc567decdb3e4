//! `hearth.v1.Daemon`.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use hearth_proto::v1::daemon_server::Daemon;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Replies, options};
use crate::lifecycle::State;
use crate::limits::{WATCH_INTERVAL_MAX, WATCH_INTERVAL_MIN};
use crate::state::Shared;
use crate::status;

/// Answers the RPCs of `hearth.v1.Daemon`.
pub(crate) struct DaemonService {
    shared: Arc<Shared>,
}

impl DaemonService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Daemon for DaemonService {
    type WatchStatusStream = Replies<v1::WatchStatusResponse>;

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let status = Some(self.shared.describe());
        Ok(Response::new(v1::GetStatusResponse { status }))
    }

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let interval = match request.into_inner().min_interval {
            None => Duration::from_secs(1),
            Some(time) => {
                let time = options::positive_duration("min_interval", time)?;
                if time < WATCH_INTERVAL_MIN || time > WATCH_INTERVAL_MAX {
                    let problem = "must be from 0.1 s to 1 h";
                    return Err(status::bad_field("min_interval", problem));
                }
                time
            }
        };
        let (replies, stream) = mpsc::channel(4);
        tokio::spawn(watch(Arc::clone(&self.shared), interval, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Tells the state whenever it may have changed. While requests run, counters change all the time
/// and a timer sets the pace; else nothing wakes this task but a change.
async fn watch(
    shared: Arc<Shared>,
    interval: Duration,
    replies: mpsc::Sender<Result<v1::WatchStatusResponse, Status>>,
) {
    let mut life = shared.lifecycle.watch();
    // Its own receiver: `wait_for` marks every change as seen.
    let mut drain = shared.lifecycle.watch();
    let mut activity = shared.activity.subscribe();
    let mut told = None;
    loop {
        life.mark_unchanged();
        activity.mark_unchanged();
        let status = shared.describe();
        let busy = status
            .queue
            .is_some_and(|queue| queue.active + queue.waiting > 0);
        let state = still(&status);
        if told.as_ref() != Some(&state) {
            told = Some(state);
            let reply = v1::WatchStatusResponse {
                status: Some(status),
            };
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
        if shared.lifecycle.is_draining() {
            let _ = replies.send(Err(status::draining())).await;
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = replies.closed() => return,
            _ = drain.wait_for(|phase| phase.state >= State::Draining) => continue,
        }
        if busy {
            continue;
        }
        tokio::select! {
            _ = life.changed() => {}
            _ = activity.changed() => {}
            () = replies.closed() => return,
        }
    }
}

/// A status without what changes by itself.
fn still(status: &v1::DaemonStatus) -> v1::DaemonStatus {
    v1::DaemonStatus {
        uptime: None,
        rss_bytes: None,
        ..status.clone()
    }
}
