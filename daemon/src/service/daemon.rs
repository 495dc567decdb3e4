//! `hearth.v1.Daemon`.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use hearth_proto::v1::daemon_server::Daemon;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Replies, options};
use crate::app_sockets::Label;
use crate::lifecycle::State;
use crate::limits::{APP_NAME_BYTES_MAX, WATCH_INTERVAL_MAX, WATCH_INTERVAL_MIN};
use crate::peer::{self, Peer};
use crate::state::Shared;
use crate::{access, status};

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

    type OpenAppSocketStream = Replies<v1::OpenAppSocketResponse>;

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let sandboxed = access::sandboxed(request.extensions());
        let status = Some(view(&self.shared, self.shared.describe(), sandboxed));
        Ok(Response::new(v1::GetStatusResponse { status }))
    }

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let sandboxed = access::sandboxed(request.extensions()).map(str::to_owned);
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
        let shared = Arc::clone(&self.shared);
        tokio::spawn(watch(shared, interval, sandboxed, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn open_app_socket(
        &self,
        request: Request<v1::OpenAppSocketRequest>,
    ) -> Result<Response<Self::OpenAppSocketStream>, Status> {
        let launcher_pid = request.extensions().get().and_then(|peer: &Peer| peer.pid);
        let v1::OpenAppSocketRequest { app, instance } = request.into_inner();
        check_label("app", &app)?;
        if let Some(instance) = &instance {
            check_label("instance", instance)?;
        }
        if self.shared.lifecycle.is_draining() {
            return Err(status::draining());
        }
        let socket = self.shared.app_sockets.open(Label {
            app,
            instance,
            launcher_pid,
        })?;
        let socket_path = socket.path().display().to_string();
        let (replies, stream) = mpsc::channel(2);
        let _ = replies.try_send(Ok(v1::OpenAppSocketResponse { socket_path }));
        tokio::spawn(socket.hold(Arc::clone(&self.shared), replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn check_label(field: &str, text: &str) -> Result<(), Status> {
    if peer::is_label(text) {
        return Ok(());
    }
    let problem = format!(
        "must have 1 to {APP_NAME_BYTES_MAX} of A-Z, a-z, 0-9, `.`, `_`, `-`, and begin with a \
         letter or digit"
    );
    Err(status::bad_field(field, problem))
}

/// A status as the caller may see it.
fn view(shared: &Shared, status: v1::DaemonStatus, sandboxed: Option<&str>) -> v1::DaemonStatus {
    match sandboxed {
        Some(app) => access::own_view(status, app, shared.places.of(app)),
        None => status,
    }
}

/// Tells the state whenever it may have changed. While requests run, counters change all the time
/// and a timer sets the pace; else nothing wakes this task but a change.
async fn watch(
    shared: Arc<Shared>,
    interval: Duration,
    sandboxed: Option<String>,
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
            .as_ref()
            .is_some_and(|queue| queue.active + queue.waiting > 0);
        // Not even the time of a message tells a sandboxed app of others: it comes when its own
        // view has changed.
        let status = view(&shared, status, sandboxed.as_deref());
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
