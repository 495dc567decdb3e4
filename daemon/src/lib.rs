//! hearthd as a library: [`serve`] on a socket that the caller bound, until the caller says stop.
//!
//! Layers, outermost first: `server` (connections) -> `service` (RPC bodies) -> `state` and
//! `loading` (the engine and its model), `store` (models on disk). Only this crate knows gRPC on
//! the daemon's side; the engine knows nothing of it.

mod access;
mod app_sockets;
pub mod bench;
mod changes;
pub mod config;
mod energy;
mod governor;
pub mod hardening;
mod heap;
pub mod lifecycle;
pub mod limits;
mod loading;
mod logging;
mod metrics;
pub mod peer;
mod places;
mod server;
mod service;
pub mod socket;
mod state;
mod status;
pub mod store;
pub mod supervisor;
mod sys_files;
pub mod templates;
mod warmth;
mod wire;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use config::Config;
use socket::{BoundSocket, SocketError};
use store::{Store, StoreError};

use hardening::Protection;
use supervisor::Supervisor;
use templates::Templates;

pub use hardening::forbid_core_files;
pub use heap::give_back_what_is_freed;
pub use logging::{hide_panic_messages, start as start_log};

/// The daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store of models is unusable.
    #[error("the store of models cannot be used")]
    Store(#[from] StoreError),
    /// The socket of the metrics cannot be had.
    #[error("the metrics socket cannot be used")]
    Metrics(#[from] SocketError),
    /// The contract's own description is broken: a build that should not exist.
    #[error("the reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What only a daemon with a process of its own has. The default has nothing of it.
#[derive(Debug, Default)]
pub struct OwnProcess {
    /// Who started it and wants to hear of it.
    pub supervisor: Supervisor,
    /// What it has given up.
    pub protection: Protection,
    /// Where chat templates are rendered.
    pub templates: Templates,
}

/// As [`serve_as`], in a process that belongs to somebody else.
///
/// # Errors
/// As [`serve_as`].
pub async fn serve(
    config: Config,
    socket: BoundSocket,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    serve_as(OwnProcess::default(), config, socket, shutdown).await
}

/// Serves on `socket` until `shutdown` is done, then drains: what runs may go on for at most
/// [`limits::DRAIN_MAX`]. The API answers at once, while the GPU is opened and the model loaded
/// behind it. The socket, if it is our own, and those of apps are gone before the drain begins, its
/// lock after it ends.
///
/// # Errors
/// See [`ServeError`]; failures of the GPU or of a load are no errors here but states to be seen.
pub async fn serve_as(
    process: OwnProcess,
    mut config: Config,
    socket: BoundSocket,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    socket.path().clone_into(&mut config.socket);
    let store = Store::open(&config.models_dir)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    server::report_start(&health).await;
    let folder = socket.path().parent().unwrap_or(Path::new("/"));
    let (app_sockets, arrivals) = app_sockets::AppSockets::new(folder);
    let own = state::Own {
        process,
        socket_activated: socket.is_activated(),
    };
    let shared = state::Shared::new(config, store, health, app_sockets, own);
    let shared = Arc::new(shared);
    let routes = server::routes(&shared, health_service)?;
    let exports = metrics::Exports::start(&shared)?;
    let starting = tokio::spawn(loading::start(Arc::clone(&shared)));
    let governor = governor::Governor::start(&shared);
    let warmth = tokio::spawn(warmth::follow(Arc::clone(&shared)));
    tracing::info!(
        socket = %socket.path().display(),
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        activated = socket.is_activated(),
        "serving"
    );
    let informing = tokio::spawn(inform(Arc::clone(&shared)));
    let mut connections = server::Connections::new(Arc::clone(&shared), routes, arrivals);
    connections.accept(socket.listener(), shutdown).await;

    tracing::info!("draining");
    shared.own.process.supervisor.stopping();
    shared.lifecycle.drain();
    drop(governor);
    let _lock = socket.close();
    shared.app_sockets.gone(limits::FLUSH_MAX).await;
    server::report_end(&shared.health).await;
    // A load in progress sees the drain and stops; the engine must be there to be shut down.
    if tokio::time::timeout(limits::DRAIN_MAX, starting)
        .await
        .is_err()
    {
        tracing::warn!("the GPU's start does not end");
    }
    // It may be at a load, which ends too.
    if tokio::time::timeout(limits::DRAIN_MAX, warmth)
        .await
        .is_err()
    {
        tracing::warn!("a load does not end");
    }
    if let Some(engine) = shared.engine().cloned() {
        let ended = tokio::task::spawn_blocking(move || engine.shutdown(limits::DRAIN_MAX)).await;
        if ended.is_err() {
            tracing::error!("a bug: the engine's shutdown panicked");
        }
    }
    connections.finish(limits::FLUSH_MAX).await;
    shared.lifecycle.stop();
    exports.finish().await;
    // Whether the service manager heard the last word changes nothing.
    let _ = informing.await;
    tracing::info!("stopped");
    Ok(())
}

/// Tells the service manager how the daemon is.
async fn inform(shared: Arc<state::Shared>) {
    let informed = Arc::clone(&shared);
    shared.own.process.supervisor.inform(informed).await;
}
