//! Connections: accept, check who it is, speak HTTP/2 within limits, hand requests to the
//! services, and end all of it within bounds.

mod admission;
mod flood;
mod seats;
mod watched;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hearth_proto::v1::daemon_server::DaemonServer;
use hearth_proto::v1::inference_server::InferenceServer;
use hearth_proto::v1::models_server::ModelsServer;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use interprocess::local_socket::tokio::{Listener, Stream};
use interprocess::local_socket::traits::tokio::Listener as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tower::Service as _;

use crate::app_sockets::Arrival;
use crate::lifecycle::{Phase, State};
use crate::peer::{Peer, PeerError};
use crate::service::{DaemonService, InferenceService, ModelsService};
use crate::state::Shared;
use crate::{access, limits, peer, status};
use admission::{Admission, Held};
use seats::Seat;
use watched::Watched;

/// Health names that follow the warm model.
const HEALTH_OF_MODEL: [&str; 2] = ["", "hearth.v1.Inference"];
/// Health names that serve as long as the daemon does.
const HEALTH_OF_DAEMON: [&str; 2] = ["hearth.v1.Models", "hearth.v1.Daemon"];

/// Says whether a model is there to answer.
pub(crate) async fn report_health(health: &HealthReporter, serving: bool) {
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for name in HEALTH_OF_MODEL {
        health.set_service_status(name, status).await;
    }
}

/// Says that the daemon is there, and its model not yet.
pub(crate) async fn report_start(health: &HealthReporter) {
    report_health(health, false).await;
    for name in HEALTH_OF_DAEMON {
        health
            .set_service_status(name, ServingStatus::Serving)
            .await;
    }
}

/// Says that nothing serves any more and ends all watches of it.
pub(crate) async fn report_end(health: &HealthReporter) {
    let mut health = health.clone();
    for name in HEALTH_OF_MODEL.iter().chain(&HEALTH_OF_DAEMON) {
        health
            .set_service_status(name, ServingStatus::NotServing)
            .await;
        health.clear_service_status(name).await;
    }
}

/// All services on one router.
pub(crate) fn routes<H: Health>(
    shared: &Arc<Shared>,
    health: HealthServer<H>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let bytes = limits::MESSAGE_BYTES_MAX;
    let inference = InferenceServer::new(InferenceService::new(Arc::clone(shared)));
    let models = ModelsServer::new(ModelsService::new(Arc::clone(shared)));
    let daemon = DaemonServer::new(DaemonService::new(Arc::clone(shared)));
    debug_assert_eq!(HEALTH_OF_MODEL[1], name_of(&inference));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(hearth_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(Routes::new(inference.max_decoding_message_size(bytes))
        .add_service(models.max_decoding_message_size(bytes))
        .add_service(daemon.max_decoding_message_size(bytes))
        .add_service(health)
        .add_service(reflection)
        .prepare())
}

fn name_of<S: NamedService>(_service: &S) -> &'static str {
    S::NAME
}

/// Open connections, and the way to let them go.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    routes: Routes,
    admission: Admission,
    /// What comes through app sockets.
    arrivals: mpsc::Receiver<Arrival>,
    tasks: JoinSet<()>,
}

impl Connections {
    pub(crate) fn new(
        shared: Arc<Shared>,
        routes: Routes,
        arrivals: mpsc::Receiver<Arrival>,
    ) -> Self {
        let admission = Admission::new(shared.places.clone());
        Self {
            shared,
            routes,
            admission,
            arrivals,
            tasks: JoinSet::new(),
        }
    }

    /// Accepts connections, on the main socket and on those of apps, until `shutdown` is done.
    pub(crate) async fn accept(&mut self, listener: &Listener, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
                Some(arrival) = self.arrivals.recv() => {
                    let peer = arrival.identify();
                    self.admit(arrival.stream, peer, Some(arrival.revoked));
                }
                accepted = listener.accept() => match accepted {
                    Ok(stream) => {
                        let peer = peer::identify(&stream);
                        self.admit(stream, peer, None);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of descriptors or memory: others must end first.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        // What was not admitted yet is closed with its socket.
        self.arrivals.close();
        while self.arrivals.try_recv().is_ok() {}
    }

    /// Lets connections finish for at most `bound`, then closes what is left.
    pub(crate) async fn finish(&mut self, bound: Duration) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(bound, all).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "closing connections that do not end"
            );
            self.tasks.shutdown().await;
        }
    }

    fn admit(
        &mut self,
        stream: Stream,
        peer: Result<Peer, PeerError>,
        revoked: Option<watch::Receiver<bool>>,
    ) {
        let peer = match peer {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a connection is refused");
                return;
            }
        };
        let (shared, routes) = (Arc::clone(&self.shared), self.routes.clone());
        let (admission, found) = (self.admission.clone(), self.admission.try_take(&peer.app));
        let connection = async move {
            let found = match found {
                Some(held) => Some(held),
                None => admission.take(&peer.app).await,
            };
            match found {
                Some(held) => counted(shared, routes, stream, peer, held).await,
                None => refuse(stream, &peer).await,
            }
        };
        self.tasks.spawn(until_revoked(connection, revoked));
    }
}

