//! The weight formats: how large their planes are, and which files read them.

/// Where the planes of weight matrices lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Planes {
    /// In storage buffers, row by row.
    Buffers,
    /// In images, in tiles of rows: software adapters read those faster.
    Images,
}

impl Planes {
    /// Both places.
    pub const ALL: [Self; 2] = [Self::Buffers, Self::Images];
}

/// Texels of a line of an image.
pub const IMAGE_LINE: u32 = 4096;
/// Rows of a tile of an image that holds a plane: the tile has all rows' first units, then all
/// rows' second, and so on.
pub const IMAGE_TILE_ROWS: u32 = 32;

/// How a weight matrix is stored on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4-bit, scale per 32.
    Q4_0,
    /// 4-bit, scale and bias per 32.
    Q4_1,
    /// 4-bit, scale per 64, zero point 8: symmetric GPTQ. (Per 32 it is `Q4_0`.)
    Q4G64,
    /// 4-bit, scale per 128, zero point 8: symmetric GPTQ.
    Q4G128,
    /// 4-bit, scale and zero point per 32: AWQ and asymmetric GPTQ.
    Q4Z32,
    /// 4-bit, scale and zero point per 64.
    Q4Z64,
    /// 4-bit, scale and zero point per 128.
    Q4Z128,
    /// 4-bit, 6-bit scale and minimum per 32 under two f16 per 256.
    Q4K,
    /// 2-bit, 4-bit scale and minimum per 16 under two f16 per 256.
    Q2K,
    /// 3-bit, 6-bit scale per 16 under an f16 per 256.
    Q3K,
    /// 5-bit, scale per 32.
    Q5_0,
    /// 5-bit, scale and bias per 32.
    Q5_1,
    /// 5-bit, 6-bit scale and minimum per 32 under two f16 per 256.
    Q5K,
    /// 6-bit, 8-bit scale per 16 under an f16 per 256.
    Q6K,
    /// 8-bit, scale per 32.
    Q8_0,
    /// 8-bit, scale and zero point per 32: GPTQ.
    Q8Z32,
    /// 8-bit, scale and zero point per 64.
    Q8Z64,
    /// 8-bit, scale and zero point per 128.
    Q8Z128,
    /// The upper half of single precision.
    Bf16,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 21] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q4G64,
        Self::Q4G128,
        Self::Q4Z32,
        Self::Q4Z64,
        Self::Q4Z128,
        Self::Q4K,
        Self::Q2K,
        Self::Q3K,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q5K,
        Self::Q6K,
        Self::Q8_0,
        Self::Q8Z32,
        Self::Q8Z64,
        Self::Q8Z128,
        Self::Bf16,
        Self::F16,
        Self::F32,
    ];

    /// Bytes of a unit of the quant plane: what lies together wherever the plane is.
    pub fn quant_unit_bytes(self) -> u64 {
        match self {
            Self::Q8_0 | Self::Q8Z32 | Self::Q8Z64 | Self::Q8Z128 => 32,
            Self::F16 | Self::Bf16 => 64,
            Self::F32 => 128,
            _ => 16,
        }
    }

    /// Bytes of the quant plane for a row of `blocks` blocks of 32 weights.
    pub fn quant_row_bytes(self, blocks: u64) -> u64 {
        // A unit has the fourth bits of one block, two bits of two, or one bit of four.
        let units = match self {
            Self::Q2K => blocks.div_ceil(2),
            Self::Q3K => blocks.div_ceil(2) + blocks.div_ceil(4),
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => blocks + blocks.div_ceil(4),
            Self::Q6K => blocks + blocks.div_ceil(2),
            _ => blocks,
        };
        units * self.quant_unit_bytes()
    }

    /// Blocks of 32 weights that one entry of the metadata plane serves; 0 where there is none.
    pub fn group_blocks(self) -> u64 {
        match self {
            Self::Q4_0
            | Self::Q4_1
            | Self::Q4Z32
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Q8Z32 => 1,
            Self::Q4G64 | Self::Q4Z64 | Self::Q8Z64 => 2,
            Self::Q4G128 | Self::Q4Z128 | Self::Q8Z128 => 4,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 8,
            Self::Bf16 | Self::F16 | Self::F32 => 0,
        }
    }

    /// Bytes of the metadata plane for a row of `blocks` blocks; 0 where there is none. The last
    /// group of a row may be short.
    pub fn meta_row_bytes(self, blocks: u64) -> u64 {
        let groups = |of: Self| blocks.div_ceil(of.group_blocks());
        match self {
            // Two scales share a word.
            Self::Q4_0 | Self::Q4G64 | Self::Q4G128 | Self::Q5_0 | Self::Q8_0 => {
                blocks.div_ceil(2 * self.group_blocks()) * 4
            }
            Self::Q4_1
            | Self::Q4Z32
            | Self::Q4Z64
            | Self::Q4Z128
            | Self::Q5_1
            | Self::Q8Z32
            | Self::Q8Z64
            | Self::Q8Z128 => groups(self) * 4,
            Self::Q4K | Self::Q5K => groups(self) * 16,
            Self::Q2K => groups(self) * 20,
            Self::Q3K | Self::Q6K => groups(self) * 16 + groups(self).div_ceil(2) * 4,
            Self::Bf16 | Self::F16 | Self::F32 => 0,
        }
    }

    /// Tells whether weights are integers with a scale, so that int8 activations apply.
    pub fn is_integer(self) -> bool {
        !matches!(self, Self::Q2K | Self::Bf16 | Self::F16 | Self::F32)
    }

    /// Tells whether each half of a block has a scale of its own.
    fn has_half_scales(self) -> bool {
        matches!(self, Self::Q3K | Self::Q6K)
    }

    /// Bytes of a unit of the metadata plane: what one read takes; 4 where there is none.
    pub fn meta_unit_bytes(self) -> u64 {
        match self {
            Self::Q4K | Self::Q5K => 16,
            _ => 4,
        }
    }

    /// Lower-case name, as in file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4G64 => "q4_g64",
            Self::Q4G128 => "q4_g128",
            Self::Q4Z32 => "q4_z32",
            Self::Q4Z64 => "q4_z64",
            Self::Q4Z128 => "q4_z128",
            Self::Q4K => "q4_k",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Q8_0 => "q8_0",
            Self::Q8Z32 => "q8_z32",
            Self::Q8Z64 => "q8_z64",
            Self::Q8Z128 => "q8_z128",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// What the file of its blocks needs before it, and that file.
    fn source(self) -> [&'static str; 2] {
        let grouped = include_str!("../common/weights_q4_g.wgsl");
        let zeroed = include_str!("../common/weights_q4_z.wgsl");
        let wide_zeroed = include_str!("../common/weights_q8_z.wgsl");
        match self {
            Self::Q4_0 => [GROUP_OF_1, grouped],
            Self::Q4_1 => ["", include_str!("../common/weights_q4_1.wgsl")],
            Self::Q4G64 => [GROUP_OF_2, grouped],
            Self::Q4G128 => [GROUP_OF_4, grouped],
            Self::Q4Z32 => [GROUP_OF_1, zeroed],
            Self::Q4Z64 => [GROUP_OF_2, zeroed],
            Self::Q4Z128 => [GROUP_OF_4, zeroed],
            Self::Q4K => ["", include_str!("../common/weights_q4_k.wgsl")],
            Self::Q2K => [BIT_PLANES, include_str!("../common/weights_q2_k.wgsl")],
            Self::Q3K => [BIT_PLANES, include_str!("../common/weights_q3_k.wgsl")],
            Self::Q5_0 => [BIT_PLANES, include_str!("../common/weights_q5_0.wgsl")],
            Self::Q5_1 => [BIT_PLANES, include_str!("../common/weights_q5_1.wgsl")],
            Self::Q5K => [BIT_PLANES, include_str!("../common/weights_q5_k.wgsl")],
            Self::Q6K => [BIT_PLANES, include_str!("../common/weights_q6_k.wgsl")],
            Self::Q8_0 => ["", include_str!("../common/weights_q8_0.wgsl")],
            Self::Q8Z32 => [GROUP_OF_1, wide_zeroed],
            Self::Q8Z64 => [GROUP_OF_2, wide_zeroed],
            Self::Q8Z128 => [GROUP_OF_4, wide_zeroed],
            Self::Bf16 => ["", include_str!("../common/weights_bf16.wgsl")],
            Self::F16 => ["", include_str!("../common/weights_f16.wgsl")],
            Self::F32 => ["", include_str!("../common/weights_f32.wgsl")],
        }
    }

    /// The WGSL behind `load_block` and `values`.
    pub(crate) fn files(self, place: Planes) -> Vec<&'static str> {
        let [before, weights] = self.source();
        let mut files = vec![before, weights];
        if self.has_half_scales() {
            files.extend([
                include_str!("../common/meta_sixteenths.wgsl"),
                include_str!("../common/values_halves.wgsl"),
            ]);
        } else if self.is_integer() {
            files.push(include_str!("../common/values_int.wgsl"));
        }
        match place {
            Planes::Buffers => files.extend([
                include_str!("../common/planes_buffer.wgsl"),
                if self.meta_unit_bytes() == 16 {
                    include_str!("../common/meta_wide_buffer.wgsl")
                } else {
                    include_str!("../common/meta_buffer.wgsl")
                },
            ]),
            Planes::Images => files.push(include_str!("../common/planes_image.wgsl")),
        }
        files
    }

    /// The WGSL behind the products of a block with int8 activations.
    pub(crate) fn dot(self) -> &'static str {
        if self.has_half_scales() {
            include_str!("../common/dot_int8_halves.wgsl")
        } else {
            include_str!("../common/dot_int8.wgsl")
        }
    }

    /// The WGSL behind `raw_values` and `scaling`.
    pub(crate) fn raw(self) -> &'static str {
        if self.is_integer() && !self.has_half_scales() {
            include_str!("../common/raw_int.wgsl")
        } else {
            include_str!("../common/raw_float.wgsl")
        }
    }
}

const BIT_PLANES: &str = include_str!("../common/bit_planes.wgsl");
const GROUP_OF_1: &str = "const GROUP_BLOCKS: u32 = 1u;\n";
const GROUP_OF_2: &str = "const GROUP_BLOCKS: u32 = 2u;\n";
const GROUP_OF_4: &str = "const GROUP_BLOCKS: u32 = 4u;\n";
