//! `hearth.v1.Daemon`.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use hearth_proto::v1::daemon_server::Daemon;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Replies, options};
use crate::app_sockets::Label;
use crate::changes::Changes;
use crate::governor::PowerMode;
use crate::lifecycle::{Phase, State};
use crate::limits::{APP_NAME_BYTES_MAX, PLAN_WAIT_MAX, WATCH_INTERVAL_MAX, WATCH_INTERVAL_MIN};
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
        tokio::spawn(tell(shared, interval, sandboxed, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn set_power_mode(
        &self,
        request: Request<v1::SetPowerModeRequest>,
    ) -> Result<Response<v1::SetPowerModeResponse>, Status> {
        let mode = match request.into_inner().mode() {
            v1::PowerMode::Auto => PowerMode::Auto,
            v1::PowerMode::Full => PowerMode::Full,
            v1::PowerMode::Saver => PowerMode::Saver,
            v1::PowerMode::Unspecified => {
                return Err(status::bad_field("mode", "must be AUTO, FULL or SAVER"));
            }
        };
        let mut plans = self.shared.plan_watch();
        let shared = Arc::clone(&self.shared);
        let kept = tokio::task::spawn_blocking(move || shared.governor.choose(mode)).await;
        let kept = kept.map_err(|_| status::bug())?;
        if let Err(error) = &kept {
            tracing::warn!(%error, "the choice of power is not written down");
        }
        // The governor follows at once, if it still runs.
        let follows = plans.wait_for(|plan| plan.mode == mode);
        let _ = tokio::time::timeout(PLAN_WAIT_MAX, follows).await;
        Ok(Response::new(v1::SetPowerModeResponse {
            plan: Some(self.shared.plan()),
            kept: kept.is_ok(),
        }))
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

/// Tells the state and its changes until the reader goes or the daemon drains.
async fn tell(
    shared: Arc<Shared>,
    interval: Duration,
    sandboxed: Option<String>,
    replies: mpsc::Sender<Result<v1::WatchStatusResponse, Status>>,
) {
    let mut drain = shared.lifecycle.watch();
    let seen = |status| view(&shared, status, sandboxed.as_deref());
    let mut changes = Changes::new(Arc::clone(&shared), interval, seen);
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
    if replies.send(reply(seen(shared.describe()))).await.is_ok() {
        let _ = replies.send(Err(status::draining())).await;
    }
}

/// Done when the daemon drains.
async fn draining(life: &mut watch::Receiver<Phase>) {
    let _ = life.wait_for(|phase| phase.state >= State::Draining).await;
}
