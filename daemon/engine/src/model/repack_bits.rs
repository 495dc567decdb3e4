//! Tensors of two, three, five and six bits: GGUF's blocks into planes and into values. Pure bytes.
//!
//! Source of the layouts: GGUF's published block formats.
//! - Q5_0 is (f16 d, 32 bits h, 16 bytes), Q5_1 (f16 d, f16 m, 32 bits h, 16 bytes), for 32 weights: bit i
//!   of h is weight i's fifth, the bytes hold nibbles as Q4_0 has them.
//! - The others hold 256 weights, written below in the order of their fields. A field of two bits of
//!   byte l of 32, at bit 2 j, belongs to weight 32 j + l of its 128.

use half::f16;
use hearth_shaders::WeightFormat;

use super::repack::{BLOCK, PlaneRow};
use super::repack_q4_k::{scale_and_minimum, scale_words};
use crate::format::TensorType;

/// Weights of a super-block.
const RUN: usize = 256;

/// Numbers of a file's block, before their scale.
struct Numbers {
    /// One a weight: 32 of them, or 256.
    n: [u8; RUN],
    /// As many as the block has.
    count: usize,
    meta: Meta,
}

/// What scales them.
enum Meta {
    /// w = d n + m
    Pair { d: f16, m: f16 },
    /// w = d (n - 16)
    Scale(f16),
    /// w = d s n - e m, six bits s and m per 32, as the file packs them.
    SuperBlock { d: f16, e: f16, packed: [u8; 12] },
    /// w = d s (n - middle), a signed s per 16.
    Sixteenths { d: f16, s: [i8; 16], middle: u8 },
    /// w = d s n - e m, per 16 a byte s + 16 m.
    Nibbles { d: f16, e: f16, s: [u8; 16] },
}

/// Tells whether this file has the type.
pub(super) fn has(tensor_type: TensorType) -> bool {
    matches!(
        tensor_type,
        TensorType::Q2K
            | TensorType::Q3K
            | TensorType::Q5_0
            | TensorType::Q5_1
            | TensorType::Q5K
            | TensorType::Q6K
    )
}

/// Writes one row of the file's blocks into planes of the GPU format of the same name.
pub(super) fn repack_row(
    tensor_type: TensorType,
    format: WeightFormat,
    source: &[u8],
    row: PlaneRow<'_>,
) {
    let blocks = columns(tensor_type, source) / BLOCK;
    let mut planes = RowWriter {
        format,
        blocks,
        quants: row.quants,
        metas: row.metas,
    };
    let each = block_bytes(tensor_type);
    let mut first = 0;
    for bytes in source.chunks_exact(each) {
        let numbers = read(tensor_type, bytes);
        for (i, n) in numbers.n[..numbers.count].as_chunks().0.iter().enumerate() {
            planes.put(first + i, n);
        }
        planes.put_meta(first, &numbers.meta);
        first += numbers.count / BLOCK;
    }
}

/// The values of one row of the file's blocks.
pub(super) fn dequantize_row(tensor_type: TensorType, source: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(columns(tensor_type, source));
    for bytes in source.chunks_exact(block_bytes(tensor_type)) {
        let numbers = read(tensor_type, bytes);
        for (i, &n) in numbers.n[..numbers.count].iter().enumerate() {
            values.push(value(&numbers.meta, i, f32::from(n)));
        }
    }
    values
}

fn value(meta: &Meta, i: usize, n: f32) -> f32 {
    match meta {
        Meta::Pair { d, m } => d.to_f32() * n + m.to_f32(),
        Meta::Scale(d) => d.to_f32() * (n - 16.0),
        Meta::SuperBlock { d, e, packed } => {
            let (s, m) = scale_and_minimum(packed, i / 32);
            d.to_f32() * f32::from(s) * n - e.to_f32() * f32::from(m)
        }
        Meta::Sixteenths { d, s, middle } => {
            d.to_f32() * f32::from(s[i / 16]) * (n - f32::from(*middle))
        }
        Meta::Nibbles { d, e, s } => {
            let s = s[i / 16];
            d.to_f32() * f32::from(s & 15) * n - e.to_f32() * f32::from(s >> 4)
        }
    }
}

