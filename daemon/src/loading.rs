//! Starts the engine and makes models warm: the blocking calls, and what the lifecycle, the
//! health service and the log say of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use hearth_engine::format::{Checkpoint, FormatError, ModelFiles};
use hearth_engine::model::ModelConfig;
use hearth_engine::{AdapterKind, Condition, Engine, KvNeed, LoadError, LoadProgress, LoadedModel};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::lifecycle::LoadingNow;
use crate::limits::{LOAD_WAIT_LOOK, LOAD_WAIT_MAX, RETRY_DELAY};
use crate::state::{Shared, Warm, software_warning};
use crate::store::{Manifest, StoreError, name};
use crate::warmth::{Stay, Wish};
use crate::{governor, status};

/// A model to load.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// Its file, the first of several.
    pub(crate) path: PathBuf,
    /// Its entry in the store; `None`: a file outside.
    pub(crate) manifest: Option<Manifest>,
}

/// Hears how far a load is; false stops it.
pub(crate) type OnProgress = Box<dyn FnMut(LoadProgress) -> bool + Send>;

/// Opens the GPU, then loads the model that is configured or the only one there is.
pub(crate) async fn start(shared: Arc<Shared>) {
    let mut config = shared.config.engine.clone();
    config.meter = shared.meter.as_ref().map(|found| Arc::clone(&found.meter));
    if let Some(meter) = &shared.meter {
        tracing::info!(
            meter = meter.name,
            measured = meter.measured,
            "energy is told"
        );
    }
    let started = tokio::task::spawn_blocking(move || Engine::start(config)).await;
    let engine = match started {
        Ok(Ok(engine)) => engine,
        Ok(Err(error)) => {
            let reason = status::chain(&error);
            tracing::error!(reason, "the GPU could not be opened");
            shared.lifecycle.start_failed(reason);
            return;
        }
        Err(_) => {
            shared
                .lifecycle
                .start_failed("a bug: the engine's start panicked".to_owned());
            return;
        }
    };
    let adapter = engine.adapter();
    tracing::info!(
        adapter = adapter.name,
        driver = adapter.driver,
        backend = adapter.backend,
        kind = ?adapter.kind,
        "the GPU is open"
    );
    if adapter.kind == AdapterKind::Software {
        tracing::warn!("{}", software_warning(&adapter.name));
    }
    let (changed, changes) = watch::channel(());
    engine.on_condition(Box::new(move |_| {
        changed.send_replace(());
    }));
    shared.own.process.protection.gpu_is_open();
    shared.set_engine(engine);
    tokio::spawn(follow(Arc::downgrade(&shared), changes));
    if shared.lifecycle.is_draining() {
        return;
    }
    match resolve(&shared, "") {
        Ok(Some(target)) => {
            // The reason of a failure is in the lifecycle and in the log.
            let wish = Wish {
                chosen: shared.warmth.choice(),
                ..Wish::default()
            };
            let _ = load(&shared, target, wish, By::Person, Box::new(|_| true)).await;
        }
        Ok(None) => {
            tracing::info!("no model is configured and the store does not hold exactly one");
            shared.lifecycle.ready(None);
        }
        Err(error) => {
            let reason = status::chain(&error);
            tracing::error!(reason, "the configured model cannot be used");
            shared.lifecycle.ready(Some(reason));
        }
    }
}

/// Tells everybody of the engine's condition when it changes, as long as there is an engine.
async fn follow(shared: Weak<Shared>, mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // A load changes both, and must not be overtaken by what was before it.
        if let Some(Condition::Failed { .. }) = condition(&shared) {
            let _lock = shared.load_lock.lock().await;
            if let Some(Condition::Failed { reason }) = condition(&shared) {
                for warm in shared.models() {
                    shared.remove(&warm).await;
                }
                let reason = format!("the GPU was lost and does not come back: {reason}");
                shared.lifecycle.ready(Some(reason));
            }
        }
        shared.report_health().await;
        shared.activity.send_replace(());
    }
}

fn condition(shared: &Shared) -> Option<Condition> {
    shared.engine().map(|engine| engine.condition())
}

