//! Random weights of a model's sizes, made on the GPU: a bench needs the bytes, not a file.
//!
//! A pattern of random numbers is uploaded once for each kind of plane, and planes are copied
//! together from it at ever other places, at the speed of the GPU's memory. The scales are such that
//! a product of inputs around 1 is around 1, so that activations stay finite.

use std::collections::HashMap;

use half::f16;
use hearth_shaders::WeightFormat;

use super::ModelConfig;
use super::weights::{Part, as_usize};
use crate::error::EngineError;
use crate::gpu::{self, Bound, Buffer, Gpu, Plane};

/// Bytes of a pattern, if the plane is not smaller.
const PATTERN_BYTES: u64 = 4 << 20;
/// Copies start at multiples of this within a pattern, which any unit of a plane divides.
const UNIT_BYTES: u64 = 16;
/// Root mean square of a uniform 4-bit number about its middle,
const INT4_SPREAD: f32 = 4.61;
/// of a uniform 5-bit number about its middle,
const INT5_SPREAD: f32 = 9.24;
/// and of a uniform 8-bit number.
const INT8_SPREAD: f32 = 73.9;
/// Middle of the 4-bit numbers.
const INT4_MIDDLE: f32 = 7.5;
/// Root mean square of s * n - 7.5 m for uniform 4-bit n and 6-bit s and m.
const SUPER_BLOCK_SPREAD: f32 = 258.0;

/// The sizes and formats of weights that are to be made up.
pub(crate) struct RandomWeights<'a> {
    pub(crate) config: &'a ModelConfig,
    /// Format of the layers' matrices.
    pub(crate) layers: WeightFormat,
    /// Format of the embedding, and of the output matrix if it is the same.
    pub(crate) embedding: WeightFormat,
    /// Format of an output matrix of its own.
    pub(crate) output: WeightFormat,
}

impl RandomWeights<'_> {
    /// Tells whether the model has this tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        name != "output.weight" || !self.config.tied_output
    }

    /// The tensor's format.
    pub(crate) fn format(&self, name: &str) -> WeightFormat {
        match name {
            "token_embd.weight" => self.embedding,
            "output.weight" => self.output,
            _ => self.layers,
        }
    }

    /// Rows and columns of a matrix; a vector is one row.
    pub(crate) fn shape(&self, name: &str) -> (u64, u64) {
        let c = self.config;
        let (hidden, ffn) = (u64::from(c.hidden_dim), u64::from(c.ffn_dim));
        let queries = u64::from(c.n_heads) * u64::from(c.head_dim);
        let keys = u64::from(c.n_kv_heads) * u64::from(c.head_dim);
        // `blk.N.KIND.weight`, or `KIND.weight` outside the layers.
        match name.rsplit('.').nth(1).unwrap_or(name) {
            "token_embd" | "output" => (u64::from(c.vocab_size), hidden),
            "attn_q" => (queries, hidden),
            "attn_k" | "attn_v" => (keys, hidden),
            "attn_output" => (hidden, queries),
            "ffn_gate" | "ffn_up" => (ffn, hidden),
            "ffn_down" => (hidden, ffn),
            _ => (1, hidden),
        }
    }

    /// A norm's weights: all 1.
    pub(crate) fn vector(&self, name: &str) -> Vec<f32> {
        vec![1.0; as_usize(self.shape(name).1)]
    }
}

/// What the words of a plane are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Any bits: packed integers.
    Bits,
    /// f16 between the negative and this (its bits).
    Halves(u32),
    /// f32 between the negative and this (its bits).
    Singles(u32),
    /// Pairs of the upper halves of f32 between the negative and this (its bits).
    UpperHalves(u32),
    /// f16 around 1e-4 whose bytes also do for small scales: where both share a plane.
    SmallHalves,
    /// f16 scales around this (its bits).
    Scales(u32),
    /// Pairs of f16: a scale around this (its bits), and a bias that centres 4-bit numbers.
    ScalesAndBiases(u32),
    /// Pairs of f16: a scale around this (its bits), and the middle of 4-bit numbers.
    ScalesAndZeros(u32),
    /// Four words: a pair of f16, for scales (around this) and minima, and 6-bit numbers for them.
    SuperBlocks(u32),
}

