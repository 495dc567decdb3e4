//! Weight matrices in GPU memory: read from the file, repacked and uploaded in bounded pieces, cut in
//! row shards below the binding limit.

use hearth_shaders::WeightFormat;

use super::repack::{self, BLOCK, PlaneRow};
use super::synthetic::{Patterns, RandomWeights};
use crate::error::{EngineError, LoadError};
use crate::format::{Checkpoint, TensorInfo};
use crate::gpu::{self, Buffer, Gpu, Plane, PlaneShape};

/// Rows of a shard are a multiple of this, so that no rotation pair and no block of 32 gate and up
/// pairs is cut.
const SHARD_ROWS: u64 = 64;
/// Source bytes read at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// A run of rows of one format in buffers of its own.
pub(crate) struct Part {
    pub(crate) format: WeightFormat,
    pub(crate) first_row: u32,
    /// Rows without padding.
    pub(crate) rows: u32,
    pub(crate) quants: Plane,
    pub(crate) metas: Plane,
}

impl Part {
    /// Bytes of GPU memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.quants.bytes() + self.metas.bytes()
    }

    /// Row pairs, the last one padded if `rows` is odd.
    pub(crate) fn pairs(&self) -> u32 {
        self.rows.div_ceil(2)
    }
}

/// A matrix of `rows` x 32 `blocks` weights, in one part or several.
pub(crate) struct Matrix {
    pub(crate) rows: u32,
    pub(crate) blocks: u32,
    pub(crate) parts: Vec<Part>,
    pub(crate) bytes: u64,
}

impl Matrix {
    /// Tells whether int8 activations apply to every part.
    pub(crate) fn is_integer(&self) -> bool {
        self.parts.iter().all(|p| p.format.is_integer())
    }

    /// Tells whether f16 holds its weights well enough for products by cooperative matrices.
    pub(crate) fn fits_half(&self) -> bool {
        self.parts.iter().all(|p| p.format != WeightFormat::F32)
    }
}

/// How tensors make up the rows of a matrix.
#[derive(Clone, Copy)]
enum Arrangement {
    /// One tensor's rows after the other's.
    Stacked,
    /// Row 2i from the first, row 2i + 1 from the second.
    Alternating,
}

/// Where weights come from.
#[derive(Clone, Copy)]
pub(crate) enum WeightSource<'a> {
    /// A model file.
    File(&'a Checkpoint),
    /// Nowhere: random weights of a model's sizes.
    Random(&'a RandomWeights<'a>),
}

/// Reads tensors into matrices and reports progress.
pub(crate) struct WeightLoader<'a> {
    gpu: &'a Gpu,
    source: WeightSource<'a>,
    patterns: Patterns,
    done_bytes: u64,
    /// Returns false to cancel.
    progress: &'a mut dyn FnMut(u64) -> bool,
}

impl<'a> WeightLoader<'a> {
    /// A loader that tells `progress` how many bytes of the source it has read or made.
    pub(crate) fn new(
        gpu: &'a Gpu,
        source: WeightSource<'a>,
        progress: &'a mut dyn FnMut(u64) -> bool,
    ) -> Self {
        Self {
            gpu,
            source,
            patterns: Patterns::default(),
            done_bytes: 0,
            progress,
        }
    }

