//! A daemon made of canned answers, on a real socket: the last message of a request says which.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hearth::v1::daemon_server::{Daemon, DaemonServer};
use hearth::v1::generation_event::Event;
use hearth::v1::inference_server::{Inference, InferenceServer};
use hearth::v1::{self, FinishReason};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::Service as _;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A running fake daemon.
pub(crate) struct Fake {
    /// Holds the socket.
    pub(crate) dir: tempfile::TempDir,
    /// Set when a reply without end was dropped by its reader.
    pub(crate) dropped: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    /// Starts one that says it is of this version.
    pub(crate) fn start(version: &str) -> Self {
        Self::with_status(v1::DaemonStatus {
            version: version.to_owned(),
            warnings: vec!["a software adapter".to_owned()],
            ..Default::default()
        })
    }

    /// Starts one in this state; it is ready, and process 4711.
    pub(crate) fn with_status(status: v1::DaemonStatus) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dropped = Arc::new(AtomicBool::new(false));
        let answers = Answers {
            status: v1::DaemonStatus {
                state: v1::LifecycleState::Ready.into(),
                pid: 4711,
                ..status
            },
            refusals: Arc::default(),
            dropped: Arc::clone(&dropped),
        };
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(socket_in(dir.path())).unwrap()
        };
        runtime.spawn(serve(listener, answers));
        Self {
            dir,
            dropped,
            _runtime: runtime,
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.dir.path())
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("hearthd.sock")
}

