//! `hearth.v1.Inference`.

use std::sync::Arc;
use std::time::Instant;

use hearth_engine::Caller;
use hearth_proto::v1;
use hearth_proto::v1::inference_server::Inference;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use super::generation::{self, Job};
use super::prompt::{self, Ask, encode_options};
use super::{Replies, blocking, options};
use crate::access;
use crate::limits::{DETOKENIZE_IDS_MAX, TOKENIZE_BYTES_MAX};
use crate::peer::Peer;
use crate::state::Shared;
use crate::status::{bad_field, not_in_this_version};

/// Answers the RPCs of `hearth.v1.Inference`.
pub(crate) struct InferenceService {
    shared: Arc<Shared>,
}

impl InferenceService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What Chat and Generate have in common.
    async fn generate_events(
        &self,
        model: String,
        ask: Ask,
        settings: Result<options::Settings, Status>,
    ) -> Result<Replies<v1::GenerationEvent>, Status> {
        let started = match settings {
            Ok(settings) => {
                generation::start(
                    Arc::clone(&self.shared),
                    Job {
                        model,
                        ask,
                        settings,
                    },
                )
                .await
            }
            Err(status) => Err(status),
        };
        started.map_err(|status| self.shared.refuse(status))
    }
}

/// The caller, as its connection is labelled.
fn caller_of<T>(request: &Request<T>) -> Caller {
    request
        .extensions()
        .get::<Peer>()
        .map_or_else(Caller::default, |peer| Caller {
            app: peer.app.as_str().into(),
            pid: peer.pid,
        })
}

fn check_text(field: &str, text: &str) -> Result<(), Status> {
    if text.len() > TOKENIZE_BYTES_MAX {
        let problem = format!(
            "has {} bytes; at most {TOKENIZE_BYTES_MAX} are read",
            text.len()
        );
        return Err(bad_field(field, problem));
    }
    Ok(())
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type ChatStream = Replies<v1::ChatResponse>;
    type GenerateStream = Replies<v1::GenerateResponse>;

    async fn chat(
        &self,
        request: Request<v1::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let received = Instant::now();
        let caller = caller_of(&request);
        let (metadata, extensions, request) = request.into_parts();
        let settings = access::check_options(&extensions, request.options.as_ref())
            .and_then(|()| options::check(request.options, received, &metadata, caller));
        let ask = Ask::Chat(request.messages, "messages");
        let events = self.generate_events(request.model, ask, settings).await?;
        let reply = |event| v1::ChatResponse { event: Some(event) };
        Ok(Response::new(Box::pin(
            events.map(move |event| event.map(reply)),
        )))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        use v1::generate_request::Input;
        let received = Instant::now();
        let caller = caller_of(&request);
        let (metadata, extensions, request) = request.into_parts();
        let settings = access::check_options(&extensions, request.options.as_ref())
            .and_then(|()| options::check(request.options, received, &metadata, caller));
        let ask = match request.input {
            Some(Input::Prompt(text)) => {
                Ask::Text(text, encode_options(request.special_tokens, true), "prompt")
            }
            Some(Input::Tokens(tokens)) => Ask::Tokens(tokens.ids),
            None => return Err(self.shared.refuse(bad_field("input", "is not set"))),
        };
        let events = self.generate_events(request.model, ask, settings).await?;
        let reply = |event| v1::GenerateResponse { event: Some(event) };
        Ok(Response::new(Box::pin(
            events.map(move |event| event.map(reply)),
        )))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        check_text("text", &request.text)?;
        let warm = self.shared.warm_now(&request.model)?;
        let (_asker, renders) = prompt::Renders::of(&self.shared);
        let reply = blocking(move || {
            let options = encode_options(request.special_tokens, false);
            let ask = Ask::Text(request.text, options, "text");
            let ids = prompt::tokens(&renders, &warm.model, &ask)?;
            let piece = |id: &u32| {
                warm.model
                    .tokenizer
                    .token_bytes(*id)
                    .map(<[u8]>::to_vec)
                    .unwrap_or_default()
            };
            let pieces = if request.with_pieces {
                ids.iter().map(piece).collect()
            } else {
                Vec::new()
            };
            Ok(v1::TokenizeResponse { ids, pieces })
        })
        .await?;
        Ok(Response::new(reply))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let request = request.into_inner();
        if request.ids.len() > DETOKENIZE_IDS_MAX {
            let problem = format!("has more than {DETOKENIZE_IDS_MAX} tokens");
            return Err(bad_field("ids", problem));
        }
        let warm = self.shared.warm_now(&request.model)?;
        let vocab_size = warm.model.config.vocab_size;
        if let Some(i) = request.ids.iter().position(|id| *id >= vocab_size) {
            let problem = format!("is not in the vocabulary of {vocab_size}");
            return Err(bad_field(&format!("ids[{i}]"), problem));
        }
        let text = blocking(move || {
            let decoded = warm
                .model
                .tokenizer
                .decode(&request.ids, request.skip_special);
            decoded.map_err(|error| bad_field("ids", error.to_string()))
        })
        .await?;
        Ok(Response::new(v1::DetokenizeResponse { text }))
    }

    async fn count_tokens(
        &self,
        request: Request<v1::CountTokensRequest>,
    ) -> Result<Response<v1::CountTokensResponse>, Status> {
        use v1::count_tokens_request::Input;
        let request = request.into_inner();
        let ask = match request.input {
            Some(Input::Text(text)) => {
                check_text("text", &text)?;
                Ask::Text(text, encode_options(request.special_tokens, true), "text")
            }
            Some(Input::Conversation(conversation)) => {
                let bytes: usize = conversation
                    .messages
                    .iter()
                    .map(|message| message.content.len())
                    .sum();
                if bytes > TOKENIZE_BYTES_MAX {
                    let problem =
                        format!("has {bytes} bytes; at most {TOKENIZE_BYTES_MAX} are read");
                    return Err(bad_field("conversation.messages", problem));
                }
                let ask = Ask::Chat(conversation.messages, "conversation.messages");
                prompt::check(&ask)?;
                ask
            }
            None => return Err(bad_field("input", "is not set")),
        };
        let warm = self.shared.warm_now(&request.model)?;
        let engine = self.shared.engine().ok_or_else(crate::status::loading)?;
        let context_len = engine.context_len(&warm.model);
        let (_asker, renders) = prompt::Renders::of(&self.shared);
        let reply = blocking(move || {
            let ids = prompt::tokens(&renders, &warm.model, &ask)?;
            let tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            Ok(v1::CountTokensResponse {
                tokens,
                context_len,
            })
        })
        .await?;
        Ok(Response::new(reply))
    }

    async fn embed(
        &self,
        _request: Request<v1::EmbedRequest>,
    ) -> Result<Response<v1::EmbedResponse>, Status> {
        Err(not_in_this_version("Embed"))
    }
}
