//! Attention of many columns, of one or several sequences, over a paged cache.

use hearth_shaders::params::AttentionParams;
use hearth_shaders::reference::{Attention, INT8_BLOCK_WORDS, KvShape, attention};
use hearth_shaders::{ActivationFormat, Kernel, RowsOut};

use super::super::{Extent, prefill_attention};
use super::lab::{Buffer, Expected, Lab, NAN_WORD, UNTOUCHED};
use super::long_tests;
use super::random::{Random, bits, wide};
use crate::model::{Column, StepInput};

/// A step to test.
struct Case {
    head_dim: u32,
    group: u32,
    kv_heads: u32,
    block_len: u32,
    window: u32,
    /// (first position, columns) of each sequence's part of the step, in order.
    sequences: &'static [(u32, u32)],
}

/// Every `head_dim` that a model may have; tiles that are part empty, whole, or of several sequences;
/// windows inside a tile and over many.
const CASES: [Case; 8] = [
    case(64, 3, 3, 16, 0, &[(0, 75)]),
    case(64, 3, 2, 16, 0, &[(40, 7), (0, 1), (3, 1), (200, 20)]),
    case(64, 2, 1, 32, 50, &[(90, 40), (10, 3)]),
    case(16, 1, 2, 16, 0, &[(0, 33)]),
    case(32, 5, 1, 32, 1, &[(5, 9)]),
    case(80, 2, 1, 16, 0, &[(0, 18), (70, 5)]),
    case(128, 1, 2, 16, 0, &[(128, 34)]),
    case(256, 4, 1, 32, 7, &[(20, 17)]),
];
/// More of the same.
const LONG: [Case; 5] = [
    case(96, 7, 1, 16, 0, &[(0, 40)]),
    case(64, 4, 8, 16, 0, &[(0, 40), (9, 70)]),
    case(128, 4, 8, 16, 33, &[(300, 40), (0, 31)]),
    case(256, 8, 1, 16, 0, &[(0, 64)]),
    case(64, 8, 2, 16, 64, &[(1000, 5), (63, 2), (64, 2), (65, 2)]),
];

const fn case(
    head_dim: u32,
    group: u32,
    kv_heads: u32,
    block_len: u32,
    window: u32,
    sequences: &'static [(u32, u32)],
) -> Case {
    Case {
        head_dim,
        group,
        kv_heads,
        block_len,
        window,
        sequences,
    }
}

#[test]
pub(super) fn shapes() {
    let mut lab = Lab::open();
    let long: &[Case] = if long_tests() { &LONG } else { &[] };
    for (n, case) in CASES.iter().chain(long).enumerate() {
        let mut random = Random::new(n as u64);
        let data = Data::new(&mut random, case);
        let formats = [lab.gpu().float_format(), ActivationFormat::Int8];
        let count = if n == 0 || long_tests() { 2 } else { 1 };
        for &format in &formats[..count] {
            data.run(&mut lab, case, format, false);
            if lab.gpu().cooperative_matrix {
                data.run(&mut lab, case, format, true);
            }
        }
    }
}

/// The step's columns and caches. K and V are NaN in blocks and slots that hold no position.
struct Data {
    step: StepInput,
    shape: KvShape,
    caches: [Vec<u32>; 2],
    q: Vec<f32>,
}

