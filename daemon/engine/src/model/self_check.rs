//! One small product by cooperative matrices against its reference, before a model relies on them: the
//! feature is experimental, and a driver that gets it wrong must cost speed, not answers.

use hearth_shaders::params::MatrixParams;
use hearth_shaders::reference::{BLOCK, Bounded, half_bits, half_values, matmul, weight_rows};
use hearth_shaders::{
    ActivationFormat, COOPERATIVE_COLUMNS, COOPERATIVE_PAIRS, Epilogue, Kernel, MatrixKernel,
    WeightFormat,
};

use crate::error::EngineError;
use crate::gpu::{self, Axis, Buffer, Extent, Gpu, Op, Pipelines, Readback, Reads, Recording};

/// Rows of the product: a tile and a little.
const ROWS: u32 = 2 * COOPERATIVE_PAIRS + 6;
/// Columns of the product.
const COLUMNS: u32 = COOPERATIVE_COLUMNS + 3;
/// Blocks of a row: an odd number, so that the last step is half empty.
const BLOCKS: u32 = 5;
/// Weights are rounded to f16; the rest is f32.
const ERROR_MAX: f64 = 1.0 / 1024.0;

/// Tells whether products by cooperative matrices are right on this device.
pub(crate) fn cooperative_matrix_works(gpu: &Gpu, pipelines: &mut Pipelines) -> bool {
    match largest_error(gpu, pipelines) {
        Ok(error) if error <= ERROR_MAX => true,
        Ok(error) => {
            tracing::warn!(error, "cooperative matrices give wrong results; not used");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cooperative matrices do not run; not used");
            false
        }
    }
}

/// The product's largest error, relative to the sum of its terms' absolute values.
fn largest_error(gpu: &Gpu, pipelines: &mut Pipelines) -> Result<f64, EngineError> {
    let input = Input::new();
    let found = run(gpu, pipelines, &input)?;
    Ok(input
        .expected()
        .iter()
        .zip(&found)
        .map(|(wanted, &found)| {
            let error = (f64::from(found) - wanted.value).abs() / wanted.magnitude.max(1e-6);
            // A NaN is as wrong as it gets.
            if error.is_nan() { f64::MAX } else { error }
        })
        .fold(0.0, f64::max))
}

/// A q4_0 matrix and f16 activations, the same ones each time.
struct Input {
    quants: Vec<u32>,
    metas: Vec<u32>,
    acts: Vec<u32>,
}

impl Input {
    fn new() -> Self {
        let mut state = 1u32;
        let mut next = move || {
            // An ordinary linear congruential generator; its high bits are random enough.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let blocks = (ROWS * BLOCKS) as usize;
        let quants = (0..4 * blocks).map(|_| next() << 16 | next()).collect();
        let unit = |bits: u32| f32::from(u16::try_from(bits).unwrap_or(0)) / 65_536.0;
        let mut pair = |low: f32, width: f32| {
            half_bits([low + width * unit(next()), low + width * unit(next())])
        };
        let metas = (0..ROWS * BLOCKS.div_ceil(2))
            .map(|_| pair(0.01, 0.1))
            .collect();
        let acts = (0..COLUMNS * BLOCKS * 16)
            .map(|_| pair(-1.0, 2.0))
            .collect();
        Self {
            quants,
            metas,
            acts,
        }
    }

    fn expected(&self) -> Vec<Bounded> {
        let (rows, blocks) = (ROWS as usize, BLOCKS as usize);
        let weights = weight_rows(WeightFormat::Q4_0, &self.quants, &self.metas, blocks, rows);
        matmul(&weights, &half_values(&self.acts), blocks * BLOCK)
    }
}

/// The product, `[column, row]`.
fn run(gpu: &Gpu, pipelines: &mut Pipelines, input: &Input) -> Result<Vec<f32>, EngineError> {
    let kernel = Kernel::GemmCoop(MatrixKernel {
        weights: WeightFormat::Q4_0,
        activations: ActivationFormat::Half,
        epilogue: Epilogue::Store,
    });
    let params = gpu::uniform(
        gpu,
        &MatrixParams {
            pairs: ROWS / 2,
            blocks: BLOCKS,
            rows: ROWS,
            out_stride: ROWS,
            columns_max: COLUMNS,
            ..MatrixParams::default()
        },
    );
    let filled = |label: &str, words: &[u32]| -> Result<Buffer, EngineError> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let buffer = gpu::storage(gpu, label, bytes.len() as u64);
        gpu::upload(gpu, &buffer, 0, bytes)?;
        Ok(buffer)
    };
    let quants = filled("check quants", &input.quants)?;
    let metas = filled("check metas", &input.metas)?;
    let acts = filled("check activations", &input.acts)?;
    let step = gpu::storage(gpu, "check step", 64);
    let out_bytes = 4 * u64::from(ROWS * COLUMNS);
    let out = gpu::storage(gpu, "check result", out_bytes);
    let pipeline = pipelines.get(gpu, kernel, &[])?;
    let bind_group = pipeline.bind(gpu, &[&params, &quants, &metas, &acts, &step, &out]);
    let op = Op {
        pipeline,
        bind_group,
        grid: [
            Axis::Fixed((ROWS / 2).div_ceil(COOPERATIVE_PAIRS)),
            Axis::Fixed(COLUMNS.div_ceil(COOPERATIVE_COLUMNS)),
            Axis::Fixed(1),
        ],
        only_split: false,
        reads: Reads::Little,
    };
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    Recording { ops: vec![op] }.encode(&mut encoder, Extent::default());
    let mut readback = Readback::new(gpu, out_bytes);
    readback.copy_from(&mut encoder, &out, 0, 0, out_bytes);
    let submission = gpu.queue.submit([encoder.finish()]);
    readback.request();
    readback.read(gpu, submission, |bytes| {
        bytemuck::cast_slice(bytes).to_vec()
    })
}