/// Closes a connection that finds no place, and says why in HTTP/2's words.
async fn refuse(mut stream: Stream, peer: &Peer) {
    // No warning: an app that tries on and on would fill the log.
    tracing::debug!(app = peer.app, pid = peer.pid, "too many connections");
    let mut frames = vec![0, 0, 0, 0x4, 0, 0, 0, 0, 0];
    frames.extend(watched::goaway(0, "too many connections"));
    // A peer that does not take these few bytes learns of it by the end of the connection.
    let _ = tokio::time::timeout(limits::REFUSAL_MAX, stream.write_all(&frames)).await;
}

/// Holds a connection's place while it lives, and tells watchers of its begin and end.
async fn counted(shared: Arc<Shared>, routes: Routes, stream: Stream, peer: Peer, held: Held) {
    struct Counted {
        shared: Arc<Shared>,
        held: Option<Held>,
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.held.take();
            self.shared.activity.send_replace(());
        }
    }
    shared.activity.send_replace(());
    let seat = held.seat();
    let _counted = Counted {
        shared: Arc::clone(&shared),
        held: Some(held),
    };
    tracing::debug!(
        app = peer.app,
        pid = peer.pid,
        sandboxed = peer.sandbox.is_some(),
        "connected"
    );
    serve(shared, routes, stream, peer, seat).await;
}

/// Speaks HTTP/2 on one connection until it ends.
async fn serve(shared: Arc<Shared>, routes: Routes, stream: Stream, peer: Peer, seat: Arc<Seat>) {
    let (app, pid) = (peer.app.clone(), peer.pid);
    let service = hyper::service::service_fn(move |request| Guarded {
        answer: Box::pin(answer(routes.clone(), peer.clone(), request)),
    });
    let mut drain = shared.lifecycle.watch();
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&seat)));
    let mut connection = pin!(http2_builder().serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = draining(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = seat.does_not_begin(limits::HANDSHAKE_MAX) => {
            tracing::debug!(app, pid, "no HTTP/2 came: the connection is closed");
            return;
        }
        () = seat.is_asked_to_leave() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits::LEAVE_MAX, &mut connection).await {
                Ok(ended) => ended,
                // A request came in between: it is answered, and the connection ends after it.
                Err(_) if !seat.is_idle() => connection.await,
                Err(_) => Ok(()),
            }
        }
    };
    match ended {
        Ok(()) => tracing::debug!(app, pid, "disconnected"),
        Err(error) => {
            let error = status::chain(&error);
            tracing::debug!(app, pid, error, "the connection broke");
        }
    }
}

/// Answers a request, if this peer may ask it.
async fn answer(
    mut routes: Routes,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Err(refused) = access::check_call(&peer, request.uri().path()) {
        return Ok(refused.into_http());
    }
    request.extensions_mut().insert(peer);
    routes.call(request).await
}

/// Lets a connection live no longer than the app socket it came through: whatever it is at, it is
/// dropped when the launcher closes the socket.
async fn until_revoked(
    connection: impl Future<Output = ()>,
    revoked: Option<watch::Receiver<bool>>,
) {
    let Some(mut revoked) = revoked else {
        return connection.await;
    };
    let mut connection = pin!(connection);
    tokio::select! {
        () = &mut connection => return,
        revoked = revoked.wait_for(|revoked| *revoked) => if revoked.is_ok() {
            tracing::debug!("a connection is closed with its app socket");
            return;
        }
    }
    // A drain closed the socket: connections end as they will.
    connection.await;
}

/// Done when nothing new is accepted any more.
async fn draining(life: &mut watch::Receiver<Phase>) {
    let _ = life.wait_for(|phase| phase.state >= State::Draining).await;
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(limits::PENDING_RESETS_MAX)
        .max_local_error_reset_streams(limits::LOCAL_RESETS_MAX)
        .max_send_buf_size(limits::SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT);
    builder
}

/// An answer in the making; a panic in it becomes INTERNAL.
struct Guarded<F> {
    answer: Pin<Box<F>>,
}

impl<F, E> Future for Guarded<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.as_mut();
        // Nothing of the answer is looked at again after a panic.
        match std::panic::catch_unwind(AssertUnwindSafe(|| answer.poll(cx))) {
            Ok(poll) => Poll::Ready(ready!(poll)),
            Err(_) => Poll::Ready(Ok(status::bug().into_http())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_internal() {
        let answer = async {
            assert!(std::hint::black_box(false), "a bug on purpose");
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        };
        let response = Guarded {
            answer: Box::pin(answer),
        }
        .await
        .unwrap();
        assert_eq!(response.headers()["grpc-status"], "13");
    }

    #[test]
    fn health_names_are_service_names() {
        use hearth_proto::v1;
        assert_eq!(HEALTH_OF_MODEL[1], v1::inference_server::SERVICE_NAME);
        assert_eq!(HEALTH_OF_DAEMON[0], v1::models_server::SERVICE_NAME);
        assert_eq!(HEALTH_OF_DAEMON[1], v1::daemon_server::SERVICE_NAME);
    }
}
