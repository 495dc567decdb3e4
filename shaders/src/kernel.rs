//! The kernel table: which files make up a kernel, what it binds, which overrides it takes.

/// How a weight matrix is stored on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4-bit, scale per 32.
    Q4_0,
    /// 4-bit, scale and bias per 32.
    Q4_1,
    /// 8-bit, scale per 32.
    Q8_0,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::F16, Self::F32];

    /// Bytes of the quant plane for a block of 32 weights.
    pub fn quant_block_bytes(self) -> u64 {
        match self {
            Self::Q4_0 | Self::Q4_1 => 16,
            Self::Q8_0 => 32,
            Self::F16 => 64,
            Self::F32 => 128,
        }
    }

    /// Bytes of the metadata plane for a row of `blocks` blocks; 0 where there is none.
    pub fn meta_row_bytes(self, blocks: u64) -> u64 {
        match self {
            Self::Q4_0 | Self::Q8_0 => blocks.div_ceil(2) * 4,
            Self::Q4_1 => blocks * 4,
            Self::F16 | Self::F32 => 0,
        }
    }

    /// Tells whether weights are integers with a scale, so that int8 activations apply.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q8_0)
    }

    /// Lower-case name, as in file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q8_0 => "q8_0",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    fn source(self) -> [&'static str; 2] {
        let values_int = include_str!("../common/values_int.wgsl");
        let values_float = include_str!("../common/values_float.wgsl");
        match self {
            Self::Q4_0 => [include_str!("../common/weights_q4_0.wgsl"), values_int],
            Self::Q4_1 => [include_str!("../common/weights_q4_1.wgsl"), values_int],
            Self::Q8_0 => [include_str!("../common/weights_q8_0.wgsl"), values_int],
            Self::F16 => [include_str!("../common/weights_f16.wgsl"), values_float],
            Self::F32 => [include_str!("../common/weights_f32.wgsl"), values_float],
        }
    }
}

/// Where the planes of weight matrices lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Planes {
    /// In storage buffers.
    Buffers,
    /// In images: software adapters read those faster.
    Images,
}

impl Planes {
    /// Both places.
    pub const ALL: [Self; 2] = [Self::Buffers, Self::Images];

    fn source(self) -> &'static str {
        match self {
            Self::Buffers => include_str!("../common/planes_buffer.wgsl"),
            Self::Images => include_str!("../common/planes_image.wgsl"),
        }
    }

    fn bindings(self) -> [(u32, BindingKind); 2] {
        match self {
            Self::Buffers => [(1, BindingKind::Read), (2, BindingKind::Read)],
            Self::Images => [
                (1, BindingKind::Image { words: 4 }),
                (2, BindingKind::Image { words: 1 }),
            ],
        }
    }
}

/// Texels of a line of an image.
pub const IMAGE_LINE: u32 = 4096;
/// Rows of a tile of an image that holds a plane: the tile has all rows' first units, then all
/// rows' second, and so on.
pub const IMAGE_TILE_ROWS: u32 = 32;

/// How activations are stored between kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationFormat {
    /// 32-bit floats.
    Float,
    /// 32-bit floats in an image: software adapters read those faster.
    FloatImage,
    /// int8 in blocks of 32, with scale and scaled sum.
    Int8,
}

impl ActivationFormat {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Float, Self::FloatImage, Self::Int8];

    /// Bytes of a block of 32 activations.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::Float | Self::FloatImage => 128,
            Self::Int8 => 48,
        }
    }

    /// Lower-case name, as in file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::FloatImage => "float_image",
            Self::Int8 => "int8",
        }
    }

    fn input(self) -> [&'static str; 2] {
        let act_float = include_str!("../common/act_float.wgsl");
        match self {
            Self::Float => [include_str!("../common/act_buffer.wgsl"), act_float],
            Self::FloatImage => [include_str!("../common/act_image.wgsl"), act_float],
            Self::Int8 => [include_str!("../common/act_int8.wgsl"), ""],
        }
    }

    fn output(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/act_out_buffer.wgsl"),
            Self::FloatImage => include_str!("../common/act_out_image.wgsl"),
            Self::Int8 => include_str!("../common/act_out_int8.wgsl"),
        }
    }

    fn input_kind(self) -> BindingKind {
        match self {
            Self::FloatImage => BindingKind::Image { words: 4 },
            Self::Float | Self::Int8 => BindingKind::Read,
        }
    }

    fn output_kind(self) -> BindingKind {
        match self {
            Self::FloatImage => BindingKind::WriteImage,
            Self::Float | Self::Int8 => BindingKind::Write,
        }
    }
}

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

