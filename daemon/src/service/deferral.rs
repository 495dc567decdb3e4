//! Requests that wait for their time: until nobody else asks, or until the machine is on mains power.
//! They hold neither a place in the queue nor the model meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_proto::v1;
use tonic::{Code, Status};

use crate::limits::{DEFERRED_APP_MAX, DEFERRED_MAX, RETRY_DELAY};
use crate::state::Shared;
use crate::status::{self, bad_field, fault};
use crate::warmth::InFlight;

/// Requests that wait for their time, by app.
#[derive(Default)]
pub(crate) struct Deferred(Mutex<HashMap<Arc<str>, usize>>);

/// One of them.
struct Place<'a> {
    deferred: &'a Deferred,
    app: Arc<str>,
}

impl Deferred {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Place<'a> {
    /// # Errors
    /// Too many wait, in all or of this app.
    fn take(deferred: &'a Deferred, app: &Arc<str>) -> Result<Self, Status> {
        let mut by_app = deferred.lock();
        let of_app = by_app.get(app).copied().unwrap_or(0);
        if of_app >= DEFERRED_APP_MAX || by_app.values().sum::<usize>() >= DEFERRED_MAX {
            let message = format!(
                "too many requests wait for their time: {DEFERRED_MAX} may, {DEFERRED_APP_MAX} of an app"
            );
            return Err(fault(Code::ResourceExhausted, "DEFERRED_FULL", message)
                .retry(RETRY_DELAY)
                .status());
        }
        *by_app.entry(Arc::clone(app)).or_default() += 1;
        drop(by_app);
        Ok(Self {
            deferred,
            app: Arc::clone(app),
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut by_app = self.deferred.lock();
        if let Some(of_app) = by_app.get_mut(&self.app) {
            *of_app -= 1;
            if *of_app == 0 {
                by_app.remove(&self.app);
            }
        }
    }
}

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
    app: &Arc<str>,
    when: StartWhen,
    deadline: Option<Instant>,
) -> Result<InFlight, Status> {
    let _place = Place::take(&shared.deferred, app)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_does_not_take_the_places_of_all() {
        let deferred = Deferred::default();
        let apps: Vec<Arc<str>> = (0..9).map(|n: u32| n.to_string().into()).collect();
        let mut places = Vec::new();
        for app in &apps[..8] {
            for _ in 0..DEFERRED_APP_MAX {
                places.push(Place::take(&deferred, app).unwrap());
            }
            assert!(Place::take(&deferred, app).is_err());
        }
        assert!(Place::take(&deferred, &apps[8]).is_err(), "all are taken");
        places.pop();
        assert!(Place::take(&deferred, &apps[8]).is_ok());
        places.clear();
        assert!(deferred.lock().is_empty());
    }
}
