//! What the daemon does before the machine sleeps and after: it brings the engine to rest.

use std::sync::Arc;

use super::sleep::Sleeper;
use crate::state::Shared;

/// Brings the engine to rest.
pub(super) struct Standby(pub(super) Arc<Shared>);

impl Sleeper for Standby {
    async fn before(&self) {
        // No new connection between the daemon's state and the machine's: watchers look once more.
        self.0.activity.send_replace(());
    }

    async fn after(&self) {
        self.0.activity.send_replace(());
    }
}