/// What a matrix product does with its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Writes them: logits.
    Store,
    /// Adds them to the residual stream.
    Residual,
    /// Bias, rotation, q out, k and v to the cache.
    Qkv,
    /// silu(gate) * up, stored as activations of this format.
    Glu(ActivationFormat),
}

/// Columns of activations a `gemm` workgroup does together.
pub const TILE_COLUMNS: u32 = 8;

/// A matrix product kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixKernel {
    /// Stored weights.
    pub weights: WeightFormat,
    /// Stored activations: `Int8` only with integer weights.
    pub activations: ActivationFormat,
    /// What becomes of the results.
    pub epilogue: Epilogue,
}

/// A kernel of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Token embeddings.
    Embed(WeightFormat, Planes),
    /// RMSNorm into activations.
    Norm(ActivationFormat, Reduction),
    /// Matrix product, one column.
    Gemv(MatrixKernel, Reduction),
    /// Matrix product, one column, a thread two row pairs; planes in images.
    GemvRows(MatrixKernel, Reduction),
    /// Matrix product, eight columns together.
    Gemm(MatrixKernel, Reduction),
    /// Matrix product, eight columns together, a thread two row pairs; planes in images.
    GemmRows(MatrixKernel, Reduction),
    /// Attention over one split.
    Attention(Reduction),
    /// Joins attention's splits into activations.
    Combine(ActivationFormat),
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

const STEP: &str = include_str!("../common/step.wgsl");
const IMAGE: &str = include_str!("../common/image.wgsl");
const MATRIX: &str = include_str!("../common/matrix.wgsl");

impl Kernel {
    /// The complete WGSL of the kernel; its entry point is `main`.
    pub fn source(self) -> String {
        self.files().concat()
    }

