//! The kernel table: which files make up a kernel, what it binds, which overrides it takes.

use crate::{
    ActivationFormat, Epilogue, GemvInput, MatrixKernel, Planes, RowsOut, Tile, WeightFormat,
};

/// How threads exchange values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Through workgroup memory.
    Shared,
    /// By subgroup shuffles.
    Subgroup,
}

impl Reduction {
    fn source(self) -> &'static str {
        match self {
            Self::Shared => include_str!("../common/reduce.wgsl"),
            Self::Subgroup => include_str!("../common/reduce_subgroup.wgsl"),
        }
    }

    fn share(self) -> &'static str {
        match self {
            Self::Shared => include_str!("../common/share.wgsl"),
            Self::Subgroup => include_str!("../common/share_subgroup.wgsl"),
        }
    }
}

/// What is fixed when decode attention is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionKernel {
    /// Query heads of a KV head,
    pub group: u32,
    /// and how many of them a workgroup does.
    pub heads: u32,
    /// Positions of a KV block.
    pub block_len: u32,
    /// Values of a head, a multiple of 8.
    pub head_dim: u32,
    /// Threads that share a position: a power of two.
    pub lanes: u32,
    /// Positions that a run of threads loads together.
    pub ahead: u32,
    /// Neighbouring positions that a run of threads takes in turn: 1, or `block_len` if `ahead` is 1.
    pub stretch: u32,
    /// How the result of a single split is stored.
    pub activations: ActivationFormat,
}

impl AttentionKernel {
    /// Chunks of eight values that each of `lanes` threads holds.
    pub fn chunks(self) -> u32 {
        (self.head_dim / 8).div_ceil(self.lanes)
    }

    /// Tells whether columns of one split are stored as activations at once: whole blocks of 32.
    pub fn direct(self) -> bool {
        self.head_dim.is_multiple_of(32)
    }

    fn constants(self) -> String {
        format!(
            "const GROUP: u32 = {}u;\nconst HEADS: u32 = {}u;\nconst BLOCK_LEN: u32 = {}u;\n\
             const HEAD_DIM: u32 = {}u;\nconst LANES: u32 = {}u;\n\
             const CHUNKS: u32 = {}u;\nconst AHEAD: u32 = {}u;\nconst STRETCH: u32 = {}u;\n\
             const DIRECT: bool = {};\n",
            self.group,
            self.heads,
            self.block_len,
            self.head_dim,
            self.lanes,
            self.chunks(),
            self.ahead,
            self.stretch,
            self.direct()
        )
    }

    /// A few that differ in what they exercise.
    fn samples() -> [Self; 4] {
        let one = |heads, head_dim, lanes, (ahead, stretch), activations| Self {
            group: heads,
            heads,
            block_len: 16,
            head_dim,
            lanes,
            ahead,
            stretch,
            activations,
        };
        [
            one(3, 64, 8, (2, 1), ActivationFormat::Float),
            one(4, 128, 16, (2, 1), ActivationFormat::Int8),
            one(1, 80, 8, (1, 16), ActivationFormat::FloatImage),
            one(2, 256, 32, (1, 1), ActivationFormat::Int8),
        ]
    }
}

/// Most columns of activations that a `gemm_rows` workgroup does together.
pub const TILE_COLUMNS: u32 = 8;
/// And how many those do that have few.
pub const TILE_COLUMNS_FEW: u32 = 4;

