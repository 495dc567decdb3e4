//! The kernels that work on rows of one column: embeddings and norms.

use hearth_shaders::params::{
    BiasParams, CopyParams, EmbedParams, GatherParams, NormParams, TOKEN_FROM_SLOT,
};
use hearth_shaders::reference::{add_bias, embed, gather, rms_norm};
use hearth_shaders::{ActivationFormat, Kernel, WeightFormat};

use super::lab::{Buffer, Expected, Lab, UNTOUCHED};
use super::random::{Planes, Random, bits, wide};
use crate::model::{Column, StepInput};

const IN_PROMPT: u32 = 0x8000_0000;

#[test]
pub(super) fn embeddings() {
    let mut lab = Lab::open();
    for kernel in Kernel::all() {
        let Kernel::Embed(format, _) = kernel else {
            continue;
        };
        for seed in 0..6 {
            embedding(&mut lab, &mut Random::new(seed), kernel, format);
        }
    }
}

/// A part of the table; the columns' tokens are within and without it, given and sampled.
fn embedding(lab: &mut Lab, random: &mut Random, kernel: Kernel, format: WeightFormat) {
    let blocks = random.within(1, 40) as usize;
    let vocab = random.within(20, 90);
    let slots = random.within(2, 5);
    let first_row = random.within(0, vocab / 2);
    let rows = random.within(1, vocab - first_row);
    let planes = Planes::new(random, format, rows as usize, blocks);
    let last_tokens: Vec<u32> = (0..slots).map(|_| random.within(0, vocab - 1)).collect();
    let columns: Vec<Column> = (0..random.within(1, 19))
        .map(|position| {
            let sampled = random.within(0, 2) == 0;
            let token = if sampled {
                TOKEN_FROM_SLOT
            } else {
                random.within(0, vocab - 1)
            };
            Column {
                token,
                position,
                table: 0,
                slot: random.within(0, slots - 1),
            }
        })
        .collect();
    let mut history: Vec<u32> = (0..slots * vocab).map(|_| random.within(0, 3)).collect();
    let before_x = vec![UNTOUCHED; columns.len() * blocks * 32];
    let step = StepInput {
        columns,
        ..StepInput::default()
    };
    let params = EmbedParams {
        blocks: u32::try_from(blocks).unwrap(),
        first_row,
        rows,
        vocab,
    };
    let [quants, metas] = planes.buffers();
    let buffers = [
        Buffer::uniform(&params),
        quants,
        metas,
        Buffer::Words(step.words(0, &[])),
        Buffer::Words(last_tokens.clone()),
        Buffer::Words(before_x.clone()),
        Buffer::Words(history.clone()),
    ];
    let grid = [
        params.blocks.div_ceil(32),
        u32::try_from(step.columns.len()).unwrap(),
        1,
    ];
    let after = lab.run(kernel, &[("WG", 32)], &buffers, grid);
    let mut expected = Expected::default();
    for (n, column) in step.columns.iter().enumerate() {
        let given = column.token != TOKEN_FROM_SLOT;
        let token = if given {
            column.token
        } else {
            last_tokens[column.slot as usize]
        };
        if token < first_row || token >= first_row + rows {
            continue;
        }
        let row = (token - first_row) as usize;
        let values = embed(format, &planes.quants, &planes.metas, blocks, row);
        for (i, w) in values.iter().enumerate() {
            let error = w.magnitude * 2.0 * f64::from(f32::EPSILON);
            expected.set(n * blocks * 32 + i, w.value, error);
        }
        if given {
            history[(column.slot * vocab + token) as usize] |= IN_PROMPT;
        }
    }
    expected.check_floats(
        &format!("{} {params:?}:", kernel.name()),
        &before_x,
        &after[0],
    );
    assert_eq!(after[1], history, "{} {params:?}: history", kernel.name());
}

#[test]
pub(super) fn norms() {
    let mut lab = Lab::open();
    for kernel in Kernel::all() {
        let Kernel::Norm(format, reduction) = kernel else {
            continue;
        };
        if lab.runs(reduction) {
            for seed in 0..6 {
                norm(&mut lab, &mut Random::new(seed), kernel, format);
            }
        }
    }
}

