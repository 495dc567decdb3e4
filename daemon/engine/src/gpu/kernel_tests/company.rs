//! A column's result is the same to the bit whatever the columns beside it, and whether the product
//! norms its input itself or finds it stored: the same request must give the same text in company.

use hearth_shaders::params::{MatrixParams, NormParams};
use hearth_shaders::reference::INT8_BLOCK_WORDS;
use hearth_shaders::{
    ActivationFormat, Epilogue, GemvInput, Kernel, MatrixKernel, Planes as PlanesPlace,
    TILE_COLUMNS, TILE_COLUMNS_FEW, WeightFormat,
};

use super::lab::{Buffer, Lab, UNTOUCHED};
use super::long_tests;
use super::plan::cut;
use super::random::{Acts, Planes, Random, bits};
use crate::AdapterKind;
use crate::model::plan::{GemvPlan, gemv_plans, rows_threads};
use crate::model::{Column, StepInput};

/// Odd, so that the last pair is padded, and no multiple of a workgroup.
const ROWS: u32 = 77;
/// Blocks of a row: several rounds of every run.
const BLOCKS: u32 = 37;
/// Columns of the step: the last group of each width but one is not full.
const COLUMNS: u32 = 15;
const EPS: f32 = 1e-5;

const ACTIVATIONS: [ActivationFormat; 2] = [ActivationFormat::Float, ActivationFormat::Int8];

fn product(activations: ActivationFormat) -> MatrixKernel {
    MatrixKernel {
        weights: WeightFormat::Q4_1,
        activations,
        epilogue: Epilogue::Store,
    }
}

fn params() -> MatrixParams {
    MatrixParams {
        pairs: ROWS.div_ceil(2),
        blocks: BLOCKS,
        rows: ROWS,
        out_stride: ROWS,
        eps: EPS,
        ..MatrixParams::default()
    }
}

fn step() -> Vec<u32> {
    let column = |position| Column {
        token: 0,
        position,
        table: 0,
        slot: 0,
    };
    let step = StepInput {
        columns: (0..COLUMNS).map(column).collect(),
        ..StepInput::default()
    };
    step.words(0, &[])
}

/// Rows of every column, by workgroups of `input`'s columns.
fn run(
    lab: &mut Lab,
    m: MatrixKernel,
    plan: GemvPlan,
    input: GemvInput,
    [planes, acts, norm]: [&[Vec<u32>]; 3],
    columns: u32,
) -> Vec<u32> {
    let mut buffers = vec![
        Buffer::uniform(&params()),
        Buffer::Words(planes[0].clone()),
        Buffer::Words(planes[1].clone()),
        Buffer::Words(acts[0].clone()),
        Buffer::Words(step()),
        Buffer::untouched((COLUMNS * ROWS) as usize),
    ];
    buffers.extend(norm.iter().map(|w| Buffer::Words(w.clone())));
    let pairs = ROWS.div_ceil(2);
    let (mut overrides, together) = cut(lab.gpu(), m, plan, input, pairs, BLOCKS);
    if input == GemvInput::Normed {
        overrides.push(("OUTPUTS", 0));
    }
    let grid = [
        pairs.div_ceil(together),
        columns.div_ceil(input.columns()),
        1,
    ];
    let kernel = Kernel::Gemv(m, lab.gpu().reduction, input);
    lab.run(kernel, &overrides, &buffers, grid).remove(0)
}

#[test]
pub(super) fn columns_do_not_depend_on_their_number() {
    let mut lab = Lab::open();
    // Other compilers may fuse other operations in another pipeline.
    if lab.gpu().info.kind != AdapterKind::Software {
        return;
    }
    for activations in ACTIVATIONS {
        let m = product(activations);
        let mut random = Random::new(5);
        let planes = Planes::new(&mut random, m.weights, ROWS as usize, BLOCKS as usize);
        let planes = [planes.quants, planes.metas];
        let acts = Acts::new(&mut random, activations, (16 * BLOCKS) as usize);
        let plans = gemv_plans(lab.gpu(), m.epilogue, BLOCKS);
        // Runs within a subgroup, and longer ones.
        let shortest = plans.iter().min_by_key(|p| p.lanes).copied();
        let longest = plans.iter().max_by_key(|p| p.lanes).copied();
        for plan in [shortest, longest].into_iter().flatten() {
            let mut of = |input| {
                let data: [&[Vec<u32>]; 3] = [&planes, std::slice::from_ref(&acts.words), &[]];
                run(&mut lab, m, plan, input, data, COLUMNS)
            };
            let alone = of(GemvInput::Stored { columns: 1 });
            assert!(alone.iter().all(|&w| w != UNTOUCHED));
            for input in GemvInput::ALL {
                // Nothing deals out the sums of floats.
                let wide = matches!(input, GemvInput::Wide { .. });
                if input != GemvInput::Normed && !(wide && activations == ActivationFormat::Float) {
                    assert_eq!(of(input), alone, "{input:?}, {plan:?}");
                }
            }
        }
    }
}