/// Finds a model by name. Empty: the configured one, else the only one in the store, if any.
///
/// # Errors
/// There is no model of this name.
pub(crate) fn resolve(shared: &Shared, asked: &str) -> Result<Option<Target>, StoreError> {
    if let Some(configured) = &shared.config.model
        && Path::new(configured).is_absolute()
    {
        let path = PathBuf::from(configured);
        let file = path
            .file_name()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = name::from_file_name(&file);
        if asked.is_empty() || asked == name {
            return Ok(Some(Target {
                name,
                path,
                manifest: None,
            }));
        }
    }
    let manifest = match (asked, &shared.config.model) {
        ("", Some(configured)) => shared.store.get(configured)?,
        ("", None) => {
            let mut models = shared.store.list()?;
            match (models.pop(), models.is_empty()) {
                (Some(only), true) => only,
                _ => return Ok(None),
            }
        }
        (asked, _) => shared.store.get(asked)?,
    };
    let files = shared.store.files(&manifest)?;
    let path = files.iter().next().map(|(_, path)| path.to_owned());
    let path = path.unwrap_or_default();
    Ok(Some(Target {
        name: manifest.name.clone(),
        path,
        manifest: Some(manifest),
    }))
}

/// Who has a model loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Somebody who said so.
    Person,
    /// A request for one that sleeps.
    Request,
}

/// Makes a model warm beside those that are. If there is no room beside them, those that were not asked for
/// longest make way as soon as they have no replies under way.
///
/// # Errors
/// Another load runs, the engine does not, a model that should make way stays, or the load failed; models
/// that made way sleep in that case.
pub(crate) async fn load(
    shared: &Arc<Shared>,
    target: Target,
    wish: Wish,
    by: By,
    mut on_progress: OnProgress,
) -> Result<Arc<Warm>, Status> {
    if shared.lifecycle.now().loading.is_some() {
        let message = "another model is being loaded";
        return Err(status::fault(Code::Aborted, "LOAD_IN_PROGRESS", message)
            .retry(RETRY_DELAY)
            .status());
    }
    // An unloading that is under way takes a moment.
    let lock = shared.load_lock.lock().await;
    if let Some(warm) = already(shared, &target) {
        // Somebody else was faster.
        warm.stay.change(|present| *present = wish);
        return Ok(warm);
    }
    let engine = engine_for_loads(shared)?;
    let loading = |done_bytes, total_bytes| LoadingNow {
        name: target.name.clone(),
        done_bytes,
        total_bytes,
    };
    shared.lifecycle.loading(loading(0, 0));
    let begun = std::time::Instant::now();
    let mut made_way = Vec::new();
    let loaded = load_with_room(shared, &engine, &target, &mut made_way, &mut on_progress).await;
    let failed = loaded.is_err();
    for former in made_way {
        // What a person put in its place counts; a request only borrows the room.
        if failed || by == By::Request {
            shared.warmth.put_to_sleep(&former);
        }
    }
    let error = match loaded {
        Ok(loaded) => {
            let warm = Arc::new(loaded.warm(target, wish, shared));
            shared.warmth.forget(Some(&warm.name));
            shared.add(Arc::clone(&warm)).await;
            // Who hears of it may want to load or unload at once.
            drop(lock);
            shared.lifecycle.ready(None);
            let ms = begun.elapsed().as_millis();
            tracing::info!(model = warm.name, ms, "the model is warm");
            return Ok(warm);
        }
        Err(error) => error,
    };
    let (reason, status) = match error {
        Stopped::Cancelled => (None, status::of_load(&LoadError::Cancelled)),
        Stopped::Stays(status) => (None, status),
        Stopped::Panicked => (Some("a bug: the load panicked".to_owned()), status::bug()),
        Stopped::Failed(error) => {
            let reason = format!("cannot load `{}`: {}", target.name, status::chain(&error));
            tracing::error!(reason, "the load failed");
            (Some(reason), status::of_load(&error))
        }
    };
    shared.lifecycle.ready(reason);
    Err(status)
}

/// The engine, if it may be given a model now.
///
/// # Errors
/// The daemon drains, there is no engine, or models that are warm wait for memory.
fn engine_for_loads(shared: &Shared) -> Result<Arc<Engine>, Status> {
    if shared.lifecycle.is_draining() {
        return Err(status::draining());
    }
    let Some(engine) = shared.engine().cloned() else {
        let reason = shared.lifecycle.now().reason;
        return Err(reason.map_or_else(status::loading, |reason| status::no_gpu(&reason)));
    };
    if engine.condition() == Condition::Suspended
        && let Some(why) = shared.warmth.is_short()
    {
        // Those come first; when there is some, the engine brings them back and loads.
        return Err(status::memory_short(&why));
    }
    Ok(engine)
}

