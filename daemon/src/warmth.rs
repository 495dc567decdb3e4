//! How long models stay warm: each is unloaded when nobody has asked it for a while, or when memory is
//! short, and loaded again for the next request.
//!
//! No timer runs but the one that ends the next wait, and that only while a model is warm and idle.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_engine::{Condition, LoadError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::limits::RETRY_DELAY;
use crate::loading::{self, By, Target};
use crate::state::{Shared, Warm};
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

/// What a person asked for, for one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) pinned: bool,
    pub(crate) keep_alive: Option<Duration>,
    /// When it was chosen, among others: the model chosen last answers whoever names none.
    pub(crate) chosen: u64,
}

/// How long one warm model stays: what was asked for it, and who uses it.
pub(crate) struct Stay {
    wish: Mutex<Wish>,
    flights: Arc<Flights>,
}

impl Stay {
    /// The idle time begins now.
    pub(crate) fn new(wish: Wish, activity: Arc<watch::Sender<()>>) -> Self {
        Self {
            wish: Mutex::new(wish),
            flights: Arc::new(Flights::new(activity)),
        }
    }

    /// What was asked for it.
    pub(crate) fn wish(&self) -> Wish {
        lock(&self.wish).clone()
    }

    /// Changes what was asked for it. The idle time begins now.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut lock(&self.wish));
        *lock(&self.flights.idle_since) = Instant::now();
    }

    /// Whether no request uses it. Its answer holds only where nobody can find the model.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_none()
    }

    /// When a request was done with it last, or it was loaded or chosen.
    pub(crate) fn idle_since(&self) -> Instant {
        *lock(&self.flights.idle_since)
    }
}

/// A model that the next request loads again.
#[derive(Debug, Clone)]
struct Asleep {
    target: Target,
    wish: Wish,
    /// A request waits for it.
    wanted: bool,
    /// The last try to load it again, if that failed.
    failed: Option<(Instant, Status)>,
}

impl Asleep {
    fn just_failed(&self) -> Option<Status> {
        let (at, status) = self.failed.as_ref()?;
        (at.elapsed() < RETRY_DELAY).then(|| status.clone())
    }
}

/// What a request finds where no model that it may have is warm.
pub(crate) enum Waking {
    /// The model is being loaded from now on.
    Loading,
    /// Memory is too short for it; why, in words.
    Short(String),
    /// It could not be loaded just now.
    Failed(Status),
    /// It does not sleep.
    Nothing,
}

/// See the module.
pub(crate) struct Warmth {
    keep: watch::Sender<Keep>,
    asleep: Mutex<Vec<Asleep>>,
    wake: Notify,
    /// All requests in flight.
    all: Arc<Flights>,
    /// Those that have no model yet.
    waiting: Arc<Flights>,
    /// Choices so far.
    choices: AtomicU64,
}

/// A request in flight: as long as one is, its model stays. The engine holds it, and drops it when it is
/// done with the request: a reader that takes nothing does not keep the model.
pub(crate) struct InFlight {
    _all: Flight,
    model: Flight,
}

/// Counts for as long as it is there.
struct Flight(Arc<Flights>);

/// What requests in flight leave behind. They hold nothing else of the daemon's: the last of them may go on
/// the engine's own thread.
struct Flights {
    count: AtomicU32,
    idle_since: Mutex<Instant>,
    activity: Arc<watch::Sender<()>>,
}

impl Flights {
    fn new(activity: Arc<watch::Sender<()>>) -> Self {
        Self {
            count: AtomicU32::new(0),
            idle_since: Mutex::new(Instant::now()),
            activity,
        }
    }

    fn is_none(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }
}

impl Flight {
    fn begin(flights: &Arc<Flights>) -> Self {
        flights.count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(flights))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.activity.send_replace(());
    }
}