impl Data {
    fn new(random: &mut Random, case: &Case) -> Self {
        let blocks = |&(first, count): &(u32, u32)| (first + count).div_ceil(case.block_len);
        let kv_blocks = case.sequences.iter().map(blocks).sum::<u32>() + 2;
        let shape = KvShape {
            kv_heads: case.kv_heads as usize,
            head_dim: case.head_dim as usize,
            block_len: case.block_len as usize,
        };
        let mut step = StepInput {
            tables: random.shuffled(kv_blocks),
            ..StepInput::default()
        };
        let words = kv_blocks * case.kv_heads * case.block_len * case.head_dim / 2;
        let mut caches = [(); 2].map(|()| vec![NAN_WORD; words as usize]);
        let mut table = 0;
        for sequence in case.sequences {
            let &(first, count) = sequence;
            step.columns
                .extend((first..first + count).map(|position| Column {
                    token: 0,
                    position,
                    table,
                    slot: 0,
                }));
            for position in 0..(first + count) as usize {
                for head in 0..shape.kv_heads {
                    let at = shape.index(&step.tables[table as usize..], head, position) / 2;
                    for cache in &mut caches {
                        cache[at..at + shape.head_dim / 2].fill_with(|| random.halves(2.0));
                    }
                }
            }
            table += blocks(sequence);
        }
        let heads = (case.kv_heads * case.group) as usize;
        let q = random.floats(step.columns.len() * heads * shape.head_dim);
        Self {
            step,
            shape,
            caches,
            q,
        }
    }

    fn run(&self, lab: &mut Lab, case: &Case, format: ActivationFormat, cooperative_matrix: bool) {
        let plan = prefill_attention(case.head_dim, case.group, format, cooperative_matrix);
        let dim = case.kv_heads * case.group * case.head_dim;
        let columns = u32::try_from(self.step.columns.len()).unwrap();
        let params = AttentionParams {
            head_dim: case.head_dim,
            kv_heads: case.kv_heads,
            block_len: case.block_len,
            splits_max: 1,
            window: case.window,
            scale: 1.0 / (case.head_dim as f32).sqrt(),
            group: case.group,
            pad: 0,
        };
        let mut buffers = vec![
            Buffer::uniform(&params),
            Buffer::Words(bits(&self.q)),
            Buffer::Words(self.caches[0].clone()),
            Buffer::Words(self.caches[1].clone()),
            Buffer::Words(self.step.words(1 << 30, &[])),
        ];
        let partial = plan.kernel == Kernel::AttentionPrefill(RowsOut::Partial);
        let words = if !partial && format == ActivationFormat::Int8 {
            dim as usize / 32 * INT8_BLOCK_WORDS
        } else {
            dim as usize
        };
        let before = vec![UNTOUCHED; columns as usize * words];
        buffers.push(Buffer::Words(before.clone()));
        let sums = (columns * dim / case.head_dim) as usize * 2;
        if partial {
            buffers.push(Buffer::untouched(sums));
        }
        let extent = Extent {
            columns,
            ..Extent::default()
        };
        let grid = [case.kv_heads, plan.tiles.resolve(extent), 1];
        let after = lab.run(plan.kernel, &plan.overrides, &buffers, grid);
        let what = format!("{} {params:?} {:?}", plan.kernel.name(), case.sequences);
        let expected = self.expected(case, plan.kernel.uses_cooperative_matrix());
        if partial {
            expected.check_floats(&what, &before, &after[0]);
            assert_eq!(after[1], bits(&[0.0, 1.0]).repeat(sums / 2), "{what}");
        } else {
            expected.check_acts(&what, format, &before, &after[0]);
        }
    }

    fn expected(&self, case: &Case, halves: bool) -> Expected {
        // A score's rounding is a relative error of its weight; matrix units round queries and weights
        // to eleven bits.
        let error = if halves { 2e-3 } else { 2e-5 };
        let mut expected = Expected::default();
        let heads = (case.kv_heads * case.group) as usize;
        let dim = heads * self.shape.head_dim;
        for (n, column) in self.step.columns.iter().enumerate() {
            let a = Attention {
                shape: self.shape,
                heads,
                window: case.window as usize,
                k: &self.caches[0],
                v: &self.caches[1],
                table: &self.step.tables[column.table as usize..],
            };
            let queries = wide(&self.q[n * dim..(n + 1) * dim]);
            let values = attention(&a, &queries, column.position as usize);
            for (i, o) in values.into_iter().enumerate() {
                expected.set(n * dim + i, o.value, error * o.magnitude + 1e-30);
            }
        }
        expected
    }
}