/// The warm model of this name, if it is of the same file.
pub(crate) fn already(shared: &Shared, target: &Target) -> Option<Arc<Warm>> {
    let warm = shared.warm(&target.name);
    warm.filter(|warm| warm.path == target.path)
}

/// Why a model did not become warm.
enum Stopped {
    /// Nobody wants it any more.
    Cancelled,
    /// One that should make way stays, or the daemon drains.
    Stays(Status),
    /// A bug.
    Panicked,
    /// The load failed.
    Failed(LoadError),
}

/// Loads a model; others make way for it as long as there is no room.
async fn load_with_room(
    shared: &Arc<Shared>,
    engine: &Arc<Engine>,
    target: &Target,
    made_way: &mut Vec<Arc<Warm>>,
    on_progress: &mut OnProgress,
) -> Result<Loaded, Stopped> {
    let mut need = None;
    if shared.present().is_some() {
        // A model that cannot be loaded is no reason for another to go.
        let job = (Arc::clone(shared), Arc::clone(engine), target.clone());
        let looked = blocking(move || look(&job.0, &job.1, &job.2)).await?;
        need = Some(looked.map_err(Stopped::Failed)?);
    }
    let mut full = false;
    loop {
        let models = shared.models();
        let replaced = models.iter().find(|warm| warm.name == target.name);
        let has_room = models.len() < shared.config.models_max
            && replaced.is_none()
            && !full
            && need.is_none_or(|bytes| governor::stays_calm(&shared.config.governor, bytes));
        if has_room || models.is_empty() {
            let mut lent = std::mem::replace(on_progress, Box::new(|_| true));
            let job = (Arc::clone(shared), Arc::clone(engine), target.clone());
            let (loaded, lent) = blocking(move || {
                let loaded = load_blocking(&job.0, &job.1, &job.2, &mut lent);
                (loaded, lent)
            })
            .await?;
            *on_progress = lent;
            match loaded {
                Ok(loaded) => return Ok(loaded),
                Err(LoadError::Cancelled) => return Err(Stopped::Cancelled),
                // The memory of a GPU of its own tells only so.
                Err(LoadError::OutOfMemory { .. }) if !models.is_empty() => full = true,
                Err(error) => return Err(Stopped::Failed(error)),
            }
            continue;
        }
        let next = replaced.or_else(|| next_to_go(&models));
        let Some(next) = next.filter(|warm| !warm.stay.wish().pinned) else {
            let pinned = replaced.unwrap_or(&models[0]);
            return Err(Stopped::Stays(status::model_pinned(&pinned.name)));
        };
        make_way(shared, next, on_progress).await?;
        free(shared, next).await;
        made_way.push(Arc::clone(next));
        full = false;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Stopped::Panicked)
}

/// The one that was not asked for longest, if it is not pinned; one that answers just now only if all do.
fn next_to_go(models: &[Arc<Warm>]) -> Option<&Arc<Warm>> {
    let unpinned = models.iter().filter(|warm| !warm.stay.wish().pinned);
    unpinned.min_by_key(|warm| (!warm.stay.is_idle(), warm.stay.idle_since()))
}

/// Has a warm model make way for another: its replies under way are finished first. Requests do not find it
/// meanwhile.
///
/// # Errors
/// Its replies take too long, or nobody wants the other any more: it stays warm.
async fn make_way(
    shared: &Arc<Shared>,
    warm: &Arc<Warm>,
    on_progress: &mut OnProgress,
) -> Result<(), Stopped> {
    let mut activity = shared.activity.subscribe();
    shared.remove(warm).await;
    let until = tokio::time::Instant::now() + LOAD_WAIT_MAX;
    let nothing_yet = LoadProgress {
        done_bytes: 0,
        total_bytes: 0,
    };
    let stays = loop {
        if warm.stay.is_idle() {
            tracing::info!(model = warm.name, "the model makes way for another");
            return Ok(());
        }
        if shared.lifecycle.is_draining() {
            break Stopped::Stays(status::draining());
        }
        if !on_progress(nothing_yet) {
            break Stopped::Cancelled;
        }
        if tokio::time::Instant::now() >= until {
            break Stopped::Stays(status::model_busy(&warm.name));
        }
        // Their ends are heard of at once; that nobody wants the load is looked for.
        let _ = tokio::time::timeout(LOAD_WAIT_LOOK, activity.changed()).await;
    };
    shared.add(Arc::clone(warm)).await;
    Err(stays)
}

