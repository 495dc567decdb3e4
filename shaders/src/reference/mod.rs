//! One plain CPU function for each operation, in f64, in the order of the formula.
//!
//! They read the GPU's own planes and buffers, so that a test hands both the same words. They know
//! nothing of workgroups, tiles or splits, and are as slow as they are plain.

mod activations;
mod attention;
mod elementwise;
mod matmul;
mod qkv;
mod sample;
mod weights;

pub use activations::{INT8_BLOCK_WORDS, half_bits, half_values, int8_block, int8_values};
pub use attention::{Attention, attention};
pub use elementwise::{add_bias, gather, glu, rms_norm};
pub use matmul::{Bounded, matmul};
pub use qkv::{KvShape, QkvShape, QkvTarget, qkv_target, rope, rope_turn};
pub use sample::{Choice, penalised, sample, uniform};
pub use weights::{BLOCK, Weight, embed, weight_block, weight_rows};
