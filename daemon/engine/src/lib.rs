//! The Hearth engine: loads one Llama model onto the GPU and generates tokens from it.
//!
//! It knows no gRPC, no sockets and no async runtime. Callers [`Engine::start`] it, [`Engine::load`]
//! models, [`Engine::submit`] requests with an [`EventSink`] each, and read [`Engine::stats`].
//! One thread of the engine's own owns the GPU; everything else here is bookkeeping around it.

mod allowance;
pub mod bench;
pub mod chat_template;
mod condition;
mod energy;
mod engine;
mod engine_loop;
pub mod error;
mod event;
pub mod format;
mod gpu;
mod kv_cache;
pub mod limits;
mod memory;
pub mod model;
mod prefill_pace;
mod prefix_cache;
mod quantize;
mod queue;
mod request;
mod running;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
#[cfg(test)]
mod speculation_tests;
mod survival;
pub mod tokenizer;
mod usage;

pub use allowance::Allowance;
pub use condition::{Condition, OnCondition};
pub use energy::{EnergyMeter, MeterReading};
pub use engine::{
    AdapterInfo, AdapterKind, Engine, EngineStats, KvNeed, LoadProgress, LoadedModel, ModelStats,
};
pub use error::{EngineError, LoadError, SubmitError};
pub use event::{
    EndReport, Event, EventSink, FinishReason, SendOutcome, TokenLogprob, TokenOutput,
};
pub use quantize::{Quantization, QuantizeError, write_quantized};
pub use request::{
    Activations, AdapterChoice, CacheScope, Caller, Class, EngineConfig, GenerateRequest,
    ParamError, SamplingParams, Speculation, Tuning,
};
pub use survival::Recovery;
pub use usage::{AppUsage, SequenceUsage, Usage};