fn block_bytes(tensor_type: TensorType) -> usize {
    usize::try_from(tensor_type.block_bytes()).unwrap_or(1)
}

fn columns(tensor_type: TensorType, source: &[u8]) -> usize {
    source.len() / block_bytes(tensor_type) * usize::try_from(tensor_type.block_len()).unwrap_or(0)
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a block of the file.
fn read(tensor_type: TensorType, b: &[u8]) -> Numbers {
    let mut n = [0; RUN];
    let (count, meta) = match tensor_type {
        TensorType::Q5_0 => {
            five_bits(&b[2..6], &b[6..22], &mut n);
            (BLOCK, Meta::Scale(half_at(b, 0)))
        }
        TensorType::Q5_1 => {
            five_bits(&b[4..8], &b[8..24], &mut n);
            let (d, m) = (half_at(b, 0), half_at(b, 2));
            (BLOCK, Meta::Pair { d, m })
        }
        TensorType::Q5K => (RUN, q5_k(b, &mut n)),
        TensorType::Q6K => (RUN, q6_k(b, &mut n)),
        TensorType::Q3K => (RUN, q3_k(b, &mut n)),
        _ => (RUN, q2_k(b, &mut n)),
    };
    Numbers { n, count, meta }
}

/// d, e, 12 bytes of scales, 32 of fifth bits, 128 of nibbles.
fn q5_k(b: &[u8], n: &mut [u8; RUN]) -> Meta {
    let (high, low) = b[16..176].split_at(32);
    for (i, n) in n.iter_mut().enumerate() {
        let (sub, l) = (i / 32, i % 32);
        *n = low[32 * (sub / 2) + l] >> (4 * (sub % 2)) & 15 | (high[l] >> sub & 1) << 4;
    }
    let mut packed = [0; 12];
    packed.copy_from_slice(&b[4..16]);
    Meta::SuperBlock {
        d: half_at(b, 0),
        e: half_at(b, 2),
        packed,
    }
}

/// 128 bytes of nibbles, 64 of high bits, 16 scales, d.
fn q6_k(b: &[u8], n: &mut [u8; RUN]) -> Meta {
    let (low, high) = b[..192].split_at(128);
    for (i, n) in n.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
        *n = nibble | (high[32 * half + l] >> (2 * quarter) & 3) << 4;
    }
    Meta::Sixteenths {
        d: half_at(b, 208),
        s: std::array::from_fn(|i| b[192 + i].cast_signed()),
        middle: 32,
    }
}

/// 32 bytes of third bits, 64 of low bits, 12 of scales, d.
fn q3_k(b: &[u8], n: &mut [u8; RUN]) -> Meta {
    for (i, n) in n.iter_mut().enumerate() {
        let (quarter, l) = (i / 32, i % 32);
        *n = two_bits(&b[32..96], i) | (b[l] >> quarter & 1) << 2;
    }
    Meta::Sixteenths {
        d: half_at(b, 108),
        s: std::array::from_fn(|i| q3_k_scale(&b[96..108], i)),
        middle: 4,
    }
}

/// 16 bytes of scales, 64 of bits, d, e.
fn q2_k(b: &[u8], n: &mut [u8; RUN]) -> Meta {
    for (i, n) in n.iter_mut().enumerate() {
        *n = two_bits(&b[16..80], i);
    }
    let mut s = [0; 16];
    s.copy_from_slice(&b[..16]);
    Meta::Nibbles {
        d: half_at(b, 80),
        e: half_at(b, 82),
        s,
    }
}

