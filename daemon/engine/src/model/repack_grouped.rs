//! Rows of matrices quantised in groups (GPTQ and its kind) into planes of the GPU formats. Pure
//! numbers.

use half::f16;
use hearth_shaders::WeightFormat;

use super::repack::{BLOCK, PlaneRow};
use crate::format::Grouped;

/// The GPU format that holds such a matrix without loss.
pub(super) fn native_format(grouped: &Grouped) -> WeightFormat {
    // A longer group is several of 128 with the same scale.
    let blocks = [4, 2, 1]
        .into_iter()
        .find(|blocks| grouped.group_len().is_multiple_of(32 * blocks))
        .unwrap_or(4);
    let blocks = if grouped.groups() == 1 { 4 } else { blocks };
    match (grouped.bits(), grouped.is_symmetric(), blocks) {
        (4, true, 1) => WeightFormat::Q4_0,
        (4, true, 2) => WeightFormat::Q4G64,
        (4, true, _) => WeightFormat::Q4G128,
        (4, false, 1) => WeightFormat::Q4Z32,
        (4, false, 2) => WeightFormat::Q4Z64,
        (4, false, _) => WeightFormat::Q4Z128,
        (_, _, 1) => WeightFormat::Q8Z32,
        (_, _, 2) => WeightFormat::Q8Z64,
        (_, _, _) => WeightFormat::Q8Z128,
    }
}

/// Writes one row: numbers, and a scale and a zero point for each `group_len` of them.
pub(super) fn repack_row(
    format: WeightFormat,
    (numbers, scales, zeros): (&[u8], &[f32], &[u8]),
    group_len: usize,
    row: PlaneRow<'_>,
) {
    if format.quant_unit_bytes() == 16 {
        for (block, target) in numbers
            .as_chunks::<BLOCK>()
            .0
            .iter()
            .zip(row.quants.chunks_exact_mut(16))
        {
            let (low, high) = block.split_at(16);
            for ((byte, low), high) in target.iter_mut().zip(low).zip(high) {
                *byte = low | high << 4;
            }
        }
    } else {
        // Signed bytes.
        for (target, n) in row.quants.iter_mut().zip(numbers) {
            *target = n ^ 0x80;
        }
    }
    let scales_alone = matches!(
        format,
        WeightFormat::Q4_0 | WeightFormat::Q4G64 | WeightFormat::Q4G128
    );
    let middle = if format.quant_unit_bytes() == 16 {
        0.0
    } else {
        128.0
    };
    let each = if scales_alone { 2 } else { 4 };
    let columns = BLOCK * usize::try_from(format.group_blocks()).unwrap_or(1);
    let groups = numbers.len().div_ceil(columns);
    for (i, target) in row.metas.chunks_exact_mut(each).take(groups).enumerate() {
        let group = (i * columns / group_len).min(scales.len() - 1);
        target[..2].copy_from_slice(&f16::from_f32(scales[group]).to_le_bytes());
        if !scales_alone {
            let zero = f16::from_f32(f32::from(zeros[group]) - middle);
            target[2..].copy_from_slice(&zero.to_le_bytes());
        }
    }
}

/// The values of a row whose columns are in their own order: each column's group is given, or follows
/// from the groups' length.
pub(super) fn dequantize_row(
    (numbers, scales, zeros): (&[u8], &[f32], &[u8]),
    group_len: usize,
    column_groups: Option<&[u32]>,
) -> Vec<f32> {
    let group = |column: usize| match column_groups {
        Some(groups) => groups[column] as usize,
        None => column / group_len,
    };
    numbers
        .iter()
        .enumerate()
        .map(|(column, n)| {
            let group = group(column);
            scales[group] * (f32::from(*n) - f32::from(zeros[group]))
        })
        .collect()
}

/// The columns sorted by their groups, each where it stands in the file; `None` if the groups then
/// have other lengths than they should.
pub(super) fn column_order(column_groups: &[u32], group_len: u64) -> Option<Vec<u32>> {
    let mut order: Vec<u32> = (0..).take(column_groups.len()).collect();
    order.sort_by_key(|column| column_groups[*column as usize]);
    let fits = (0..).zip(&order).all(|(place, column): (u64, _)| {
        u64::from(column_groups[*column as usize]) == place / group_len
    });
    fits.then_some(order)
}