    /// Tells whether the source has this tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self.source {
            WeightSource::File(checkpoint) => checkpoint.tensor(name).is_some(),
            WeightSource::Random(random) => random.has(name),
        }
    }

    /// The tensors' rows, one tensor after the other.
    pub(crate) fn stacked(&mut self, names: &[String]) -> Result<Matrix, LoadError> {
        match self.source {
            WeightSource::File(checkpoint) => self.matrix(checkpoint, names, Arrangement::Stacked),
            WeightSource::Random(random) => self.random(random, names),
        }
    }

    /// The rows of two tensors of one shape in turn.
    pub(crate) fn alternating(&mut self, names: &[String; 2]) -> Result<Matrix, LoadError> {
        match self.source {
            WeightSource::File(checkpoint) => {
                self.matrix(checkpoint, names, Arrangement::Alternating)
            }
            WeightSource::Random(random) => self.random(random, names),
        }
    }

    /// Vectors, one after the other, as f32 in one buffer.
    pub(crate) fn vector(&mut self, names: &[String]) -> Result<Buffer, LoadError> {
        let mut values = Vec::new();
        for name in names {
            match self.source {
                WeightSource::File(checkpoint) => {
                    let tensor = file_tensor(checkpoint, name);
                    let mut source = vec![0; as_usize(tensor.bytes)];
                    checkpoint.read(tensor, 0, &mut source)?;
                    values.extend(repack::dequantize_row(tensor.tensor_type, &source));
                    self.advance(tensor.bytes)?;
                }
                WeightSource::Random(random) => values.extend(random.vector(name)),
            }
        }
        let buffer = gpu::storage(self.gpu, &names[0], 4 * values.len() as u64);
        gpu::upload(self.gpu, &buffer, 0, bytemuck::cast_slice(&values))?;
        Ok(buffer)
    }

    /// A matrix of the tensors' rows together, in whatever order: all are random.
    fn random(
        &mut self,
        random: &RandomWeights<'_>,
        names: &[String],
    ) -> Result<Matrix, LoadError> {
        let format = random.format(&names[0]);
        let (_, columns) = random.shape(&names[0]);
        let rows: u64 = names.iter().map(|name| random.shape(name).0).sum();
        let blocks = columns / BLOCK as u64;
        let mut matrix = Matrix {
            rows: as_u32(rows),
            blocks: as_u32(blocks),
            parts: Vec::new(),
            bytes: 0,
        };
        for (first, count) in shards(self.gpu, format, blocks, rows)? {
            let part = self.empty_part(&names[0], format, blocks, first, count);
            self.patterns.fill_part(self.gpu, &part, columns)?;
            let bytes = part.bytes();
            matrix.bytes += bytes;
            matrix.parts.push(part);
            self.advance(bytes)?;
        }
        Ok(matrix)
    }

    /// Room for rows `first .. first + rows`.
    fn empty_part(
        &self,
        label: &str,
        format: WeightFormat,
        blocks: u64,
        first: u64,
        rows: u64,
    ) -> Part {
        let plane = |row_bytes, unit_bytes, texel_words| {
            let shape = PlaneShape {
                rows,
                units: row_bytes / unit_bytes,
                unit_bytes,
                texel_words,
            };
            Plane::new(self.gpu, label, self.gpu.planes(), shape)
        };
        let quant_bytes = format.quant_row_bytes(blocks);
        let meta_bytes = format.meta_row_bytes(blocks);
        Part {
            format,
            first_row: as_u32(first),
            rows: as_u32(rows),
            quants: plane(quant_bytes, format.quant_unit_bytes(), 4),
            metas: plane(meta_bytes, format.meta_unit_bytes(), 1),
        }
    }

    fn advance(&mut self, bytes: u64) -> Result<(), LoadError> {
        self.done_bytes += bytes;
        if (self.progress)(self.done_bytes) {
            Ok(())
        } else {
            Err(LoadError::Cancelled)
        }
    }

    fn matrix(
        &mut self,
        checkpoint: &Checkpoint,
        names: &[String],
        how: Arrangement,
    ) -> Result<Matrix, LoadError> {
        let tensors: Vec<&TensorInfo> = names.iter().map(|n| file_tensor(checkpoint, n)).collect();
        let blocks = tensors[0].columns() / BLOCK as u64;
        let rows: u64 = tensors.iter().map(|t| t.rows()).sum();
        let mut matrix = Matrix {
            rows: as_u32(rows),
            blocks: as_u32(blocks),
            parts: Vec::new(),
            bytes: 0,
        };
        let mut first = 0;
        for (format, count) in runs(&tensors, how) {
            for (start, rows) in shards(self.gpu, format, blocks, count)? {
                let part = self.empty_part(&names[0], format, blocks, first + start, rows);
                self.fill_part(checkpoint, &tensors, how, blocks, &part)?;
                matrix.bytes += part.bytes();
                matrix.parts.push(part);
            }
            first += count;
        }
        Ok(matrix)
    }

    /// Reads the part's rows of the arrangement.
    fn fill_part(
        &mut self,
        checkpoint: &Checkpoint,
        tensors: &[&TensorInfo],
        how: Arrangement,
        blocks: u64,
        part: &Part,
    ) -> Result<(), LoadError> {
        let (format, rows) = (part.format, u64::from(part.rows));
        let first = u64::from(part.first_row);
        let quant_row = format.quant_row_bytes(blocks);
        let meta_row = format.meta_row_bytes(blocks);
        let source_row = tensors[0].bytes / tensors[0].rows();
        let batch = (PIECE_BYTES / source_row)
            .max(1)
            .next_multiple_of(SHARD_ROWS);
        let mut at = 0;
        while at < rows {
            let count = batch.min(rows - at);
            let mut quant_bytes = vec![0; as_usize(count * quant_row)];
            let mut meta_bytes = vec![0; as_usize(count * meta_row)];
            for row_run in source_runs(tensors, how, first + at, count) {
                let source = read_rows(checkpoint, &row_run)?;
                let stride = as_usize(row_run.tensor.bytes / row_run.tensor.rows());
                for (i, bytes) in source.chunks_exact(stride).enumerate() {
                    let row = row_run.target + i * row_run.step;
                    let plane = PlaneRow {
                        quants: slice_row(&mut quant_bytes, row, as_usize(quant_row)),
                        metas: slice_row(&mut meta_bytes, row, as_usize(meta_row)),
                    };
                    repack::repack_row(row_run.tensor.tensor_type, format, bytes, plane);
                }
                self.advance(source.len() as u64)?;
            }
            part.quants.upload(self.gpu, at, &quant_bytes)?;
            part.metas.upload(self.gpu, at, &meta_bytes)?;
            at += count;
        }
        Ok(())
    }
}

