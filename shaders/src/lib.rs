//! All GPU mathematics of Hearth: the kernels' WGSL, how a kernel is put together from its files, what
//! it binds, and the f64 reference of each operation. It knows no GPU interface and does no I/O.

mod activation_format;
mod kernel;
pub mod params;
pub mod reference;
mod weight_format;

pub use activation_format::ActivationFormat;
pub use kernel::{
    AttentionKernel, BindingKind, Epilogue, GemvInput, Kernel, MatrixKernel, Reduction,
    TILE_COLUMNS,
};
pub use weight_format::{IMAGE_LINE, IMAGE_TILE_ROWS, Planes, WeightFormat};
