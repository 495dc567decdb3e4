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
use super::show::{show_stored, show_warm};
use super::{Replies, blocking};
use crate::limits::{ORIGIN_TEXT_BYTES_MAX, RETRY_DELAY};
use crate::loading::By;
use crate::state::{Shared, Warm};
use crate::status::{self, bad_field, fault, not_in_this_version, of_store};
use crate::store::{Manifest, Origin, StoreError, StoredFile};
use crate::warmth::Wish;
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
        if !name.is_empty() && self.shared.warm(name).is_some() {
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
        let Some(warm) = self.shared.warm(asked) else {
            let message = match asked {
                "" => "no model is warm; `hearth load NAME` warms one".to_owned(),
                asked => format!("model `{asked}` is not warm; `hearth load {asked}` warms it"),
            };
            return Err(fault(Code::FailedPrecondition, "NO_MODEL", message).status());
        };
        warm.stay.change(|wish| wish.pinned = pinned);
        self.shared.activity.send_replace(());
        tracing::info!(model = warm.name, pinned, "the pin of a warm model");
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
        let outside = self.shared.models().into_iter();
        let outside = outside.filter(|warm| warm.manifest.is_none());
        models.extend(outside.map(|warm| warm.info()));
        models.sort_by(|a, b| a.name.cmp(&b.name));
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
        if let Some(warm) = self.shared.warm(&asked) {
            return Ok(view(show_warm(&warm)));
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
        let chosen = self.shared.warmth.choice();
        if let Some(warm) = loading::already(&self.shared, &target) {
            warm.stay.change(|wish| {
                wish.keep_alive = keep_alive;
                wish.chosen = chosen;
            });
            self.shared.activity.send_replace(());
            let _ = replies.try_send(Ok(load_done(&warm)));
            return Ok(Response::new(Box::pin(ReceiverStream::new(stream))));
        }
        let shared = Arc::clone(&self.shared);
        let wish = Wish {
            pinned: false,
            keep_alive,
            chosen,
        };
        tokio::spawn(load(shared, target, wish, replies));
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
    wish: Wish,
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
    let reply = loading::load(&shared, target, wish, By::Person, on_progress)
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
