//! Requests that wait for their time: until nobody else asks, or until the machine is on mains power.
//! They hold neither a place in the queue nor the model meanwhile.

use std::sync::Arc;
use std::time::Instant;

use hearth_proto::v1;
use tonic::{Code, Status};

use crate::limits::{DEFERRED_MAX, RETRY_DELAY};
use crate::state::Shared;
use crate::status::{self, bad_field, fault};
use crate::warmth::InFlight;

/// When a request may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartWhen {
    /// At once.
    Now,
    /// When no other request is at work.
    Idle,
    /// When the machine is on mains power.
    OnMains,
}

/// Reads the setting.
///
/// # Errors
/// INVALID_ARGUMENT naming the field.
pub(super) fn start_when(value: i32) -> Result<StartWhen, Status> {
    match v1::StartWhen::try_from(value) {
        Ok(v1::StartWhen::Unspecified | v1::StartWhen::Now) => Ok(StartWhen::Now),
        Ok(v1::StartWhen::Idle) => Ok(StartWhen::Idle),
        Ok(v1::StartWhen::OnMains) => Ok(StartWhen::OnMains),
        Err(_) => Err(bad_field("options.start_when", "is not known")),
    }
}

/// Waits until the request's time has come. From then on it is in flight.
///
/// # Errors
/// Too many wait, the deadline passed, or the daemon drains.
pub(super) async fn wait(
    shared: &Arc<Shared>,
    when: StartWhen,
    deadline: Option<Instant>,
) -> Result<InFlight, Status> {
    let _place = shared.deferred.try_acquire().map_err(|_| {
        let message = format!("{DEFERRED_MAX} requests wait for their time already");
        fault(Code::ResourceExhausted, "DEFERRED_FULL", message)
            .retry(RETRY_DELAY)
            .status()
    })?;
    let time = async {
        match when {
            StartWhen::Now => InFlight::new(shared),
            StartWhen::Idle => {
                // One after the other: the first makes it busy for the next.
                let _turn = shared.idle_turn.lock().await;
                until(shared, |shared| shared.warmth.is_idle()).await;
                InFlight::new(shared)
            }
            StartWhen::OnMains => {
                until(shared, Shared::on_mains).await;
                InFlight::new(shared)
            }
        }
    };
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        in_flight = time => Ok(in_flight),
        () = late => Err(status::deadline_exceeded()),
        () = draining(shared) => Err(status::draining()),
    }
}

async fn until(shared: &Shared, holds: impl Fn(&Shared) -> bool) {
    let mut activity = shared.activity.subscribe();
    while !holds(shared) {
        if activity.changed().await.is_err() {
            return;
        }
    }
}

async fn draining(shared: &Shared) {
    let mut life = shared.lifecycle.watch();
    while !shared.lifecycle.is_draining() {
        if life.changed().await.is_err() {
            return;
        }
    }
}