fn norm(lab: &mut Lab, random: &mut Random, kernel: Kernel, format: ActivationFormat) {
    let blocks = random.within(1, 150) as usize;
    let dim = 32 * blocks;
    let columns = random.within(1, 19);
    let outputs = random.within(0, 1);
    let (first, count) = match outputs {
        1 => {
            let first = random.within(0, columns - 1);
            (first, random.within(1, columns - first))
        }
        _ => (0, columns),
    };
    let scale = [1.0, 300.0, 1e-4][random.within(0, 2) as usize];
    let mut x: Vec<f32> = random
        .floats(columns as usize * dim)
        .iter()
        .map(|v| v * scale)
        .collect();
    // A column of zeros: its int8 blocks have no scale.
    x[first as usize * dim..][..dim].fill(0.0);
    let weight = random.floats(dim);
    let step = StepInput {
        columns: (0..columns)
            .map(|position| Column {
                token: 0,
                position,
                table: 0,
                slot: 0,
            })
            .collect(),
        output_first: if outputs == 1 { first } else { 7 },
        ..StepInput::default()
    };
    let params = NormParams {
        blocks: u32::try_from(blocks).unwrap(),
        outputs,
        eps: 1e-5,
        pad: 0,
    };
    let block_words = usize::try_from(format.block_bytes() / 4).unwrap();
    let before = vec![UNTOUCHED; (count as usize + 1) * blocks * block_words];
    let buffers = [
        Buffer::uniform(&params),
        Buffer::Words(step.words(0, &[])),
        Buffer::Words(before.clone()),
        Buffer::Words(bits(&x)),
        Buffer::Words(bits(&weight)),
    ];
    let overrides = [("WG", 64), ("TPR", 8)];
    let after = lab.run(kernel, &overrides, &buffers, [count, 1, 1]);
    let mut expected = Expected::default();
    let weight = wide(&weight);
    for n in 0..count as usize {
        let source = wide(&x[(first as usize + n) * dim..][..dim]);
        let values = rms_norm(&source, &weight, f64::from(params.eps));
        for (i, v) in values.into_iter().enumerate() {
            // The mean is a sum of positive terms: its relative error is that of its additions.
            expected.set(n * dim + i, v, 4e-6 * v.abs() + 1e-30);
        }
    }
    let what = format!("{} {params:?} of {columns} columns:", kernel.name());
    expected.check_acts(&what, format, &before, &after[0]);
}

#[test]
pub(super) fn copies() {
    let mut lab = Lab::open();
    for (seed, count) in (0..).zip([3 * 256 * 4, 2 * 3 * 256 * 4]) {
        let mut random = Random::new(seed);
        let source: Vec<u32> = (0..4 * count)
            .map(|_| random.within(0, u32::MAX - 1))
            .collect();
        let params = CopyParams {
            count,
            ..CopyParams::default()
        };
        let buffers = [
            Buffer::uniform(&params),
            Buffer::Words(source.clone()),
            Buffer::untouched(source.len()),
        ];
        let after = lab.run(Kernel::Copy, &[("WG", 256)], &buffers, [3, 1, 1]);
        assert_eq!(after, [source], "{count} groups of four words");
    }
}

#[test]
pub(super) fn gathers() {
    let mut lab = Lab::open();
    for kernel in Kernel::all() {
        let Kernel::Gather(format) = kernel else {
            continue;
        };
        for seed in 0..4 {
            gathered(&mut lab, &mut Random::new(seed), kernel, format);
        }
    }
}

fn gathered(lab: &mut Lab, random: &mut Random, kernel: Kernel, format: ActivationFormat) {
    let blocks = random.within(1, 70);
    let dim = 32 * blocks as usize;
    let columns = random.within(1, 9);
    let x = random.floats(columns as usize * dim);
    let order = random.shuffled(32 * blocks);
    let params = GatherParams {
        blocks,
        pad: [0; 3],
    };
    let block_words = usize::try_from(format.block_bytes() / 4).unwrap();
    let before = vec![UNTOUCHED; (columns * blocks) as usize * block_words];
    let buffers = [
        Buffer::uniform(&params),
        Buffer::Words(before.clone()),
        Buffer::Words(bits(&x)),
        Buffer::Words(order.clone()),
    ];
    let grid = [blocks.div_ceil(32), columns, 1];
    let after = lab.run(kernel, &[("WG", 32)], &buffers, grid);
    let mut expected = Expected::default();
    for (n, column) in x.chunks_exact(dim).enumerate() {
        for (i, v) in gather(&wide(column), &order).into_iter().enumerate() {
            expected.set(n * dim + i, v, 0.0);
        }
    }
    let what = format!("{} {params:?} of {columns} columns:", kernel.name());
    expected.check_acts(&what, format, &before, &after[0]);
}

#[test]
pub(super) fn biases() {
    let mut lab = Lab::open();
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let groups = 8 * random.within(1, 60);
        let columns = random.within(1, 9);
        let dim = 4 * groups as usize;
        let x = random.floats(columns as usize * dim);
        let bias = random.floats(dim);
        let params = BiasParams {
            groups,
            pad: [0; 3],
        };
        let buffers = [
            Buffer::uniform(&params),
            Buffer::Words(bits(&x)),
            Buffer::Words(bits(&bias)),
        ];
        let grid = [groups.div_ceil(64), columns, 1];
        let after = lab.run(Kernel::AddBias, &[("WG", 64)], &buffers, grid);
        let mut expected = Expected::default();
        for (n, column) in x.chunks_exact(dim).enumerate() {
            let sums = add_bias(&wide(column), &wide(&bias));
            for (i, v) in sums.into_iter().enumerate() {
                expected.set(n * dim + i, v, 1e-7 * v.abs() + 1e-7);
            }
        }
        let what = format!("{params:?} of {columns} columns:");
        expected.check_floats(&what, &bits(&x), &after[0]);
    }
}
