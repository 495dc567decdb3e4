//! The engine's errors: facts and sources; the daemon turns them into statuses, the client into words.

use std::io;
use std::time::Duration;

use crate::chat_template::TemplateError;
use crate::format::FormatError;
use crate::model::ModelError;
use crate::request::ParamError;
use crate::tokenizer::TokenizerError;

/// The engine could not start, or its device failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No adapter fits the setting.
    #[error("no GPU adapter fits `{wanted}`; found: {found}")]
    NoAdapter {
        /// The setting, as in the configuration.
        wanted: String,
        /// The adapters there are, or `none`.
        found: String,
    },
    /// The adapter that was in use is not there any more. No other takes its place by itself.
    #[error("the GPU `{adapter}` is gone; found: {found}")]
    AdapterGone {
        /// Adapter name.
        adapter: String,
        /// The adapters there are, or `none`.
        found: String,
    },
    /// The adapter lacks something the kernels cannot do without.
    #[error("adapter {adapter} lacks {what}")]
    AdapterLacks {
        /// Adapter name.
        adapter: String,
        /// What is missing.
        what: String,
    },
    /// The driver refused or failed.
    #[error("GPU device: {0}")]
    Device(String),
    /// The driver does not compile a kernel, nor any other that could take its place.
    #[error("adapter {adapter} ({driver}) refuses the kernel {kernel}: {message}")]
    KernelRefused {
        /// Adapter name.
        adapter: String,
        /// Driver and its version.
        driver: String,
        /// Kernel name.
        kernel: String,
        /// What the driver said, its first line.
        message: String,
    },
    /// The engine's thread could not be started.
    #[error("cannot start the engine's thread")]
    Thread(#[source] io::Error),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// A model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not a sound model file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model is not one this engine runs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its tokenizer is unusable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template is unusable.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Weights that are not what the model's configuration says.
    #[error(
        "tensor {tensor:?} has zero points that are not in the middle, but its configuration says that \
         it is symmetric"
    )]
    ZeroPoint {
        /// The tensor.
        tensor: String,
    },
    /// It does not fit, even with the smallest KV cache.
    #[error(
        "the model with its smallest KV cache needs {needed_bytes} bytes of GPU memory and some more \
         for its buffers; {}; a smaller context_len or kv_bytes_max needs less",
        granted(*.granted_bytes)
    )]
    OutOfMemory {
        /// Bytes needed of weights and KV cache.
        needed_bytes: u64,
        /// Bytes that the driver had given when it refused more, where it tells.
        granted_bytes: Option<u64>,
    },
    /// The model's file is not the one that it was loaded from.
    #[error("the model's file was changed or replaced since the model was loaded")]
    FileChanged,
    /// The load was cancelled by its caller.
    #[error("the load was cancelled")]
    Cancelled,
    /// The device failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn granted(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("the driver gave {bytes} and no more"),
        None => "the driver does not give as many".to_owned(),
    }
}

/// A request was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// No model is loaded.
    #[error("no model is loaded")]
    NoModel,
    /// The prompt has no tokens.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A token id is outside the vocabulary.
    #[error("token id {id} at position {position} is not below the vocabulary size {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// Vocabulary size.
        vocab_size: u32,
    },
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens; the context holds {context_len} now, \
         {model_context_len} at most"
    )]
    ContextOverflow {
        /// Prompt tokens.
        prompt_tokens: u32,
        /// Most tokens of a sequence now.
        context_len: u32,
        /// Most tokens of a sequence when power and memory allow all.
        model_context_len: u32,
    },
    /// A parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// Another field is out of range.
    #[error("{field} {problem}")]
    Field {
        /// Field name as in the API.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The queue is full.
    #[error("the queue is full: {waiting} requests wait")]
    QueueFull {
        /// Requests waiting.
        waiting: u32,
        /// When there should be room again, judged by the pace at which requests end now.
        retry_after: Duration,
    },
    /// The app has its share of the queue.
    #[error("{waiting} requests of this app wait; at most {waiting_max} may")]
    AppQueueFull {
        /// Requests of the app waiting.
        waiting: u32,
        /// Most that may.
        waiting_max: u32,
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}
