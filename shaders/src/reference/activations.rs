//! Activations as int8 in blocks of 32 (d = max|x| / 127, q = round(x / d), s = d * sum(q)), and as
//! f16, two a word.

use half::f16;

use super::weights::{BLOCK, half_at};

/// Words of a stored int8 block: eight of quants, then d, s and two unused.
pub const INT8_BLOCK_WORDS: usize = 12;

/// The stored block of 32 floats, exactly as common/act_out_int8.wgsl computes it in f32.
///
/// A GPU whose division is not correctly rounded may differ by one in a q that lies half-way, and
/// in the last bits of d and s.
pub fn int8_block(values: &[f32; BLOCK]) -> [u32; INT8_BLOCK_WORDS] {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let quants = values.map(|v| int8(v * inverse));
    let total: i16 = quants.iter().map(|&q| i16::from(q)).sum();
    let mut words = [0; INT8_BLOCK_WORDS];
    for (word, four) in words.iter_mut().zip(quants.chunks_exact(4)) {
        *word = u32::from_le_bytes([four[0], four[1], four[2], four[3]].map(i8::cast_unsigned));
    }
    words[8] = d.to_bits();
    words[9] = (d * f32::from(total)).to_bits();
    words
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most 127 by the block's scale"
)]
fn int8(v: f32) -> i8 {
    v.round_ties_even() as i8
}

/// The values that stored blocks stand for: x_i = d * q_i.
pub fn int8_values(words: &[u32]) -> Vec<f64> {
    words
        .chunks_exact(INT8_BLOCK_WORDS)
        .flat_map(|block| {
            let d = f64::from(f32::from_bits(block[8]));
            (0..BLOCK).map(move |i| d * f64::from(block[i / 4].to_le_bytes()[i % 4].cast_signed()))
        })
        .collect()
}

/// Two floats as f16 in a word, the first in the low half; beyond its range the largest f16.
pub fn half_bits(values: [f32; 2]) -> u32 {
    let largest = f16::MAX.to_f32();
    let [low, high] =
        values.map(|v| u32::from(f16::from_f32(v.clamp(-largest, largest)).to_bits()));
    low | high << 16
}

/// The values that words of two f16 stand for.
pub fn half_values(words: &[u32]) -> Vec<f64> {
    (0..2 * words.len()).map(|i| half_at(words, i)).collect()
}
