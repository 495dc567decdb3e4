//! `hearth.v1.Daemon`.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use hearth_proto::v1::daemon_server::Daemon;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Replies, options};
use crate::changes::Changes;
use crate::lifecycle::{Phase, State};
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
        tokio::spawn(tell(Arc::clone(&self.shared), interval, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Tells the state and its changes until the reader goes or the daemon drains.
async fn tell(
    shared: Arc<Shared>,
    interval: Duration,
    replies: mpsc::Sender<Result<v1::WatchStatusResponse, Status>>,
) {
    let mut drain = shared.lifecycle.watch();
    let mut changes = Changes::new(Arc::clone(&shared), interval);
    let reply = |status| {
        Ok(v1::WatchStatusResponse {
            status: Some(status),
        })
    };
    loop {
        tokio::select! {
            biased;
            () = replies.closed() => return,
            () = draining(&mut drain) => break,
            status = changes.next() => {
                if replies.send(reply(status)).await.is_err() {
                    return;
                }
            }
        }
    }
    if replies.send(reply(shared.describe())).await.is_ok() {
        let _ = replies.send(Err(status::draining())).await;
    }
}

/// Done when the daemon drains.
async fn draining(life: &mut watch::Receiver<Phase>) {
    let _ = life.wait_for(|phase| phase.state >= State::Draining).await;
}
