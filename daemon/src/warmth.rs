//! How long a model stays warm: it is unloaded when nobody has asked for a while, or when memory is
//! short, and loaded again for the next request.
//!
//! No timer runs but the one that ends the wait, and that only while a model is warm and idle.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_engine::{Condition, LoadError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::limits::RETRY_DELAY;
use crate::loading::{self, Target};
use crate::state::Shared;
use crate::status;

/// Whether and for how long weights may stay, as power and memory allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Weights may be in memory.
    pub(crate) weights: bool,
    /// For how long without requests; `None`: for ever.
    pub(crate) idle: Option<Duration>,
    /// What a person asked for does not make it longer.
    pub(crate) strict: bool,
    /// Why, in words.
    pub(crate) reason: String,
}

/// What a person asked for.
#[derive(Debug, Default)]
struct Wish {
    pinned: bool,
    keep_alive: Option<Duration>,
}

/// A model that the next request loads again.
#[derive(Debug, Clone)]
struct Asleep {
    target: Target,
    /// The last try to load it again, if that failed.
    failed: Option<(Instant, Status)>,
}

impl Asleep {
    fn just_failed(&self) -> Option<Status> {
        let (at, status) = self.failed.as_ref()?;
        (at.elapsed() < RETRY_DELAY).then(|| status.clone())
    }
}

/// What a request finds where no model is warm.
pub(crate) enum Waking {
    /// The model is being loaded from now on.
    Loading,
    /// Memory is too short for it; why, in words.
    Short(String),
    /// It could not be loaded just now.
    Failed(Status),
    /// Another model sleeps; its name.
    Other(String),
    /// Nothing sleeps.
    Nothing,
}

/// See the module.
pub(crate) struct Warmth {
    keep: watch::Sender<Keep>,
    wish: Mutex<Wish>,
    asleep: Mutex<Option<Asleep>>,
    wake: Notify,
    flights: Arc<Flights>,
}

/// A request in flight: as long as one is, the model stays. The engine holds it, and drops it when it is
/// done with the request: a reader that takes nothing does not keep the model.
pub(crate) struct InFlight(Arc<Flights>);

/// What requests in flight leave behind. They hold nothing else of the daemon's: the last of them may go on
/// the engine's own thread.
struct Flights {
    count: AtomicU32,
    idle_since: Mutex<Instant>,
    activity: Arc<watch::Sender<()>>,
}

impl InFlight {
    /// Must be there before the warm model is looked up.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let flights = &shared.warmth.flights;
        flights.count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(flights))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.activity.send_replace(());
    }
}

impl Warmth {
    /// Keeps weights for `idle` without requests; `None`: for ever.
    pub(crate) fn new(idle: Option<Duration>, activity: Arc<watch::Sender<()>>) -> Self {
        Self {
            keep: watch::Sender::new(Keep {
                weights: true,
                idle,
                strict: false,
                reason: String::new(),
            }),
            wish: Mutex::default(),
            asleep: Mutex::default(),
            wake: Notify::new(),
            flights: Arc::new(Flights {
                count: AtomicU32::new(0),
                idle_since: Mutex::new(Instant::now()),
                activity,
            }),
        }
    }

    /// Changes what power and memory allow.
    pub(crate) fn set_keep(&self, keep: Keep) {
        self.keep.send_if_modified(|now| {
            let changed = *now != keep;
            *now = keep;
            changed
        });
    }

    /// Whether no request is in flight. Its answer holds only where nobody can find the warm model.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.count.load(Ordering::SeqCst) == 0
    }

    /// The idle time begins now.
    pub(crate) fn touch(&self) {
        *lock(&self.flights.idle_since) = Instant::now();
    }

    /// Another model will be warm, or none by a person's wish: what was asked for the former is void.
    pub(crate) fn reset(&self, keep_alive: Option<Duration>) {
        *lock(&self.asleep) = None;
        *lock(&self.wish) = Wish {
            pinned: false,
            keep_alive,
        };
        self.touch();
    }

    /// Changes how long the warm model stays; `None`: as the plan says.
    pub(crate) fn set_keep_alive(&self, keep_alive: Option<Duration>) {
        lock(&self.wish).keep_alive = keep_alive;
        self.touch();
    }

    /// Keeps the warm model for ever, or no longer so.
    pub(crate) fn pin(&self, pinned: bool) {
        lock(&self.wish).pinned = pinned;
        self.touch();
    }

    /// Whether the warm model is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        lock(&self.wish).pinned
    }

    /// The name of the model that sleeps.
    pub(crate) fn sleeping(&self) -> Option<String> {
        lock(&self.asleep).as_ref().map(|a| a.target.name.clone())
    }

    /// When the idle model is to be unloaded; `None`: not as things are.
    fn due(&self) -> Option<Instant> {
        let keep = self.keep.borrow().clone();
        if !keep.weights {
            return Some(Instant::now());
        }
        let wish = lock(&self.wish);
        let idle = match (wish.pinned, wish.keep_alive, keep.strict) {
            (_, _, true) => keep.idle,
            (true, ..) => None,
            (_, Some(wished), _) => Some(wished),
            (_, None, _) => keep.idle,
        };
        idle.filter(|_| self.is_idle())
            .and_then(|idle| lock(&self.flights.idle_since).checked_add(idle))
    }

    /// Time left until the warm model is unloaded for want of requests.
    pub(crate) fn unloads_in(&self) -> Option<Duration> {
        let due = self.due()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Why weights may not be in memory now, in words.
    pub(crate) fn is_short(&self) -> Option<String> {
        let keep = self.keep.borrow();
        (!keep.weights).then(|| keep.reason.clone())
    }

    /// A request for `asked` (empty: any) finds no warm model: wakes the one that sleeps.
    pub(crate) fn wake(&self, asked: &str) -> Waking {
        let asleep = lock(&self.asleep);
        let Some(asleep) = &*asleep else {
            return Waking::Nothing;
        };
        if !asked.is_empty() && asked != asleep.target.name {
            return Waking::Other(asleep.target.name.clone());
        }
        let keep = self.keep.borrow();
        if !keep.weights {
            return Waking::Short(keep.reason.clone());
        }
        if let Some(status) = asleep.just_failed() {
            return Waking::Failed(status);
        }
        self.wake.notify_one();
        Waking::Loading
    }

    /// The model to load now: the one that sleeps, unless that failed just now.
    fn wakes(&self) -> Option<Target> {
        let asleep = lock(&self.asleep);
        let asleep = asleep
            .as_ref()
            .filter(|asleep| asleep.just_failed().is_none())?;
        Some(asleep.target.clone())
    }

    /// The load of the model that slept is over.
    fn woken(&self, error: Option<Status>) {
        let mut asleep = lock(&self.asleep);
        let Some(status) = error else {
            *asleep = None;
            return;
        };
        match (&mut *asleep, status.code()) {
            // Another load runs: it has the last word.
            (_, Code::Aborted) => {}
            // There was no room, or the GPU failed: both may pass.
            (Some(asleep), Code::ResourceExhausted | Code::Unavailable) => {
                asleep.failed = Some((Instant::now(), status));
            }
            _ => *asleep = None,
        }
    }

    /// The next request loads this model.
    pub(crate) fn put_to_sleep(&self, target: Target) {
        *lock(&self.asleep) = Some(Asleep {
            target,
            failed: None,
        });
    }
}

