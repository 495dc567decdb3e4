//! What all services share: the engine, the warm models, the store, counters.
//!
//! It holds state and answers questions about it. Loading is in `loading.rs`, serving in
//! `server.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use hearth_engine::{AdapterKind, Condition, Engine, LoadedModel};
use hearth_proto::v1;
use tokio::sync::{Mutex, Semaphore, watch};
use tonic::Status;
use tonic_health::server::HealthReporter;

use crate::app_sockets::AppSockets;
use crate::config::Config;
use crate::energy::{self, Meter};
use crate::governor::{Base, Board, Plan};
use crate::lifecycle::{Lifecycle, State};
use crate::limits::IMPORTS_MAX;
use crate::loading::Target;
use crate::places::Places;
use crate::service::Deferred;
use crate::store::{Manifest, ModelFacts, Store};
use crate::warmth::{InFlight, Stay, Waking, Warmth};
use crate::{OwnProcess, status, wire};

/// A warm model and where it came from.
pub(crate) struct Warm {
    /// Its name.
    pub(crate) name: String,
    /// Its entry in the store; `None`: a file outside.
    pub(crate) manifest: Option<Manifest>,
    /// Its file, the first of several.
    pub(crate) path: PathBuf,
    /// Size of its files.
    pub(crate) file_bytes: u64,
    /// The model.
    pub(crate) model: Arc<LoadedModel>,
    /// How long it stays.
    pub(crate) stay: Stay,
}

impl Warm {
    /// What to load to have it again.
    pub(crate) fn target(&self) -> Target {
        Target {
            name: self.name.clone(),
            path: self.path.clone(),
            manifest: self.manifest.clone(),
        }
    }

    /// Describes it.
    pub(crate) fn info(&self) -> v1::ModelInfo {
        match &self.manifest {
            Some(manifest) => wire::stored_model(manifest, v1::ModelState::Warm),
            None => {
                let has_template = self.model.chat_template.is_some();
                let facts = ModelFacts::new(&self.model.config, has_template);
                wire::model_info(&self.name, &facts, self.file_bytes, v1::ModelState::Warm)
            }
        }
    }
}

/// Whether there is a model to answer with.
pub(crate) enum Availability {
    /// There is.
    Warm(Arc<Warm>),
    /// One is on its way.
    Loading,
}

/// What is so by the way the daemon was started.
pub(crate) struct Own {
    pub(crate) process: OwnProcess,
    /// Whether the service manager made the socket.
    pub(crate) socket_activated: bool,
}

impl Own {
    fn describe(&self) -> v1::ProcessStatus {
        v1::ProcessStatus {
            socket_activated: self.socket_activated,
            watchdog: self.process.supervisor.watchdog().map(wire::duration),
            hardening: self.process.protection.in_force(),
        }
    }
}

