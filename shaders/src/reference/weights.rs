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

/// Scale s and minimum m of block `block` of eight, out of the three words behind a run's (d, e).
fn six_bits(words: &[u32], block: usize) -> (f64, f64) {
    let nibble = |word: u32| word >> (4 * block) & 15;
    let high = nibble(words[2]);
    let s = nibble(words[0]) | (high & 3) << 4;
    let m = nibble(words[1]) | (high >> 2) << 4;
    (f64::from(s), f64::from(m))
}

/// The 32 weights of block `block` of row `row`; a row has `blocks` blocks.
///
/// q4_0, q4_g*: d (n - 8); q4_1: d n + m; q4_z*: d (n - z); q4_k: d s n - e m;
/// q8_0: d n with n signed; f16 and f32: as stored.
pub fn weight_block(
    format: WeightFormat,
    quants: &[u32],
    metas: &[u32],
    blocks: usize,
    row: usize,
    block: usize,
) -> [Weight; BLOCK] {
    let index = row * blocks + block;
    let nibble = |i: usize| {
        let byte = byte_at(quants, 16 * index + i % 16);
        f64::from(if i < 16 { byte & 15 } else { byte >> 4 })
    };
    let meta = |group_blocks: usize, words: usize| {
        words * (row * blocks.div_ceil(group_blocks) + block / group_blocks)
    };
    // Scales alone are packed in pairs, and each row starts with a word of its own.
    let scale = |group_blocks: usize| {
        let row_words = blocks.div_ceil(2 * group_blocks);
        half_at(metas, 2 * row * row_words + block / group_blocks)
    };
    let centred = |group_blocks: usize| {
        let d = scale(group_blocks);
        std::array::from_fn(|i| Weight::scaled(d, nibble(i), -8.0 * d))
    };
    let zeroed = |group_blocks: usize| {
        let at = 2 * meta(group_blocks, 1);
        let (d, z) = (half_at(metas, at), half_at(metas, at + 1));
        std::array::from_fn(|i| Weight::scaled(d, nibble(i), -d * z))
    };
    match format {
        WeightFormat::Q4_0 => centred(1),
        WeightFormat::Q4G64 => centred(2),
        WeightFormat::Q4G128 => centred(4),
        WeightFormat::Q4_1 => {
            let (d, m) = (half_at(metas, 2 * index), half_at(metas, 2 * index + 1));
            std::array::from_fn(|i| Weight::scaled(d, nibble(i), m))
        }
        WeightFormat::Q4Z32 => zeroed(1),
        WeightFormat::Q4Z64 => zeroed(2),
        WeightFormat::Q4Z128 => zeroed(4),
        WeightFormat::Q4K => {
            let at = meta(8, 4);
            let (d, e) = (half_at(metas, 2 * at), half_at(metas, 2 * at + 1));
            let (s, m) = six_bits(&metas[at + 1..at + 4], block % 8);
            std::array::from_fn(|i| Weight::scaled(d * s, nibble(i), -e * m))
        }
        WeightFormat::Q8_0 => std::array::from_fn(|i| {
            let n = byte_at(quants, BLOCK * index + i).cast_signed();
            Weight::plain(scale(1) * f64::from(n))
        }),
        WeightFormat::F16 => {
            std::array::from_fn(|i| Weight::plain(half_at(quants, BLOCK * index + i)))
        }
        WeightFormat::F32 => std::array::from_fn(|i| {
            Weight::plain(f64::from(f32::from_bits(quants[BLOCK * index + i])))
        }),
    }
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