/// A kernel of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Token embeddings.
    Embed(WeightFormat, Planes),
    /// RMSNorm into activations.
    Norm(ActivationFormat, Reduction),
    /// Matrix product, a few columns.
    Gemv(MatrixKernel, Reduction, GemvInput),
    /// Matrix product, one column, a thread two row pairs; planes in images.
    GemvRows(MatrixKernel, Reduction),
    /// Matrix product, `TILE_COLUMNS` or `TILE_COLUMNS_FEW` together, a thread two row pairs.
    GemmRows(MatrixKernel, Reduction, Planes, u32),
    /// Matrix product, a tile of columns.
    Gemm(MatrixKernel, Tile),
    /// Matrix product by cooperative matrices, of f16 activations.
    GemmCoop(MatrixKernel),
    /// Decode attention over one split.
    Attention(AttentionKernel, Reduction),
    /// Attention of many columns, without splits.
    AttentionPrefill(RowsOut),
    /// The same by cooperative matrices, straight to activations: where `head_dim` is a multiple of 32.
    AttentionPrefillMatrix(ActivationFormat),
    /// Joins attention's splits into activations.
    Combine(ActivationFormat),
    /// Float activations in another order of columns.
    Gather(ActivationFormat),
    /// Adds a vector to every column of the residual stream.
    AddBias,
    /// Penalises logits and finds the largest of each part of the vocabulary.
    Peaks,
    /// Picks the next token.
    Sample(Reduction),
    /// Copies a buffer: the bench's yardstick.
    Copy,
}

/// What a binding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindingKind {
    /// A uniform parameter block.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is read and written.
    Write,
    /// A two-dimensional image that is only read, of so many 32-bit words a texel: 1 or 4.
    Image {
        /// Words of a texel.
        words: u32,
    },
    /// A two-dimensional image that is only written, of four 32-bit words a texel.
    WriteImage,
}

pub(crate) const IMAGE: &str = include_str!("../common/image.wgsl");
pub(crate) const STEP: &str = include_str!("../common/step.wgsl");
const ATTENTION_ROWS: &str = include_str!("../common/attention_rows.wgsl");
const RMS_SCALE: &str = include_str!("../common/rms_scale.wgsl");
const EIGHT_QUANTS: &str = include_str!("../common/eight_quants.wgsl");
const ACT_OUT_EIGHT: &str = include_str!("../common/act_out_eight.wgsl");
const EPILOGUE_GLU_EIGHT: &str = include_str!("../common/epilogue_glu_eight.wgsl");
const SAMPLING: &str = include_str!("../common/sampling.wgsl");
const BEST: &str = include_str!("../common/best.wgsl");

impl Kernel {
    /// The complete WGSL of the kernel; its entry point is `main`.
    pub fn source(self) -> String {
        self.constants() + &self.files().concat()
    }

    /// What the files need as constants and WGSL cannot override: sizes of a function's arrays.
    fn constants(self) -> String {
        match self {
            Self::Gemv(_, _, input) => input.constants(),
            Self::GemmRows(.., columns) => format!("const TILE_COLUMNS: u32 = {columns}u;\n"),
            Self::Gemm(_, tile) => tile.constants(),
            Self::Attention(kernel, _) => kernel.constants(),
            _ => String::new(),
        }
    }

    /// How its threads exchange values, if they do.
    pub fn reduction(self) -> Option<Reduction> {
        match self {
            Self::Norm(_, r) | Self::Gemv(_, r, _) | Self::Attention(_, r) | Self::Sample(r) => {
                Some(r)
            }
            _ => None,
        }
    }

