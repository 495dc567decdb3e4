//! Puts operations into a recording: picks the kernel, fills its parameter block, binds its buffers.
//!
//! Knows how each kernel maps threads to work; does not know the order of a forward pass.

use hearth_shaders::params::{
    AttentionParams, CombineParams, EmbedParams, MatrixParams, NormParams, SampleParams,
};
use hearth_shaders::{ActivationFormat, Epilogue, Kernel, MatrixKernel, Planes};

use super::ModelConfig;
use super::scratch::{Acts, RING_LEN, Scratch};
use super::weights::{Matrix, Part};
use crate::error::EngineError;
use crate::gpu::{self, Axis, Bound, Buffer, Gpu, Op, Pipelines, Recording};

/// Row pairs of a workgroup that must hold whole blocks of 32 gate and up pairs.
const GLU_PAIRS: u32 = 32;

/// How many columns a recording is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// A column or two at a time: `gemv`, attention in splits.
    Short,
    /// Many columns: `gemm`, attention in one split.
    Long,
}

/// Which columns an operation runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// The step's columns.
    Columns,
    /// The output columns.
    Outputs,
}

/// What a matrix product reads, writes, and does with its results.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) input: Bound<'a>,
    pub(crate) input_format: ActivationFormat,
    pub(crate) epilogue: Epilogue,
    /// What the epilogue binds, in order.
    pub(crate) targets: Vec<Bound<'a>>,
    pub(crate) out_stride: u32,
    pub(crate) over: Over,
    /// The qkv epilogue's `has_bias`.
    pub(crate) has_bias: bool,
}

/// See the module.
pub(crate) struct Recorder<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) pipelines: &'a mut Pipelines,
    pub(crate) config: &'a ModelConfig,
    pub(crate) scratch: &'a Scratch,
    pub(crate) block_len: u32,
    pub(crate) splits_max: u32,
    pub(crate) width: Width,
    pub(crate) recording: Recording,
}

