//! Activations as int8 in blocks of 32: d = max|x| / 127, q = round(x / d), s = d * sum(q).

use super::weights::BLOCK;

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
