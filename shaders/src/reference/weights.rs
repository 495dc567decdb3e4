//! Weights out of their GPU planes (the layouts of common/weights_*.wgsl).

use half::f16;

use crate::WeightFormat;

/// Weights of a block.
pub const BLOCK: usize = 32;

/// One weight, and how large the terms are that it is a sum of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weight {
    /// The weight: scale * n + bias.
    pub value: f64,
    /// |scale * n| + |bias|: what a rounding error of the weight is relative to.
    pub magnitude: f64,
}

impl Weight {
    fn plain(value: f64) -> Self {
        Self {
            value,
            magnitude: value.abs(),
        }
    }

    fn scaled(scale: f64, n: f64, bias: f64) -> Self {
        Self {
            value: scale * n + bias,
            magnitude: (scale * n).abs() + bias.abs(),
        }
    }
}

/// The f16 at `index` of a buffer of words that hold two each, the first in the low half.
pub(super) fn half_at(words: &[u32], index: usize) -> f64 {
    let [a, b, c, d] = words[index / 2].to_le_bytes();
    let bits = if index.is_multiple_of(2) {
        [a, b]
    } else {
        [c, d]
    };
    f16::from_le_bytes(bits).to_f64()
}

fn byte_at(words: &[u32], index: usize) -> u8 {
    words[index / 4].to_le_bytes()[index % 4]
}

/// The 32 weights of block `block` of row `row`; a row has `blocks` blocks.
///
/// q4_0: d (n - 8); q4_1: d n + m; q8_0: d n with n signed; f16 and f32: as stored.
pub fn weight_block(
    format: WeightFormat,
    quants: &[u32],
    metas: &[u32],
    blocks: usize,
    row: usize,
    block: usize,
) -> [Weight; BLOCK] {
    let index = row * blocks + block;
    // Scales alone are packed in pairs, and each row starts with a word of its own.
    let scale_index = 2 * row * blocks.div_ceil(2) + block;
    let nibble = |i: usize| {
        let byte = byte_at(quants, 16 * index + i % 16);
        f64::from(if i < 16 { byte & 15 } else { byte >> 4 })
    };
    std::array::from_fn(|i| match format {
        WeightFormat::Q4_0 => {
            let d = half_at(metas, scale_index);
            Weight::scaled(d, nibble(i), -8.0 * d)
        }
        WeightFormat::Q4_1 => Weight::scaled(
            half_at(metas, 2 * index),
            nibble(i),
            half_at(metas, 2 * index + 1),
        ),
        WeightFormat::Q8_0 => {
            let n = byte_at(quants, BLOCK * index + i).cast_signed();
            Weight::plain(half_at(metas, scale_index) * f64::from(n))
        }
        WeightFormat::F16 => Weight::plain(half_at(quants, BLOCK * index + i)),
        WeightFormat::F32 => Weight::plain(f64::from(f32::from_bits(quants[BLOCK * index + i]))),
    })
}

/// The weights of rows `0..rows`, `[row, 32 * blocks]`.
pub fn weight_rows(
    format: WeightFormat,
    quants: &[u32],
    metas: &[u32],
    blocks: usize,
    rows: usize,
) -> Vec<Weight> {
    (0..rows * blocks)
        .flat_map(|i| weight_block(format, quants, metas, blocks, i / blocks, i % blocks))
        .collect()
}

/// x = E[token, :], where the planes hold the whole of E: `[32 * blocks]`.
pub fn embed(
    format: WeightFormat,
    quants: &[u32],
    metas: &[u32],
    blocks: usize,
    token: usize,
) -> Vec<Weight> {
    (0..blocks)
        .flat_map(|b| weight_block(format, quants, metas, blocks, token, b))
        .collect()
}
