//! All GPU mathematics of Hearth: the kernels' WGSL, how a kernel is put together from its files, what
//! it binds, and the f64 reference of each operation. It knows no GPU interface and does no I/O.

mod activation_format;
mod gemv_input;
mod kernel;
pub mod params;
mod product;
pub mod reference;
mod rows_out;
mod tile;
mod weight_format;

pub use activation_format::ActivationFormat;
pub use gemv_input::GemvInput;
pub use kernel::{AttentionKernel, BindingKind, Kernel, Reduction, TILE_COLUMNS, TILE_COLUMNS_FEW};
pub use product::{Epilogue, MatrixKernel};
pub use rows_out::RowsOut;
pub use tile::{
    COOPERATIVE_BYTES, COOPERATIVE_COLUMNS, COOPERATIVE_PAIRS, COOPERATIVE_SUBGROUP,
    COOPERATIVE_THREADS, Tile,
};
pub use weight_format::{IMAGE_LINE, IMAGE_TILE_ROWS, Planes, WeightFormat};
