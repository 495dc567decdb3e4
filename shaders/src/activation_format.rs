//! The activation formats: which files read and write them.

use crate::BindingKind;

/// How activations are stored between kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationFormat {
    /// 32-bit floats.
    Float,
    /// 32-bit floats in an image: software adapters read those faster.
    FloatImage,
    /// int8 in blocks of 32, with scale and scaled sum.
    Int8,
    /// Half precision: for cooperative matrices alone.
    Half,
}

impl ActivationFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Float, Self::FloatImage, Self::Int8, Self::Half];

    /// Bytes of a block of 32 activations.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::Float | Self::FloatImage => 128,
            Self::Int8 => 48,
            Self::Half => 64,
        }
    }

    /// The block type and its dot product with weights.
    pub(crate) fn block(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/act_float.wgsl"),
            Self::FloatImage => include_str!("../common/act_float_image.wgsl"),
            Self::Int8 => include_str!("../common/act_int8.wgsl"),
            Self::Half => "",
        }
    }

    /// How a stored block is loaded.
    pub(crate) fn input(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/input_float.wgsl"),
            Self::FloatImage => include_str!("../common/input_float_image.wgsl"),
            Self::Int8 => include_str!("../common/input_int8.wgsl"),
            Self::Half => "",
        }
    }

    /// How a block that one lane loaded reaches the others.
    pub(crate) fn shared(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/shared_float.wgsl"),
            Self::FloatImage => include_str!("../common/shared_float_image.wgsl"),
            Self::Int8 => include_str!("../common/shared_int8.wgsl"),
            Self::Half => "",
        }
    }

    /// How a norm of the residual stream becomes blocks in workgroup memory.
    pub(crate) fn normed(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/normed_float.wgsl"),
            Self::Int8 => include_str!("../common/normed_int8.wgsl"),
            Self::FloatImage | Self::Half => "",
        }
    }

    /// Bytes of workgroup memory that a normed column of `blocks` blocks takes.
    pub fn normed_bytes(self, blocks: u32) -> u32 {
        match self {
            Self::Float => 128 * blocks,
            Self::Int8 => 40 * blocks,
            // Nothing norms its own input to an image or to f16.
            Self::FloatImage | Self::Half => u32::MAX / 2,
        }
    }

    /// Lower-case name, as in file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::FloatImage => "float_image",
            Self::Int8 => "int8",
            Self::Half => "half",
        }
    }

    pub(crate) fn input_kind(self) -> BindingKind {
        match self {
            Self::FloatImage => BindingKind::Image { words: 4 },
            Self::Float | Self::Int8 | Self::Half => BindingKind::Read,
        }
    }

    pub(crate) fn output_kind(self) -> BindingKind {
        match self {
            Self::FloatImage => BindingKind::WriteImage,
            Self::Float | Self::Int8 | Self::Half => BindingKind::Write,
        }
    }

    pub(crate) fn output(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/act_out_float.wgsl"),
            Self::FloatImage => include_str!("../common/act_out_image.wgsl"),
            Self::Int8 => include_str!("../common/act_out_int8.wgsl"),
            Self::Half => include_str!("../common/act_out_half.wgsl"),
        }
    }

    /// How the tiled product holds them.
    pub(crate) fn tile(self) -> &'static str {
        match self {
            Self::Float => include_str!("../common/tile_float.wgsl"),
            Self::Int8 => include_str!("../common/tile_int8.wgsl"),
            Self::FloatImage | Self::Half => "",
        }
    }
}
