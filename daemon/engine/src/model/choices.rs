//! Which kernel each operation takes: the tuned or guessed one, and after a refusal by the driver the
//! next of its chain.
//!
//! A choice holds for every width of a recording, so that a sum has one order whoever is in the step.

use std::collections::{HashMap, HashSet};

use hearth_shaders::{
    ActivationFormat, AttentionKernel, Epilogue, GemvInput, Kernel, MatrixKernel, Planes,
    Reduction, TILE_COLUMNS, TILE_COLUMNS_FEW, Tile,
};

use super::plan::{self, GemvPlan};
use super::recorder::Product;
use super::weights::Part;
use crate::gpu::{Gpu, Overrides};

/// Columns of the stored inputs whose plans may differ: two are done as one is.
const INPUT_COLUMNS: [u32; 4] = [1, 4, 8, 16];
const TILE_ROWS: Mapping = Mapping::TileRows {
    columns: TILE_COLUMNS,
};
const TILE_ROWS_FEW: Mapping = Mapping::TileRows {
    columns: TILE_COLUMNS_FEW,
};
/// Threads of the norm where more are refused.
const NORM_THREADS_MIN: u32 = 64;
/// Threads of sampling where more are refused.
const SAMPLE_THREADS_MIN: u32 = 256;

/// What the tuner chooses for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cut {
    pub(crate) plan: GemvPlan,
    /// A single column is normed by the product itself.
    pub(crate) own_norm: bool,
}

/// How a product maps threads to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// `gemv`: a run of threads shares a row pair.
    Runs,
    /// `gemv_rows`: a thread walks row pairs; for software adapters.
    Rows,
    /// `gemm_rows`: the same with a tile of so many columns.
    TileRows {
        /// `TILE_COLUMNS` or `TILE_COLUMNS_FEW`.
        columns: u32,
    },
    /// `gemm`: a tile of columns.
    Tile(Tile),
    /// Cooperative matrices.
    Cooperative,
}

/// How a product of few columns runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) mapping: Mapping,
    pub(crate) reduction: Reduction,
    pub(crate) cut: Cut,
}