/// The kinds of the quant and of the metadata plane of a matrix with `columns` columns.
fn kinds(format: WeightFormat, columns: u64) -> (Kind, Option<Kind>) {
    // The root mean square that keeps products of `columns` terms around 1.
    let rms = 1.0 / float(columns).sqrt();
    let uniform = (rms * 3f32.sqrt()).to_bits();
    let int4 = (rms / INT4_SPREAD).to_bits();
    match format {
        WeightFormat::Q4_0 | WeightFormat::Q4G64 | WeightFormat::Q4G128 => {
            (Kind::Bits, Some(Kind::Scales(int4)))
        }
        WeightFormat::Q4Z32 | WeightFormat::Q4Z64 | WeightFormat::Q4Z128 => {
            (Kind::Bits, Some(Kind::ScalesAndZeros(int4)))
        }
        WeightFormat::Q4K => {
            let scale = (rms / SUPER_BLOCK_SPREAD).to_bits();
            (Kind::Bits, Some(Kind::SuperBlocks(scale)))
        }
        WeightFormat::Q5_0 => (
            Kind::Bits,
            Some(Kind::Scales((rms / INT5_SPREAD).to_bits())),
        ),
        WeightFormat::Q5K => {
            let scale = (rms / SUPER_BLOCK_SPREAD / 2.0).to_bits();
            (Kind::Bits, Some(Kind::SuperBlocks(scale)))
        }
        WeightFormat::Q2K | WeightFormat::Q3K | WeightFormat::Q6K => {
            (Kind::Bits, Some(Kind::SmallHalves))
        }
        WeightFormat::Q8Z32 | WeightFormat::Q8Z64 | WeightFormat::Q8Z128 => {
            let scale = (rms / INT8_SPREAD).to_bits();
            (Kind::Bits, Some(Kind::ScalesAndZeros(scale)))
        }
        WeightFormat::Q4_1 | WeightFormat::Q5_1 => (Kind::Bits, Some(Kind::ScalesAndBiases(int4))),
        WeightFormat::Q8_0 => (
            Kind::Bits,
            Some(Kind::Scales((rms / INT8_SPREAD).to_bits())),
        ),
        WeightFormat::F16 => (Kind::Halves(uniform), None),
        WeightFormat::Bf16 => (Kind::UpperHalves(uniform), None),
        WeightFormat::F32 => (Kind::Singles(uniform), None),
    }
}

/// Patterns of random numbers on the GPU.
#[derive(Default)]
pub(crate) struct Patterns {
    made: HashMap<Kind, Buffer>,
    random: Random,
}

impl Patterns {
    /// Fills a part of a matrix with `columns` columns.
    pub(crate) fn fill_part(
        &mut self,
        gpu: &Gpu,
        part: &Part,
        columns: u64,
    ) -> Result<(), EngineError> {
        let (quants, metas) = kinds(part.format, columns);
        self.fill_plane(gpu, &part.quants, quants)?;
        match metas {
            Some(kind) => self.fill_plane(gpu, &part.metas, kind),
            None => Ok(()),
        }
    }

    /// Fills a buffer of f16 with numbers between -1 and 1.
    pub(crate) fn fill_halves(&mut self, gpu: &Gpu, buffer: &Buffer) -> Result<(), EngineError> {
        self.fill(gpu, buffer, Kind::Halves(1f32.to_bits()))
    }

    fn fill_plane(&mut self, gpu: &Gpu, plane: &Plane, kind: Kind) -> Result<(), EngineError> {
        match plane.bound() {
            Bound::Buffer(buffer) => self.fill(gpu, buffer, kind),
            Bound::Image(image) => {
                let words = self
                    .random
                    .words(kind, as_usize(PATTERN_BYTES.min(image.bytes()) / 4));
                let pattern: &[u8] = bytemuck::cast_slice(&words);
                let mut at = 0;
                while at < image.bytes() {
                    let count = (pattern.len() as u64).min(image.bytes() - at);
                    image.write(gpu, at, &pattern[..as_usize(count)]);
                    gpu.queue.submit([]);
                    gpu.wait(None)?;
                    at += count;
                }
                Ok(())
            }
        }
    }

