//! Counters for programs that watch machines: in a file or on a local socket of the user's choice,
//! in Prometheus's text format. Off unless configured.
//!
//! What is exported is `hearth.v1.DaemonStatus` in other words, so nothing can be in it that the
//! status does not tell: never a prompt, never a reply.

mod families;
mod file;
mod http;
mod text;

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::socket::{self, SocketError};
use crate::state::Shared;
use file::FileExport;

/// The exports that run.
pub(crate) struct Exports {
    file: Option<FileExport>,
    socket: Option<JoinHandle<()>>,
}

impl Exports {
    /// Starts what the configuration asks for.
    ///
    /// # Errors
    /// The socket cannot be listened on. A file that cannot be written is only warned of.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, SocketError> {
        let metrics = &shared.config.metrics;
        let socket = match &metrics.socket {
            Some(path) => {
                let listener = socket::listen_beside(path)?;
                Some(tokio::spawn(http::serve(listener, Arc::clone(shared))))
            }
            None => None,
        };
        let start = |path| FileExport::start(Arc::clone(shared), path, metrics.interval);
        Ok(Self {
            file: metrics.file.clone().map(start),
            socket,
        })
    }

    /// Writes the file a last time, closes and removes the socket.
    pub(crate) async fn finish(self) {
        if let Some(file) = self.file {
            file.finish().await;
        }
        if let Some(socket) = self.socket {
            socket.abort();
            // The task's listener removes the socket; an error only says that it was stopped.
            let _ = socket.await;
        }
    }
}
