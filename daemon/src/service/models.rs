//! `hearth.v1.Models`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_engine::LoadProgress;
use hearth_engine::Quantization;
use hearth_engine::limits::MODEL_FILES_MAX;
use hearth_proto::v1;
use hearth_proto::v1::models_server::Models;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::options::keep_alive;
use super::{Replies, blocking};
use crate::limits::{ORIGIN_TEXT_BYTES_MAX, RETRY_DELAY};
use crate::state::{Shared, Warm};
use crate::status::{self, bad_field, fault, not_in_this_version, of_store};
use crate::store::{BadModel, Manifest, ModelFacts, Origin, StoreError, StoredFile};
use crate::{access, loading, wire};

/// Least time between two messages of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Answers the RPCs of `hearth.v1.Models`.
pub(crate) struct ModelsService {
    shared: Arc<Shared>,
}

impl ModelsService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn state_of(&self, name: &str) -> v1::ModelState {
        if self.shared.warm().is_some_and(|warm| warm.name == name) {
            return v1::ModelState::Warm;
        }
        match self.shared.lifecycle.now().loading {
            Some(loading) if loading.name == name => v1::ModelState::Loading,
            _ => v1::ModelState::Stored,
        }
    }
}

impl ModelsService {
    fn set_pin(&self, asked: &str, pinned: bool) -> Result<(), Status> {
        let warm = self.shared.warm();
        let Some(warm) = warm.filter(|warm| asked.is_empty() || asked == warm.name) else {
            let message = match asked {
                "" => "no model is warm; `hearth load NAME` warms one".to_owned(),
                asked => format!("model `{asked}` is not warm; `hearth load {asked}` warms it"),
            };
            return Err(fault(Code::FailedPrecondition, "NO_MODEL", message).status());
        };
        self.shared.warmth.pin(pinned);
        self.shared.activity.send_replace(());
        tracing::info!(model = warm.name, pinned, "the pin of the warm model");
        Ok(())
    }
}

/// Lets one message of progress through in an interval.
struct Pace {
    next: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            next: Instant::now(),
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + PROGRESS_INTERVAL;
        }
        due
    }
}

#[tonic::async_trait]
impl Models for ModelsService {
    type ImportStream = Replies<v1::ImportResponse>;
    type PullStream = Replies<v1::PullResponse>;
    type LoadStream = Replies<v1::LoadResponse>;

