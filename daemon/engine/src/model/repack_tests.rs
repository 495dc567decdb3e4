//! Repacked rows hold the file's values: the planes read back by the shaders' reference.

use half::f16;
use hearth_shaders::WeightFormat;
use hearth_shaders::reference::weight_block;

use super::repack::{BLOCK, PlaneRow, dequantize_row, native_format, repack_row};
use crate::format::TensorType;

const TYPES: [TensorType; 14] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q4K,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::Iq4Nl,
    TensorType::Bf16,
];

/// A xorshift generator's bytes.
fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect()
}

/// A row of `columns` values, its numbers small and finite.
fn random_row(tensor_type: TensorType, columns: usize, seed: u64) -> Vec<u8> {
    let block_bytes = usize::try_from(tensor_type.block_bytes()).unwrap();
    let blocks = columns / usize::try_from(tensor_type.block_len()).unwrap();
    let mut row = random_bytes(seed, blocks * block_bytes);
    for (i, block) in row.chunks_exact_mut(block_bytes).enumerate() {
        let number = |n: usize| 0.01 * ((i + n) as f32) - 0.07;
        let half = |n| f16::from_f32(number(n)).to_le_bytes();
        match tensor_type {
            TensorType::F32 => block.copy_from_slice(&number(0).to_le_bytes()),
            TensorType::Bf16 => block.copy_from_slice(&number(0).to_le_bytes()[2..]),
            TensorType::Q4_1 | TensorType::Q4K | TensorType::Q5_1 | TensorType::Q5K => {
                block[..2].copy_from_slice(&half(0));
                block[2..4].copy_from_slice(&half(5));
            }
            TensorType::Q2K => {
                block[80..82].copy_from_slice(&half(0));
                block[82..].copy_from_slice(&half(5));
            }
            TensorType::Q3K | TensorType::Q6K => {
                let end = block_bytes - 2;
                block[end..].copy_from_slice(&half(0));
            }
            _ => block[..2].copy_from_slice(&half(0)),
        }
    }
    row
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// The values of planes that `repack_row` has written for two rows, the second of them.
fn second_row(tensor_type: TensorType, format: WeightFormat, rows: [&[u8]; 2]) -> Vec<f64> {
    let columns = dequantize_row(tensor_type, rows[1]).len();
    let blocks = columns / BLOCK;
    let size = |bytes: u64| usize::try_from(bytes).unwrap();
    let quant_row = size(format.quant_row_bytes(blocks as u64));
    let meta_row = size(format.meta_row_bytes(blocks as u64));
    let mut quants = vec![0; 2 * quant_row];
    let mut metas = vec![0; 2 * meta_row];
    for (i, source) in rows.into_iter().enumerate() {
        let row = PlaneRow {
            quants: &mut quants[i * quant_row..(i + 1) * quant_row],
            metas: &mut metas[i * meta_row..(i + 1) * meta_row],
        };
        repack_row(tensor_type, format, source, row);
    }
    let (quants, metas) = (words(&quants), words(&metas));
    (0..blocks)
        .flat_map(|block| weight_block(format, &quants, &metas, blocks, 1, block))
        .map(|w| w.value)
        .collect()
}

#[test]
fn planes_hold_the_files_values() {
    for tensor_type in TYPES {
        for columns in [256, 768, 2048] {
            let rows = [7, 8].map(|seed| random_row(tensor_type, columns, seed));
            let wanted = dequantize_row(tensor_type, &rows[1]);
            assert_eq!(wanted.len(), columns);
            let native = native_format(tensor_type).unwrap();
            for format in [native, WeightFormat::F32] {
                let found = second_row(tensor_type, format, [&rows[0], &rows[1]]);
                for (i, (found, &wanted)) in found.iter().zip(&wanted).enumerate() {
                    assert!(
                        (found - f64::from(wanted)).abs() <= 1e-6 * (1.0 + found.abs()),
                        "{} as {} {i}: {found}, not {wanted}",
                        tensor_type.name(),
                        format.name()
                    );
                }
            }
        }
    }
}

/// A Q4_K block of the file, written from its numbers as the published format says.
fn q4_k_block(d: f32, e: f32, scales: [u8; 8], minimums: [u8; 8], nibbles: &[u8; 256]) -> Vec<u8> {
    let mut block = [f16::from_f32(d), f16::from_f32(e)]
        .map(f16::to_le_bytes)
        .concat();
    let mut packed = [0u8; 12];
    for i in 0..4 {
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        packed[4 + i] = minimums[i] | (minimums[i + 4] >> 4) << 6;
        packed[8 + i] = (scales[i + 4] & 15) | (minimums[i + 4] & 15) << 4;
    }
    block.extend(packed);
    for pair in nibbles.as_chunks::<64>().0 {
        block.extend((0..32).map(|i| pair[i] | pair[32 + i] << 4));
    }
    block
}

#[test]
fn q4_k_blocks_are_read_as_published() {
    let scales = [0, 63, 17, 32, 48, 15, 16, 63];
    let minimums = [63, 0, 31, 5, 16, 47, 63, 1];
    let nibbles: [u8; 256] = std::array::from_fn(|i| random_bytes(3, 256)[i] & 15);
    let block = q4_k_block(0.25, 0.5, scales, minimums, &nibbles);
    assert_eq!(block.len() as u64, TensorType::Q4K.block_bytes());
    let wanted: Vec<f32> = (0..256)
        .map(|i| {
            let [s, m] = [scales[i / 32], minimums[i / 32]].map(f32::from);
            0.25 * s * f32::from(nibbles[i]) - 0.5 * m
        })
        .collect();
    assert_eq!(dequantize_row(TensorType::Q4K, &block), wanted);
}