impl Recorder<'_> {
    fn push<'b, B: Copy + Into<Bound<'b>>>(
        &mut self,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
        bound: &[B],
        grid: [Axis; 3],
    ) -> Result<(), EngineError> {
        let pipeline = self.pipelines.get(self.gpu, kernel, overrides)?;
        let bind_group = pipeline.bind(self.gpu, bound);
        self.recording.ops.push(Op {
            pipeline,
            bind_group,
            grid,
        });
        Ok(())
    }

    /// x = E[token].
    pub(crate) fn embed(&mut self, table: &Matrix) -> Result<(), EngineError> {
        for part in &table.parts {
            let params = gpu::uniform(
                self.gpu,
                &EmbedParams {
                    blocks: table.blocks,
                    first_row: part.first_row,
                    rows: part.rows,
                    vocab: self.config.vocab_size,
                },
            );
            let s = self.scratch;
            let bound = [
                (&params).into(),
                part.quants.bound(),
                part.metas.bound(),
                (&s.step).into(),
                (&s.last_tokens).into(),
                (&s.x).into(),
                (&s.history).into(),
            ];
            let grid = [
                Axis::Fixed(table.blocks.div_ceil(32)),
                Axis::Columns,
                Axis::Fixed(1),
            ];
            let kernel = Kernel::Embed(part.format, self.gpu.planes());
            self.push(kernel, &[("WG", 32)], &bound, grid)?;
        }
        Ok(())
    }

    /// out = rms_norm(x) * weight.
    pub(crate) fn norm(
        &mut self,
        weight: &Buffer,
        out: &Acts,
        format: ActivationFormat,
        over: Over,
    ) -> Result<(), EngineError> {
        let params = gpu::uniform(
            self.gpu,
            &NormParams {
                blocks: self.config.hidden_dim / 32,
                outputs: u32::from(over == Over::Outputs),
                eps: self.config.rms_eps,
                pad: 0,
            },
        );
        let columns = if over == Over::Outputs {
            Axis::Outputs
        } else {
            Axis::Columns
        };
        let s = self.scratch;
        self.push(
            Kernel::Norm(format, self.gpu.reduction),
            &[("WG", 64), ("TPR", self.gpu.threads_per_row)],
            &[
                (&params).into(),
                (&s.step).into(),
                out.bound(format),
                (&s.x).into(),
                weight.into(),
            ],
            [columns, Axis::Fixed(1), Axis::Fixed(1)],
        )
    }

    /// A matrix product with its epilogue, part by part.
    pub(crate) fn product(&mut self, product: &Product<'_>) -> Result<(), EngineError> {
        for part in &product.matrix.parts {
            let params = gpu::uniform(self.gpu, &self.matrix_params(product, part));
            let mut bound = vec![
                (&params).into(),
                part.quants.bound(),
                part.metas.bound(),
                product.input,
                (&self.scratch.step).into(),
            ];
            bound.extend(&product.targets);
            let matrix = MatrixKernel {
                weights: part.format,
                activations: product.input_format,
                epilogue: product.epilogue,
            };
            match self.width {
                Width::Short => self.gemv(matrix, part.pairs(), &bound, product.over)?,
                Width::Long => self.gemm(matrix, part.pairs(), &bound, product.over)?,
            }
        }
        Ok(())
    }

    fn matrix_params(&self, product: &Product<'_>, part: &Part) -> MatrixParams {
        let c = self.config;
        MatrixParams {
            pairs: part.pairs(),
            blocks: product.matrix.blocks,
            first_row: part.first_row,
            rows: product.matrix.rows,
            out_stride: product.out_stride,
            q_rows: c.n_heads * c.head_dim,
            kv_rows: c.n_kv_heads * c.head_dim,
            head_dim: c.head_dim,
            rope_pairs: c.rope.dim / 2,
            block_len: self.block_len,
            has_bias: u32::from(product.has_bias),
            // The output columns' number is not in the step; a tile past them writes rows of the
            // logits buffer that nobody reads.
            columns_max: if product.over == Over::Outputs {
                super::OUTPUTS_MAX
            } else {
                0
            },
        }
    }

    fn gemv(
        &mut self,
        matrix: MatrixKernel,
        pairs: u32,
        bound: &[Bound<'_>],
        over: Over,
    ) -> Result<(), EngineError> {
        let columns = if over == Over::Outputs {
            Axis::Outputs
        } else {
            Axis::Columns
        };
        if self.gpu.planes() == Planes::Images {
            let kernel = Kernel::GemvRows(matrix, self.gpu.reduction);
            return self.rows(kernel, matrix.epilogue, pairs, bound, columns);
        }
        let lanes = self.gpu.threads_per_row;
        let threads = if lanes >= 32 { 128 } else { 64 };
        let runs = threads / lanes;
        let passes = match matrix.epilogue {
            Epilogue::Glu(_) => GLU_PAIRS / runs,
            _ => 1,
        };
        self.push(
            Kernel::Gemv(matrix, self.gpu.reduction),
            &[("WG", threads), ("TPR", lanes), ("PASSES", passes)],
            bound,
            [
                Axis::Fixed(pairs.div_ceil(runs * passes)),
                columns,
                Axis::Fixed(1),
            ],
        )
    }

    fn gemm(
        &mut self,
        matrix: MatrixKernel,
        pairs: u32,
        bound: &[Bound<'_>],
        over: Over,
    ) -> Result<(), EngineError> {
        let columns = if over == Over::Outputs {
            Axis::OutputTiles
        } else {
            Axis::ColumnTiles
        };
        if self.gpu.planes() == Planes::Images {
            let kernel = Kernel::GemmRows(matrix, self.gpu.reduction);
            return self.rows(kernel, matrix.epilogue, pairs, bound, columns);
        }
        self.push(
            Kernel::Gemm(matrix, self.gpu.reduction),
            &[("WG", GLU_PAIRS)],
            bound,
            [
                Axis::Fixed(pairs.div_ceil(GLU_PAIRS)),
                columns,
                Axis::Fixed(1),
            ],
        )
    }

    /// The mapping of software adapters: a thread walks two row pairs.
    fn rows(
        &mut self,
        kernel: Kernel,
        epilogue: Epilogue,
        pairs: u32,
        bound: &[Bound<'_>],
        columns: Axis,
    ) -> Result<(), EngineError> {
        let threads = match epilogue {
            Epilogue::Glu(_) => GLU_PAIRS / 2,
            _ => 8,
        };
        self.push(
            kernel,
            &[("WG", threads)],
            bound,
            [
                Axis::Fixed(pairs.div_ceil(2 * threads)),
                columns,
                Axis::Fixed(1),
            ],
        )
    }

    /// attended = softmax(q K^T / sqrt(head_dim)) V.
    pub(crate) fn attention(
        &mut self,
        k: &Buffer,
        v: &Buffer,
        format: ActivationFormat,
    ) -> Result<(), EngineError> {
        let c = self.config;
        let splits_max = if self.width == Width::Short {
            self.splits_max
        } else {
            1
        };
        let params = gpu::uniform(
            self.gpu,
            &AttentionParams {
                head_dim: c.head_dim,
                kv_heads: c.n_kv_heads,
                block_len: self.block_len,
                splits_max,
                window: 0,
                scale: 1.0 / f32::from(u16::try_from(c.head_dim).unwrap_or(u16::MAX)).sqrt(),
                pad: [0; 2],
            },
        );
        let s = self.scratch;
        let chunks = c.head_dim / 8;
        let lanes = self.gpu.threads_per_row.min(1 << chunks.ilog2());
        let overrides = [
            ("WG", 64),
            ("TPR", lanes),
            ("G", c.n_heads / c.n_kv_heads),
            ("CHUNKS", chunks.div_ceil(lanes)),
            ("HEAD_DIM", c.head_dim),
        ];
        let kernel = Kernel::Attention(self.gpu.reduction);
        let buffers = [&params, &s.q, k, v, &s.step, &s.partial, &s.sums];
        let kv_heads = Axis::Fixed(c.n_kv_heads);
        self.push(
            kernel,
            &overrides,
            &buffers,
            [kv_heads, Axis::Columns, Axis::Splits],
        )?;
        let blocks = c.n_heads * c.head_dim / 32;
        let params = gpu::uniform(
            self.gpu,
            &CombineParams {
                blocks,
                heads: c.n_heads,
                head_dim: c.head_dim,
                splits_max,
            },
        );
        self.push(
            Kernel::Combine(format),
            &[("WG", 32)],
            &[
                (&params).into(),
                (&s.step).into(),
                s.attended.bound(format),
                (&s.partial).into(),
                (&s.sums).into(),
            ],
            [
                Axis::Fixed(blocks.div_ceil(32)),
                Axis::Columns,
                Axis::Fixed(1),
            ],
        )
    }

    /// The next token of each output column.
    pub(crate) fn sample(&mut self) -> Result<(), EngineError> {
        let params = gpu::uniform(
            self.gpu,
            &SampleParams {
                vocab: self.config.vocab_size,
                ring_len: RING_LEN,
                pad: [0; 2],
            },
        );
        let s = self.scratch;
        self.push(
            Kernel::Sample(self.gpu.reduction),
            &[("WG", 256), ("TPR", self.gpu.threads_per_row)],
            &[
                &params,
                &s.step,
                &s.logits,
                &s.history,
                &s.samplings,
                &s.ring,
                &s.last_tokens,
            ],
            [Axis::Outputs, Axis::Fixed(1), Axis::Fixed(1)],
        )
    }
}
