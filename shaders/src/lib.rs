//! All GPU mathematics of Hearth: the kernels' WGSL, how a kernel is put together from its files, what
//! it binds, and the f64 reference of each operation. It knows no GPU interface and does no I/O.

mod kernel;
pub mod params;
pub mod reference;
mod rows_out;
mod weight_format;

pub use kernel::{
    ActivationFormat, AttentionKernel, BindingKind, Epilogue, GemvInput, Kernel, MatrixKernel,
    Reduction, TILE_COLUMNS,
};
pub use rows_out::RowsOut;
pub use weight_format::WeightFormat;