    fn fill(&mut self, gpu: &Gpu, buffer: &Buffer, kind: Kind) -> Result<(), EngineError> {
        let bytes = buffer.size();
        if self
            .made
            .get(&kind)
            .is_none_or(|p| p.size() < bytes.min(PATTERN_BYTES))
        {
            let size = bytes.min(PATTERN_BYTES);
            let words = self.random.words(kind, as_usize(size / 4));
            let pattern = gpu::storage(gpu, "pattern", size);
            gpu::upload(gpu, &pattern, 0, bytemuck::cast_slice(&words))?;
            self.made.insert(kind, pattern);
        }
        let pattern = &self.made[&kind];
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let mut at = 0;
        while at < bytes {
            // From the first half, so that no copy is small.
            let places = (pattern.size() / 2 / UNIT_BYTES).max(1);
            let from = self.random.next() % places * UNIT_BYTES;
            let count = (pattern.size() - from).min(bytes - at);
            encoder.copy_buffer_to_buffer(pattern, from, buffer, at, count);
            at += count;
        }
        gpu.queue.submit([encoder.finish()]);
        gpu.wait(None)
    }
}

/// A small generator of random numbers; the same numbers at every start.
struct Random {
    state: u64,
}

impl Default for Random {
    fn default() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        // Xorshift with shifts 13, 7, 17, which runs through all states but 0; the multiplication
        // mixes the bits.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn word(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or(0)
    }

    /// From -1 to below 1.
    fn signed(&mut self) -> f32 {
        // 16 random bits are plenty, and exact in f32.
        f32::from(u16::try_from(self.word() >> 16).unwrap_or(0)) / 32_768.0 - 1.0
    }

    /// Around a scale: half of it to half as much again.
    fn near(&mut self, scale: u32) -> f32 {
        f32::from_bits(scale) * (1.0 + self.signed() / 2.0)
    }

    fn word_of(&mut self, kind: Kind, at: usize) -> u32 {
        match kind {
            Kind::Bits => self.word(),
            Kind::Singles(most) => (f32::from_bits(most) * self.signed()).to_bits(),
            Kind::Halves(most) => {
                let most = f32::from_bits(most);
                pair(most * self.signed(), most * self.signed())
            }
            Kind::UpperHalves(most) => {
                let most = f32::from_bits(most);
                let [low, high] = [(); 2].map(|()| (most * self.signed()).to_bits());
                low >> 16 | high & 0xffff_0000
            }
            // The exponent's field is 1: from 2^-14 to twice that.
            Kind::SmallHalves => self.word() & 0x03ff_03ff | 0x0400_0400,
            Kind::Scales(scale) => pair(self.near(scale), self.near(scale)),
            Kind::ScalesAndZeros(scale) => pair(self.near(scale), INT4_MIDDLE),
            Kind::SuperBlocks(_) if !at.is_multiple_of(4) => self.word(),
            Kind::ScalesAndBiases(scale) => {
                let scale = self.near(scale);
                pair(scale, -INT4_MIDDLE * scale)
            }
            Kind::SuperBlocks(scale) => {
                let scale = self.near(scale);
                pair(scale, INT4_MIDDLE * scale)
            }
        }
    }

    fn words(&mut self, kind: Kind, count: usize) -> Vec<u32> {
        (0..count).map(|at| self.word_of(kind, at)).collect()
    }
}

/// A word of two f16, the first in its low half.
fn pair(low: f32, high: f32) -> u32 {
    let [low, high] = [low, high].map(|v| u32::from(f16::from_f32(v).to_bits()));
    low | high << 16
}

#[expect(clippy::cast_precision_loss, reason = "widths are exact in f32")]
fn float(n: u64) -> f32 {
    n as f32
}