fn files_of(shared: &Shared, target: &Target) -> Result<ModelFiles, FormatError> {
    match &target.manifest {
        Some(manifest) => shared
            .store
            .files(manifest)
            .map_err(|error| FormatError::Io {
                what: format!("the files of `{}`", target.name),
                source: std::io::Error::other(error),
            }),
        None => ModelFiles::at(&target.path),
    }
}

fn size_of(files: &ModelFiles) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    files.iter().map(|(_, path)| size(path)).sum()
}

/// Looks at a model's files: how much of the machine's memory it will take, in bytes. Nothing, where the GPU
/// has memory of its own.
fn look(shared: &Shared, engine: &Engine, target: &Target) -> Result<u64, LoadError> {
    let files = files_of(shared, target)?;
    let config = ModelConfig::of(&Checkpoint::open(&files)?)?;
    let need = KvNeed::of(engine.adapter(), &shared.config.engine, &config);
    Ok(match engine.adapter().kind {
        AdapterKind::Discrete => 0,
        _ => size_of(&files).saturating_add(need.kv_bytes),
    })
}

/// A model that is in GPU memory.
struct Loaded {
    model: Arc<LoadedModel>,
    file_bytes: u64,
}

impl Loaded {
    fn warm(self, target: Target, wish: Wish, shared: &Shared) -> Warm {
        Warm {
            name: target.name,
            manifest: target.manifest,
            path: target.path,
            file_bytes: self.file_bytes,
            model: self.model,
            stay: Stay::new(wish, Arc::clone(&shared.activity)),
        }
    }
}

fn load_blocking(
    shared: &Shared,
    engine: &Engine,
    target: &Target,
    on_progress: &mut OnProgress,
) -> Result<Loaded, LoadError> {
    let mut progress = |progress: LoadProgress| {
        shared.lifecycle.loading(LoadingNow {
            name: target.name.clone(),
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
        });
        !shared.lifecycle.is_draining() && on_progress(progress)
    };
    let files = files_of(shared, target)?;
    Ok(Loaded {
        model: engine.load(&files, &mut progress)?,
        file_bytes: size_of(&files),
    })
}

/// Unloads the warm model `asked` (empty: all of them), or forgets one that sleeps.
///
/// # Errors
/// There is none such, or a load runs.
pub(crate) async fn unload(shared: &Arc<Shared>, asked: &str) -> Result<(), Status> {
    if shared.lifecycle.now().loading.is_some() {
        return Err(status::loading());
    }
    // An unloading that is under way takes a moment.
    let _lock = shared.load_lock.lock().await;
    let mut models = shared.models();
    models.retain(|warm| asked.is_empty() || asked == warm.name);
    // One that sleeps leaves nothing to unload, and is not loaded again by itself.
    let forgotten = shared
        .warmth
        .forget(Some(asked).filter(|name| !name.is_empty()));
    if models.is_empty() && !forgotten {
        let others = shared.present().map(|warm| warm.name.clone());
        let others = others.or_else(|| Some(shared.warmth.sleeping()?.0));
        return Err(match others {
            Some(other) => status::not_warm(asked, &other),
            None => status::no_model(None),
        });
    }
    for warm in models {
        shared.remove(&warm).await;
        free(shared, &warm).await;
        tracing::info!(model = warm.name, "the model is unloaded");
    }
    shared.lifecycle.ready(None);
    shared.report_health().await;
    shared.activity.send_replace(());
    Ok(())
}

/// Frees the memory of a model.
pub(crate) async fn free(shared: &Arc<Shared>, warm: &Warm) {
    let Some(engine) = shared.engine().cloned() else {
        return;
    };
    let model = Arc::clone(&warm.model);
    if tokio::task::spawn_blocking(move || engine.unload_model(&model))
        .await
        .is_err()
    {
        tracing::error!("a bug: unloading panicked");
    }
}