async fn serve(listener: UnixListener, answers: Answers) {
    let inference = InferenceServer::new(answers.clone());
    let daemon = DaemonServer::new(answers);
    while let Ok((stream, _)) = listener.accept().await {
        let (inference, daemon) = (inference.clone(), daemon.clone());
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (mut inference, mut daemon) = (inference.clone(), daemon.clone());
            async move {
                if request.uri().path().starts_with("/hearth.v1.Daemon/") {
                    daemon.call(request).await
                } else {
                    inference.call(request).await
                }
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

#[derive(Clone)]
struct Answers {
    status: v1::DaemonStatus,
    /// Requests that were refused on the way to an answer.
    refusals: Arc<AtomicU32>,
    dropped: Arc<AtomicBool>,
}

/// Tells when the reader went away.
struct DropFlag(Arc<AtomicBool>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn error(code: Code, reason: &str, retry_s: Option<u64>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "hearth.v1", HashMap::new());
    if let Some(seconds) = retry_s {
        details.set_retry_info(Some(Duration::from_secs(seconds)));
    }
    Status::with_error_details(code, format!("refused: {reason}"), details)
}

fn delta(text: &str) -> Event {
    let tokens = vec![v1::Token {
        id: 7,
        logprob: Some(-0.25),
        top: Vec::new(),
    }];
    Event::Delta(v1::Delta {
        text: text.to_owned(),
        tokens,
    })
}

fn end(reason: FinishReason) -> Event {
    Event::End(v1::End {
        finish_reason: reason.into(),
        generated_tokens: 2,
        ..Default::default()
    })
}

impl Answers {
    fn events(&self, text: &str) -> Result<Events<Event>, Status> {
        let events = match text {
            "hello" => vec![
                Event::Loading(v1::Loading { fraction: 0.5 }),
                Event::Queued(v1::Queued { ahead: 1 }),
                Event::Prefill(v1::Prefill { done: 1, total: 2 }),
                delta("Hel"),
                delta("lo"),
                end(FinishReason::Eos),
            ],
            "late" => vec![delta("so"), end(FinishReason::Deadline)],
            "overflow" => return Err(error(Code::InvalidArgument, "CONTEXT_OVERFLOW", None)),
            "busy" => return Err(error(Code::ResourceExhausted, "QUEUE_FULL", Some(3))),
            "busy twice" if self.refusals.fetch_add(1, Ordering::SeqCst) < 2 => {
                return Err(error(Code::ResourceExhausted, "APP_QUEUE_FULL", Some(0)));
            }
            // As after a load: the refusal comes in the stream.
            "busy later" if self.refusals.fetch_add(1, Ordering::SeqCst) < 1 => {
                let items = vec![
                    Ok(Event::Loading(v1::Loading { fraction: 1.0 })),
                    Err(error(Code::ResourceExhausted, "QUEUE_FULL", Some(0))),
                ];
                return Ok(Box::pin(tokio_stream::iter(items)));
            }
            "deferred" => return Err(error(Code::ResourceExhausted, "DEFERRED", Some(60))),
            "no model" => return Err(error(Code::FailedPrecondition, "NO_MODEL", None)),
            "denied" => return Err(error(Code::PermissionDenied, "DENIED", None)),
            "broken" => {
                let items = vec![
                    Ok(delta("Hal")),
                    Err(error(Code::Unavailable, "DRAINING", Some(1))),
                ];
                return Ok(Box::pin(tokio_stream::iter(items)));
            }
            "cut" => {
                let cut = v1::Truncation {
                    offered_tokens: 9,
                    kept_tokens: 6,
                    dropped_tokens: 3,
                    dropped_messages: 0,
                };
                let end = v1::End {
                    truncation: Some(cut),
                    ..Default::default()
                };
                vec![delta("short"), Event::End(end)]
            }
            "forever" => {
                let flag = DropFlag(Arc::clone(&self.dropped));
                let ticks = tokio_stream::iter(std::iter::repeat(()));
                return Ok(Box::pin(ticks.throttle(Duration::from_millis(5)).map(
                    move |()| {
                        let _ = &flag;
                        Ok(delta("on and "))
                    },
                )));
            }
            other => vec![delta(&format!("<{other}>")), end(FinishReason::Eos)],
        };
        Ok(Box::pin(tokio_stream::iter(events.into_iter().map(Ok))))
    }
}

#[tonic::async_trait]
impl Inference for Answers {
    type ChatStream = Events<v1::ChatResponse>;
    type GenerateStream = Events<v1::GenerateResponse>;

    async fn chat(
        &self,
        request: Request<v1::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let messages = request.into_inner().messages;
        let last = messages
            .last()
            .map(|message| message.content.clone())
            .unwrap_or_default();
        // Earlier turns show up in the reply, so that tests see what was sent.
        let text = if messages.len() > 1 {
            let all: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
            all.join("|")
        } else {
            last
        };
        let response = |event| v1::ChatResponse {
            event: Some(v1::GenerationEvent { event: Some(event) }),
        };
        Ok(Response::new(Box::pin(
            self.events(&text)?.map(move |event| event.map(response)),
        )))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let text = match request.into_inner().input {
            Some(v1::generate_request::Input::Prompt(text)) => format!("raw {text}"),
            _ => String::new(),
        };
        let response = |event| v1::GenerateResponse {
            event: Some(v1::GenerationEvent { event: Some(event) }),
        };
        Ok(Response::new(Box::pin(
            self.events(&text)?.map(move |event| event.map(response)),
        )))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        let pieces: Vec<Vec<u8>> = request.text.bytes().map(|byte| vec![byte]).collect();
        Ok(Response::new(v1::TokenizeResponse {
            ids: pieces.iter().map(|piece| u32::from(piece[0])).collect(),
            pieces: if request.with_pieces {
                pieces
            } else {
                Vec::new()
            },
        }))
    }

    async fn detokenize(
        &self,
        _: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn count_tokens(
        &self,
        _: Request<v1::CountTokensRequest>,
    ) -> Result<Response<v1::CountTokensResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn embed(
        &self,
        _: Request<v1::EmbedRequest>,
    ) -> Result<Response<v1::EmbedResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl Daemon for Answers {
    type WatchStatusStream = Events<v1::WatchStatusResponse>;
    type OpenAppSocketStream = Events<v1::OpenAppSocketResponse>;

    async fn open_app_socket(
        &self,
        request: Request<v1::OpenAppSocketRequest>,
    ) -> Result<Response<Self::OpenAppSocketStream>, Status> {
        let request = request.into_inner();
        let name = request.instance.unwrap_or_default();
        let first = Ok(v1::OpenAppSocketResponse {
            socket_path: format!("/run/{}/{name}.sock", request.app),
        });
        let rest: Events<v1::OpenAppSocketResponse> = match request.app.as_str() {
            "inside" => return Err(error(Code::PermissionDenied, "SANDBOXED", None)),
            "full" => return Err(error(Code::ResourceExhausted, "TOO_MANY_APP_SOCKETS", None)),
            "bad name" => return Err(error(Code::InvalidArgument, "BAD_FIELD", None)),
            "draining" => {
                let ended = error(Code::Unavailable, "DRAINING", Some(1));
                Box::pin(tokio_stream::once(Err(ended)))
            }
            _ => {
                let flag = DropFlag(Arc::clone(&self.dropped));
                Box::pin(tokio_stream::pending().map(move |item| {
                    let _ = &flag;
                    item
                }))
            }
        };
        Ok(Response::new(Box::pin(
            tokio_stream::once(first).chain(rest),
        )))
    }

    async fn set_power_mode(
        &self,
        request: Request<v1::SetPowerModeRequest>,
    ) -> Result<Response<v1::SetPowerModeResponse>, Status> {
        let plan = v1::Plan {
            reason: "by hand".to_owned(),
            mode: request.into_inner().mode,
            ..Default::default()
        };
        Ok(Response::new(v1::SetPowerModeResponse {
            plan: Some(plan),
            kept: true,
        }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            status: Some(self.status.clone()),
        }))
    }

    async fn watch_status(
        &self,
        _: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
