//! Starts the engine and makes models warm: the blocking calls, and what the lifecycle, the
//! health service and the log say of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use hearth_engine::format::{FormatError, ModelFiles};
use hearth_engine::{AdapterKind, Condition, Engine, LoadError, LoadProgress};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::lifecycle::LoadingNow;
use crate::limits::{LOAD_WAIT_LOOK, LOAD_WAIT_MAX, RETRY_DELAY};
use crate::state::{Shared, Warm, software_warning};
use crate::status;
use crate::store::{Manifest, StoreError, name};

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
            let _ = load(&shared, target, None, Box::new(|_| true)).await;
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
                shared.set_warm(None).await;
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

/// What a person asked for with a load: how long the model is to stay without requests.
pub(crate) struct Wish {
    pub(crate) keep_alive: Option<std::time::Duration>,
}

/// Makes a model warm in the place of the one that is, as soon as that has no replies under way. With a
/// `wish`, what was asked for the former model is void.
///
/// # Errors
/// Another load runs, the engine does not, the former model stays, or the load failed; no model is warm in
/// the last case.
pub(crate) async fn load(
    shared: &Arc<Shared>,
    target: Target,
    wish: Option<Wish>,
    mut on_progress: OnProgress,
) -> Result<Arc<Warm>, Status> {
    let Ok(lock) = shared.load_lock.try_lock() else {
        let message = "another model is being loaded";
        return Err(status::fault(Code::Aborted, "LOAD_IN_PROGRESS", message)
            .retry(RETRY_DELAY)
            .status());
    };
    if shared.lifecycle.is_draining() {
        return Err(status::draining());
    }
    let Some(engine) = shared.engine().cloned() else {
        let reason = shared.lifecycle.now().reason;
        return Err(reason.map_or_else(status::loading, |reason| status::no_gpu(&reason)));
    };
    let loading = |done_bytes, total_bytes| LoadingNow {
        name: target.name.clone(),
        done_bytes,
        total_bytes,
    };
    shared.lifecycle.loading(loading(0, 0));
    make_way(shared, &engine, &mut on_progress).await?;
    if let Some(wish) = wish {
        shared.warmth.reset(wish.keep_alive);
    }
    let begun = std::time::Instant::now();
    let job = (Arc::clone(shared), target.clone());
    let loaded = tokio::task::spawn_blocking(move || {
        let (shared, target) = job;
        load_blocking(&shared, &engine, &target, on_progress)
    })
    .await;
    let error = match loaded {
        Ok(Ok(warm)) => {
            let warm = Arc::new(warm);
            shared.warmth.touch();
            shared.set_warm(Some(Arc::clone(&warm))).await;
            // Who hears of it may want to load or unload at once.
            drop(lock);
            shared.lifecycle.ready(None);
            let ms = begun.elapsed().as_millis();
            tracing::info!(model = target.name, ms, "the model is warm");
            return Ok(warm);
        }
        Ok(Err(error)) => error,
        Err(_) => {
            shared
                .lifecycle
                .ready(Some("a bug: the load panicked".to_owned()));
            return Err(status::bug());
        }
    };
    if matches!(error, LoadError::Cancelled) {
        shared.lifecycle.ready(None);
    } else {
        let reason = format!("cannot load `{}`: {}", target.name, status::chain(&error));
        tracing::error!(reason, "the load failed");
        shared.lifecycle.ready(Some(reason));
    }
    Err(status::of_load(&error))
}

/// Has the warm model make way for another: its replies under way are finished first. Requests that come
/// meanwhile wait for the other.
///
/// # Errors
/// It is pinned, its replies take too long, or nobody wants the other any more: it stays warm.
async fn make_way(
    shared: &Arc<Shared>,
    engine: &Engine,
    on_progress: &mut OnProgress,
) -> Result<(), Status> {
    let Some(warm) = shared.warm() else {
        return Ok(());
    };
    if shared.warmth.is_pinned() {
        shared.lifecycle.ready(None);
        return Err(status::model_pinned(&warm.name));
    }
    let mut activity = shared.activity.subscribe();
    shared.set_warm(None).await;
    let until = tokio::time::Instant::now() + LOAD_WAIT_MAX;
    let nothing_yet = LoadProgress {
        done_bytes: 0,
        total_bytes: 0,
    };
    let stays = loop {
        let stats = engine.stats();
        if stats.active_now + stats.queued_now == 0 {
            return Ok(());
        }
        if shared.lifecycle.is_draining() {
            return Err(status::draining());
        }
        if !on_progress(nothing_yet) {
            break status::of_load(&LoadError::Cancelled);
        }
        if tokio::time::Instant::now() >= until {
            break status::model_busy(&warm.name);
        }
        // Their ends are heard of at once; that nobody wants the load is looked for.
        let _ = tokio::time::timeout(LOAD_WAIT_LOOK, activity.changed()).await;
    };
    shared.set_warm(Some(warm)).await;
    shared.lifecycle.ready(None);
    Err(stays)
}

fn load_blocking(
    shared: &Shared,
    engine: &Engine,
    target: &Target,
    mut on_progress: OnProgress,
) -> Result<Warm, LoadError> {
    let mut progress = |progress: LoadProgress| {
        shared.lifecycle.loading(LoadingNow {
            name: target.name.clone(),
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
        });
        !shared.lifecycle.is_draining() && on_progress(progress)
    };
    let files = match &target.manifest {
        Some(manifest) => shared
            .store
            .files(manifest)
            .map_err(|error| FormatError::Io {
                what: format!("the files of `{}`", target.name),
                source: std::io::Error::other(error),
            })?,
        None => ModelFiles::at(&target.path)?,
    };
    let model = engine.load(&files, &mut progress)?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let file_bytes = files.iter().map(|(_, path)| size(path)).sum();
    Ok(Warm {
        name: target.name.clone(),
        manifest: target.manifest.clone(),
        path: target.path.clone(),
        file_bytes,
        model,
    })
}

/// Unloads the warm model `asked` (empty: whichever).
///
/// # Errors
/// It is not warm, or a load runs.
pub(crate) async fn unload(shared: &Arc<Shared>, asked: &str) -> Result<(), Status> {
    if shared.lifecycle.now().loading.is_some() {
        return Err(status::loading());
    }
    // An unloading that is under way takes a moment.
    let _lock = shared.load_lock.lock().await;
    let Some(warm) = shared.warm() else {
        return match shared.warmth.sleeping() {
            // It leaves nothing to unload, and is not loaded again by itself.
            Some(name) if asked.is_empty() || asked == name => {
                shared.warmth.reset(None);
                shared.lifecycle.ready(None);
                shared.report_health().await;
                Ok(())
            }
            Some(name) => Err(status::not_warm(asked, &name)),
            None => Err(status::no_model(None)),
        };
    };
    if !asked.is_empty() && asked != warm.name {
        return Err(status::not_warm(asked, &warm.name));
    }
    let name = warm.name.clone();
    // The last reference goes with this one, so that the tokenizer's memory is given back too.
    drop(warm);
    shared.warmth.reset(None);
    shared.set_warm(None).await;
    free(shared).await;
    shared.lifecycle.ready(None);
    shared.activity.send_replace(());
    tracing::info!(model = name, "the model is unloaded");
    Ok(())
}

/// Frees the memory of the engine's model.
pub(crate) async fn free(shared: &Arc<Shared>) {
    let Some(engine) = shared.engine().cloned() else {
        return;
    };
    if tokio::task::spawn_blocking(move || engine.unload())
        .await
        .is_err()
    {
        tracing::error!("a bug: unloading panicked");
    }
}
