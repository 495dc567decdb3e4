//! Random numbers, weights and activations for the kernel tests, the same at each run.

use half::f16;
use hearth_shaders::reference::{
    BLOCK, Weight, half_bits, half_values, int8_block, int8_values, weight_rows,
};
use hearth_shaders::{ActivationFormat, WeightFormat};

use super::lab::{Buffer, NAN_WORD};

/// A xorshift generator.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bytes = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes();
        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// One of `low..=high`.
    pub(super) fn within(&mut self, low: u32, high: u32) -> u32 {
        low + self.word() % (high - low + 1)
    }

    /// -1 to 1.
    pub(super) fn signed(&mut self) -> f32 {
        self.word().cast_signed() as f32 / 2_147_483_648.0
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.signed()).collect()
    }

    fn half(&mut self, scale: f32) -> u16 {
        f16::from_f32(scale * self.signed()).to_bits()
    }

    /// Two halves of -scale to scale.
    pub(super) fn halves(&mut self, scale: f32) -> u32 {
        u32::from(self.half(scale)) | u32::from(self.half(scale)) << 16
    }

    /// Word `index` of a metadata plane.
    fn meta_word(&mut self, format: WeightFormat, blocks: usize, index: usize) -> u32 {
        let runs = blocks.div_ceil(8);
        match format {
            WeightFormat::Q8Z32 | WeightFormat::Q8Z64 | WeightFormat::Q8Z128 => {
                let zero = f16::from_f32(self.within(0, 256) as f32 - 128.0).to_bits();
                u32::from(self.half(0.005)) | u32::from(zero) << 16
            }
            // Scales for all 16s, then the rows' d.
            WeightFormat::Q2K if index % (5 * runs) < 4 * runs => self.word(),
            WeightFormat::Q3K | WeightFormat::Q6K
                if index % (4 * runs + runs.div_ceil(2)) < 4 * runs =>
            {
                self.word()
            }
            WeightFormat::Q3K | WeightFormat::Q6K => self.halves(0.002),
            WeightFormat::Q4Z32 | WeightFormat::Q4Z64 | WeightFormat::Q4Z128 => {
                // Zero points are whole numbers; some checkpoints store them less one.
                let zero = f16::from_f32(self.within(0, 16) as f32).to_bits();
                u32::from(self.half(0.05)) | u32::from(zero) << 16
            }
            // Behind each (d, e) come three words of six-bit numbers.
            WeightFormat::Q4K | WeightFormat::Q5K if !index.is_multiple_of(4) => self.word(),
            _ => self.halves(0.05),
        }
    }

    /// 0..count in a random order.
    pub(super) fn shuffled(&mut self, count: u32) -> Vec<u32> {
        let mut list: Vec<u32> = (0..count).collect();
        for i in (1..count).rev() {
            list.swap(i as usize, self.within(0, i) as usize);
        }
        list
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Tells whether the last word of metadata is two groups' scales.
fn scales_alone(format: WeightFormat) -> bool {
    matches!(
        format,
        WeightFormat::Q3K
            | WeightFormat::Q4_0
            | WeightFormat::Q4G64
            | WeightFormat::Q4G128
            | WeightFormat::Q5_0
            | WeightFormat::Q6K
            | WeightFormat::Q8_0
    )
}

/// Planes of a matrix as on the GPU, with its odd row's padding and its metadata's padding NaN.
pub(super) struct Planes {
    format: WeightFormat,
    /// With padding.
    rows: usize,
    pub(super) quants: Vec<u32>,
    pub(super) metas: Vec<u32>,
    /// `[row, 32 * blocks]`, without padding.
    pub(super) weights: Vec<Weight>,
}

impl Planes {
    pub(super) fn new(
        random: &mut Random,
        format: WeightFormat,
        rows: usize,
        blocks: usize,
    ) -> Self {
        let words = |bytes: u64| usize::try_from(bytes / 4).unwrap();
        let quant_row = words(format.quant_row_bytes(blocks as u64));
        let meta_row = words(format.meta_row_bytes(blocks as u64));
        let mut quants: Vec<u32> = (0..rows * quant_row)
            .map(|_| match format {
                WeightFormat::F16 => random.halves(1.0),
                WeightFormat::Bf16 => {
                    let [low, high] = [(); 2].map(|()| random.signed().to_bits());
                    low >> 16 | high & 0xffff_0000
                }
                WeightFormat::F32 => random.signed().to_bits(),
                _ => random.word(),
            })
            .collect();
        let mut metas: Vec<u32> = (0..rows * meta_row)
            .map(|i| random.meta_word(format, blocks, i))
            .collect();
        let groups = blocks.div_ceil(usize::try_from(format.group_blocks().max(1)).unwrap());
        if scales_alone(format) && !groups.is_multiple_of(2) {
            // The last word of a row has one scale.
            for row in metas.chunks_exact_mut(meta_row) {
                row[meta_row - 1] = row[meta_row - 1] & 0xffff | NAN_WORD & 0xffff_0000;
            }
        }
        let weights = weight_rows(format, &quants, &metas, blocks, rows);
        if !rows.is_multiple_of(2) {
            quants.extend(vec![NAN_WORD; quant_row]);
            metas.extend(vec![NAN_WORD; meta_row]);
        }
        Self {
            format,
            rows: rows.next_multiple_of(2),
            quants,
            metas,
            weights,
        }
    }

    /// The quant plane and the metadata plane.
    pub(super) fn buffers(&self) -> [Buffer; 2] {
        let plane = |words: &[u32], unit_bytes| Buffer::Plane {
            words: words.to_vec(),
            rows: self.rows,
            unit_words: unit_bytes / 4,
        };
        [
            plane(&self.quants, self.format.quant_unit_bytes()),
            plane(&self.metas, self.format.meta_unit_bytes()),
        ]
    }
}

/// Stored activations and what they stand for, `[column, 32 * blocks]`.
pub(super) struct Acts {
    pub(super) words: Vec<u32>,
    pub(super) values: Vec<f64>,
}

impl Acts {
    pub(super) fn new(random: &mut Random, format: ActivationFormat, blocks: usize) -> Self {
        Self::stored(format, &random.floats(blocks * BLOCK))
    }

    /// `values`, rounded as `format` stores them.
    pub(super) fn of(format: ActivationFormat, values: &[f64]) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is the point"
        )]
        let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Self::stored(format, &floats)
    }

    fn stored(format: ActivationFormat, floats: &[f32]) -> Self {
        match format {
            ActivationFormat::Float | ActivationFormat::FloatImage => Self {
                words: bits(floats),
                values: wide(floats),
            },
            ActivationFormat::Half => {
                let words: Vec<u32> = floats.as_chunks().0.iter().map(|&v| half_bits(v)).collect();
                Self {
                    values: half_values(&words),
                    words,
                }
            }
            ActivationFormat::Int8 => {
                let words: Vec<u32> = floats
                    .as_chunks::<BLOCK>()
                    .0
                    .iter()
                    .flat_map(|block| {
                        let mut words = int8_block(block);
                        words[10..].fill(NAN_WORD);
                        words
                    })
                    .collect();
                Self {
                    values: int8_values(&words),
                    words,
                }
            }
        }
    }
}
