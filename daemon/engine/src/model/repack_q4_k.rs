//! Q4_K tensors: GGUF's blocks of 256 weights into the planes of the GPU format. Pure bytes.
//!
//! Source of the layout: GGUF's published block format, 144 bytes: f16 d, f16 e, 12 bytes of 6-bit
//! scales s and minimums m of eight sub-blocks of 32 weights, 128 bytes of nibbles; w = d s n - e m.
//! Bytes 32 j .. 32 j + 31 of the nibbles hold sub-block 2 j low and sub-block 2 j + 1 high.

use half::f16;

use super::repack::{BLOCK, PlaneRow};

/// Bytes of a block in the file.
const FILE_BLOCK: usize = 144;
/// Bytes of d, e, scales and minimums, in the file and in the metadata plane.
const META: usize = 16;
/// Bytes of two sub-blocks' nibbles in the file.
const PAIR: usize = BLOCK;

/// Writes one row of Q4_K blocks into planes of the GPU format of the same name.
pub(super) fn repack_row(source: &[u8], row: PlaneRow<'_>) {
    let targets = row
        .quants
        .chunks_exact_mut(FILE_BLOCK - META)
        .zip(row.metas.chunks_exact_mut(META));
    for (block, (quants, metas)) in source.chunks_exact(FILE_BLOCK).zip(targets) {
        let (meta, nibbles) = block.split_at(META);
        metas[..4].copy_from_slice(&meta[..4]);
        let words = scale_words(&meta[4..]);
        for (target, word) in metas[4..].chunks_exact_mut(4).zip(words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        // 32 bytes make two blocks of 16 in both layouts.
        for (pair, target) in nibbles
            .chunks_exact(PAIR)
            .zip(quants.chunks_exact_mut(PAIR))
        {
            let (first, second) = pair.split_at(PAIR / 2);
            for (i, (a, b)) in first.iter().zip(second).enumerate() {
                target[i] = (a & 15) | (b & 15) << 4;
                target[PAIR / 2 + i] = (a >> 4) | (b & 0xf0);
            }
        }
    }
}

/// The values of one row of Q4_K blocks.
pub(super) fn dequantize_row(source: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(source.len() / FILE_BLOCK * 8 * BLOCK);
    for block in source.chunks_exact(FILE_BLOCK) {
        let (meta, nibbles) = block.split_at(META);
        let d = f16::from_le_bytes([meta[0], meta[1]]).to_f32();
        let e = f16::from_le_bytes([meta[2], meta[3]]).to_f32();
        for sub_block in 0..8 {
            let (s, m) = scale_and_minimum(&meta[4..], sub_block);
            let (scale, bias) = (d * f32::from(s), -e * f32::from(m));
            let pair = &nibbles[PAIR * (sub_block / 2)..][..PAIR];
            let shift = 4 * (sub_block % 2);
            values.extend(
                pair.iter()
                    .map(|q| scale * f32::from(q >> shift & 15) + bias),
            );
        }
    }
    values
}

/// The 6-bit scale and minimum of one of eight sub-blocks, out of the file's 12 bytes.
pub(super) fn scale_and_minimum(bytes: &[u8], sub_block: usize) -> (u8, u8) {
    if let Some(i) = sub_block.checked_sub(4) {
        let low = bytes[8 + i];
        let s = (low & 15) | (bytes[i] >> 6) << 4;
        let m = (low >> 4) | (bytes[4 + i] >> 6) << 4;
        (s, m)
    } else {
        (bytes[sub_block] & 63, bytes[4 + sub_block] & 63)
    }
}

/// Scales and minimums in the order of the metadata plane: word 0 has the low four bits of each
/// scale, 1 those of each minimum, 2 the high two bits of each scale and above them each minimum's.
pub(super) fn scale_words(bytes: &[u8]) -> [u32; 3] {
    let mut words = [0; 3];
    for sub_block in 0..8 {
        let (s, m) = scale_and_minimum(bytes, sub_block);
        let nibbles = [s & 15, m & 15, (s >> 4) | (m >> 4) << 2];
        for (word, nibble) in words.iter_mut().zip(nibbles) {
            *word |= u32::from(nibble) << (4 * sub_block);
        }
    }
    words
}
