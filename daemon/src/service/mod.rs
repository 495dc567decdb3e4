//! The RPCs. Bodies are thin: check, ask the engine or the store, put into contract words.

mod daemon;
mod deferral;
mod generation;
mod inference;
mod models;
mod options;
mod prompt;
mod show;
mod sink;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

pub(crate) use daemon::DaemonService;
pub(crate) use deferral::Deferred;
pub(crate) use inference::InferenceService;
pub(crate) use models::ModelsService;

/// A stream of replies.
pub(crate) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Runs what blocks, or what takes more than a moment of CPU time, off the async threads. A panic
/// there becomes INTERNAL.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(crate::status::bug()))
}