/// What all services share.
pub(crate) struct Shared {
    pub(crate) own: Own,
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) health: HealthReporter,
    /// Whether it was told last that requests can be answered.
    serving: Mutex<bool>,
    /// Held while a model is loaded or unloaded.
    pub(crate) load_lock: Mutex<()>,
    /// Permits of imports.
    pub(crate) imports: Semaphore,
    /// Changes whenever a request begins or ends, for watchers.
    pub(crate) activity: Arc<watch::Sender<()>>,
    /// Connections by app.
    pub(crate) places: Places,
    pub(crate) app_sockets: AppSockets,
    pub(crate) refused: AtomicU64,
    pub(crate) warmth: Warmth,
    pub(crate) governor: Board,
    /// Requests that wait for their time.
    pub(crate) deferred: Deferred,
    /// Held by the one that starts next when nobody else asks.
    pub(crate) idle_turn: Mutex<()>,
    /// What tells energy, if anything does.
    pub(crate) meter: Option<Meter>,
    engine: OnceLock<Arc<Engine>>,
    /// In the order in which they became warm.
    warm: RwLock<Vec<Arc<Warm>>>,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        store: Store,
        health: HealthReporter,
        app_sockets: AppSockets,
        own: Own,
    ) -> Self {
        let keep_alive = Some(config.governor.keep_alive).filter(|time| !time.is_zero());
        let activity = Arc::new(watch::Sender::new(()));
        Self {
            governor: Board::new(&config),
            meter: energy::find(Path::new("/sys"), config.gpu_watts),
            own,
            config,
            store,
            lifecycle: Lifecycle::default(),
            health,
            serving: Mutex::new(false),
            load_lock: Mutex::new(()),
            imports: Semaphore::new(IMPORTS_MAX),
            activity: Arc::clone(&activity),
            places: Places::default(),
            app_sockets,
            refused: AtomicU64::new(0),
            warmth: Warmth::new(keep_alive, Arc::clone(&activity)),
            deferred: Deferred::new(activity),
            idle_turn: Mutex::new(()),
            engine: OnceLock::new(),
            warm: RwLock::default(),
            started: Instant::now(),
        }
    }

    /// The engine, once it runs.
    pub(crate) fn engine(&self) -> Option<&Arc<Engine>> {
        self.engine.get()
    }

    /// Puts the engine in its place. Only the first counts.
    pub(crate) fn set_engine(&self, engine: Engine) {
        let _ = self.engine.set(Arc::new(engine));
    }

    /// The warm models, the one chosen last first.
    pub(crate) fn models(&self) -> Vec<Arc<Warm>> {
        let mut models = self.read().clone();
        models.sort_by_key(|warm| std::cmp::Reverse(warm.stay.wish().chosen));
        models
    }

    /// The warm model that was chosen last.
    pub(crate) fn present(&self) -> Option<Arc<Warm>> {
        self.models().into_iter().next()
    }

    /// The warm model of this name; the one chosen last if the name is empty.
    pub(crate) fn warm(&self, asked: &str) -> Option<Arc<Warm>> {
        let named = |warm: &Arc<Warm>| asked.is_empty() || asked == warm.name;
        self.models().into_iter().find(named)
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Warm>>> {
        self.warm.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Warm>>> {
        self.warm.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests find this model from now on.
    pub(crate) async fn add(&self, warm: Arc<Warm>) {
        self.write().push(warm);
        self.report_health().await;
    }

    /// Requests do not find this model any more.
    pub(crate) async fn remove(&self, gone: &Arc<Warm>) {
        self.write().retain(|warm| !Arc::ptr_eq(warm, gone));
        self.report_health().await;
    }

    /// Takes a warm model away if no request uses it. From then on requests find it asleep. False: one
    /// does, or it is not there.
    pub(crate) fn take_idle(&self, meant: &Arc<Warm>) -> bool {
        let mut models = self.write();
        let found = models.iter().position(|warm| Arc::ptr_eq(warm, meant));
        let Some(at) = found.filter(|_| meant.stay.is_idle()) else {
            return false;
        };
        models.remove(at);
        self.warmth.put_to_sleep(meant);
        true
    }

    /// Tells the health service whether requests can be answered: with a warm model, or with one that
    /// sleeps until then; and not while the GPU is lost. Those who watch it hear of changes only.
    pub(crate) async fn report_health(&self) {
        // Looked at under the lock, so that what was before overtakes nothing.
        let mut told = self.serving.lock().await;
        let condition = self.engine().map(|engine| engine.condition());
        let lost = condition.is_some_and(|condition| {
            matches!(
                condition,
                Condition::Rebuilding { .. } | Condition::Failed { .. }
            )
        });
        let has_model = !self.read().is_empty() || self.warmth.sleeping().is_some();
        let serving = has_model && !lost && !self.lifecycle.is_draining();
        if *told != serving {
            *told = serving;
            crate::server::report_health(&self.health, serving).await;
        }
    }

    /// The model to answer a request for `asked` with (empty: the one chosen last). The request, if it is
    /// one in flight, uses it from now on.
    ///
    /// # Errors
    /// There is none and none is coming, or others are there.
    pub(crate) fn available(
        &self,
        asked: &str,
        in_flight: Option<&mut InFlight>,
    ) -> Result<Availability, Status> {
        let phase = self.lifecycle.now();
        if phase.state >= State::Draining {
            return Err(status::draining());
        }
        if let Some(warm) = self.meant(asked, in_flight) {
            return match self.warmth.is_short() {
                // Replies under way wait for memory; more are not taken.
                Some(why) => Err(status::memory_short(&why)),
                None => Ok(Availability::Warm(warm)),
            };
        }
        match (phase.state, phase.loading, phase.reason) {
            (State::Starting, _, Some(reason)) => Err(status::no_gpu(&reason)),
            (State::Loading, Some(loading), _)
                if !asked.is_empty() && asked != loading.name && !self.warmth.sleeps(asked) =>
            {
                Err(status::not_warm(asked, &loading.name))
            }
            // One that sleeps is woken after that load.
            (State::Starting | State::Loading, ..) => Ok(Availability::Loading),
            (_, _, reason) => match self.warmth.wake(asked) {
                Waking::Loading => Ok(Availability::Loading),
                Waking::Short(why) => Err(status::memory_short(&why)),
                Waking::Failed(status) => Err(status),
                Waking::Nothing => {
                    let others = self.present().map(|warm| warm.name.clone());
                    let others = others.or_else(|| Some(self.warmth.sleeping()?.0));
                    Err(match others {
                        Some(other) => status::not_warm(asked, &other),
                        None => status::no_model(reason.as_deref()),
                    })
                }
            },
        }
    }

    /// The warm model that a request for `asked` means. None of them can be taken away meanwhile.
    fn meant(&self, asked: &str, in_flight: Option<&mut InFlight>) -> Option<Arc<Warm>> {
        let models = self.read();
        let chosen = |warm: &&Arc<Warm>| warm.stay.wish().chosen;
        let warm = match asked {
            "" => {
                let last = models.iter().max_by_key(chosen)?;
                let sleeping = self.warmth.sleeping();
                // Whoever names none means the same model whether it sleeps or not.
                (sleeping.is_none_or(|(_, mark)| mark < chosen(&last))).then_some(last)?
            }
            name => models.iter().find(|warm| warm.name == name)?,
        };
        if let Some(in_flight) = in_flight {
            in_flight.join(&warm.stay);
        }
        Some(Arc::clone(warm))
    }

    /// Whether the machine is on mains power, as far as is known.
    pub(crate) fn on_mains(&self) -> bool {
        !self.governor.plan().on_battery
    }

    /// The model, for calls that do not wait.
    ///
    /// # Errors
    /// As [`Shared::available`], and if it is being loaded.
    pub(crate) fn warm_now(&self, asked: &str) -> Result<Arc<Warm>, Status> {
        match self.available(asked, None)? {
            Availability::Warm(warm) => Ok(warm),
            Availability::Loading => Err(status::loading()),
        }
    }

    /// Counts a request that was refused, and hands its status on.
    pub(crate) fn refuse(&self, status: Status) -> Status {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.activity.send_replace(());
        status
    }

    /// Everything the daemon tells about itself.
    pub(crate) fn describe(&self) -> v1::DaemonStatus {
        let phase = self.lifecycle.now();
        let engine = self.engine();
        let stats = engine.map(|engine| engine.stats()).unwrap_or_default();
        let usage = engine.map(|engine| engine.usage()).unwrap_or_default();
        let connections = self.places.by_app();
        let models: Vec<_> = self.models();
        let names = |id: u64| {
            let found = models.iter().find(|warm| warm.model.id == id);
            found.map_or_else(String::new, |warm| warm.name.clone())
        };
        let sequences = usage.sequences.into_iter();
        let sequences = sequences.map(|row| wire::sequence(names(row.model), row));
        let sequences = sequences.collect();
        let slots = self.config.engine.slots;
        v1::DaemonStatus {
            state: wire::state(phase.state).into(),
            reason: phase.reason,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: Some(wire::duration(self.started.elapsed())),
            adapter: engine.map(|engine| wire::adapter(engine.adapter())),
            activations: models
                .first()
                .map_or(v1::Activations::Unspecified, |warm| {
                    wire::activations(warm.model.activations)
                })
                .into(),
            model: models.first().map(|warm| self.describe_warm(warm)),
            models: models.iter().map(|warm| self.describe_warm(warm)).collect(),
            loading: phase.loading.map(wire::loading),
            counters: Some(wire::counters(
                &stats,
                self.refused.load(Ordering::Relaxed),
                self.meter.as_ref(),
            )),
            queue: Some(v1::Queue {
                active: stats.active_now,
                waiting: stats.queued_now,
                waiting_max: self.config.engine.queue_max,
                slots,
                app_waiting_max: self.config.engine.app_queue_max,
            }),
            plan: Some(self.plan()),
            connections: connections.values().sum(),
            apps: wire::apps(usage.apps, connections, self.meter.as_ref()),
            sequences,
            warnings: self.warnings(),
            socket_path: self.config.socket.display().to_string(),
            models_dir: self.store.root().display().to_string(),
            rss_bytes: rss_bytes(),
            app_sockets: self.app_sockets.list(),
            process: Some(self.own.describe()),
            deferred: self.deferred.list(),
        }
    }

    fn describe_warm(&self, warm: &Warm) -> v1::WarmModel {
        let model = &warm.model;
        let stats = self.engine().map(|engine| engine.stats_of(model));
        let stats = stats.unwrap_or_default();
        v1::WarmModel {
            info: Some(warm.info()),
            context_len: model.context_len,
            weights_bytes: model.weights_bytes,
            kv_bytes: model.kv_bytes,
            scratch_bytes: model.scratch_bytes,
            kv_blocks_used: stats.kv_blocks_used,
            kv_blocks_total: stats.kv_blocks_total,
            unloads_in: self.warmth.unloads_in(&warm.stay).map(wire::duration),
            kv_blocks_cached: stats.kv_blocks_cached,
            pinned: warm.stay.wish().pinned,
        }
    }

    /// What the engine has, with everything allowed.
    pub(crate) fn base(&self) -> Base {
        let engine = &self.config.engine;
        let models = self.read();
        let most = |of: fn(&LoadedModel) -> u32| models.iter().map(|warm| of(&warm.model)).max();
        let context_len = most(|model| model.context_len);
        let prefill_chunk = most(|model| model.prefill_chunk);
        Base {
            slots: engine.slots,
            context_len: context_len.unwrap_or(engine.context_len_max),
            prefill_chunk: prefill_chunk.unwrap_or(engine.prefill_chunk),
        }
    }

    /// Watches what the governor allows.
    pub(crate) fn plan_watch(&self) -> watch::Receiver<Plan> {
        self.governor.watch()
    }

    /// What the governor allows now.
    pub(crate) fn plan(&self) -> v1::Plan {
        wire::plan(&self.governor.plan(), self.base())
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(adapter) = self.engine().map(|engine| engine.adapter())
            && adapter.kind == AdapterKind::Software
        {
            warnings.push(software_warning(&adapter.name));
        }
        let condition = self.engine().map(|engine| engine.condition());
        warnings.extend(condition.as_ref().and_then(wire::condition));
        warnings
    }
}

/// What to say of a software adapter.
pub(crate) fn software_warning(name: &str) -> String {
    format!("`{name}` is a software adapter: the CPU does the GPU's work, slowly")
}

fn rss_bytes() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let pid = sysinfo::get_current_pid().ok()?;
    let mut system = System::new().ok()?;
    let memory = ProcessRefreshKind::nothing().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
    system.process(pid).map(sysinfo::Process::memory)
}
