//! Requests that wait for their time: until nobody else asks, or until the machine is on mains power.
//! They hold neither a place in the queue nor the model meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_engine::{Caller, Class};
use hearth_proto::v1;
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::limits::{DEFERRED_APP_MAX, DEFERRED_MAX, RETRY_DELAY};
use crate::state::Shared;
use crate::status::{self, bad_field, fault};
use crate::warmth::InFlight;
use crate::wire;

/// Requests that wait for their time, oldest first.
pub(crate) struct Deferred {
    rows: Mutex<Rows>,
    /// Told of each change.
    activity: Arc<watch::Sender<()>>,
}

#[derive(Default)]
struct Rows {
    by_number: BTreeMap<u64, v1::DeferredStatus>,
    last: u64,
}

/// One of them.
struct Place<'a> {
    deferred: &'a Deferred,
    number: u64,
}

impl Deferred {
    /// Where none waits.
    pub(crate) fn new(activity: Arc<watch::Sender<()>>) -> Self {
        Self {
            rows: Mutex::default(),
            activity,
        }
    }

    /// Those that wait, oldest first.
    pub(crate) fn list(&self) -> Vec<v1::DeferredStatus> {
        self.lock().by_number.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Place<'a> {
    /// # Errors
    /// Too many wait, in all or of this app.
    fn take(deferred: &'a Deferred, row: v1::DeferredStatus) -> Result<Self, Status> {
        let mut rows = deferred.lock();
        let waiting = &rows.by_number;
        let of_app = waiting.values().filter(|other| other.app == row.app);
        if of_app.count() >= DEFERRED_APP_MAX || waiting.len() >= DEFERRED_MAX {
            let message = format!(
                "too many requests wait for their time: {DEFERRED_MAX} may, {DEFERRED_APP_MAX} of an app"
            );
            return Err(fault(Code::ResourceExhausted, "DEFERRED_FULL", message)
                .retry(RETRY_DELAY)
                .status());
        }
        rows.last += 1;
        let number = rows.last;
        rows.by_number.insert(number, row);
        drop(rows);
        deferred.activity.send_replace(());
        Ok(Self { deferred, number })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.deferred.lock().by_number.remove(&self.number);
        self.deferred.activity.send_replace(());
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

impl StartWhen {
    /// In the contract's words.
    fn in_words(self) -> v1::StartWhen {
        match self {
            Self::Now => v1::StartWhen::Now,
            Self::Idle => v1::StartWhen::Idle,
            Self::OnMains => v1::StartWhen::OnMains,
        }
    }
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
    (caller, class): (&Caller, Class),
    when: StartWhen,
    deadline: Option<Instant>,
) -> Result<InFlight, Status> {
    let row = v1::DeferredStatus {
        app: caller.app.to_string(),
        pid: caller.pid.unwrap_or(0),
        class: wire::class(class).into(),
        start_when: when.in_words().into(),
    };
    let _place = Place::take(&shared.deferred, row)?;
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
        let deferred = Deferred::new(Arc::default());
        let mut activity = deferred.activity.subscribe();
        let take = |app: u32| {
            let app = app.to_string();
            Place::take(
                &deferred,
                v1::DeferredStatus {
                    app,
                    ..Default::default()
                },
            )
        };
        let mut places = Vec::new();
        for app in 0..8 {
            for _ in 0..DEFERRED_APP_MAX {
                places.push(take(app).unwrap());
            }
            assert!(take(app).is_err());
        }
        assert!(take(8).is_err(), "all are taken");
        assert_eq!(deferred.list().len(), DEFERRED_MAX);
        places.pop();
        assert!(take(8).is_ok());
        activity.mark_unchanged();
        places.clear();
        assert!(activity.has_changed().unwrap(), "watchers are told");
        assert!(deferred.list().is_empty());
    }
}
