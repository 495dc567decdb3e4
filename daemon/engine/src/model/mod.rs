//! The model: its configuration, its weights on the GPU, and the forward pass.

mod canary;
mod choices;
mod choosing;
#[cfg(test)]
mod company_tests;
mod config;
mod config_rope;
mod config_tensors;
#[cfg(test)]
mod config_tests;
mod forward;
mod kv_blocks;
pub(crate) mod plan;
mod recorder;
mod recorder_prefill;
mod repack;
mod repack_bits;
mod repack_grouped;
mod repack_q4_k;
#[cfg(test)]
mod repack_tests;
mod row_source;
mod scratch;
mod self_check;
mod spread;
mod step;
mod synthetic;
mod tuner;
mod tuning;
mod tuning_cache;
#[cfg(test)]
mod tuning_tests;
mod weights;

pub(crate) use canary::Canary;
pub use choosing::ChosenKernel;
pub use config::{ModelConfig, ModelError};
pub use config_rope::{RopeConfig, RopeScaling};
pub(crate) use forward::{Forward, ForwardLimits};
pub(crate) use repack::{BLOCK, dequantize_row};
pub(crate) use scratch::{OUTPUTS_MAX, RING_LEN};
pub(crate) use step::{Column, StepInput};
pub(crate) use synthetic::{Patterns, RandomWeights};
pub(crate) use weights::WeightSource;