impl InFlight {
    /// One that has no model yet. While there is such a one, no model is unloaded for want of requests.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            _all: Flight::begin(&shared.warmth.all),
            model: Flight::begin(&shared.warmth.waiting),
        }
    }

    /// It uses this model from now on. Must be called where the model cannot be taken away meanwhile.
    pub(crate) fn join(&mut self, stay: &Stay) {
        self.model = Flight::begin(&stay.flights);
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
            asleep: Mutex::default(),
            wake: Notify::new(),
            all: Arc::new(Flights::new(Arc::clone(&activity))),
            waiting: Arc::new(Flights::new(activity)),
            choices: AtomicU64::new(0),
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

    /// Whether no request is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.all.is_none()
    }

    /// The mark of a model that a person chooses now.
    pub(crate) fn choice(&self) -> u64 {
        self.choices.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A model that sleeps is forgotten (`None`: all): it is loaded, or nobody wants it again. False: none
    /// such slept.
    pub(crate) fn forget(&self, name: Option<&str>) -> bool {
        let mut asleep = lock(&self.asleep);
        let before = asleep.len();
        asleep.retain(|a| name.is_some_and(|name| a.target.name != name));
        asleep.len() < before
    }

    /// The model that was chosen last among those that sleep: its name, and its mark.
    pub(crate) fn sleeping(&self) -> Option<(String, u64)> {
        let asleep = lock(&self.asleep);
        let last = asleep.iter().max_by_key(|a| a.wish.chosen)?;
        Some((last.target.name.clone(), last.wish.chosen))
    }

    /// Whether this model sleeps.
    pub(crate) fn sleeps(&self, name: &str) -> bool {
        lock(&self.asleep).iter().any(|a| a.target.name == name)
    }

    /// When an idle model is to be unloaded; `None`: not as things are.
    fn due(&self, stay: &Stay) -> Option<Instant> {
        let keep = self.keep.borrow().clone();
        if !keep.weights {
            return Some(Instant::now());
        }
        let wish = stay.wish();
        let idle = match (wish.pinned, wish.keep_alive, keep.strict) {
            (_, _, true) => keep.idle,
            (true, ..) => None,
            (_, Some(wished), _) => Some(wished),
            (_, None, _) => keep.idle,
        };
        idle.filter(|_| stay.is_idle() && self.waiting.is_none())
            .and_then(|idle| stay.idle_since().checked_add(idle))
    }

    /// Time left until a warm model is unloaded for want of requests.
    pub(crate) fn unloads_in(&self, stay: &Stay) -> Option<Duration> {
        let due = self.due(stay)?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Why weights may not be in memory now, in words.
    pub(crate) fn is_short(&self) -> Option<String> {
        let keep = self.keep.borrow();
        (!keep.weights).then(|| keep.reason.clone())
    }

    /// A request for `asked` (empty: the one chosen last) finds it not warm: wakes it if it sleeps.
    pub(crate) fn wake(&self, asked: &str) -> Waking {
        let mut asleep = lock(&self.asleep);
        let found = match asked {
            "" => asleep.iter_mut().max_by_key(|a| a.wish.chosen),
            name => asleep.iter_mut().find(|a| a.target.name == name),
        };
        let Some(found) = found else {
            return Waking::Nothing;
        };
        let keep = self.keep.borrow();
        if !keep.weights {
            return Waking::Short(keep.reason.clone());
        }
        if let Some(status) = found.just_failed() {
            return Waking::Failed(status);
        }
        found.wanted = true;
        self.wake.notify_one();
        Waking::Loading
    }

    /// A model to load now: one that sleeps and is waited for, unless that failed just now.
    fn wakes(&self) -> Option<(Target, Wish)> {
        let mut asleep = lock(&self.asleep);
        let wanted = |a: &&mut Asleep| a.wanted && a.just_failed().is_none();
        let found = asleep.iter_mut().find(wanted)?;
        // Whoever still waits after this load will say so.
        found.wanted = false;
        Some((found.target.clone(), found.wish.clone()))
    }

    /// The load of a model that slept is over.
    fn woken(&self, name: &str, error: Option<Status>) {
        let mut asleep = lock(&self.asleep);
        let Some(at) = asleep.iter().position(|a| a.target.name == name) else {
            return;
        };
        let Some(status) = error else {
            asleep.remove(at);
            return;
        };
        if status.code() == Code::Aborted {
            // Another load runs: it has the last word.
            return;
        }
        if status::may_pass(&status) {
            asleep[at].failed = Some((Instant::now(), status));
        } else {
            asleep.remove(at);
        }
    }

    /// The next request for this model loads it again.
    pub(crate) fn put_to_sleep(&self, warm: &Warm) {
        self.forget(Some(&warm.name));
        lock(&self.asleep).push(Asleep {
            target: warm.target(),
            wish: warm.stay.wish(),
            wanted: false,
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
        let due = |warm: Arc<Warm>| Some((warmth.due(&warm.stay)?, warm));
        let mut due: Vec<_> = shared.models().into_iter().filter_map(due).collect();
        due.sort_by_key(|(at, _)| *at);
        let now = Instant::now();
        let mut rested = false;
        for (_, warm) in due.iter().filter(|(at, _)| *at <= now) {
            rested |= rest(&shared, warm).await;
        }
        if rested {
            continue;
        }
        // If one cannot rest now, something that is waited for here will change.
        let due = due.into_iter().map(|(at, _)| at).find(|at| *at > now);
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
            // Power and memory are followed meanwhile.
            () = warmth.wake.notified() => drop(tokio::spawn(wake(Arc::clone(&shared)))),
            () = sleep => {}
        }
    }
}

/// Takes the weights of models at work off the GPU while memory is short, and brings them back after;
/// replies that are under way wait meanwhile.
async fn weigh(shared: &Arc<Shared>) {
    let (Some(engine), Some(_)) = (shared.engine().cloned(), shared.present()) else {
        return;
    };
    let may_stay = shared.warmth.keep.borrow().weights;
    let away = engine.condition() == Condition::Suspended;
    // Idle models are unloaded as a whole.
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
        "what was on the GPU cannot be brought back; replies under way end"
    );
    for warm in shared.models() {
        shared.warmth.put_to_sleep(&warm);
        shared.remove(&warm).await;
        unload(shared, &warm, &error).await;
    }
}

/// Unloads a warm model until the next request. False: somebody asks just now, or a load runs.
async fn rest(shared: &Arc<Shared>, warm: &Arc<Warm>) -> bool {
    let Ok(_lock) = shared.load_lock.try_lock() else {
        return false;
    };
    if !shared.take_idle(warm) {
        return false;
    }
    let keep = shared.warmth.keep.borrow().clone();
    let why = if keep.weights {
        "nobody asked for a while".to_owned()
    } else {
        keep.reason
    };
    unload(shared, warm, &why).await;
    true
}

/// Frees the memory of a model that sleeps from now on, and says so.
async fn unload(shared: &Arc<Shared>, warm: &Warm, why: &str) {
    let name = &warm.name;
    let why = format!("`{name}` is unloaded, the next request loads it: {why}");
    tracing::info!("{why}");
    shared.lifecycle.ready(Some(why));
    loading::free(shared, warm).await;
    shared.activity.send_replace(());
    shared.report_health().await;
}

/// Loads the models that sleep and are waited for.
async fn wake(shared: Arc<Shared>) {
    while let Some((target, wish)) = shared.warmth.wakes() {
        let name = target.name.clone();
        let loaded = loading::load(&shared, target, wish, By::Request, Box::new(|_| true)).await;
        shared.warmth.woken(&name, loaded.err());
        // Those that wait for it look again: what they find may have changed after the load's own words.
        shared.report_health().await;
        shared.activity.send_replace(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
