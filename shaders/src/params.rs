//! The kernels' uniform parameter blocks, byte for byte as WGSL lays them out (held against the WGSL
//! by a test that reflects it).

use bytemuck::{Pod, Zeroable};

/// `MatrixParams` of common/matrix.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct MatrixParams {
    /// Row pairs of this part.
    pub pairs: u32,
    /// Blocks of 32 columns in a row.
    pub blocks: u32,
    /// First row of this part in the whole matrix.
    pub first_row: u32,
    /// Rows of the whole matrix without padding.
    pub rows: u32,
    /// Floats from one column's result to the next.
    pub out_stride: u32,
    /// Rows of q.
    pub q_rows: u32,
    /// Rows of k, and of v.
    pub kv_rows: u32,
    /// Values of a head.
    pub head_dim: u32,
    /// Rotated pairs of a head.
    pub rope_pairs: u32,
    /// Positions of a KV block.
    pub block_len: u32,
    /// 1 where the bias counts.
    pub has_bias: u32,
    /// 0, or the number of columns if it is not the step's.
    pub columns_max: u32,
    /// Normed input: added to the mean square.
    pub eps: f32,
    /// Unused.
    pub pad: [u32; 3],
}

/// `EmbedParams` of kernels/embed.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct EmbedParams {
    /// Blocks of 32 values in a row.
    pub blocks: u32,
    /// First token of this part.
    pub first_row: u32,
    /// Tokens of this part.
    pub rows: u32,
    /// Vocabulary size.
    pub vocab: u32,
}

/// `NormParams` of kernels/norm.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct NormParams {
    /// Blocks of 32 values.
    pub blocks: u32,
    /// 1: the columns whose logits are wanted.
    pub outputs: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// Unused.
    pub pad: u32,
}

/// `GatherParams` of kernels/gather.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct GatherParams {
    /// Blocks of 32 values in a column.
    pub blocks: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// `BiasParams` of kernels/add_bias.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct BiasParams {
    /// Groups of four values in a column.
    pub groups: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// `AttentionParams` of kernels/attention.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct AttentionParams {
    /// Values of a head.
    pub head_dim: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Positions of a KV block.
    pub block_len: u32,
    /// Splits that the partial results have room for.
    pub splits_max: u32,
    /// Sliding window in positions, 0 for none.
    pub window: u32,
    /// 1 / sqrt(head_dim).
    pub scale: f32,
    /// Query heads of a KV head.
    pub group: u32,
    /// Unused.
    pub pad: u32,
}

/// `CombineParams` of kernels/combine.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct CombineParams {
    /// Blocks of 32 values.
    pub blocks: u32,
    /// Query heads.
    pub heads: u32,
    /// Values of a head.
    pub head_dim: u32,
    /// Splits that the partial results have room for.
    pub splits_max: u32,
    /// 1 where attention has stored the columns of one split itself.
    pub direct: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// `CopyParams` of kernels/copy.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct CopyParams {
    /// Groups of four words.
    pub count: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// `SampleParams` of common/sampling.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct SampleParams {
    /// Vocabulary size.
    pub vocab: u32,
    /// Entries of the token ring.
    pub ring_len: u32,
    /// Parts of the vocabulary that kernels/peaks.wgsl looks at.
    pub parts: u32,
    /// Unused.
    pub pad: u32,
}

/// `Sampling` of common/sampling.wgsl: one slot's settings.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable, PartialEq)]
pub struct Sampling {
    /// 0: the most likely token.
    pub temperature: f32,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// 1: none.
    pub repeat_penalty: f32,
    /// 0: none.
    pub frequency_penalty: f32,
    /// 0: none.
    pub presence_penalty: f32,
    /// 0: all.
    pub top_k: u32,
    /// 1 where any penalty is in force.
    pub penalties: u32,
    /// Low word of the seed.
    pub seed_low: u32,
    /// High word of the seed.
    pub seed_high: u32,
    /// Unused.
    pub pad: [u32; 2],
}

impl Sampling {
    /// The most likely token, without cuts and penalties.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        top_k: 0,
        penalties: 0,
        seed_low: 0,
        seed_high: 0,
        pad: [0; 2],
    };
}

/// Words of the step buffer's header (`STEP_HEADER` of common/step.wgsl).
pub const STEP_HEADER_WORDS: usize = 8;
/// A column's token that means: the token its slot sampled last.
pub const TOKEN_FROM_SLOT: u32 = u32::MAX;
/// Parts of the vocabulary in which the largest logits are found.
pub const PEAK_PARTS: u32 = 64;
/// Most splits of a history that [`attention_split_len`] leads to.
pub const ATTENTION_SPLITS_MAX: u32 = 64;

/// Positions of a split of a history of `history` positions (`column_split_len` of common/step.wgsl).
pub fn attention_split_len(history: u32) -> u32 {
    if history <= 256 {
        return 256;
    }
    let mut len = 64;
    while len * ATTENTION_SPLITS_MAX < history {
        len *= 2;
    }
    len
}
