//! Turns rows of a file's tensor into the quant and metadata planes of a GPU weight format. Pure bytes.
//!
//! Source of the layouts: GGUF's published block formats. Q4_0 is (f16 d, 16 bytes), Q4_1 is
//! (f16 d, f16 m, 16 bytes), Q8_0 is (f16 d, 32 signed bytes), each for 32 weights; byte j of a 4-bit
//! block holds weight j in its low and weight 16 + j in its high nibble, which is the plane's order too.
//! IQ4_NL is Q4_0 with a table of values for the nibbles. Other types are other files'.

use half::f16;
use hearth_shaders::WeightFormat;

use super::repack_bits as bits;
use super::repack_q4_k as q4_k;
use crate::format::TensorType;

/// Weights of a block.
pub(crate) const BLOCK: usize = 32;

/// The GPU format that holds `tensor_type` without loss, or `None` if this version has none.
pub(crate) fn native_format(tensor_type: TensorType) -> Option<WeightFormat> {
    match tensor_type {
        TensorType::F32 => Some(WeightFormat::F32),
        TensorType::F16 => Some(WeightFormat::F16),
        TensorType::Q4_0 => Some(WeightFormat::Q4_0),
        TensorType::Q4_1 => Some(WeightFormat::Q4_1),
        // Its values are whole numbers of eight bits.
        TensorType::Q8_0 | TensorType::Iq4Nl => Some(WeightFormat::Q8_0),
        TensorType::Q2K => Some(WeightFormat::Q2K),
        TensorType::Q3K => Some(WeightFormat::Q3K),
        TensorType::Q4K => Some(WeightFormat::Q4K),
        TensorType::Q5_0 => Some(WeightFormat::Q5_0),
        TensorType::Q5_1 => Some(WeightFormat::Q5_1),
        TensorType::Q5K => Some(WeightFormat::Q5K),
        TensorType::Q6K => Some(WeightFormat::Q6K),
        TensorType::Bf16 => Some(WeightFormat::Bf16),
        // Theirs depends on the groups.
        TensorType::Grouped4 | TensorType::Grouped8 | TensorType::Other(_) => None,
    }
}

/// Where one row goes: its bytes of the quant plane and of the metadata plane.
pub(crate) struct PlaneRow<'a> {
    pub(crate) quants: &'a mut [u8],
    pub(crate) metas: &'a mut [u8],
}

/// Writes one row, `source` in the file's layout, into planes of `format`.
///
/// `format` is either the type's native format or `F32`.
pub(crate) fn repack_row(
    tensor_type: TensorType,
    format: WeightFormat,
    source: &[u8],
    row: PlaneRow<'_>,
) {
    if native_format(tensor_type) != Some(format) {
        assert_eq!(format, WeightFormat::F32, "rows convert to f32 only");
        put_floats(dequantize_row(tensor_type, source), row);
        return;
    }
    match tensor_type {
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 => row.quants.copy_from_slice(source),
        TensorType::Q4_0 => split_blocks(source, row, 2, 16),
        TensorType::Q4_1 => split_blocks(source, row, 4, 16),
        TensorType::Q8_0 => split_blocks(source, row, 2, 32),
        TensorType::Iq4Nl => widen_blocks(source, row),
        TensorType::Q4K => q4_k::repack_row(source, row),
        other if bits::has(other) => bits::repack_row(other, format, source, row),
        other => unreachable!("{} has no native format", other.name()),
    }
}

/// What the nibbles of IQ4_NL stand for.
const IQ4_NL: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// IQ4_NL into bytes.
fn widen_blocks(source: &[u8], row: PlaneRow<'_>) {
    let targets = row
        .quants
        .chunks_exact_mut(BLOCK)
        .zip(row.metas.chunks_exact_mut(2));
    for (block, (quants, meta)) in source.chunks_exact(18).zip(targets) {
        meta.copy_from_slice(&block[..2]);
        for (target, n) in quants.iter_mut().zip(nibbles(&block[2..])) {
            *target = IQ4_NL[usize::from(n)].cast_unsigned();
        }
    }
}

/// Parts blocks of (`meta` bytes, `quants` bytes) into the two planes.
fn split_blocks(source: &[u8], row: PlaneRow<'_>, meta: usize, quants: usize) {
    let blocks = source.chunks_exact(meta + quants);
    let targets = row
        .quants
        .chunks_exact_mut(quants)
        .zip(row.metas.chunks_exact_mut(meta));
    for (block, (quant_target, meta_target)) in blocks.zip(targets) {
        let (m, q) = block.split_at(meta);
        meta_target.copy_from_slice(m);
        quant_target.copy_from_slice(q);
    }
}

/// The values of one row in the file's layout.
pub(crate) fn dequantize_row(tensor_type: TensorType, source: &[u8]) -> Vec<f32> {
    let half_at = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    match tensor_type {
        TensorType::F32 => source
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        TensorType::F16 => source.chunks_exact(2).map(|b| half_at(b, 0)).collect(),
        TensorType::Q4_0 => source
            .chunks_exact(18)
            .flat_map(|b| {
                let d = half_at(b, 0);
                nibbles(&b[2..]).map(move |n| d * (f32::from(n) - 8.0))
            })
            .collect(),
        TensorType::Q4_1 => source
            .chunks_exact(20)
            .flat_map(|b| {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                nibbles(&b[4..]).map(move |n| d * f32::from(n) + m)
            })
            .collect(),
        TensorType::Q8_0 => source
            .chunks_exact(34)
            .flat_map(|b| {
                let d = half_at(b, 0);
                b[2..].iter().map(move |&q| d * f32::from(q.cast_signed()))
            })
            .collect(),
        TensorType::Iq4Nl => source
            .chunks_exact(18)
            .flat_map(|b| {
                let d = half_at(b, 0);
                nibbles(&b[2..]).map(move |n| d * f32::from(IQ4_NL[usize::from(n)]))
            })
            .collect(),
        TensorType::Bf16 => source
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        TensorType::Q4K => q4_k::dequantize_row(source),
        TensorType::Grouped4 | TensorType::Grouped8 | TensorType::Other(_) => Vec::new(),
        other => bits::dequantize_row(other, source),
    }
}

/// Writes floats in the place of a row that has no native format.
pub(crate) fn put_floats(values: impl IntoIterator<Item = f32>, row: PlaneRow<'_>) {
    for (target, value) in row.quants.chunks_exact_mut(4).zip(values) {
        target.copy_from_slice(&value.to_le_bytes());
    }
}

fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes
        .iter()
        .map(|b| b & 15)
        .chain(bytes.iter().map(|b| b >> 4))
}
