//! Puts operations into a recording: picks the kernel, fills its parameter block, binds its buffers.
//!
//! Knows how each kernel maps threads to work; does not know the order of a forward pass.

use hearth_shaders::params::PEAK_PARTS;
use hearth_shaders::params::{
    AttentionParams, BiasParams, CombineParams, EmbedParams, GatherParams, MatrixParams,
    NormParams, SampleParams,
};
use hearth_shaders::{
    ActivationFormat, COOPERATIVE_COLUMNS, COOPERATIVE_PAIRS, Epilogue, GemvInput, Kernel,
    MatrixKernel, Planes, Reduction,
};

use super::ModelConfig;
use super::choices::{Choices, Mapping, Way};
use super::plan;
use super::scratch::{Acts, RING_LEN, Scratch};
use super::weights::{Matrix, Part};
use crate::engine::AdapterKind;
use crate::error::EngineError;
use crate::gpu::{self, Axis, Bound, Buffer, Gpu, Op, Pipelines, Reads, Recording};

/// How many columns a recording is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// Up to so many columns, a power of two: `gemv`, attention in splits.
    Short(u32),
    /// Many columns: `gemm`, attention in one split.
    Long,
}

/// Columns that `gemv` does together in long steps, where no kernel for them runs.
const LONG_TOGETHER: u32 = 8;

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
    pub(crate) input: &'a Acts,
    /// Weights of the norm that makes `input` of the residual stream, if one does.
    pub(crate) norm: Option<&'a Buffer>,
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
    pub(crate) choices: &'a Choices,
    pub(crate) config: &'a ModelConfig,
    pub(crate) scratch: &'a Scratch,
    pub(crate) block_len: u32,
    pub(crate) splits_max: u32,
    pub(crate) width: Width,
    /// Cooperative matrices are there and work.
    pub(crate) cooperative_matrix: bool,
    pub(crate) recording: Recording,
}