    fn files(self) -> Vec<&'static str> {
        match self {
            Self::Embed(weights, place) => {
                let mut files = vec![include_str!("../kernels/embed.wgsl"), STEP, IMAGE];
                files.extend(weights.files(place));
                files
            }
            Self::Norm(act, reduction) => norm_files(act, reduction),
            Self::Gemv(..)
            | Self::GemvRows(..)
            | Self::GemmRows(..)
            | Self::Gemm(..)
            | Self::GemmCoop(_) => self.product_files(),
            Self::Attention(kernel, reduction) => {
                vec![
                    include_str!("../kernels/attention.wgsl"),
                    STEP,
                    IMAGE,
                    reduction.source(),
                    kernel.activations.output(),
                ]
            }
            Self::Peaks => {
                vec![include_str!("../kernels/peaks.wgsl"), STEP, SAMPLING, BEST]
            }
            Self::AttentionPrefill(out) => {
                let mut files = vec![
                    include_str!("../kernels/attention_prefill.wgsl"),
                    ATTENTION_ROWS,
                    STEP,
                    IMAGE,
                ];
                files.extend(out.files());
                files
            }
            Self::AttentionPrefillMatrix(act) => vec![
                include_str!("../kernels/attention_prefill_matrix.wgsl"),
                ATTENTION_ROWS,
                STEP,
                IMAGE,
                act.output(),
            ],
            Self::Copy => vec![include_str!("../kernels/copy.wgsl")],
            Self::AddBias => vec![include_str!("../kernels/add_bias.wgsl")],
            Self::Gather(act) => {
                vec![include_str!("../kernels/gather.wgsl"), IMAGE, act.output()]
            }
            Self::Combine(act) => {
                let combine = include_str!("../kernels/combine.wgsl");
                vec![combine, STEP, IMAGE, act.output()]
            }
            Self::Sample(reduction) => {
                vec![
                    include_str!("../kernels/sample.wgsl"),
                    STEP,
                    SAMPLING,
                    BEST,
                    reduction.source(),
                ]
            }
        }
    }

    fn product_files(self) -> Vec<&'static str> {
        match self {
            Self::Gemv(matrix, reduction, input) => {
                let gemv = match input {
                    GemvInput::Wide { .. } => include_str!("../kernels/gemv_wide.wgsl"),
                    _ => include_str!("../kernels/gemv.wgsl"),
                };
                let mut files = vec![gemv, reduction.source()];
                let int8 = ActivationFormat::Int8;
                // One column's block is stored sooner by one thread.
                let wide = matches!(input, GemvInput::Wide { .. });
                let glu = wide && matrix.epilogue == Epilogue::Glu(int8);
                if glu || input == GemvInput::Normed && matrix.activations == int8 {
                    files.push(EIGHT_QUANTS);
                }
                if glu {
                    files.extend(matrix.input_files(Planes::Buffers));
                    files.extend([EPILOGUE_GLU_EIGHT, ACT_OUT_EIGHT]);
                } else {
                    files.extend(matrix.files(Planes::Buffers));
                }
                match input {
                    GemvInput::Normed => files.extend([RMS_SCALE, matrix.activations.normed()]),
                    _ => files.extend([
                        include_str!("../common/input_stored.wgsl"),
                        matrix.activations.input(),
                    ]),
                }
                files
            }
            Self::GemvRows(matrix, reduction) => {
                let mut files = vec![include_str!("../kernels/gemv_rows.wgsl"), reduction.share()];
                files.extend(matrix.files(Planes::Images));
                files.extend([matrix.activations.input(), matrix.activations.shared()]);
                files
            }
            Self::GemmRows(matrix, reduction, place, _) => {
                let mut files = vec![include_str!("../kernels/gemm_rows.wgsl"), reduction.share()];
                files.extend(matrix.files(place));
                files.extend([matrix.activations.input(), matrix.activations.shared()]);
                files
            }
            Self::Gemm(matrix, _) => {
                let mut files = vec![include_str!("../kernels/gemm.wgsl")];
                files.extend(matrix.tile_files());
                files
            }
            Self::GemmCoop(matrix) => {
                // First, because it enables extensions.
                let mut files = vec![include_str!("../kernels/gemm_coop.wgsl")];
                files.extend(matrix.cooperative_files());
                files
            }
            _ => Vec::new(),
        }
    }

    /// Tells whether the kernel needs cooperative matrices and 16-bit floats: it runs on Vulkan alone.
    pub fn uses_cooperative_matrix(self) -> bool {
        matches!(self, Self::AttentionPrefillMatrix(_) | Self::GemmCoop(_))
    }

    /// What the kernel binds in group 0, by binding number.
    pub fn bindings(self) -> Vec<(u32, BindingKind)> {
        use BindingKind::{Read, Uniform, Write};
        let mut list = vec![(0, Uniform)];
        match self {
            Self::Embed(..) => {
                list.extend(self.planes());
                list.extend([(4, Read), (5, Read), (6, Write), (7, Write)]);
            }
            Self::AddBias => list.extend([(6, Write), (7, Read)]),
            Self::Gather(act) => list.extend([(5, act.output_kind()), (6, Read), (7, Read)]),
            Self::Norm(act, _) | Self::Combine(act) => {
                list.extend([(4, Read), (5, act.output_kind()), (6, Read), (7, Read)]);
            }
            Self::Gemv(matrix, ..)
            | Self::GemvRows(matrix, _)
            | Self::GemmRows(matrix, ..)
            | Self::Gemm(matrix, _)
            | Self::GemmCoop(matrix) => {
                list.extend(self.planes());
                list.extend([(3, matrix.activations.input_kind()), (4, Read)]);
                match matrix.epilogue {
                    Epilogue::Store | Epilogue::Residual => list.push((6, Write)),
                    Epilogue::Glu(act) => list.push((5, act.output_kind())),
                    Epilogue::Qkv => list.extend([(5, Write), (6, Write), (7, Write), (8, Read)]),
                }
                if let Self::Gemv(_, _, GemvInput::Normed) = self {
                    list.push((9, Read));
                }
            }
            Self::Attention(kernel, _) => {
                list.extend([
                    (1, Read),
                    (2, Read),
                    (3, Read),
                    (4, Read),
                    (5, kernel.activations.output_kind()),
                    (6, Write),
                    (7, Write),
                ]);
            }
            Self::Peaks => list.extend([(4, Read), (5, Write), (6, Read), (7, Read), (8, Write)]),
            Self::AttentionPrefill(out) => {
                list.extend([(1, Read), (2, Read), (3, Read), (4, Read)]);
                match out {
                    RowsOut::Activations(act) => list.push((5, act.output_kind())),
                    RowsOut::Partial => list.extend([(6, Write), (7, Write)]),
                }
            }
            Self::AttentionPrefillMatrix(act) => {
                list.extend([(1, Read), (2, Read), (3, Read), (4, Read)]);
                list.push((5, act.output_kind()));
            }
            Self::Copy => list.extend([(1, Read), (6, Write)]),
            Self::Sample(_) => {
                list.extend([
                    (1, Read),
                    (4, Read),
                    (5, Read),
                    (6, Write),
                    (7, Read),
                    (8, Write),
                    (9, Write),
                ]);
            }
        }
        list
    }

    /// The bindings of the quant and the metadata plane.
    fn planes(self) -> [(u32, BindingKind); 2] {
        match self {
            Self::Embed(_, Planes::Images)
            | Self::GemvRows(..)
            | Self::GemmRows(_, _, Planes::Images, _) => [
                (1, BindingKind::Image { words: 4 }),
                (2, BindingKind::Image { words: 1 }),
            ],
            _ => [(1, BindingKind::Read), (2, BindingKind::Read)],
        }
    }

    /// A short name for labels and reports, such as `gemv.q4_1.int8.glu`.
    pub fn name(self) -> String {
        let matrix = |m: MatrixKernel| {
            let epilogue = match m.epilogue {
                Epilogue::Store => "store",
                Epilogue::Residual => "residual",
                Epilogue::Qkv => "qkv",
                Epilogue::Glu(_) => "glu",
            };
            format!("{}.{}.{epilogue}", m.weights.name(), m.activations.name())
        };
        match self {
            Self::Embed(w, _) => format!("embed.{}", w.name()),
            Self::Norm(a, _) => format!("norm.{}", a.name()),
            Self::Gemv(m, _, GemvInput::Normed) => format!("gemv.normed.{}", matrix(m)),
            Self::Gemv(m, _, GemvInput::Stored { columns: 1 }) => format!("gemv.{}", matrix(m)),
            Self::Gemv(m, _, input) => format!("gemv{}.{}", input.columns(), matrix(m)),
            Self::GemvRows(m, _) => format!("gemv_rows.{}", matrix(m)),
            Self::GemmRows(m, .., TILE_COLUMNS) => format!("gemm_rows.{}", matrix(m)),
            Self::GemmRows(m, .., columns) => format!("gemm_rows{columns}.{}", matrix(m)),
            Self::Gemm(m, _) => format!("gemm.{}", matrix(m)),
            Self::GemmCoop(m) => format!("gemm_coop.{}", matrix(m)),
            Self::Attention(k, _) => format!("attention.{}", k.activations.name()),
            Self::Peaks => "peaks".to_owned(),
            Self::AttentionPrefill(RowsOut::Activations(a)) => {
                format!("attention_prefill.{}", a.name())
            }
            Self::AttentionPrefill(RowsOut::Partial) => "attention_prefill.partial".to_owned(),
            Self::AttentionPrefillMatrix(a) => format!("attention_prefill_matrix.{}", a.name()),
            Self::Combine(a) => format!("combine.{}", a.name()),
            Self::AddBias => "add_bias".to_owned(),
            Self::Gather(a) => format!("gather.{}", a.name()),
            Self::Sample(_) => "sample".to_owned(),
            Self::Copy => "copy".to_owned(),
        }
    }

    /// Every kernel there is, and of attention, whose sizes are the model's, a few.
    pub fn all() -> Vec<Self> {
        let acts = ActivationFormat::ALL;
        let reductions = [Reduction::Shared, Reduction::Subgroup];
        let mut list = Vec::new();
        for place in Planes::ALL {
            list.extend(WeightFormat::ALL.map(|w| Self::Embed(w, place)));
        }
        list.extend([Self::Copy, Self::AddBias]);
        for act in acts {
            list.extend([Self::Combine(act), Self::Gather(act)]);
            list.extend(reductions.map(|r| Self::Norm(act, r)));
        }
        for kernel in AttentionKernel::samples() {
            list.extend(reductions.map(|r| Self::Attention(kernel, r)));
        }
        list.push(Self::Peaks);
        list.extend(RowsOut::ALL.map(Self::AttentionPrefill));
        list.extend(acts.map(Self::AttentionPrefillMatrix));
        list.extend(reductions.map(Self::Sample));
        for matrix in MatrixKernel::all() {
            if matrix.on_software() {
                list.extend(reductions.map(|r| Self::GemvRows(matrix, r)));
                for columns in [TILE_COLUMNS_FEW, TILE_COLUMNS] {
                    let tile = |r| Self::GemmRows(matrix, r, Planes::Images, columns);
                    list.extend(reductions.map(tile));
                }
            }
            if !matrix.on_gpu() {
                continue;
            }
            for input in GemvInput::ALL {
                // Workgroups that add to the residual stream must not norm it for themselves.
                if input == GemvInput::Normed && matrix.epilogue == Epilogue::Residual {
                    continue;
                }
                if matches!(input, GemvInput::Wide { .. }) && !matrix.goes_wide() {
                    continue;
                }
                list.extend(reductions.map(|r| Self::Gemv(matrix, r, input)));
            }
            let tile = |r| Self::GemmRows(matrix, r, Planes::Buffers, TILE_COLUMNS);
            list.extend(reductions.map(tile));
            let tiles = Tile::choices(matrix.activations);
            list.extend(tiles.iter().map(|&tile| Self::Gemm(matrix, tile)));
        }
        list.extend(MatrixKernel::all_cooperative().map(Self::GemmCoop));
        // Floats that no cooperative matrix takes, before a product that one does.
        let mixed = MatrixKernel {
            weights: WeightFormat::F32,
            activations: ActivationFormat::Float,
            epilogue: Epilogue::Glu(ActivationFormat::Half),
        };
        let tiles = Tile::choices(mixed.activations);
        list.extend(tiles.iter().map(|&tile| Self::Gemm(mixed, tile)));
        list
    }
}

fn norm_files(act: ActivationFormat, reduction: Reduction) -> Vec<&'static str> {
    match act {
        ActivationFormat::Int8 => vec![
            include_str!("../kernels/norm_eight.wgsl"),
            RMS_SCALE,
            STEP,
            reduction.source(),
            EIGHT_QUANTS,
            ACT_OUT_EIGHT,
        ],
        act => vec![
            include_str!("../kernels/norm.wgsl"),
            RMS_SCALE,
            STEP,
            IMAGE,
            reduction.source(),
            act.output(),
        ],
    }
}
