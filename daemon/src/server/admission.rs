//! Who may connect: so many connections in all and of an app, and an idle one leaves for a new one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::seats::{Seat, Seats, Taken};
use crate::limits;
use crate::places::{Place, Places};

/// What of the places is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// All of them.
    All,
    /// Those of this app.
    App,
}

/// See the module. Clones admit to the same places.
#[derive(Clone)]
pub(super) struct Admission {
    permits: Arc<Semaphore>,
    places: Places,
    seats: Seats,
}

/// A connection's place in all counts; dropping it gives it back.
pub(super) struct Held {
    _permit: OwnedSemaphorePermit,
    _place: Place,
    // Last: who waits for a place is told when the others are back.
    taken: Taken,
}

impl Admission {
    pub(super) fn new(places: Places) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
            places,
            seats: Seats::default(),
        }
    }

    /// Takes a place if there is one now.
    pub(super) fn try_take(&self, app: &str) -> Option<Held> {
        self.find(app).ok()
    }

    /// Takes a place, that of an idle connection if need be: of the same app where that has its
    /// share, else of the app with the most. `None`: no such connection, or it does not leave.
    pub(super) async fn take(&self, app: &str) -> Option<Held> {
        let search = async {
            let mut asked = None;
            loop {
                let freed = self.seats.freed();
                let mut freed = std::pin::pin!(freed);
                freed.as_mut().enable();
                let full = match self.find(app) {
                    Ok(held) => return Some(held),
                    Err(full) => full,
                };
                if asked != Some(full) {
                    let of = (full == Full::App).then_some(app);
                    // Each that waits was preceded by one that leaves: so many wait at most.
                    if !self.seats.ask_one_to_leave(of) {
                        return None;
                    }
                    asked = Some(full);
                }
                freed.await;
            }
        };
        let found = tokio::time::timeout(limits::PLACE_WAIT_MAX, search).await;
        found.ok().flatten()
    }

    fn find(&self, app: &str) -> Result<Held, Full> {
        let place = self.places.take(app).ok_or(Full::App)?;
        let permits = Arc::clone(&self.permits);
        let permit = permits.try_acquire_owned().map_err(|_| Full::All)?;
        Ok(Held {
            _permit: permit,
            _place: place,
            taken: self.seats.take(app),
        })
    }
}

impl Held {
    /// What is known of the connection.
    pub(super) fn seat(&self) -> Arc<Seat> {
        self.taken.seat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An admission all of whose places are taken, by four apps, each with its share.
    fn full() -> (Admission, Vec<Held>) {
        let admission = Admission::new(Places::default());
        let take = |i: usize| {
            let app = format!("app {}", i / limits::APP_CONNECTIONS_MAX);
            admission.try_take(&app).expect("there is room")
        };
        let held = (0..limits::CONNECTIONS_MAX).map(take).collect();
        (admission, held)
    }

    #[tokio::test]
    async fn an_idle_connection_leaves_for_one_more() {
        let (admission, mut held) = full();
        for app in ["app 2", "another app"] {
            assert!(admission.try_take(app).is_none());
            let waits = tokio::spawn({
                let admission = admission.clone();
                async move { admission.take(app).await }
            });
            let asked = held.iter().position(|held| held.seat().app() == "app 2");
            let first = if app == "app 2" { asked.unwrap() } else { 0 };
            held[first].seat().is_asked_to_leave().await;
            held.remove(first);
            let found = waits.await.unwrap().expect("a place");
            assert_eq!(found.seat().app(), app);
            held.push(found);
        }
    }

    #[tokio::test]
    async fn without_an_idle_connection_there_is_no_place() {
        let (admission, held) = full();
        for held in &held {
            held.seat().note(true, 1);
        }
        assert!(admission.take("app 2").await.is_none());
        assert!(admission.take("another app").await.is_none());
        let left = admission.permits.available_permits();
        drop(held);
        assert_eq!((left, admission.permits.available_permits()), (0, 256));
    }
}
