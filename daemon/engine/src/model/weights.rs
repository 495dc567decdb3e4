//! Weight matrices in GPU memory: read from the file, repacked and uploaded in bounded pieces by a few
//! threads, cut in row shards below the binding limit.

use std::num::NonZero;

use hearth_shaders::{ActivationFormat, WeightFormat};

use super::repack::{self, BLOCK, PlaneRow};
use super::row_source::{PutRow, RowSource, common_order};
use super::spread::spread;
use super::synthetic::{Patterns, RandomWeights};
use crate::error::{EngineError, LoadError};
use crate::format::{Checkpoint, FormatError, TensorInfo};
use crate::gpu::{self, Buffer, Gpu, Plane, PlaneShape};

/// Rows of a shard are a multiple of this, so that no rotation pair and no block of 32 gate and up
/// pairs is cut.
const SHARD_ROWS: u64 = 64;
/// Source bytes that a thread reads at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// Threads that unpack weights: each holds two pieces of them at most.
const LOAD_THREADS_MAX: usize = 4;

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
    /// Which value of its input each column takes, if not its own: u32 `[column]`.
    pub(crate) order: Option<Buffer>,
    pub(crate) bytes: u64,
}

impl Matrix {
    /// Values of its input, if it takes them in an order of its own; else 0.
    pub(crate) fn gathered_dim(&self) -> u64 {
        self.order
            .as_ref()
            .map_or(0, |_| 32 * u64::from(self.blocks))
    }

    /// How what precedes it leaves its input, which it takes as `format`: to be gathered as floats.
    pub(crate) fn left_as(&self, format: ActivationFormat) -> ActivationFormat {
        match self.order {
            Some(_) => ActivationFormat::Float,
            None => format,
        }
    }

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
                    let stored = repack::dequantize_row(tensor.tensor_type, &source);
                    let place = |i: u64| stored[as_usize(tensor.row_order.stored(i))];
                    values.extend((0..stored.len() as u64).map(place));
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
            order: None,
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
        let sources = names
            .iter()
            .map(|name| RowSource::new(checkpoint, file_tensor(checkpoint, name)))
            .collect::<Result<Vec<_>, FormatError>>()?;
        let order = common_order(&sources);
        let tensors: Vec<(&TensorInfo, WeightFormat)> = sources
            .iter()
            .map(|source| (source.tensor, source.format(order.is_some())))
            .collect();
        let blocks = tensors[0].0.columns() / BLOCK as u64;
        let rows: u64 = tensors.iter().map(|(t, _)| t.rows()).sum();
        let mut matrix = Matrix {
            rows: as_u32(rows),
            blocks: as_u32(blocks),
            parts: Vec::new(),
            order: None,
            bytes: 0,
        };
        if let Some(order) = &order {
            let buffer = gpu::storage(self.gpu, &names[0], 4 * order.len() as u64);
            gpu::upload(self.gpu, &buffer, 0, bytemuck::cast_slice(order))?;
            matrix.order = Some(buffer);
        }
        let mut first = 0;
        for (format, count) in runs(&tensors, how) {
            for (start, rows) in shards(self.gpu, format, blocks, count)? {
                let part = self.empty_part(&names[0], format, blocks, first + start, rows);
                self.fill_part(&sources, order.as_deref(), (how, blocks), &part)?;
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
        sources: &[RowSource<'_>],
        order: Option<&[u32]>,
        (how, blocks): (Arrangement, u64),
        part: &Part,
    ) -> Result<(), LoadError> {
        let (format, rows) = (part.format, u64::from(part.rows));
        let first = u64::from(part.first_row);
        let quant_row = format.quant_row_bytes(blocks);
        let meta_row = format.meta_row_bytes(blocks);
        let tensors: Vec<&TensorInfo> = sources.iter().map(|source| source.tensor).collect();
        // What a batch takes of host memory: its planes, and a byte a weight at most while it is read.
        let row_bytes = (quant_row + meta_row).max(BLOCK as u64 * blocks);
        let batch = (PIECE_BYTES / row_bytes)
            .max(1)
            .next_multiple_of(SHARD_ROWS);
        let unpack = |piece: u64| -> Result<Piece, LoadError> {
            let at = piece * batch;
            let count = batch.min(rows - at);
            let mut made = Piece {
                quants: vec![0; as_usize(count * quant_row)],
                metas: vec![0; as_usize(count * meta_row)],
                source_bytes: 0,
            };
            for row_run in source_runs(&tensors, how, first + at, count) {
                let source = &sources[row_run.source];
                let plane = |row: usize| {
                    let row = row_run.target + row * row_run.step;
                    (row * as_usize(quant_row), row * as_usize(meta_row))
                };
                source.read(
                    (row_run.row, row_run.count),
                    order,
                    format,
                    &mut |row, put: &PutRow<'_>| {
                        let (quants, metas) = plane(row);
                        put(PlaneRow {
                            quants: &mut made.quants[quants..][..as_usize(quant_row)],
                            metas: &mut made.metas[metas..][..as_usize(meta_row)],
                        });
                    },
                )?;
                let tensor = source.tensor;
                made.source_bytes += tensor.bytes / tensor.rows() * row_run.count;
            }
            Ok(made)
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = threads.min(LOAD_THREADS_MAX);
        spread(rows.div_ceil(batch), threads, unpack, |piece, made| {
            part.quants.upload(self.gpu, piece * batch, &made.quants)?;
            part.metas.upload(self.gpu, piece * batch, &made.metas)?;
            self.advance(made.source_bytes)
        })
    }
}

/// Rows on their way: what goes into the planes, and how much of the source it was.
struct Piece {
    quants: Vec<u8>,
    metas: Vec<u8>,
    source_bytes: u64,
}

fn file_tensor<'a>(checkpoint: &'a Checkpoint, name: &str) -> &'a TensorInfo {
    checkpoint
        .tensor(name)
        .unwrap_or_else(|| unreachable!("ModelConfig::from_gguf has checked that {name} is there"))
}

/// Consecutive rows of one tensor, and where they go in a batch.
struct RowRun {
    /// Which of the tensors.
    source: usize,
    row: u64,
    count: u64,
    target: usize,
    step: usize,
}

/// The tensors' rows that make up rows `first .. first + count` of the arrangement.
fn source_runs(tensors: &[&TensorInfo], how: Arrangement, first: u64, count: u64) -> Vec<RowRun> {
    match how {
        Arrangement::Alternating => (0..tensors.len())
            .map(|i| RowRun {
                source: i,
                row: first / 2,
                count: count / 2,
                target: i,
                step: 2,
            })
            .collect(),
        Arrangement::Stacked => {
            let mut runs = Vec::new();
            let mut start = 0;
            for (source, tensor) in tensors.iter().enumerate() {
                let end = start + tensor.rows();
                let (from, to) = (first.max(start), (first + count).min(end));
                if from < to {
                    runs.push(RowRun {
                        source,
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
fn runs(tensors: &[(&TensorInfo, WeightFormat)], how: Arrangement) -> Vec<(WeightFormat, u64)> {
    match how {
        Arrangement::Alternating => {
            let one = tensors.iter().all(|(_, f)| *f == tensors[0].1);
            let rows = tensors.iter().map(|(t, _)| t.rows()).sum();
            vec![(if one { tensors[0].1 } else { WeightFormat::F32 }, rows)]
        }
        Arrangement::Stacked => {
            let mut list: Vec<(WeightFormat, u64)> = Vec::new();
            for (tensor, native) in tensors {
                match list.last_mut() {
                    Some((format, rows)) if format == native => *rows += tensor.rows(),
                    _ => list.push((*native, tensor.rows())),
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
