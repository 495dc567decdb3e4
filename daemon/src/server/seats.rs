//! Who sits on the daemon's connections, and who is asked to leave when all are taken: of the app
//! with the most connections, the one that has had no stream for the longest time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// All connections. Clones are of the same.
#[derive(Clone, Default)]
pub(super) struct Seats(Arc<Row>);

#[derive(Default)]
struct Row {
    seats: Mutex<BTreeMap<u64, Arc<Seat>>>,
    freed: Notify,
}

/// What is known of one connection.
pub(super) struct Seat {
    number: u64,
    app: String,
    /// Since when it has no stream; `None` while it has one.
    idle: Mutex<Option<Instant>>,
    begun: AtomicBool,
    begins: Notify,
    leaving: AtomicBool,
    leaves: Notify,
}

/// A taken seat; dropping it gives it back.
pub(super) struct Taken {
    seats: Seats,
    seat: Arc<Seat>,
}

impl Seats {
    /// Takes a seat for a new connection of this app.
    pub(super) fn take(&self, app: &str) -> Taken {
        let mut seats = self.lock();
        let number = seats.last_key_value().map_or(0, |(last, _)| last + 1);
        let seat = Arc::new(Seat {
            number,
            app: app.to_owned(),
            idle: Mutex::new(Some(Instant::now())),
            begun: AtomicBool::new(false),
            begins: Notify::new(),
            leaving: AtomicBool::new(false),
            leaves: Notify::new(),
        });
        seats.insert(number, Arc::clone(&seat));
        drop(seats);
        Taken {
            seats: self.clone(),
            seat,
        }
    }

    /// Becomes ready when a seat is given back.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }

    /// Asks a connection to leave, one of this app if one is named. False: none of them is without a
    /// stream, or all such leave already.
    pub(super) fn ask_one_to_leave(&self, of: Option<&str>) -> bool {
        let seats = self.lock();
        let mut of_app = BTreeMap::<&str, usize>::new();
        for seat in seats.values() {
            *of_app.entry(&seat.app).or_default() += 1;
        }
        let idle = seats
            .values()
            .filter(|seat| of.is_none_or(|app| seat.app == app))
            .filter(|seat| !seat.leaving.load(Ordering::Relaxed))
            .filter_map(|seat| Some((seat, (*seat.idle())?)));
        let chosen = idle.max_by_key(|(seat, since)| {
            let many = of_app.get(seat.app.as_str());
            (many, std::cmp::Reverse((*since, seat.number)))
        });
        let Some((seat, _)) = chosen else {
            return false;
        };
        seat.leaving.store(true, Ordering::Relaxed);
        seat.leaves.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whose it is.
    pub(super) fn app(&self) -> &str {
        &self.app
    }

    /// Tells whether it has no stream.
    pub(super) fn is_idle(&self) -> bool {
        self.idle().is_some()
    }

    /// Notes what was seen of the connection.
    pub(super) fn note(&self, begun: bool, streams: usize) {
        if begun && !self.begun.swap(true, Ordering::Relaxed) {
            self.begins.notify_one();
        }
        let mut idle = self.idle();
        if streams > 0 {
            *idle = None;
        } else {
            idle.get_or_insert_with(Instant::now);
        }
    }

    /// Done if the peer has not sent a first frame for `bound`; otherwise never.
    pub(super) async fn does_not_begin(&self, bound: Duration) {
        if tokio::time::timeout(bound, self.begins.notified())
            .await
            .is_ok()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Done when it is asked to leave.
    pub(super) async fn is_asked_to_leave(&self) {
        self.leaves.notified().await;
    }

    fn idle(&self) -> MutexGuard<'_, Option<Instant>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The seat.
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.seat.number);
        self.seats.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(taken: &Taken) -> bool {
        taken.seat.leaving.load(Ordering::Relaxed)
    }

    #[test]
    fn the_longest_idle_of_the_largest_app_leaves() {
        let seats = Seats::default();
        let lone = seats.take("lone");
        let many: Vec<Taken> = (0..4).map(|_| seats.take("many")).collect();
        many[0].seat.note(true, 1);
        assert!(seats.ask_one_to_leave(None));
        assert!(asked(&many[1]), "the first one of the app has a stream");
        assert!(seats.ask_one_to_leave(Some("many")));
        assert!(asked(&many[2]));
        assert!(!seats.ask_one_to_leave(Some("nobody")));
        many[0].seat.note(true, 0);
        assert!(seats.ask_one_to_leave(None));
        assert!(asked(&many[3]), "the first one was busy a moment ago");
        assert!(seats.ask_one_to_leave(None));
        assert!(asked(&many[0]));
        assert!(!asked(&lone));
        lone.seat.note(true, 2);
        assert!(!seats.ask_one_to_leave(None), "nobody is idle");
        lone.seat.note(true, 0);
        assert!(seats.ask_one_to_leave(None));
        assert!(asked(&lone));
        assert!(!seats.ask_one_to_leave(None), "all leave already");
        drop((lone, many));
        assert!(seats.lock().is_empty());
        assert!(!seats.ask_one_to_leave(None));
    }

    #[tokio::test]
    async fn a_connection_that_does_not_begin_is_noticed_and_one_that_does_is_not() {
        let seats = Seats::default();
        let bound = Duration::from_millis(5);
        let silent = seats.take("a");
        silent.seat.note(false, 0);
        silent.seat.does_not_begin(bound).await;
        let speaking = seats.take("a");
        speaking.seat.note(true, 0);
        let waits = speaking.seat.does_not_begin(bound);
        let long = bound * 20;
        assert!(tokio::time::timeout(long, waits).await.is_err());
    }

    #[tokio::test]
    async fn who_is_asked_to_leave_hears_it() {
        let seats = Seats::default();
        let taken = seats.take("a");
        assert!(seats.ask_one_to_leave(None));
        taken.seat.is_asked_to_leave().await;
    }
}