impl Product<'_> {
    /// What it is and its sizes, as one line: products of one name are tuned as one.
    pub(crate) fn name(&self) -> String {
        let mut kernels: Vec<String> = Vec::new();
        for matrix in self.kernels() {
            let input = GemvInput::Stored { columns: 1 };
            let name = Kernel::Gemv(matrix, Reduction::Shared, input).name();
            if !kernels.contains(&name) {
                kernels.push(name);
            }
        }
        let (rows, columns) = (self.matrix.rows, 32 * self.matrix.blocks);
        let norm = if self.norm.is_some() { " normed" } else { "" };
        let gathered = match self.matrix.order {
            Some(_) => " gathered",
            None => "",
        };
        format!("{}{norm}{gathered} {rows}x{columns}", kernels.join("+"))
    }

    /// The products of its parts.
    fn kernels(&self) -> impl Iterator<Item = MatrixKernel> {
        self.matrix.parts.iter().map(|part| MatrixKernel {
            weights: part.format,
            activations: self.input_format,
            epilogue: self.epilogue,
        })
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Choices {
    /// The tuner's, by the product's name.
    tuned: HashMap<String, Cut>,
    /// What the driver refused: kernels and their threads; of two columns, as of one.
    refused: HashSet<(Kernel, GemvPlan)>,
    /// No product takes int8 any more.
    pub(crate) float: bool,
    /// Nor cooperative matrices.
    pub(crate) no_cooperative: bool,
}

impl Choices {
    /// Takes `cut` for products of this name from now on; `None`: the first guess.
    pub(crate) fn tune(&mut self, product: &str, cut: Option<Cut>) {
        match cut {
            Some(cut) => self.tuned.insert(product.to_owned(), cut),
            None => self.tuned.remove(product),
        };
    }

    /// Tells whether a cut was chosen for products of this name.
    pub(crate) fn tuned(&self, product: &str) -> bool {
        self.tuned.contains_key(product)
    }

    /// Cuts of a product, the first guess first: the tuner's candidates.
    pub(crate) fn cuts(&self, gpu: &Gpu, product: &Product<'_>) -> Vec<Cut> {
        let blocks = product.matrix.blocks;
        let normed = product.norm.is_some()
            && product.matrix.order.is_none()
            && plan::norms_own_input(gpu, product.input_format, blocks)
            && !self.is_refused(Kernel::Norm(product.input_format, Reduction::Shared));
        let pairs = product.matrix.parts.iter().map(Part::pairs).max();
        let plans = plan::gemv_plans_for(gpu, product.epilogue, blocks, pairs.unwrap_or(0));
        let own: &[bool] = if normed { &[true, false] } else { &[false] };
        own.iter()
            .flat_map(|&own_norm| plans.iter().map(move |&plan| Cut { plan, own_norm }))
            .collect()
    }

    /// How `product` runs over a step of up to `columns` columns.
    pub(crate) fn short(&self, gpu: &Gpu, product: &Product<'_>, columns: u32) -> Way {
        let mappings = match gpu.planes() {
            // A column's sums are the same to the bit in all of them.
            Planes::Images => match columns {
                1 => [Mapping::Rows, TILE_ROWS],
                2..=TILE_COLUMNS_FEW => [TILE_ROWS_FEW, Mapping::Rows],
                _ => [TILE_ROWS, Mapping::Rows],
            },
            Planes::Buffers => [Mapping::Runs, TILE_ROWS],
        };
        self.way(gpu, product, &mappings)
    }

    /// How `product` runs over many columns.
    pub(crate) fn long(&self, gpu: &Gpu, product: &Product<'_>) -> Way {
        if product.input_format == ActivationFormat::Half {
            return self.way(gpu, product, &[Mapping::Cooperative]);
        }
        let mut mappings = Vec::new();
        // A software adapter's workgroup memory is slow.
        if gpu.planes() == Planes::Buffers {
            let tiles = plan::gemm_tiles(gpu, product.input_format);
            mappings.extend(tiles.map(Mapping::Tile));
        }
        mappings.push(TILE_ROWS);
        mappings.push(match gpu.planes() {
            Planes::Images => Mapping::Rows,
            Planes::Buffers => Mapping::Runs,
        });
        self.way(gpu, product, &mappings)
    }

    /// The first way that was not refused; the first of all if all were.
    fn way(&self, gpu: &Gpu, product: &Product<'_>, mappings: &[Mapping]) -> Way {
        let mut cuts = self.cuts(gpu, product);
        if let Some(&cut) = self.tuned.get(&product.name()) {
            cuts.insert(0, cut);
        }
        let ways = mappings.iter().flat_map(|&mapping| {
            let cuts = if mapping == Mapping::Runs {
                &cuts[..]
            } else {
                &cuts[..1]
            };
            reductions(gpu).iter().flat_map(move |&reduction| {
                cuts.iter().map(move |&cut| Way {
                    mapping,
                    reduction,
                    cut,
                })
            })
        });
        let mut first = None;
        for way in ways {
            if product.kernels().all(|m| self.runs(gpu, m, way)) {
                return way;
            }
            first.get_or_insert(way);
        }
        first.unwrap_or(Way {
            mapping: mappings[0],
            reduction: gpu.reduction,
            cut: cuts[0],
        })
    }

    fn runs(&self, gpu: &Gpu, matrix: MatrixKernel, way: Way) -> bool {
        let kernel = match way.mapping {
            Mapping::Runs => {
                let cut = way.cut;
                let normed = Kernel::Gemv(matrix, way.reduction, GemvInput::Normed);
                // Its own norm must add as the norm kernel does for more columns.
                let norm = self.norm(gpu, matrix.activations, cut.plan.threads);
                let own_norm_runs = norm == (way.reduction, cut.plan.threads)
                    && !self.refused.contains(&(normed, cut.plan));
                return self.cut_runs(gpu, matrix, way.reduction, cut.plan)
                    && (!cut.own_norm || own_norm_runs);
            }
            Mapping::Rows => Kernel::GemvRows(matrix, way.reduction),
            Mapping::TileRows { columns } => {
                Kernel::GemmRows(matrix, way.reduction, gpu.planes(), columns)
            }
            Mapping::Tile(tile) => Kernel::Gemm(matrix, tile),
            Mapping::Cooperative => Kernel::GemmCoop(matrix),
        };
        !self.is_refused(kernel)
    }

    /// Tells whether no `gemv` of stored activations was refused that a step of some width takes.
    fn cut_runs(
        &self,
        gpu: &Gpu,
        matrix: MatrixKernel,
        reduction: Reduction,
        plan: GemvPlan,
    ) -> bool {
        INPUT_COLUMNS.into_iter().all(|columns| {
            let input = plan::stored_input(gpu, plan, matrix, columns);
            let kernel = Kernel::Gemv(matrix, reduction, input);
            let plan = plan.of(gpu, matrix.epilogue, input);
            !self.refused.contains(&(kernel, plan))
        })
    }

    /// The norm's reduction and threads, at most `threads`.
    pub(crate) fn norm(
        &self,
        gpu: &Gpu,
        format: ActivationFormat,
        threads: u32,
    ) -> (Reduction, u32) {
        let kernel = |reduction| Kernel::Norm(format, reduction);
        self.by_threads(gpu, kernel, threads, NORM_THREADS_MIN)
    }

    /// Sampling's reduction and threads, at most `threads`.
    pub(crate) fn sample(&self, gpu: &Gpu, threads: u32) -> (Reduction, u32) {
        self.by_threads(gpu, Kernel::Sample, threads, SAMPLE_THREADS_MIN)
    }

    fn by_threads(
        &self,
        gpu: &Gpu,
        kernel: impl Fn(Reduction) -> Kernel,
        threads: u32,
        least: u32,
    ) -> (Reduction, u32) {
        let reduction = reductions(gpu)
            .iter()
            .copied()
            .find(|&r| !self.is_refused(kernel(r)));
        match reduction {
            Some(reduction) => (reduction, threads),
            None => (Reduction::Shared, threads.min(least)),
        }
    }

    /// Attention's kernel, threads and reduction: shorter runs of loads, then fewer heads a workgroup,
    /// then no subgroups.
    pub(crate) fn attention(
        &self,
        gpu: &Gpu,
        head_dim: u32,
        group: u32,
        block_len: u32,
        format: ActivationFormat,
    ) -> (AttentionKernel, u32, Reduction) {
        let (guess, threads) = plan::attention_plan(gpu, head_dim, group, block_len, format);
        let smaller = |kernel: &AttentionKernel| {
            let mut kernel = *kernel;
            if kernel.ahead > 1 {
                kernel.ahead /= 2;
            } else if kernel.heads > 1 {
                kernel.heads = group.div_ceil(group.div_ceil(kernel.heads / 2));
            } else {
                return None;
            }
            Some(kernel)
        };
        let (kernel, reduction) = reductions(gpu)
            .iter()
            .flat_map(|&r| std::iter::successors(Some(guess), smaller).map(move |k| (k, r)))
            .find(|&(k, r)| !self.is_refused(Kernel::Attention(k, r)))
            .unwrap_or((guess, gpu.reduction));
        (kernel, threads, reduction)
    }

    /// Tells whether `kernel` was refused with whatever threads.
    pub(crate) fn is_refused(&self, kernel: Kernel) -> bool {
        self.refused.iter().any(|(k, _)| *k == kernel)
    }

    /// Does without a kernel that the driver refused. False: it is the last of its chain, or was done
    /// without before.
    pub(crate) fn refuse(&mut self, gpu: &Gpu, kernel: Kernel, overrides: &Overrides) -> bool {
        let value = |name| {
            let found = overrides.iter().find(|(key, _)| *key == name);
            found.map_or(0, |(_, value)| *value)
        };
        let plan = GemvPlan {
            threads: value("WG"),
            lanes: value("TPR"),
            passes: value("PASSES"),
        };
        let (kernel, plan) = match kernel {
            Kernel::Gemv(matrix, reduction, GemvInput::Stored { columns: 2 }) => {
                let input = GemvInput::Stored { columns: 1 };
                (Kernel::Gemv(matrix, reduction, input), plan)
            }
            other => (other, plan),
        };
        let new = self.refused.insert((kernel, plan));
        // Halves are there for cooperative matrices alone.
        let cooperative = !self.no_cooperative
            && (kernel.uses_cooperative_matrix()
                || takes(kernel, ActivationFormat::Half)
                    && self.is_last(gpu, kernel, value("BLOCKS")));
        self.no_cooperative |= cooperative;
        let float = !self.float
            && takes(kernel, ActivationFormat::Int8)
            && self.is_last(gpu, kernel, value("BLOCKS"));
        self.float |= float;
        new || float || cooperative
    }

    /// Tells whether no other kernel of the same activations takes the place of this one at the same
    /// speed or nearly.
    fn is_last(&self, gpu: &Gpu, kernel: Kernel, blocks: u32) -> bool {
        let all = |of: &dyn Fn(Reduction) -> Kernel| {
            let mut list = reductions(gpu).iter();
            list.all(|&r| self.is_refused(of(r)))
        };
        match kernel {
            Kernel::Gemv(matrix, ..) => {
                let plans = plan::gemv_plans(gpu, matrix.epilogue, blocks);
                reductions(gpu).iter().all(|&reduction| {
                    let runs = |plan: &GemvPlan| self.cut_runs(gpu, matrix, reduction, *plan);
                    !plans.iter().any(runs)
                })
            }
            Kernel::GemvRows(matrix, _) => all(&|r| Kernel::GemvRows(matrix, r)),
            Kernel::GemmRows(matrix, _, place, columns) => {
                all(&|r| Kernel::GemmRows(matrix, r, place, columns))
            }
            Kernel::Gemm(..) => false,
            Kernel::Norm(format, _) => {
                let kernel = Kernel::Norm(format, Reduction::Shared);
                let least = |p: &GemvPlan| p.threads <= NORM_THREADS_MIN;
                self.refused.iter().any(|(k, p)| *k == kernel && least(p))
            }
            Kernel::Attention(k, _) => {
                let least = AttentionKernel {
                    heads: 1,
                    ahead: 1,
                    ..k
                };
                all(&|r| Kernel::Attention(least, r))
            }
            _ => true,
        }
    }
}

/// The reductions that this adapter runs, the faster first.
fn reductions(gpu: &Gpu) -> &'static [Reduction] {
    match gpu.reduction {
        Reduction::Subgroup => &[Reduction::Subgroup, Reduction::Shared],
        Reduction::Shared => &[Reduction::Shared],
    }
}

/// Tells whether a kernel reads or writes activations of that format.
fn takes(kernel: Kernel, wanted: ActivationFormat) -> bool {
    let format = match kernel {
        Kernel::Gemv(m, ..)
        | Kernel::GemvRows(m, _)
        | Kernel::GemmRows(m, ..)
        | Kernel::Gemm(m, _) => match m.epilogue {
            Epilogue::Glu(out) if out == wanted => out,
            _ => m.activations,
        },
        Kernel::Norm(format, _) | Kernel::Combine(format) => format,
        Kernel::Attention(k, _) => k.activations,
        _ => ActivationFormat::Float,
    };
    format == wanted
}