    fn files(self) -> Vec<&'static str> {
        match self {
            Self::Embed(weights, planes) => {
                let [w, values] = weights.source();
                let embed = include_str!("../kernels/embed.wgsl");
                vec![embed, STEP, IMAGE, planes.source(), w, values]
            }
            Self::Norm(act, reduction) => vec![
                include_str!("../kernels/norm.wgsl"),
                STEP,
                IMAGE,
                reduction.source(),
                act.output(),
            ],
            Self::Gemv(matrix, reduction) => {
                let mut files = vec![
                    include_str!("../kernels/gemv.wgsl"),
                    reduction.source(),
                    // `gemv` shares nothing; `from_lane` still has to be there.
                    Reduction::Shared.share(),
                ];
                files.extend(matrix.files(Planes::Buffers));
                files
            }
            Self::GemvRows(matrix, reduction) => {
                let mut files = vec![include_str!("../kernels/gemv_rows.wgsl"), reduction.share()];
                files.extend(matrix.files(Planes::Images));
                files
            }
            Self::Gemm(matrix, reduction) => {
                let mut files = vec![include_str!("../kernels/gemm.wgsl"), reduction.share()];
                files.extend(matrix.files(Planes::Buffers));
                files
            }
            Self::GemmRows(matrix, reduction) => {
                let mut files = vec![include_str!("../kernels/gemm_rows.wgsl"), reduction.share()];
                files.extend(matrix.files(Planes::Images));
                files
            }
            Self::Attention(reduction) => {
                vec![
                    include_str!("../kernels/attention.wgsl"),
                    STEP,
                    reduction.source(),
                ]
            }
            Self::Copy => vec![include_str!("../kernels/copy.wgsl")],
            Self::Combine(act) => {
                let combine = include_str!("../kernels/combine.wgsl");
                vec![combine, STEP, IMAGE, act.output()]
            }
            Self::Sample(reduction) => {
                vec![
                    include_str!("../kernels/sample.wgsl"),
                    STEP,
                    reduction.source(),
                ]
            }
        }
    }

    /// What the kernel binds in group 0, by binding number.
    pub fn bindings(self) -> Vec<(u32, BindingKind)> {
        use BindingKind::{Read, Uniform, Write};
        let mut list = vec![(0, Uniform)];
        match self {
            Self::Embed(_, planes) => {
                list.extend(planes.bindings());
                list.extend([(4, Read), (5, Read), (6, Write), (7, Write)]);
            }
            Self::Norm(act, _) | Self::Combine(act) => {
                list.extend([(4, Read), (5, act.output_kind()), (6, Read), (7, Read)]);
            }
            Self::Gemv(matrix, _)
            | Self::Gemm(matrix, _)
            | Self::GemvRows(matrix, _)
            | Self::GemmRows(matrix, _) => {
                list.extend(self.planes().bindings());
                list.extend([(3, matrix.activations.input_kind()), (4, Read)]);
                match matrix.epilogue {
                    Epilogue::Store | Epilogue::Residual => list.push((6, Write)),
                    Epilogue::Glu(act) => list.push((5, act.output_kind())),
                    Epilogue::Qkv => list.extend([(5, Write), (6, Write), (7, Write), (8, Read)]),
                }
            }
            Self::Attention(_) => {
                list.extend([
                    (1, Read),
                    (2, Read),
                    (3, Read),
                    (4, Read),
                    (6, Write),
                    (7, Write),
                ]);
            }
            Self::Copy => list.extend([(1, Read), (6, Write)]),
            Self::Sample(_) => {
                list.extend([
                    (4, Read),
                    (5, Write),
                    (6, Write),
                    (7, Read),
                    (8, Write),
                    (9, Write),
                ]);
            }
        }
        list
    }

    /// Where the planes of the kernel's weights lie.
    pub fn planes(self) -> Planes {
        match self {
            Self::Embed(_, planes) => planes,
            Self::GemvRows(..) | Self::GemmRows(..) => Planes::Images,
            _ => Planes::Buffers,
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
            Self::Gemv(m, _) => format!("gemv.{}", matrix(m)),
            Self::GemvRows(m, _) => format!("gemv_rows.{}", matrix(m)),
            Self::Gemm(m, _) => format!("gemm.{}", matrix(m)),
            Self::GemmRows(m, _) => format!("gemm_rows.{}", matrix(m)),
            Self::Attention(_) => "attention".to_owned(),
            Self::Combine(a) => format!("combine.{}", a.name()),
            Self::Sample(_) => "sample".to_owned(),
            Self::Copy => "copy".to_owned(),
        }
    }

    /// Every kernel there is.
    pub fn all() -> Vec<Self> {
        let reductions = [Reduction::Shared, Reduction::Subgroup];
        let mut list = Vec::new();
        for planes in Planes::ALL {
            list.extend(WeightFormat::ALL.map(|w| Self::Embed(w, planes)));
        }
        list.push(Self::Copy);
        for act in ActivationFormat::ALL {
            list.push(Self::Combine(act));
            list.extend(reductions.map(|r| Self::Norm(act, r)));
        }
        list.extend(reductions.map(Self::Attention));
        list.extend(reductions.map(Self::Sample));
        for matrix in MatrixKernel::all() {
            list.extend(reductions.map(|r| Self::GemvRows(matrix, r)));
            list.extend(reductions.map(|r| Self::GemmRows(matrix, r)));
            if !matrix.has_images() {
                list.extend(reductions.map(|r| Self::Gemv(matrix, r)));
                list.extend(reductions.map(|r| Self::Gemm(matrix, r)));
            }
        }
        list
    }
}

impl MatrixKernel {
    fn files(self, planes: Planes) -> Vec<&'static str> {
        let [weights, values] = self.weights.source();
        let mut files = vec![MATRIX, STEP, IMAGE, planes.source(), weights, values];
        files.extend(self.activations.input());
        match self.epilogue {
            Epilogue::Store => files.push(include_str!("../common/epilogue_store.wgsl")),
            Epilogue::Residual => files.push(include_str!("../common/epilogue_residual.wgsl")),
            Epilogue::Qkv => files.push(include_str!("../common/epilogue_qkv.wgsl")),
            Epilogue::Glu(out) => {
                files.extend([include_str!("../common/epilogue_glu.wgsl"), out.output()]);
            }
        }
        files
    }

    /// Tells whether activations lie in images, which only software adapters take.
    fn has_images(self) -> bool {
        let image = ActivationFormat::FloatImage;
        self.activations == image || self.epilogue == Epilogue::Glu(image)
    }

    /// Every matrix product there is.
    pub fn all() -> Vec<Self> {
        let mut list = Vec::new();
        for weights in WeightFormat::ALL {
            for activations in ActivationFormat::ALL {
                if activations == ActivationFormat::Int8 && !weights.is_integer() {
                    continue;
                }
                for epilogue in [
                    Epilogue::Store,
                    Epilogue::Residual,
                    Epilogue::Qkv,
                    Epilogue::Glu(ActivationFormat::Float),
                    Epilogue::Glu(ActivationFormat::FloatImage),
                    Epilogue::Glu(ActivationFormat::Int8),
                ] {
                    list.push(Self {
                        weights,
                        activations,
                        epilogue,
                    });
                }
            }
        }
        list
    }
}