/// The kernels whose threads walk row pairs: one column, few, many.
#[test]
pub(super) fn rows_kernels_agree() {
    let mut lab = Lab::open();
    if lab.gpu().info.kind != AdapterKind::Software {
        return;
    }
    let everyday = [
        (WeightFormat::Q4_1, ActivationFormat::FloatImage),
        (WeightFormat::Q4_1, ActivationFormat::Int8),
        (WeightFormat::Q4K, ActivationFormat::FloatImage),
        (WeightFormat::Q8_0, ActivationFormat::FloatImage),
        (WeightFormat::F16, ActivationFormat::FloatImage),
    ];
    for kernel in Kernel::all() {
        let Kernel::GemvRows(m, reduction) = kernel else {
            continue;
        };
        let chosen =
            everyday.contains(&(m.weights, m.activations)) && reduction == lab.gpu().reduction;
        if m.epilogue != Epilogue::Store || !lab.runs(reduction) || !(chosen || long_tests()) {
            continue;
        }
        let mut random = Random::new(7);
        let planes = Planes::new(&mut random, m.weights, ROWS as usize, BLOCKS as usize);
        let acts = Acts::new(&mut random, m.activations, (16 * BLOCKS) as usize);
        let mut of = |kernel, columns: u32| {
            let threads = rows_threads(PlanesPlace::Images, m.epilogue);
            let [quants, metas] = planes.buffers();
            let buffers = [
                Buffer::uniform(&params()),
                quants,
                metas,
                Buffer::Words(acts.words.clone()),
                Buffer::Words(step()),
                Buffer::untouched((COLUMNS * ROWS) as usize),
            ];
            let grid = [
                ROWS.div_ceil(2).div_ceil(2 * threads),
                COLUMNS.div_ceil(columns),
                1,
            ];
            lab.run(kernel, &[("WG", threads)], &buffers, grid)
                .remove(0)
        };
        let alone = of(kernel, 1);
        assert!(alone.iter().all(|&w| w != UNTOUCHED));
        for columns in [TILE_COLUMNS_FEW, TILE_COLUMNS] {
            let tile = Kernel::GemmRows(m, reduction, PlanesPlace::Images, columns);
            assert!(of(tile, columns) == alone, "{}", tile.name());
        }
    }
}

#[test]
pub(super) fn a_product_norms_as_the_norm_does() {
    let mut lab = Lab::open();
    if lab.gpu().info.kind != AdapterKind::Software {
        return;
    }
    for activations in ACTIVATIONS {
        let m = product(activations);
        let mut random = Random::new(6);
        let planes = Planes::new(&mut random, m.weights, ROWS as usize, BLOCKS as usize);
        let planes = [planes.quants, planes.metas];
        let x = bits(&random.floats((32 * BLOCKS * COLUMNS) as usize));
        let weight = bits(&random.floats((32 * BLOCKS) as usize));
        let block_words = match activations {
            ActivationFormat::Int8 => INT8_BLOCK_WORDS,
            _ => 32,
        };
        let norm = NormParams {
            blocks: BLOCKS,
            outputs: 0,
            eps: EPS,
            pad: 0,
        };
        for plan in gemv_plans(lab.gpu(), m.epilogue, BLOCKS) {
            let buffers = [
                Buffer::uniform(&norm),
                Buffer::Words(step()),
                Buffer::untouched((COLUMNS * BLOCKS) as usize * block_words),
                Buffer::Words(x.clone()),
                Buffer::Words(weight.clone()),
            ];
            let kernel = Kernel::Norm(activations, lab.gpu().reduction);
            let overrides = [("WG", plan.threads), ("TPR", 8)];
            let stored = lab.run(kernel, &overrides, &buffers, [1, 1, 1]);
            let input = GemvInput::Stored { columns: 1 };
            let apart = run(&mut lab, m, plan, input, [&planes, &stored, &[]], 1);
            let weights = std::slice::from_ref(&weight);
            let source = std::slice::from_ref(&x);
            let input = GemvInput::Normed;
            let own = run(&mut lab, m, plan, input, [&planes, source, weights], 1);
            assert_eq!(own, apart, "{plan:?}");
        }
    }
}
