//! All GPU mathematics of Hearth: the kernels' WGSL, how a kernel is put together from its files, what
//! it binds, and the f64 reference of each operation. It knows no GPU interface and does no I/O.

mod kernel;
pub mod params;
pub mod reference;

pub use kernel::{
    ActivationFormat, BindingKind, Epilogue, IMAGE_LINE, IMAGE_TILE_ROWS, Kernel, MatrixKernel,
    Planes, Reduction, TILE_COLUMNS, WeightFormat,
};
