//! Every kernel of the table against its f64 reference, on the machine's own adapter.
//!
//! Each dispatch runs in a trusted and in a checked build, whose results must be equal to the bit: if
//! they differ, an index is out of bounds. What a kernel must not touch holds NaN before the run.
//!
//! Compiling is what takes the time (a software adapter needs 0.1 to 2 s a kernel, and minutes for the
//! largest attention), so the everyday run takes the kernels that cover each source file in each
//! role; with `HEARTH_LONG_TESTS=1` it takes all of the table.

mod attention;
mod attention_prefill;
mod company;
mod lab;
mod matrix;
mod plan;
mod random;
mod rows;
mod sample;

use hearth_shaders::Kernel;

/// Tells whether to test all of the table, not just the everyday choice.
fn long_tests() -> bool {
    std::env::var_os("HEARTH_LONG_TESTS").is_some_and(|v| v == "1")
}

/// Each kernel has a test of its kind; a new variant does not compile until it has one here.
#[test]
fn every_kernel_has_a_test() {
    for kernel in Kernel::all() {
        let test: fn() = match kernel {
            Kernel::Embed(..) => rows::embeddings,
            Kernel::Norm(..) => rows::norms,
            Kernel::Gather(_) => rows::gathers,
            Kernel::AddBias => rows::biases,
            Kernel::Gemv(..)
            | Kernel::GemvRows(..)
            | Kernel::GemmRows(..)
            | Kernel::Gemm(..)
            | Kernel::GemmCoop(_) => {
                assert!(plan::matrix(kernel).is_some(), "{}", kernel.name());
                matrix::q4_1
            }
            Kernel::AttentionPrefill(_) | Kernel::AttentionPrefillMatrix(_) => {
                attention_prefill::shapes
            }
            Kernel::Attention(..) | Kernel::Combine(_) => attention::shapes,
            Kernel::Peaks | Kernel::Sample(_) => sample::settings,
            Kernel::Copy => rows::copies,
        };
        // Naming the function is the point: it is a test of its own.
        let _ = test;
    }
}
