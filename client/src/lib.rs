//! A small client of the Hearth daemon for Rust apps: connect, ask, read the reply as it comes.
//!
//! It speaks `hearth.v1` over the daemon's local socket and knows nothing of terminals, command
//! lines or exit codes. Nothing is started unless asked: see [`Client::connect_or_start`].
//!
//! ```no_run
//! use hearth::{Client, Event};
//!
//! # async fn example() -> Result<(), hearth::Error> {
//! let client = Client::connect().await?;
//!
//! // The whole reply at once.
//! let answer = client.ask("What is the capital of France?").await?.text().await?;
//! assert!(answer.contains("Paris"));
//!
//! // Or as it comes, with the account at its end.
//! let mut reply = client.ask("Tell me a story.").await?;
//! while let Some(event) = reply.next().await? {
//!     match event {
//!         Event::Delta(delta) => show(&delta.text),
//!         Event::End(end) => show(&format!("[{} tokens]", end.generated_tokens)),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! # fn show(_: &str) {}
//! ```
//!
//! Dropping a [`Reply`] stops the generation within one step.

mod app_socket;
mod connect;
mod error;
mod start;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::transport::Channel;

use hearth_proto::endpoint;
pub use hearth_proto::v1;
use v1::daemon_client::DaemonClient;
use v1::inference_client::InferenceClient;
use v1::models_client::ModelsClient;

pub use app_socket::AppSocket;
pub use error::{Error, RpcError};
pub use start::{daemon_log_path, daemon_program};
pub use v1::generation_event::Event;

/// Largest message taken from the daemon, in bytes: the tokens of 1 MiB of text, with their bytes.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// A connection to the daemon. Cheap to clone; all clones share the connection, which is made anew
/// when it breaks.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    socket: PathBuf,
}

impl Client {
    /// Connects to the daemon at its usual place (`HEARTH_SOCKET`, or the user's runtime folder).
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Refused`] or [`Error::Denied`] if nobody answers there.
    pub async fn connect() -> Result<Self, Error> {
        Self::connect_to(endpoint::socket_path()?).await
    }

    /// Connects to the daemon on this socket.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_to(socket: impl AsRef<Path>) -> Result<Self, Error> {
        let socket = endpoint::check_socket_path(socket.as_ref().to_owned())?;
        let channel = connect::channel(&socket).await?;
        Ok(Self { channel, socket })
    }

    /// Connects to the daemon at its usual place, and starts one if none runs.
    ///
    /// The program `hearthd` is looked for beside the running program, then in `PATH`. The daemon
    /// outlives the caller; its log is [`daemon_log_path`].
    ///
    /// # Errors
    /// As [`Client::connect`]; further, those of starting: [`Error::ProgramNotFound`],
    /// [`Error::Spawn`], [`Error::DaemonExited`], [`Error::StartTimeout`].
    pub async fn connect_or_start() -> Result<Self, Error> {
        let socket = endpoint::socket_path()?;
        match Self::connect_to(&socket).await {
            Err(Error::NotRunning { .. } | Error::Refused { .. }) => Self::start_on(socket).await,
            other => other,
        }
    }

    /// Starts a daemon on this socket, whatever runs, and connects as soon as it answers.
    ///
    /// If another daemon holds the socket's lock, the new one ends and the other is waited for.
    ///
    /// # Errors
    /// As [`Client::connect_or_start`].
    pub async fn start_on(socket: impl AsRef<Path>) -> Result<Self, Error> {
        let socket = endpoint::check_socket_path(socket.as_ref().to_owned())?;
        start::start_daemon(&socket).await?;
        Self::connect_to(socket).await
    }

    /// The socket this client is connected to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks one question, with the daemon's defaults.
    ///
    /// # Errors
    /// Those of [`Client::chat`].
    pub async fn ask(&self, question: impl Into<String>) -> Result<Reply, Error> {
        let message = v1::ChatMessage {
            role: v1::Role::User.into(),
            content: question.into(),
        };
        self.chat(v1::ChatRequest {
            messages: vec![message],
            ..Default::default()
        })
        .await
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// [`Error::Rpc`] with what the daemon says; the contract lists the statuses.
    pub async fn chat(&self, request: v1::ChatRequest) -> Result<Reply, Error> {
        let stream = self.inference().chat(request).await?.into_inner();
        Ok(Reply {
            source: Source::Chat(stream),
        })
    }

    /// Continues a text or a list of tokens, without the chat template.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<Reply, Error> {
        let stream = self.inference().generate(request).await?.into_inner();
        Ok(Reply {
            source: Source::Generate(stream),
        })
    }

    /// Turns text into tokens of the warm model. Texts of special tokens stay plain text.
    ///
    /// # Errors
    /// [`Error::Rpc`], for instance while no model is warm.
    pub async fn tokenize(&self, text: impl Into<String>) -> Result<Vec<u32>, Error> {
        let request = v1::TokenizeRequest {
            text: text.into(),
            ..Default::default()
        };
        Ok(self.inference().tokenize(request).await?.into_inner().ids)
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// [`Error::Rpc`] if the connection breaks.
    pub async fn status(&self) -> Result<v1::DaemonStatus, Error> {
        let response = self
            .daemon()
            .get_status(v1::GetStatusRequest {})
            .await?
            .into_inner();
        response
            .status
            .ok_or(Error::Protocol("GetStatusResponse.status is set"))
    }

    /// The generated client of `hearth.v1.Inference`, for calls without a method here.
    #[must_use]
    pub fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The generated client of `hearth.v1.Models`.
    #[must_use]
    pub fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The generated client of `hearth.v1.Daemon`.
    #[must_use]
    pub fn daemon(&self) -> DaemonClient<Channel> {
        DaemonClient::new(self.channel.clone())
    }
}

/// A reply as it comes: a stream of events that ends after [`Event::End`].
///
/// Dropping it stops the generation within one step.
pub struct Reply {
    source: Source,
}

enum Source {
    Chat(Streaming<v1::ChatResponse>),
    Generate(Streaming<v1::GenerateResponse>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply { .. }")
    }
}

impl Reply {
    /// The next event; `None` when the reply is over. Kinds of events that this version does not
    /// know are skipped.
    ///
    /// # Errors
    /// [`Error::Rpc`] if the daemon ends the stream with a status.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        StreamExt::next(self).await.transpose()
    }

    /// Waits for the end and returns the whole text, without an echo of the prompt.
    ///
    /// # Errors
    /// As [`Reply::next`]; text that came before the error is lost.
    pub async fn text(mut self) -> Result<String, Error> {
        let mut text = String::new();
        while let Some(event) = self.next().await? {
            if let Event::Delta(delta) = event {
                text.push_str(&delta.text);
            }
        }
        Ok(text)
    }
}

impl Stream for Reply {
    type Item = Result<Event, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let source = &mut self.get_mut().source;
        loop {
            let next = match source {
                Source::Chat(stream) => Pin::new(stream)
                    .poll_next(cx)
                    .map(|next| next.map(|item| item.map(|response| response.event))),
                Source::Generate(stream) => Pin::new(stream)
                    .poll_next(cx)
                    .map(|next| next.map(|item| item.map(|response| response.event))),
            };
            return match next {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(status))) => Poll::Ready(Some(Err(status.into()))),
                Poll::Ready(Some(Ok(event))) => match event.and_then(|event| event.event) {
                    Some(event) => Poll::Ready(Some(Ok(event))),
                    None => continue,
                },
            };
        }
    }
}
