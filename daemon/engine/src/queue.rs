//! How many requests wait, by app, and when one more should find room. Shared by the callers and the
//! engine's thread, so that a request is refused at once and not after a step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::SubmitError;

/// When the queue is three quarters full, an app may have so many places and no more: the rest is kept for
/// those that come with little.
const APP_FEW: u32 = 4;
/// Time between two requests' ends until that was measured.
const INTERVAL_ASSUMED_S: f64 = 1.0;
/// Weight of a new measurement.
const FRESH: f64 = 0.2;
/// Shortest and longest time that a refused caller is told to wait.
const RETRY_AFTER: (f64, f64) = (0.05, 60.0);

/// What an app has in the queue.
#[derive(Debug, Default)]
struct OfApp {
    places: u32,
    /// Its requests refused since one of its places last became free: they come back one after the other.
    refused: u32,
}

#[derive(Debug, Default)]
struct Waiting {
    all: u32,
    /// Apps with a place.
    by_app: HashMap<Arc<str>, OfApp>,
    /// Seconds between two requests' ends while others waited.
    interval_s: Option<f64>,
    last_end: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
}

/// A request's place in the queue. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct QueuePlace {
    queue: Arc<Queue>,
    app: Arc<str>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request of `app`; returns it and how many are before it.
    ///
    /// # Errors
    /// The queue, or the app's share of it, is full.
    pub(crate) fn join(
        self: &Arc<Self>,
        app: &Arc<str>,
        queue_max: u32,
        app_queue_max: u32,
    ) -> Result<(QueuePlace, u32), SubmitError> {
        let mut waiting = self.lock();
        let of_app = waiting.by_app.get(app).map_or(0, |of_app| of_app.places);
        if waiting.all >= queue_max {
            return Err(SubmitError::QueueFull {
                waiting: waiting.all,
                retry_after: waiting.retry_after(app),
            });
        }
        let crowded = u64::from(waiting.all) * 4 >= u64::from(queue_max) * 3;
        let app_queue_max = if crowded {
            app_queue_max.min(APP_FEW)
        } else {
            app_queue_max
        };
        if of_app >= app_queue_max {
            return Err(SubmitError::AppQueueFull {
                waiting: of_app,
                waiting_max: app_queue_max,
                retry_after: waiting.retry_after(app),
            });
        }
        let before = waiting.all;
        if before == 0 {
            // The time without a queue says nothing of the pace.
            waiting.last_end = None;
        }
        waiting.all += 1;
        waiting.by_app.entry(Arc::clone(app)).or_default().places += 1;
        drop(waiting);
        let place = QueuePlace {
            queue: Arc::clone(self),
            app: Arc::clone(app),
        };
        Ok((place, before))
    }

    /// A request that ran is over.
    pub(crate) fn ended(&self, now: Instant) {
        let mut waiting = self.lock();
        let before = waiting.last_end.replace(now);
        if let Some(before) = before.filter(|_| waiting.all > 0) {
            let seconds = now.saturating_duration_since(before).as_secs_f64();
            let old = waiting.interval_s.unwrap_or(seconds);
            waiting.interval_s = Some(old + (seconds - old) * FRESH);
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.lock().all
    }
}

impl Waiting {
    /// When a refused caller should find room: apps take turns, and each of its app's refused callers
    /// takes one of the app's turns.
    fn retry_after(&mut self, app: &Arc<str>) -> Duration {
        let apps = u32::try_from(self.by_app.len()).unwrap_or(u32::MAX);
        let turns = self.by_app.get_mut(app).map_or(1, |of_app| {
            of_app.refused = of_app.refused.saturating_add(1);
            of_app.refused
        });
        let interval = self.interval_s.unwrap_or(INTERVAL_ASSUMED_S);
        let seconds = interval * f64::from(apps) * f64::from(turns);
        Duration::from_secs_f64(seconds.clamp(RETRY_AFTER.0, RETRY_AFTER.1))
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.all -= 1;
        if let Some(of_app) = waiting.by_app.get_mut(&self.app) {
            of_app.places -= 1;
            of_app.refused = of_app.refused.saturating_sub(1);
            if of_app.places == 0 {
                waiting.by_app.remove(&self.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after(result: Result<(QueuePlace, u32), SubmitError>) -> Duration {
        match result {
            Err(
                SubmitError::QueueFull { retry_after, .. }
                | SubmitError::AppQueueFull { retry_after, .. },
            ) => retry_after,
            _ => panic!("not refused"),
        }
    }

    #[test]
    fn places_are_counted_by_app_and_in_all() {
        let queue = Arc::new(Queue::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (first, before) = queue.join(&a, 3, 2).unwrap();
        assert_eq!(before, 0);
        let second = queue.join(&a, 3, 2).unwrap();
        assert!(matches!(
            queue.join(&a, 3, 2),
            Err(SubmitError::AppQueueFull {
                waiting: 2,
                waiting_max: 2,
                ..
            })
        ));
        let third = queue.join(&b, 3, 2).unwrap();
        assert!(matches!(
            queue.join(&b, 3, 2),
            Err(SubmitError::QueueFull { waiting: 3, .. })
        ));
        drop(first);
        assert!(queue.join(&a, 3, 2).is_ok(), "its place was given up again");
        drop((second, third));
        assert_eq!(queue.waiting(), 0);
        assert!(queue.lock().by_app.is_empty());
    }

    #[test]
    fn a_crowded_queue_keeps_places_for_those_with_little() {
        let queue = Arc::new(Queue::default());
        let (greedy, modest): (Arc<str>, Arc<str>) = ("greedy".into(), "modest".into());
        let mut places = Vec::new();
        while let Ok(place) = queue.join(&greedy, 40, 100) {
            places.push(place);
        }
        assert_eq!(places.len(), 30);
        for _ in 0..APP_FEW {
            places.push(queue.join(&modest, 40, 100).unwrap());
        }
        assert!(matches!(
            queue.join(&modest, 40, 100),
            Err(SubmitError::AppQueueFull {
                waiting_max: APP_FEW,
                ..
            })
        ));
    }

    #[test]
    fn the_time_to_wait_follows_the_pace_and_the_crowd() {
        let queue = Arc::new(Queue::default());
        let app: Arc<str> = "a".into();
        let start = Instant::now();
        let _place = queue.join(&app, 1, 1).unwrap();
        for n in 0..50 {
            queue.ended(start + Duration::from_millis(200 * n));
        }
        let first = retry_after(queue.join(&app, 1, 1));
        let second = retry_after(queue.join(&app, 1, 1));
        assert!((first.as_secs_f64() - 0.2).abs() < 0.01, "{first:?}");
        assert!((second.as_secs_f64() - 0.4).abs() < 0.02, "{second:?}");
        // Another app comes back when its own turn comes, however many of the first's were refused.
        let other: Arc<str> = "b".into();
        let theirs = retry_after(queue.join(&other, 1, 1));
        assert!((theirs.as_secs_f64() - 0.2).abs() < 0.01, "{theirs:?}");
        for _ in 0..1000 {
            assert!(retry_after(queue.join(&app, 1, 1)) <= Duration::from_secs(60));
        }
    }
}