/// Follows requests and the plan until the daemon drains.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let warmth = &shared.warmth;
    let mut activity = shared.activity.subscribe();
    let mut keep = warmth.keep.subscribe();
    let mut life = shared.lifecycle.watch();
    while !shared.lifecycle.is_draining() {
        weigh(&shared).await;
        let due = shared.warm().and_then(|_| warmth.due());
        if due.is_some_and(|due| due <= Instant::now()) && rest(&shared).await {
            continue;
        }
        // If it cannot rest now, something that is waited for here will change.
        let due = due.filter(|due| *due > Instant::now());
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        // The senders live as long as `shared`.
        tokio::select! {
            _ = activity.changed() => {}
            _ = keep.changed() => {}
            _ = life.changed() => {}
            () = warmth.wake.notified() => wake(&shared).await,
            () = sleep => {}
        }
    }
}

/// Takes the weights of a model at work off the GPU while memory is short, and brings them back after;
/// replies that are under way wait meanwhile.
async fn weigh(shared: &Arc<Shared>) {
    let (Some(engine), Some(_)) = (shared.engine().cloned(), shared.warm()) else {
        return;
    };
    let may_stay = shared.warmth.keep.borrow().weights;
    let away = engine.condition() == Condition::Suspended;
    // An idle model is unloaded as a whole.
    if may_stay != away || (!may_stay && shared.warmth.is_idle()) {
        return;
    }
    let Ok(_lock) = shared.load_lock.try_lock() else {
        return;
    };
    let moved = tokio::task::spawn_blocking(move || match may_stay {
        true => engine.resume(&mut |_| true).map(drop),
        false => engine.suspend().map(drop).map_err(LoadError::from),
    })
    .await;
    let error = match moved {
        Ok(Ok(())) => return,
        Ok(Err(error)) => status::chain(&error),
        Err(_) => "a bug: it panicked".to_owned(),
    };
    tracing::error!(
        error,
        "the model cannot be brought back; replies under way end"
    );
    if let Some(warm) = shared.warm() {
        shared.warmth.put_to_sleep(warm.target());
        shared.set_warm(None).await;
        unload(shared, &warm.name, &error).await;
    }
}

/// Unloads the warm model until the next request. False: somebody asks just now, or a load runs.
async fn rest(shared: &Arc<Shared>) -> bool {
    let Ok(_lock) = shared.load_lock.try_lock() else {
        return false;
    };
    let Some(warm) = shared.take_idle() else {
        return false;
    };
    let keep = shared.warmth.keep.borrow().clone();
    let why = if keep.weights {
        "nobody asked for a while".to_owned()
    } else {
        keep.reason
    };
    let name = warm.name.clone();
    drop(warm);
    unload(shared, &name, &why).await;
    true
}

/// Frees the memory of a model that sleeps from now on, and says so.
async fn unload(shared: &Arc<Shared>, name: &str, why: &str) {
    let why = format!("`{name}` is unloaded, the next request loads it: {why}");
    tracing::info!("{why}");
    shared.lifecycle.ready(Some(why));
    loading::free(shared).await;
    shared.activity.send_replace(());
    shared.report_health().await;
}

/// Loads the model that sleeps.
async fn wake(shared: &Arc<Shared>) {
    let Some(target) = shared.warmth.wakes() else {
        return;
    };
    let loaded = loading::load(shared, target, None, Box::new(|_| true)).await;
    shared.warmth.woken(loaded.err());
    // Those that wait for it look again: what they find may have changed after the load's own words.
    shared.report_health().await;
    shared.activity.send_replace(());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