fn five_bits(high: &[u8], low: &[u8], n: &mut [u8; RUN]) {
    for (i, n) in n[..BLOCK].iter_mut().enumerate() {
        let nibble = low[i % 16] >> (4 * (i / 16)) & 15;
        *n = nibble | (high[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// The field of weight `i` of 256 in 64 bytes.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// Six bits, less 32: the low four in eight bytes, the high two in the four behind them.
fn q3_k_scale(bytes: &[u8], i: usize) -> i8 {
    let low = bytes[i % 8] >> (4 * (i / 8)) & 15;
    let high = bytes[8 + i % 4] >> (2 * (i / 4)) & 3;
    (low | high << 4).cast_signed() - 32
}

/// One row's planes in the layouts of the shaders' common/bit_planes.wgsl.
struct RowWriter<'a> {
    format: WeightFormat,
    blocks: usize,
    quants: &'a mut [u8],
    metas: &'a mut [u8],
}

impl RowWriter<'_> {
    /// Where the section behind the nibbles, or behind the two bits, begins.
    fn behind(&self) -> usize {
        match self.format {
            WeightFormat::Q2K => 0,
            WeightFormat::Q3K => 16 * self.blocks.div_ceil(2),
            _ => 16 * self.blocks,
        }
    }

    fn put(&mut self, block: usize, n: &[u8; BLOCK]) {
        let behind = self.behind();
        match self.format {
            WeightFormat::Q2K => self.put_twos(0, block, &n.map(|n| n & 3)),
            WeightFormat::Q3K => {
                self.put_twos(0, block, &n.map(|n| n & 3));
                self.put_ones(behind, block, &n.map(|n| n >> 2));
            }
            WeightFormat::Q6K => {
                self.put_nibbles(block, n);
                self.put_twos(behind, block, &n.map(|n| n >> 4));
            }
            _ => {
                self.put_nibbles(block, n);
                self.put_ones(behind, block, &n.map(|n| n >> 4));
            }
        }
    }

    fn put_nibbles(&mut self, block: usize, n: &[u8; BLOCK]) {
        let target = &mut self.quants[16 * block..][..16];
        for (i, byte) in target.iter_mut().enumerate() {
            *byte = n[i] & 15 | n[16 + i] << 4;
        }
    }

    fn put_ones(&mut self, section: usize, block: usize, bits: &[u8; BLOCK]) {
        let target = &mut self.quants[section + 4 * block..][..4];
        for (j, byte) in target.iter_mut().enumerate() {
            *byte = (0..8).fold(0, |byte, k| byte | bits[4 * k + j] << k);
        }
    }

    fn put_twos(&mut self, section: usize, block: usize, fields: &[u8; BLOCK]) {
        let target = &mut self.quants[section + 8 * block..][..8];
        for (at, byte) in target.iter_mut().enumerate() {
            let (half, j) = (at / 4, at % 4);
            *byte = (0..4).fold(0, |byte, k| byte | fields[16 * half + 4 * k + j] << (2 * k));
        }
    }

    /// The metadata of the file's block that begins with `block`.
    fn put_meta(&mut self, block: usize, meta: &Meta) {
        let runs = self.blocks.div_ceil(8);
        let run = block / 8;
        let mut put = |at: usize, bytes: &[u8]| {
            self.metas[at..at + bytes.len()].copy_from_slice(bytes);
        };
        match meta {
            Meta::Scale(d) => put(2 * block, &d.to_le_bytes()),
            Meta::Pair { d, m } => {
                put(4 * block, &d.to_le_bytes());
                put(4 * block + 2, &m.to_le_bytes());
            }
            Meta::SuperBlock { d, e, packed } => {
                put(16 * run, &d.to_le_bytes());
                put(16 * run + 2, &e.to_le_bytes());
                for (i, word) in scale_words(packed).into_iter().enumerate() {
                    put(16 * run + 4 + 4 * i, &word.to_le_bytes());
                }
            }
            Meta::Sixteenths { d, s, .. } => {
                put(16 * run, &s.map(i8::cast_unsigned));
                put(16 * runs + 2 * run, &d.to_le_bytes());
            }
            Meta::Nibbles { d, e, s } => {
                put(16 * run, s);
                put(16 * runs + 4 * run, &d.to_le_bytes());
                put(16 * runs + 4 * run + 2, &e.to_le_bytes());
            }
        }
    }
}