    async fn list(
        &self,
        _request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let shared = Arc::clone(&self.shared);
        let stored =
            blocking(move || shared.store.list().map_err(|error| of_store(&error))).await?;
        let mut models: Vec<v1::ModelInfo> = stored
            .iter()
            .map(|model| wire::stored_model(model, self.state_of(&model.name)))
            .collect();
        if let Some(warm) = self.shared.warm()
            && warm.manifest.is_none()
        {
            models.push(warm.info());
            models.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(Response::new(v1::ListResponse { models }))
    }

    async fn show(
        &self,
        request: Request<v1::ShowRequest>,
    ) -> Result<Response<v1::ShowResponse>, Status> {
        let sandboxed = access::sandboxed(request.extensions()).is_some();
        let view = |reply| match sandboxed {
            true => Response::new(access::own_model(reply)),
            false => Response::new(reply),
        };
        let asked = request.into_inner().model;
        let warm = self.shared.warm();
        if let Some(warm) = &warm
            && (asked.is_empty() || asked == warm.name)
        {
            return Ok(view(show_warm(warm)));
        }
        if asked.is_empty() {
            return Err(status::no_model(None));
        }
        let state = self.state_of(&asked);
        let shared = Arc::clone(&self.shared);
        let reply = blocking(move || {
            show_stored(&shared, &asked, state).map_err(|error| match error {
                StoreError::Name(_) => bad_field("model", error.to_string()),
                error => of_store(&error),
            })
        })
        .await?;
        Ok(view(reply))
    }

    async fn import(
        &self,
        request: Request<v1::ImportRequest>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let request = request.into_inner();
        let quantize = quantization(request.quantize)?;
        if quantize.is_some() && request.origin.is_some() {
            let message = "a pull is taken in as it was published";
            return Err(bad_field("quantize", message));
        }
        if request.path.is_empty() || request.path.contains('\0') {
            return Err(bad_field("path", "is empty or holds a zero byte"));
        }
        if let Some(origin) = &request.origin {
            check_origin(origin)?;
        }
        if self.shared.lifecycle.is_draining() {
            return Err(status::draining());
        }
        if self.shared.imports.available_permits() == 0 {
            let message = "other imports run";
            return Err(fault(Code::ResourceExhausted, "STORE_BUSY", message)
                .retry(RETRY_DELAY)
                .status());
        }
        let (replies, stream) = mpsc::channel(16);
        tokio::spawn(import(Arc::clone(&self.shared), request, quantize, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn pull(
        &self,
        _request: Request<v1::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        Err(not_in_this_version("Pull"))
    }

    async fn load(
        &self,
        request: Request<v1::LoadRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let request = request.into_inner();
        let keep_alive = keep_alive("keep_alive", request.keep_alive)?;
        let (replies, stream) = mpsc::channel(16);
        let asked = request.model;
        let shared = Arc::clone(&self.shared);
        let target = blocking(move || {
            loading::resolve(&shared, &asked).map_err(|error| match error {
                StoreError::Name(_) => bad_field("model", error.to_string()),
                error => of_store(&error),
            })
        })
        .await?
        .ok_or_else(|| status::no_model(Some("the store does not hold exactly one")))?;
        if let Some(warm) = self.shared.warm()
            && warm.name == target.name
            && warm.path == target.path
        {
            self.shared.warmth.set_keep_alive(keep_alive);
            self.shared.activity.send_replace(());
            let _ = replies.try_send(Ok(load_done(&warm)));
            return Ok(Response::new(Box::pin(ReceiverStream::new(stream))));
        }
        let shared = Arc::clone(&self.shared);
        tokio::spawn(load(shared, target, keep_alive, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn unload(
        &self,
        request: Request<v1::UnloadRequest>,
    ) -> Result<Response<v1::UnloadResponse>, Status> {
        loading::unload(&self.shared, &request.into_inner().model).await?;
        Ok(Response::new(v1::UnloadResponse {}))
    }

    async fn pin(
        &self,
        request: Request<v1::PinRequest>,
    ) -> Result<Response<v1::PinResponse>, Status> {
        self.set_pin(&request.into_inner().model, true)?;
        Ok(Response::new(v1::PinResponse {}))
    }

    async fn unpin(
        &self,
        request: Request<v1::UnpinRequest>,
    ) -> Result<Response<v1::UnpinResponse>, Status> {
        self.set_pin(&request.into_inner().model, false)?;
        Ok(Response::new(v1::UnpinResponse {}))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let name = request.into_inner().model;
        if self.state_of(&name) != v1::ModelState::Stored {
            let message = format!("model `{name}` is in use; `hearth unload` frees it");
            return Err(fault(Code::FailedPrecondition, "MODEL_IN_USE", message).status());
        }
        let shared = Arc::clone(&self.shared);
        let freed_bytes = blocking(move || {
            shared.store.delete(&name).map_err(|error| match error {
                StoreError::Name(_) => bad_field("model", error.to_string()),
                error => of_store(&error),
            })
        })
        .await?;
        Ok(Response::new(v1::DeleteResponse { freed_bytes }))
    }
}

/// What weights are to be turned into.
fn quantization(asked: i32) -> Result<Option<Quantization>, Status> {
    match v1::Quantize::try_from(asked) {
        Ok(v1::Quantize::Unspecified) => Ok(None),
        Ok(v1::Quantize::Q4) => Ok(Some(Quantization::Q4)),
        Ok(v1::Quantize::Q8) => Ok(Some(Quantization::Q8)),
        Err(_) => Err(bad_field("quantize", format!("{asked} is no value of it"))),
    }
}

/// Copies a file into the store and says how it goes.
async fn import(
    shared: Arc<Shared>,
    request: v1::ImportRequest,
    quantize: Option<Quantization>,
    replies: mpsc::Sender<Result<v1::ImportResponse, Status>>,
) {
    use v1::import_response::Event;
    let progress_to = replies.clone();
    let result = blocking(move || {
        let _permit = shared.imports.try_acquire().map_err(|_| {
            fault(Code::ResourceExhausted, "STORE_BUSY", "other imports run")
                .retry(RETRY_DELAY)
                .status()
        })?;
        let mut pace = Pace::new();
        let mut progress = |done_bytes, total| {
            if pace.is_due() {
                let progress = v1::TransferProgress {
                    done_bytes,
                    total_bytes: Some(total),
                };
                let event = Some(Event::Progress(progress));
                let _ = progress_to.try_send(Ok(v1::ImportResponse { event }));
            }
            !progress_to.is_closed() && !shared.lifecycle.is_draining()
        };
        let name = Some(request.name.as_str()).filter(|name| !name.is_empty());
        let path = PathBuf::from(&request.path);
        let origin = request.origin.map(origin_of);
        let store = &shared.store;
        match quantize {
            Some(to) => store.import_quantized(&path, name, to, &mut progress),
            None => store.import(&path, name, origin.as_ref(), &mut progress),
        }
        .map_err(|error| {
            if matches!(error, StoreError::Io { .. }) {
                tracing::error!(error = status::chain(&error), "the import failed");
            }
            of_store(&error)
        })
    })
    .await;
    let reply = result.map(|model: Manifest| {
        tracing::info!(model = model.name, bytes = model.file_bytes(), "imported");
        let model = wire::stored_model(&model, v1::ModelState::Stored);
        v1::ImportResponse {
            event: Some(Event::Model(model)),
        }
    });
    let _ = replies.send(reply).await;
}

/// Loads a model and says how it goes.
async fn load(
    shared: Arc<Shared>,
    target: loading::Target,
    keep_alive: Option<Duration>,
    replies: mpsc::Sender<Result<v1::LoadResponse, Status>>,
) {
    use v1::load_response::Event;
    let progress_to = replies.clone();
    let mut pace = Pace::new();
    let on_progress = Box::new(move |progress: LoadProgress| {
        if pace.is_due() {
            let event = Some(Event::Progress(v1::TransferProgress {
                done_bytes: progress.done_bytes,
                total_bytes: Some(progress.total_bytes),
            }));
            let _ = progress_to.try_send(Ok(v1::LoadResponse { event }));
        }
        !progress_to.is_closed()
    });
    let wish = Some(loading::Wish { keep_alive });
    let reply = loading::load(&shared, target, wish, on_progress)
        .await
        .map(|warm| load_done(&warm));
    let _ = replies.send(reply).await;
}

fn load_done(warm: &Warm) -> v1::LoadResponse {
    v1::LoadResponse {
        event: Some(v1::load_response::Event::Model(warm.info())),
    }
}

fn check_origin(origin: &v1::ImportOrigin) -> Result<(), Status> {
    let long = |text: &str| text.len() > ORIGIN_TEXT_BYTES_MAX;
    if long(&origin.source) || origin.license.as_deref().is_some_and(long) {
        return Err(bad_field("origin", "has a text of over 512 bytes"));
    }
    if origin.files.is_empty() || origin.files.len() > MODEL_FILES_MAX {
        return Err(bad_field("origin.files", "must be 1 to 512 files"));
    }
    Ok(())
}

fn origin_of(origin: v1::ImportOrigin) -> Origin {
    let file = |file: v1::ModelFile| StoredFile {
        name: file.name,
        sha256: file.sha256,
        bytes: file.bytes,
    };
    Origin {
        source: origin.source,
        license: origin.license,
        files: origin.files.into_iter().map(file).collect(),
    }
}

fn show_warm(warm: &Warm) -> v1::ShowResponse {
    let template = warm.model.chat_template.as_ref();
    let facts = ModelFacts::new(&warm.model.config, template.is_some());
    let model = &warm.model;
    v1::ShowResponse {
        chat_template: template.map(|template| template.source().to_owned()),
        weights_bytes: model.weights_bytes,
        files: files_of(warm.manifest.as_ref()),
        source: warm
            .manifest
            .as_ref()
            .and_then(|model| model.source.clone()),
        memory: Some(v1::MemoryNeed {
            weights_bytes: model.weights_bytes,
            kv_bytes: model.kv_bytes,
            scratch_bytes: model.scratch_bytes,
            context_len: model.context_len,
            measured: true,
        }),
        ..show(warm.info(), &facts, warm.path.display().to_string())
    }
}

fn show_stored(
    shared: &Shared,
    name: &str,
    state: v1::ModelState,
) -> Result<v1::ShowResponse, StoreError> {
    let model = shared.store.get(name)?;
    let checkpoint = shared.store.open_model(&model)?;
    let template = checkpoint
        .get_str("tokenizer.chat_template")
        .map_err(BadModel::Format)?;
    let files = shared.store.files(&model)?;
    let path = files
        .iter()
        .next()
        .map(|(_, path)| path.display().to_string());
    let info = wire::stored_model(&model, state);
    let shown = show(info, &model.facts, path.unwrap_or_default());
    let context_len = model
        .facts
        .context_len
        .min(shared.config.engine.context_len_max);
    let kv_per_token = shown.kv_bytes_per_1024_tokens / 1024;
    Ok(v1::ShowResponse {
        chat_template: template.map(str::to_owned),
        weights_bytes: model.file_bytes(),
        files: files_of(Some(&model)),
        source: model.source.clone(),
        memory: Some(v1::MemoryNeed {
            weights_bytes: model.file_bytes(),
            kv_bytes: kv_per_token.saturating_mul(u64::from(context_len)),
            scratch_bytes: 0,
            context_len,
            measured: false,
        }),
        ..shown
    })
}

fn files_of(model: Option<&Manifest>) -> Vec<v1::ModelFile> {
    let file = |file: &StoredFile| v1::ModelFile {
        name: file.name.clone(),
        sha256: file.sha256.clone(),
        bytes: file.bytes,
    };
    model.map_or_else(Vec::new, |model| model.files.iter().map(file).collect())
}

fn show(info: v1::ModelInfo, facts: &ModelFacts, path: String) -> v1::ShowResponse {
    // Keys and values of a token: one 16-bit number each per layer, head and place in it.
    let kv_bytes_per_token =
        2 * 2 * u64::from(facts.n_layers) * u64::from(facts.n_kv_heads) * u64::from(facts.head_dim);
    v1::ShowResponse {
        model: Some(info),
        chat_template: None,
        n_heads: facts.n_heads,
        n_kv_heads: facts.n_kv_heads,
        head_dim: facts.head_dim,
        ffn_dim: facts.ffn_dim,
        weights_bytes: 0,
        kv_bytes_per_1024_tokens: kv_bytes_per_token.saturating_mul(1024),
        path,
        files: Vec::new(),
        source: None,
        memory: None,
    }
}