fn file_tensor<'a>(checkpoint: &'a Checkpoint, name: &str) -> &'a TensorInfo {
    checkpoint
        .tensor(name)
        .unwrap_or_else(|| unreachable!("ModelConfig::from_gguf has checked that {name} is there"))
}

fn read_rows(checkpoint: &Checkpoint, run: &RowRun<'_>) -> Result<Vec<u8>, LoadError> {
    let row_bytes = run.tensor.bytes / run.tensor.rows();
    let mut source = vec![0; as_usize(run.count * row_bytes)];
    checkpoint.read(run.tensor, run.row * row_bytes, &mut source)?;
    Ok(source)
}

fn slice_row(bytes: &mut [u8], row: usize, row_bytes: usize) -> &mut [u8] {
    &mut bytes[row * row_bytes..(row + 1) * row_bytes]
}

/// Consecutive rows of one tensor, and where they go in a batch.
struct RowRun<'a> {
    tensor: &'a TensorInfo,
    row: u64,
    count: u64,
    target: usize,
    step: usize,
}

/// The tensors' rows that make up rows `first .. first + count` of the arrangement.
fn source_runs<'a>(
    tensors: &[&'a TensorInfo],
    how: Arrangement,
    first: u64,
    count: u64,
) -> Vec<RowRun<'a>> {
    match how {
        Arrangement::Alternating => tensors
            .iter()
            .enumerate()
            .map(|(i, tensor)| RowRun {
                tensor,
                row: first / 2,
                count: count / 2,
                target: i,
                step: 2,
            })
            .collect(),
        Arrangement::Stacked => {
            let mut runs = Vec::new();
            let mut start = 0;
            for tensor in tensors {
                let end = start + tensor.rows();
                let (from, to) = (first.max(start), (first + count).min(end));
                if from < to {
                    runs.push(RowRun {
                        tensor,
                        row: from - start,
                        count: to - from,
                        target: as_usize(from - first),
                        step: 1,
                    });
                }
                start = end;
            }
            runs
        }
    }
}

/// Rows of one format, in order. Alternating tensors of different types meet in f32.
fn runs(tensors: &[&TensorInfo], how: Arrangement) -> Vec<(WeightFormat, u64)> {
    let native = |t: &TensorInfo| repack::native_format(t.tensor_type).unwrap_or(WeightFormat::F32);
    match how {
        Arrangement::Alternating => {
            let formats: Vec<WeightFormat> = tensors.iter().map(|t| native(t)).collect();
            let one = formats.iter().all(|f| *f == formats[0]);
            let rows = tensors.iter().map(|t| t.rows()).sum();
            vec![(if one { formats[0] } else { WeightFormat::F32 }, rows)]
        }
        Arrangement::Stacked => {
            let mut list: Vec<(WeightFormat, u64)> = Vec::new();
            for tensor in tensors {
                match list.last_mut() {
                    Some((format, rows)) if *format == native(tensor) => *rows += tensor.rows(),
                    _ => list.push((native(tensor), tensor.rows())),
                }
            }
            list
        }
    }
}

/// Cuts `rows` so that no plane exceeds the binding limit: (first row, rows) of each shard.
fn shards(
    gpu: &Gpu,
    format: WeightFormat,
    blocks: u64,
    rows: u64,
) -> Result<Vec<(u64, u64)>, EngineError> {
    let row_bytes = format.quant_row_bytes(blocks);
    let most = Plane::bytes_max(gpu, gpu.planes());
    let fit = most / row_bytes / SHARD_ROWS * SHARD_ROWS;
    if fit == 0 {
        return Err(EngineError::AdapterLacks {
            adapter: gpu.info.name.clone(),
            what: format!(
                "storage bindings of {} bytes: {SHARD_ROWS} rows of a weight matrix need them, \
                 the limit is {most}",
                row_bytes * SHARD_ROWS,
            ),
        });
    }
    Ok((0..rows.div_ceil(fit))
        .map(|i| (i * fit, fit.min(rows - i * fit)))
        .collect())
}

pub(crate) fn as_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| unreachable!("sizes are checked against limits: {n}"))
}

pub(crate) fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| unreachable!("sizes are checked against limits: {n}"))
}
