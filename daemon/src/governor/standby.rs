//! What the daemon does before the machine sleeps and after: it brings the GPU to rest, and asks it for
//! a known answer before it serves again.

use std::sync::Arc;

use hearth_engine::Engine;

use super::sleep::Sleeper;
use crate::state::Shared;

/// Brings the engine to rest, and back.
pub(super) struct Standby(pub(super) Arc<Shared>);

impl Standby {
    /// Does something with the engine that blocks. Without an engine there is nothing to do.
    async fn blocking(&self, what: impl FnOnce(&Engine) + Send + 'static) {
        let Some(engine) = self.0.engine().cloned() else {
            return;
        };
        if tokio::task::spawn_blocking(move || what(&engine))
            .await
            .is_err()
        {
            tracing::error!("a bug: the engine panicked around the machine's sleep");
        }
    }
}

impl Sleeper for Standby {
    async fn before(&self) {
        self.blocking(|engine| {
            if !engine.quiesce() {
                tracing::warn!("the GPU is not at rest yet");
            }
        })
        .await;
    }

    async fn after(&self) {
        self.blocking(|engine| {
            // A wrong answer is a lost device, which the engine brings back by itself.
            match engine.check_canary() {
                Ok(true) => tracing::info!("the GPU answers as before"),
                Ok(false) => tracing::warn!("the GPU answers wrongly after the machine's sleep"),
                Err(error) => tracing::debug!(%error, "nobody to ask"),
            }
            engine.wake();
        })
        .await;
    }
}