impl Recorder<'_> {
    pub(super) fn push<'b, B: Copy + Into<Bound<'b>>>(
        &mut self,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
        bound: &[B],
        grid: [Axis; 3],
    ) -> Result<(), EngineError> {
        let mut overrides = overrides.to_vec();
        if kernel.reduction() == Some(Reduction::Subgroup) {
            overrides.push(("SG", self.gpu.threads_per_row));
        }
        let pipeline = self.pipelines.get(self.gpu, kernel, &overrides)?;
        let bind_group = pipeline.bind(self.gpu, bound);
        self.recording.ops.push(Op {
            pipeline,
            bind_group,
            grid,
            only_split: false,
            reads: Reads::Little,
        });
        Ok(())
    }

    /// Notes what the last dispatch reads.
    pub(super) fn reads(&mut self, reads: Reads) {
        if let Some(op) = self.recording.ops.last_mut() {
            op.reads = reads;
        }
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

    /// out = rms_norm(x) * weight, by workgroups of so many threads.
    fn norm(
        &mut self,
        weight: &Buffer,
        out: &Acts,
        format: ActivationFormat,
        over: Over,
        threads: u32,
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
        let (reduction, threads) = self.choices.norm(self.gpu, format, threads);
        self.push(
            Kernel::Norm(format, reduction),
            &[("WG", threads), ("TPR", 8)],
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

    /// gathered = the product's input, floats until then, in the order of its columns.
    fn gather(&mut self, order: &Buffer, product: &Product<'_>) -> Result<(), EngineError> {
        let blocks = product.matrix.blocks;
        let params = gpu::uniform(
            self.gpu,
            &GatherParams {
                blocks,
                pad: [0; 3],
            },
        );
        let columns = match product.over {
            Over::Outputs => Axis::Outputs,
            Over::Columns => Axis::Columns,
        };
        self.push(
            Kernel::Gather(product.input_format),
            &[("WG", 32)],
            &[
                (&params).into(),
                self.scratch.gathered.bound(product.input_format),
                product.input.bound(ActivationFormat::Float),
                order.into(),
            ],
            [Axis::Fixed(blocks.div_ceil(32)), columns, Axis::Fixed(1)],
        )
    }

    /// x += bias.
    pub(crate) fn add_bias(&mut self, bias: &Buffer) -> Result<(), EngineError> {
        let groups = self.config.hidden_dim / 4;
        let params = gpu::uniform(
            self.gpu,
            &BiasParams {
                groups,
                pad: [0; 3],
            },
        );
        self.push(
            Kernel::AddBias,
            &[("WG", 64)],
            &[&params, &self.scratch.x, bias],
            [
                Axis::Fixed(groups.div_ceil(64)),
                Axis::Columns,
                Axis::Fixed(1),
            ],
        )
    }

    /// A matrix product with its epilogue, part by part, after the norm of its input if it has one.
    pub(crate) fn product(&mut self, product: &Product<'_>) -> Result<(), EngineError> {
        let columns = match self.width {
            Width::Short(columns) => columns,
            Width::Long => 1,
        };
        let short = self.choices.short(self.gpu, product, columns);
        let way = match self.width {
            Width::Short(_) => short,
            Width::Long => self.choices.long(self.gpu, product),
        };
        let runs = way.mapping == Mapping::Runs;
        let gathered = product.matrix.order.as_ref();
        let own_norm =
            self.width == Width::Short(1) && runs && way.cut.own_norm && gathered.is_none();
        if let (Some(weight), false) = (product.norm, own_norm) {
            let threads = if self.gpu.info.kind == AdapterKind::Software {
                64
            } else {
                // The order of its sum is then that of products that norm their own input.
                short.cut.plan.threads
            };
            let format = product.matrix.left_as(product.input_format);
            self.norm(weight, product.input, format, product.over, threads)?;
        }
        if let Some(order) = gathered {
            self.gather(order, product)?;
        }
        for part in &product.matrix.parts {
            let params = gpu::uniform(self.gpu, &self.matrix_params(product, part));
            let input = match product.norm {
                Some(_) if own_norm => (&self.scratch.x).into(),
                _ if gathered.is_some() => self.scratch.gathered.bound(product.input_format),
                _ => product.input.bound(product.input_format),
            };
            let mut bound = vec![
                (&params).into(),
                part.quants.bound(),
                part.metas.bound(),
                input,
                (&self.scratch.step).into(),
            ];
            bound.extend(&product.targets);
            let matrix = MatrixKernel {
                weights: part.format,
                activations: product.input_format,
                epilogue: product.epilogue,
            };
            match way.mapping {
                Mapping::Runs => {
                    let stored =
                        |columns| plan::stored_input(self.gpu, way.cut.plan, matrix, columns);
                    let input = match (product.norm, self.width) {
                        (Some(weight), _) if own_norm => {
                            bound.push(weight.into());
                            GemvInput::Normed
                        }
                        (_, Width::Short(columns)) => stored(columns),
                        (_, Width::Long) => stored(LONG_TOGETHER),
                    };
                    self.gemv(matrix, input, way, part, &bound, product)?;
                }
                Mapping::Rows => self.gemv_rows(matrix, way, part, &bound, product.over)?,
                _ => self.gemm(matrix, way, part, &bound, product.over)?,
            }
            self.reads(Reads::Weights(part.bytes()));
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
            eps: c.rms_eps,
            pad: [0; 3],
        }
    }

    fn gemv_rows(
        &mut self,
        matrix: MatrixKernel,
        way: Way,
        part: &Part,
        bound: &[Bound<'_>],
        over: Over,
    ) -> Result<(), EngineError> {
        let columns = if over == Over::Outputs {
            Axis::Outputs
        } else {
            Axis::Columns
        };
        let threads = plan::rows_threads(Planes::Images, matrix.epilogue);
        self.push(
            Kernel::GemvRows(matrix, way.reduction),
            &[("WG", threads)],
            bound,
            [
                Axis::Fixed(part.pairs().div_ceil(2 * threads)),
                columns,
                Axis::Fixed(1),
            ],
        )
    }

    fn gemv(
        &mut self,
        matrix: MatrixKernel,
        input: GemvInput,
        way: Way,
        part: &Part,
        bound: &[Bound<'_>],
        product: &Product<'_>,
    ) -> Result<(), EngineError> {
        let columns = if product.over == Over::Outputs {
            Axis::OutputTiles(input.columns())
        } else {
            Axis::ColumnTiles(input.columns())
        };
        let plan = way.cut.plan.of(self.gpu, matrix.epilogue, input);
        let together = plan.pairs() * input.pairs();
        let pairs = part.pairs();
        let mut overrides = plan.overrides(pairs, product.matrix.blocks);
        if input == GemvInput::Normed {
            overrides.push(("OUTPUTS", u32::from(product.over == Over::Outputs)));
        }
        self.push(
            Kernel::Gemv(matrix, way.reduction, input),
            &overrides,
            bound,
            [
                Axis::Fixed(pairs.div_ceil(together)),
                columns,
                Axis::Fixed(1),
            ],
        )
    }

    fn gemm(
        &mut self,
        matrix: MatrixKernel,
        way: Way,
        part: &Part,
        bound: &[Bound<'_>],
        over: Over,
    ) -> Result<(), EngineError> {
        let place = self.gpu.planes();
        let threads = plan::rows_threads(place, matrix.epilogue);
        let (kernel, tile_pairs, tile_columns) = match way.mapping {
            Mapping::Cooperative => (
                Kernel::GemmCoop(matrix),
                COOPERATIVE_PAIRS,
                COOPERATIVE_COLUMNS,
            ),
            Mapping::Tile(tile) => (Kernel::Gemm(matrix, tile), tile.pairs(), tile.columns()),
            Mapping::TileRows { columns } => (
                Kernel::GemmRows(matrix, way.reduction, place, columns),
                2 * threads,
                columns,
            ),
            Mapping::Runs | Mapping::Rows => unreachable!("those have kernels of their own"),
        };
        let overrides: &[(&'static str, u32)] = match kernel {
            Kernel::GemmRows(..) => &[("WG", threads)],
            _ => &[],
        };
        let columns = match over {
            Over::Outputs => Axis::OutputTiles(tile_columns),
            Over::Columns => Axis::ColumnTiles(tile_columns),
        };
        self.push(
            kernel,
            overrides,
            bound,
            [
                Axis::Fixed(part.pairs().div_ceil(tile_pairs)),
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
        let group = c.n_heads / c.n_kv_heads;
        let splits_max = match self.width {
            Width::Short(_) => self.splits_max,
            Width::Long => {
                let plan =
                    gpu::prefill_attention(c.head_dim, group, format, self.cooperative_matrix);
                let memory = self.gpu.device.limits().max_compute_workgroup_storage_size;
                if plan.shared_bytes <= memory && !self.choices.is_refused(plan.kernel) {
                    return self.attention_long(k, v, format);
                }
                1
            }
        };
        let (kernel, threads, reduction) =
            self.choices
                .attention(self.gpu, c.head_dim, group, self.block_len, format);
        let params = gpu::uniform(self.gpu, &self.attention_params(splits_max));
        let s = self.scratch;
        self.push(
            Kernel::Attention(kernel, reduction),
            &[("WG", threads), ("TPR", kernel.lanes)],
            &[
                (&params).into(),
                (&s.q).into(),
                k.into(),
                v.into(),
                (&s.step).into(),
                s.attended.bound(format),
                (&s.partial).into(),
                (&s.sums).into(),
            ],
            [
                Axis::Fixed(c.n_kv_heads * group.div_ceil(kernel.heads)),
                Axis::Columns,
                Axis::Splits,
            ],
        )?;
        self.reads(Reads::Kv(4 * u64::from(c.n_kv_heads * c.head_dim)));
        self.combine(splits_max, kernel.direct(), format)
    }

    pub(super) fn attention_params(&self, splits_max: u32) -> AttentionParams {
        let c = self.config;
        AttentionParams {
            head_dim: c.head_dim,
            kv_heads: c.n_kv_heads,
            block_len: self.block_len,
            splits_max,
            window: c.sliding_window.unwrap_or(0),
            scale: 1.0 / f32::from(u16::try_from(c.head_dim).unwrap_or(u16::MAX)).sqrt(),
            group: c.n_heads / c.n_kv_heads,
            pad: 0,
        }
    }

    /// attended = the splits in `partial`, joined.
    pub(super) fn combine(
        &mut self,
        splits_max: u32,
        direct: bool,
        format: ActivationFormat,
    ) -> Result<(), EngineError> {
        let c = self.config;
        let blocks = c.n_heads * c.head_dim / 32;
        let params = gpu::uniform(
            self.gpu,
            &CombineParams {
                blocks,
                heads: c.n_heads,
                head_dim: c.head_dim,
                splits_max,
                direct: u32::from(direct),
                pad: [0; 3],
            },
        );
        let s = self.scratch;
        let threads = if self.gpu.info.kind == AdapterKind::Software {
            8
        } else {
            64
        };
        self.push(
            Kernel::Combine(format),
            &[("WG", threads)],
            &[
                (&params).into(),
                (&s.step).into(),
                s.attended.bound(format),
                (&s.partial).into(),
                (&s.sums).into(),
            ],
            [Axis::Fixed(blocks), Axis::Columns, Axis::Fixed(1)],
        )?;
        if let Some(op) = self.recording.ops.last_mut() {
            op.only_split = direct;
        }
        Ok(())
    }

    /// The next token of each output column.
    pub(crate) fn sample(&mut self) -> Result<(), EngineError> {
        let software = self.gpu.info.kind == AdapterKind::Software;
        let parts = if software { 8 } else { PEAK_PARTS };
        let params = gpu::uniform(
            self.gpu,
            &SampleParams {
                vocab: self.config.vocab_size,
                ring_len: RING_LEN,
                parts,
                pad: 0,
            },
        );
        let s = self.scratch;
        self.push(
            Kernel::Peaks,
            &[("WG", 256)],
            &[
                &params,
                &s.step,
                &s.logits,
                &s.history,
                &s.samplings,
                &s.peaks,
            ],
            [Axis::Fixed(parts), Axis::Outputs, Axis::Fixed(1)],
        )?;
        // The draw of one sequence is one workgroup's: the more threads the better.
        let limit = self
            .gpu
            .device
            .limits()
            .max_compute_invocations_per_workgroup;
        // A power of two: they halve their number until one is left.
        let threads = if software {
            256
        } else {
            1 << limit.clamp(1, 1024).ilog2()
        };
        let (reduction, threads) = self.choices.sample(self.gpu, threads);
        self.push(
            Kernel::Sample(reduction),
            &[("WG", threads), ("TPR", 8)],
            &[
                &params,
                &s.peaks,
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
