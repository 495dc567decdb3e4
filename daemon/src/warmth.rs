//! How long a model stays warm: it is unloaded when nobody has asked for a while, or when memory is
//! short, and loaded again for the next request.
//!
//! No timer runs but the one that ends the wait, and that only while a model is warm and idle.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::limits::RETRY_DELAY;
use crate::loading::{self, Target};
use crate::state::Shared;

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
    requests: AtomicU32,
    idle_since: Mutex<Instant>,
}

/// A request in flight: as long as one is, the model stays.
pub(crate) struct InFlight(Arc<Shared>);

impl InFlight {
    /// Must be there before the warm model is looked up.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.warmth.requests.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let warmth = &self.0.warmth;
        *lock(&warmth.idle_since) = Instant::now();
        warmth.requests.fetch_sub(1, Ordering::SeqCst);
        self.0.activity.send_replace(());
    }
}

impl Warmth {
    /// Keeps weights for `idle` without requests; `None`: for ever.
    pub(crate) fn new(idle: Option<Duration>) -> Self {
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
            requests: AtomicU32::new(0),
            idle_since: Mutex::new(Instant::now()),
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
        self.requests.load(Ordering::SeqCst) == 0
    }

    /// Another model is warm, or none by a person's wish: what was asked for the former is void.
    pub(crate) fn reset(&self, keep_alive: Option<Duration>) {
        *lock(&self.asleep) = None;
        *lock(&self.wish) = Wish {
            pinned: false,
            keep_alive,
        };
        *lock(&self.idle_since) = Instant::now();
    }

    /// Changes how long the warm model stays.
    pub(crate) fn set_keep_alive(&self, keep_alive: Duration) {
        lock(&self.wish).keep_alive = Some(keep_alive);
        *lock(&self.idle_since) = Instant::now();
    }

    /// Keeps the warm model for ever, or no longer so.
    pub(crate) fn pin(&self, pinned: bool) {
        lock(&self.wish).pinned = pinned;
        *lock(&self.idle_since) = Instant::now();
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
            .and_then(|idle| lock(&self.idle_since).checked_add(idle))
    }

    /// Time left until the warm model is unloaded for want of requests.
    pub(crate) fn unloads_in(&self) -> Option<Duration> {
        let due = self.due()?;
        Some(due.saturating_duration_since(Instant::now()))
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
        if let Some((at, status)) = &asleep.failed
            && at.elapsed() < RETRY_DELAY
        {
            return Waking::Failed(status.clone());
        }
        self.wake.notify_one();
        Waking::Loading
    }

    fn put_to_sleep(&self, target: Target) {
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
    let target = Target {
        name: warm.name.clone(),
        path: warm.path.clone(),
        manifest: warm.manifest.clone(),
    };
    drop(warm);
    let why = format!(
        "`{}` is unloaded, the next request loads it: {why}",
        target.name
    );
    tracing::info!("{why}");
    shared.warmth.put_to_sleep(target);
    loading::free(shared).await;
    shared.lifecycle.ready(Some(why));
    shared.activity.send_replace(());
    shared.report_health().await;
    true
}

/// Loads the model that sleeps.
async fn wake(shared: &Arc<Shared>) {
    let Some(asleep) = lock(&shared.warmth.asleep).clone() else {
        return;
    };
    let loaded = loading::load(shared, asleep.target, Box::new(|_| true)).await;
    let mut asleep = lock(&shared.warmth.asleep);
    match (&mut *asleep, loaded) {
        // Another load runs: it has the last word.
        (_, Err(status)) if status.code() == Code::Aborted => {}
        // There was no room, which may come.
        (Some(asleep), Err(status)) if status.code() == Code::ResourceExhausted => {
            asleep.failed = Some((Instant::now(), status));
        }
        _ => *asleep = None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
