//! Writes a model anew as one GGUF file with its matrices in fewer bits: what an import does when it is
//! asked to. No GPU.
//!
//! q8 is Q8_0 throughout. q4 is Q4_1 for the layers' matrices and Q8_0 for the embedding and the output
//! matrix, which small models need most. A block's scale and minimum are those, of several tried, with
//! the least squared error, weighted by the weights' size: large ones matter more to the sums.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZero;

use half::f16;

use crate::format::{Checkpoint, FormatError, Stored, TensorInfo, TensorType};
use crate::model::{BLOCK, dequantize_row};

/// How many bits matrices get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Four, in Q4_1; eight for the embedding and the output matrix.
    Q4,
    /// Eight, in Q8_0.
    Q8,
}

/// A model could not be written in fewer bits.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// It has few bits already: more would be lost than its makers meant to.
    #[error("tensor {tensor:?} is {found}; only F32, F16 and BF16 matrices are quantised")]
    Quantised {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// A weight is infinite or not a number.
    #[error("tensor {tensor:?} has a weight that is not finite")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file cannot be written.
    #[error("cannot write the quantised file")]
    Write(#[source] std::io::Error),
    /// The caller wants no more.
    #[error("cancelled")]
    Cancelled,
}

/// Weights that are worked on at a time.
const PIECE_WEIGHTS: u64 = 1 << 20;
/// Data of a GGUF file is aligned to this.
const ALIGNMENT: usize = 32;
/// Scales tried for a 4-bit block: the plain one, and so many steps below and above it.
const STEPS: i8 = 8;

/// Writes `checkpoint` to `out`. `progress` hears of source bytes done and in all; false stops it.
///
/// # Errors
/// See [`QuantizeError`]; what was written until then is of no use.
pub fn write_quantized(
    checkpoint: &Checkpoint,
    to: Quantization,
    out: &mut File,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), QuantizeError> {
    let plan = checkpoint
        .tensors()
        .iter()
        .map(|tensor| Ok((tensor, target(tensor, to)?)))
        .collect::<Result<Vec<_>, QuantizeError>>()?;
    let mut offset = 0_u64;
    let entries: Vec<_> = plan
        .iter()
        .map(|(tensor, to)| {
            let at = offset;
            offset = (offset + bytes_as(tensor, *to)).next_multiple_of(ALIGNMENT as u64);
            (*tensor, *to, at)
        })
        .collect();
    let total: u64 = plan.iter().map(|(tensor, _)| tensor.bytes).sum();
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let header = checkpoint.gguf_header(&entries);
    out.write_all(&header).map_err(QuantizeError::Write)?;
    let mut at = header.len() as u64;
    let mut done = 0_u64;
    for (tensor, to) in plan {
        at += pad(&mut out, at)?;
        let rows = tensor.rows();
        let together = (PIECE_WEIGHTS / tensor.columns().max(1)).clamp(1, rows);
        let mut row = 0;
        while row < rows {
            if !progress(done, total) {
                return Err(QuantizeError::Cancelled);
            }
            let count = together.min(rows - row);
            let source = checkpoint.read_rows(tensor, row, count)?;
            done += source.len() as u64;
            let bytes = if to == tensor.tensor_type {
                source
            } else {
                let values = dequantize_row(tensor.tensor_type, &source);
                if values.iter().any(|value| !value.is_finite()) {
                    return Err(QuantizeError::NotFinite {
                        tensor: tensor.name.clone(),
                    });
                }
                quantize(&values, to)
            };
            at += bytes.len() as u64;
            out.write_all(&bytes).map_err(QuantizeError::Write)?;
            row += count;
        }
    }
    pad(&mut out, at)?;
    out.flush().map_err(QuantizeError::Write)?;
    progress(total, total);
    Ok(())
}

/// The type that a tensor gets.
fn target(tensor: &TensorInfo, to: Quantization) -> Result<TensorType, QuantizeError> {
    let is_float = matches!(
        tensor.tensor_type,
        TensorType::F32 | TensorType::F16 | TensorType::Bf16
    );
    if !is_float || !matches!(tensor.stored, Stored::Rows(_)) {
        return Err(QuantizeError::Quantised {
            tensor: tensor.name.clone(),
            found: tensor.tensor_type.name(),
        });
    }
    let whole_blocks = tensor.columns().is_multiple_of(BLOCK as u64);
    Ok(match (tensor.dims.len(), to) {
        (1, _) => TensorType::F32,
        _ if !whole_blocks => tensor.tensor_type,
        (_, Quantization::Q4) if tensor.name.starts_with("blk.") => TensorType::Q4_1,
        _ => TensorType::Q8_0,
    })
}

fn bytes_as(tensor: &TensorInfo, to: TensorType) -> u64 {
    tensor.columns() / to.block_len() * to.block_bytes() * tensor.rows()
}

fn pad(out: &mut impl Write, at: u64) -> Result<u64, QuantizeError> {
    let missing = at.next_multiple_of(ALIGNMENT as u64) - at;
    let zeros = [0; ALIGNMENT];
    out.write_all(&zeros[..usize::try_from(missing).unwrap_or(0)])
        .map_err(QuantizeError::Write)?;
    Ok(missing)
}

/// Values as blocks of `to`, by all of the machine's processors.
fn quantize(values: &[f32], to: TensorType) -> Vec<u8> {
    let plain = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let block: fn(&[f32; BLOCK], &mut Vec<u8>) = match to {
        TensorType::Q4_1 => q4_1,
        TensorType::Q8_0 => q8_0,
        _ => return plain(values),
    };
    let (blocks, _) = values.as_chunks::<BLOCK>();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = blocks.len().div_ceil(threads).max(1);
    let work = |part: &[[f32; BLOCK]]| {
        let mut bytes = Vec::new();
        for values in part {
            block(values, &mut bytes);
        }
        bytes
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = blocks
            .chunks(share)
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| match part.join() {
                Ok(bytes) => bytes,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

/// f16 d, 32 signed bytes: d = max|x| / 127.
fn q8_0(values: &[f32; BLOCK], out: &mut Vec<u8>) {
    let largest = values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let d = f16::from_f32(largest / 127.0);
    let inverse = inverse(d.to_f32());
    out.extend(d.to_le_bytes());
    out.extend(values.map(|v| whole(v * inverse, -127.0, 127.0).cast_unsigned()));
}

/// f16 d, f16 m, 16 bytes of nibbles.
fn q4_1(values: &[f32; BLOCK], out: &mut Vec<u8>) {
    let low = values.iter().fold(f32::INFINITY, |least, v| least.min(*v));
    let high = values
        .iter()
        .fold(f32::NEG_INFINITY, |most, v| most.max(*v));
    let mean = values.iter().map(|v| v * v).sum::<f32>() / 32.0;
    // Large weights count more, and small ones still count.
    let weights = values.map(|v| mean.sqrt() + v.abs());
    let mut best = Fit::plain(low, (high - low) / 15.0).rounded(values, &weights);
    for step in -STEPS..=STEPS {
        let spread = 15.0 + 0.1 * f32::from(step);
        let trial = Fit::plain(low, (high - low) / spread);
        let fit = trial.refit(values, &weights).rounded(values, &weights);
        if fit.error < best.error {
            best = fit;
        }
    }
    let n = best.numbers(values);
    out.extend(f16::from_f32(best.d).to_le_bytes());
    out.extend(f16::from_f32(best.m).to_le_bytes());
    out.extend((0..16).map(|i| n[i] | n[16 + i] << 4));
}

/// A scale and a minimum for a block, and how far off it is with them.
#[derive(Clone, Copy)]
struct Fit {
    d: f32,
    m: f32,
    error: f32,
}

impl Fit {
    fn plain(m: f32, d: f32) -> Self {
        let error = f32::INFINITY;
        Self { d, m, error }
    }

    fn numbers(self, values: &[f32; BLOCK]) -> [u8; BLOCK] {
        let inverse = inverse(self.d);
        values.map(|v| whole((v - self.m) * inverse, 0.0, 15.0).cast_unsigned())
    }

    /// The scale and minimum of least weighted squares for this one's numbers.
    fn refit(self, values: &[f32; BLOCK], weights: &[f32; BLOCK]) -> Self {
        let n = self.numbers(values).map(f32::from);
        let (mut w, mut wn, mut wnn, mut wv, mut wnv) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for ((n, v), weight) in n.iter().zip(values).zip(weights) {
            w += weight;
            wn += weight * n;
            wnn += weight * n * n;
            wv += weight * v;
            wnv += weight * n * v;
        }
        let determinant = w * wnn - wn * wn;
        if determinant <= 0.0 {
            return self;
        }
        let d = (w * wnv - wn * wv) / determinant;
        let m = (wnn * wv - wn * wnv) / determinant;
        if d > 0.0 { Self::plain(m, d) } else { self }
    }

    /// As the file stores them, with the error that is left.
    fn rounded(self, values: &[f32; BLOCK], weights: &[f32; BLOCK]) -> Self {
        let [d, m] = [self.d, self.m].map(|v| f16::from_f32(v).to_f32());
        let stored = Self::plain(m, d);
        let n = stored.numbers(values).map(f32::from);
        let off = n.iter().zip(values).map(|(n, v)| d * n + m - v);
        let error = off
            .zip(weights)
            .map(|(off, weight)| weight * off * off)
            .sum();
        Self { d, m, error }
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The nearest whole number within bounds that fit a byte.
fn whole(v: f32, least: f32, most: f32) -> i8 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a whole number between -127 and 127"
    )]
    let byte = v.round().clamp(least, most) as i8;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf_writer::GgufWriter;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        // Sums of four: a bell, as weights are.
        (0..count)
            .map(|_| 0.1 * (next() + next() + next() + next()))
            .collect()
    }

    fn open(writer: &GgufWriter) -> Checkpoint {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&writer.to_bytes()).unwrap();
        Checkpoint::from_gguf(file).unwrap()
    }

    fn source() -> (GgufWriter, Vec<f32>) {
        let matrix = values(3, 64 * 96);
        let bytes: Vec<u8> = matrix.iter().flat_map(|v| v.to_le_bytes()).collect();
        let halves = matrix
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect();
        let mut writer = GgufWriter::new();
        writer
            .metadata("general.architecture", "llama")
            .metadata("llama.block_count", 2_u32)
            .metadata("llama.rope.freq_base", 1e4_f32)
            .metadata("tokenizer.ggml.add_bos_token", true)
            .tensor("token_embd.weight", &[64, 96], TensorType::F16, halves)
            .tensor(
                "blk.0.ffn_up.weight",
                &[64, 96],
                TensorType::F32,
                bytes.clone(),
            )
            .tensor(
                "blk.0.ffn_norm.weight",
                &[64],
                TensorType::F32,
                bytes[..256].to_vec(),
            );
        (writer, matrix)
    }

    fn quantized(to: Quantization) -> (Checkpoint, Vec<f32>) {
        let (writer, matrix) = source();
        let mut file = tempfile::tempfile().unwrap();
        let mut told = (0, 0);
        write_quantized(&open(&writer), to, &mut file, &mut |done, total| {
            assert!(done >= told.0 && done <= total);
            told = (done, total);
            true
        })
        .unwrap();
        assert_eq!(told.0, told.1);
        (Checkpoint::from_gguf(file).unwrap(), matrix)
    }

    fn error(written: &Checkpoint, name: &str, matrix: &[f32]) -> f64 {
        let tensor = written.tensor(name).unwrap();
        let bytes = written.read_rows(tensor, 0, tensor.rows()).unwrap();
        let found = dequantize_row(tensor.tensor_type, &bytes);
        assert_eq!(found.len(), matrix.len());
        let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>();
        let off = squares(&mut found.iter().zip(matrix).map(|(a, b)| f64::from(a - b)));
        (off / squares(&mut matrix.iter().map(|v| f64::from(*v)))).sqrt()
    }

    #[test]
    fn models_keep_their_words_and_nearly_their_weights() {
        for (to, layers, most) in [
            (Quantization::Q4, TensorType::Q4_1, 0.075),
            (Quantization::Q8, TensorType::Q8_0, 0.008),
        ] {
            let (written, matrix) = quantized(to);
            assert_eq!(
                written.get_str("general.architecture").unwrap(),
                Some("llama")
            );
            assert_eq!(written.get_u32("llama.block_count").unwrap(), Some(2));
            assert_eq!(written.get_f32("llama.rope.freq_base").unwrap(), Some(1e4));
            let bos = written.get_bool("tokenizer.ggml.add_bos_token").unwrap();
            assert_eq!(bos, Some(true));
            let up = written.tensor("blk.0.ffn_up.weight").unwrap();
            assert_eq!(up.tensor_type, layers);
            let table = written.tensor("token_embd.weight").unwrap();
            assert_eq!(table.tensor_type, TensorType::Q8_0);
            let off = error(&written, "blk.0.ffn_up.weight", &matrix);
            assert!(off > 0.0 && off < most, "{to:?}: {off}");
            assert!(error(&written, "token_embd.weight", &matrix) < 0.008);
            // Norms are not touched.
            assert_eq!(error(&written, "blk.0.ffn_norm.weight", &matrix[..64]), 0.0);
        }
    }

    #[test]
    fn the_search_gains_on_plain_rounding() {
        let matrix = values(9, 32 * 512);
        let (mut plain, mut best) = (0.0_f32, 0.0_f32);
        for block in matrix.as_chunks::<BLOCK>().0 {
            let low = block.iter().fold(f32::INFINITY, |a, b| a.min(*b));
            let high = block.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let ones = [1.0; BLOCK];
            plain += Fit::plain(low, (high - low) / 15.0)
                .rounded(block, &ones)
                .error;
            let mut bytes = Vec::new();
            q4_1(block, &mut bytes);
            let found = dequantize_row(TensorType::Q4_1, &bytes);
            best += found
                .iter()
                .zip(block)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f32>();
        }
        assert!(best < 0.93 * plain, "{best} of {plain}");
    }

    #[test]
    fn odd_blocks_are_written() {
        for block in [[0.0; BLOCK], [1.5; BLOCK], [-2.0; BLOCK]] {
            for to in [TensorType::Q4_1, TensorType::Q8_0] {
                let found = dequantize_row(to, &quantize(&block, to));
                for (a, b) in found.iter().zip(&block) {
                    assert!((a - b).abs() <= 0.01 * b.abs(), "{a} for {b}");
                }
            }
        }
    }

    #[test]
    fn few_bits_are_not_made_fewer_and_nan_is_told() {
        let (mut writer, _) = source();
        writer.tensor(
            "blk.0.ffn_gate.weight",
            &[64, 1],
            TensorType::Q8_0,
            vec![0; 68],
        );
        let mut file = tempfile::tempfile().unwrap();
        let refused = write_quantized(&open(&writer), Quantization::Q4, &mut file, &mut |_, _| {
            true
        });
        assert!(matches!(
            refused,
            Err(QuantizeError::Quantised { found: "Q8_0", .. })
        ));
        let (mut writer, _) = source();
        let nan = f32::NAN.to_le_bytes().repeat(64);
        writer.tensor("blk.0.ffn_up.weight", &[64, 1], TensorType::F32, nan);
        let refused = write_quantized(&open(&writer), Quantization::Q4, &mut file, &mut |_, _| {
            true
        });
        assert!(matches!(refused, Err(QuantizeError::NotFinite { .. })));
    }
}
