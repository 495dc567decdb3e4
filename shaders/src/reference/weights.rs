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

/// Bits `bits` and on, a field of `bits` bits, of weight `i` of the block: the layout of
/// common/bit_planes.wgsl. `first` is the section's first unit of the row, in words of the plane.
fn field(quants: &[u32], first: usize, bits: usize, block: usize, i: usize) -> u32 {
    let words = bits;
    // Words of 32 / bits weights: those of one bit hold all of a block, those of two half of it.
    let word = quants[first + block * words + i * bits / 32];
    let place = i % (32 / bits);
    word >> (8 * (place % 4) + bits * (place / 4)) & ((1 << bits) - 1)
}

/// The 32 weights of block `block` of row `row`; a row has `blocks` blocks.
///
/// q4_0, q4_g*: d (n - 8); q4_1: d n + m; q4_z*: d (n - z); q4_k, q5_k, q2_k: d s n - e m;
/// q5_0: d (n - 16); q5_1: d n + m; q3_k: d s (n - 4); q6_k: d s (n - 32); q8_0: d n with n signed;
/// q8_z*: d (n - z) with both signed; bf16, f16 and f32: as stored.
pub fn weight_block(
    format: WeightFormat,
    quants: &[u32],
    metas: &[u32],
    blocks: usize,
    row: usize,
    block: usize,
) -> [Weight; BLOCK] {
    let planes = RowPlanes::new(format, (quants, metas), blocks, row);
    std::array::from_fn(|i| planes.weight(block, i))
}

/// A row of a matrix in its planes.
struct RowPlanes<'a> {
    format: WeightFormat,
    blocks: usize,
    quants: &'a [u32],
    metas: &'a [u32],
}

impl<'a> RowPlanes<'a> {
    fn new(
        format: WeightFormat,
        (quants, metas): (&'a [u32], &'a [u32]),
        blocks: usize,
        row: usize,
    ) -> Self {
        let words = |bytes: u64| usize::try_from(bytes / 4).unwrap_or(0);
        let quant_words = words(format.quant_row_bytes(blocks as u64));
        let meta_words = words(format.meta_row_bytes(blocks as u64));
        Self {
            format,
            blocks,
            quants: &quants[row * quant_words..][..quant_words],
            metas: &metas[row * meta_words..][..meta_words],
        }
    }

    fn nibble(&self, block: usize, i: usize) -> u32 {
        let byte = byte_at(self.quants, 16 * block + i % 16);
        u32::from(if i < 16 { byte & 15 } else { byte >> 4 })
    }

    /// The bits above the nibbles, in the section behind them.
    fn above(&self, bits: usize, block: usize, i: usize) -> u32 {
        field(self.quants, 4 * self.blocks, bits, block, i)
    }

    fn five_bits(&self, block: usize, i: usize) -> f64 {
        f64::from(self.nibble(block, i) | self.above(1, block, i) << 4)
    }

    /// d * s of the block's half.
    fn half_scale(&self, block: usize, half: usize) -> f64 {
        let runs = self.blocks.div_ceil(8);
        let s = byte_at(self.metas, 16 * (block / 8) + 2 * (block % 8) + half).cast_signed();
        half_at(self.metas, 2 * 4 * runs + block / 8) * f64::from(s)
    }

    /// A pair of f16 a group.
    fn pair(&self, group: usize) -> (f64, f64) {
        (
            half_at(self.metas, 2 * group),
            half_at(self.metas, 2 * group + 1),
        )
    }

    /// d s and e m of a block under a super-block.
    fn super_block(&self, block: usize) -> (f64, f64) {
        let at = 4 * (block / 8);
        let (d, e) = self.pair(at);
        let (s, m) = six_bits(&self.metas[at + 1..at + 4], block % 8);
        (d * s, e * m)
    }

    fn weight(&self, block: usize, i: usize) -> Weight {
        let group = usize::try_from(self.format.group_blocks().max(1)).unwrap_or(1);
        // Scales alone are packed in pairs, and each row starts with a word of its own.
        let scale = || half_at(self.metas, block / group);
        let nibble = || f64::from(self.nibble(block, i));
        let byte = || f64::from(byte_at(self.quants, BLOCK * block + i).cast_signed());
        let zeroed = |n: f64| {
            let (d, z) = self.pair(block / group);
            Weight::scaled(d, n, -d * z)
        };
        match self.format {
            WeightFormat::Q4_0 | WeightFormat::Q4G64 | WeightFormat::Q4G128 => {
                Weight::scaled(scale(), nibble(), -8.0 * scale())
            }
            WeightFormat::Q4_1 => {
                let (d, m) = self.pair(block);
                Weight::scaled(d, nibble(), m)
            }
            WeightFormat::Q4Z32 | WeightFormat::Q4Z64 | WeightFormat::Q4Z128 => zeroed(nibble()),
            WeightFormat::Q8Z32 | WeightFormat::Q8Z64 | WeightFormat::Q8Z128 => zeroed(byte()),
            WeightFormat::Q4K => {
                let (s, m) = self.super_block(block);
                Weight::scaled(s, nibble(), -m)
            }
            WeightFormat::Q5K => {
                let (s, m) = self.super_block(block);
                Weight::scaled(s, self.five_bits(block, i), -m)
            }
            WeightFormat::Q5_0 => {
                Weight::scaled(scale(), self.five_bits(block, i), -16.0 * scale())
            }
            WeightFormat::Q5_1 => {
                let (d, m) = self.pair(block);
                Weight::scaled(d, self.five_bits(block, i), m)
            }
            WeightFormat::Q6K => {
                let n = f64::from(self.nibble(block, i) | self.above(2, block, i) << 4);
                Weight::plain(self.half_scale(block, i / 16) * (n - 32.0))
            }
            WeightFormat::Q3K => {
                let low = field(self.quants, 0, 2, block, i);
                let ones = 4 * self.blocks.div_ceil(2);
                let n = f64::from(low | field(self.quants, ones, 1, block, i) << 2);
                Weight::plain(self.half_scale(block, i / 16) * (n - 4.0))
            }
            WeightFormat::Q2K => {
                let runs = self.blocks.div_ceil(8);
                let byte = byte_at(self.metas, 16 * (block / 8) + 2 * (block % 8) + i / 16);
                let (d, e) = self.pair(4 * runs + block / 8);
                let n = f64::from(field(self.quants, 0, 2, block, i));
                Weight::scaled(d * f64::from(byte & 15), n, -e * f64::from(byte >> 4))
            }
            WeightFormat::Q8_0 => Weight::plain(scale() * byte()),
            WeightFormat::Bf16 => {
                let word = self.quants[(BLOCK * block + i) / 2];
                let bits = if i.is_multiple_of(2) {
                    word << 16
                } else {
                    word & 0xffff_0000
                };
                Weight::plain(f64::from(f32::from_bits(bits)))
            }
            WeightFormat::F16 => Weight::plain(half_at(self.quants, BLOCK * block + i)),
            WeightFormat::F32 => {
                Weight::plain(f64::from(f32::from_bits(self.quants[BLOCK * block + i])))
            }
        }
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
