//! Attention over a paged cache, split and joined again.

use hearth_shaders::params::{AttentionParams, CombineParams};
use hearth_shaders::reference::{Attention, INT8_BLOCK_WORDS, KvShape, attention};
use hearth_shaders::{ActivationFormat, Kernel, Reduction};

use super::lab::{Buffer, Expected, Lab, NAN_WORD, UNTOUCHED};
use super::long_tests;
use super::random::{Random, bits, wide};
use crate::model::{Column, StepInput};

/// (head_dim, query heads a KV head, KV heads, positions of a KV block).
type Shape = (u32, u32, u32, u32);

/// The default model's shape.
const USUAL: Shape = (64, 3, 3, 32);
/// Every head_dim that a model may have, among them those that fill no whole run of lanes.
const EVERYDAY: [Shape; 6] = [
    USUAL,
    (16, 1, 2, 16),
    (32, 5, 2, 32),
    (80, 2, 1, 32),
    (128, 4, 2, 32),
    (256, 1, 1, 32),
];
/// With many heads to a group: software adapters compile these for up to minutes each.
const LONG: [Shape; 6] = [
    (16, 8, 1, 32),
    (64, 8, 2, 16),
    (64, 4, 1, 32),
    (96, 7, 1, 16),
    (128, 6, 1, 16),
    (256, 8, 1, 32),
];

#[test]
pub(super) fn shapes() {
    let mut lab = Lab::open();
    for kernel in Kernel::all() {
        let Kernel::Attention(reduction) = kernel else {
            continue;
        };
        if !lab.runs(reduction) {
            continue;
        }
        let mut list = EVERYDAY.to_vec();
        if long_tests() {
            list.extend(LONG);
        } else if lab.gpu().reduction != reduction {
            list = vec![USUAL];
        }
        for (n, shape) in list.into_iter().enumerate() {
            let mut random = Random::new(n as u64);
            // A prompt in one split, then long histories in several, with windows at their edges.
            for (history, split_len, window) in [
                (random.within(1, 40), 1 << 30, 0),
                (random.within(257, 700), 256, 0),
                (random.within(70, 300), 64, random.within(1, 80)),
                (128, 64, 64),
                (129, 64, 128),
            ] {
                let case = Case::new(&mut random, shape, history, split_len, window);
                case.run(&mut lab, &mut random, reduction);
            }
        }
    }
}

struct Case {
    params: AttentionParams,
    group: u32,
    split_len: u32,
    step: StepInput,
    /// K and V: NaN in blocks and slots that hold no position.
    caches: [Vec<u32>; 2],
}

impl Case {
    /// The last columns of a sequence of `history` positions, and one short sequence beside it.
    fn new(
        random: &mut Random,
        (head_dim, group, kv_heads, block_len): Shape,
        history: u32,
        split_len: u32,
        window: u32,
    ) -> Self {
        let blocks = history.div_ceil(block_len);
        let short = random.within(1, block_len + 3);
        let kv_blocks = blocks + short.div_ceil(block_len) + 2;
        let tables = random.shuffled(kv_blocks);
        let count = random.within(1, 6).min(history);
        let column = |position, table| Column {
            token: 0,
            position,
            table,
            slot: 0,
        };
        let mut columns: Vec<Column> = (history - count..history).map(|p| column(p, 0)).collect();
        columns.push(column(short - 1, blocks));
        let splits = history.div_ceil(split_len);
        let params = AttentionParams {
            head_dim,
            kv_heads,
            block_len,
            splits_max: splits + random.within(0, 2),
            window,
            scale: 1.0 / (head_dim as f32).sqrt(),
            pad: [0; 2],
        };
        let step = StepInput {
            columns,
            tables,
            ..StepInput::default()
        };
        let shape = KvShape {
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            block_len: block_len as usize,
        };
        let words = (kv_blocks * kv_heads * block_len * head_dim / 2) as usize;
        let mut caches = [vec![NAN_WORD; words], vec![NAN_WORD; words]];
        for (first_block, len) in [(0, history), (blocks, short)] {
            let table = &step.tables[first_block as usize..];
            for position in 0..len as usize {
                for head in 0..shape.kv_heads {
                    let at = shape.index(table, head, position) / 2;
                    for cache in &mut caches {
                        cache[at..at + shape.head_dim / 2].fill_with(|| random.halves(2.0));
                    }
                }
            }
        }
        Self {
            params,
            group,
            split_len,
            step,
            caches,
        }
    }

    fn heads(&self) -> u32 {
        self.params.kv_heads * self.group
    }

    fn columns(&self) -> u32 {
        u32::try_from(self.step.columns.len()).unwrap()
    }

    fn run(&self, lab: &mut Lab, random: &mut Random, reduction: Reduction) {
        let p = &self.params;
        let columns = self.columns();
        let splits = self.step.history_max().div_ceil(self.split_len);
        let step = self.step.words(self.split_len, splits, &[]);
        let q = random.floats((columns * self.heads() * p.head_dim) as usize);
        let rows = (columns * p.splits_max * self.heads()) as usize;
        let buffers = [
            Buffer::uniform(p),
            Buffer::Words(bits(&q)),
            Buffer::Words(self.caches[0].clone()),
            Buffer::Words(self.caches[1].clone()),
            Buffer::Words(step.clone()),
            Buffer::untouched(rows * p.head_dim as usize),
            Buffer::untouched(rows * 2),
        ];
        let chunks = p.head_dim / 8;
        let lanes = lab.gpu().threads_per_row.min(1 << chunks.ilog2());
        let overrides = [
            ("WG", 64),
            ("TPR", lanes),
            ("G", self.group),
            ("CHUNKS", chunks.div_ceil(lanes)),
            ("HEAD_DIM", p.head_dim),
        ];
        let grid = [p.kv_heads, columns, splits];
        let mut after = lab.run(Kernel::Attention(reduction), &overrides, &buffers, grid);
        let sums = after.pop().unwrap();
        let partial = after.pop().unwrap();
        self.check_splits(&partial, &sums);
        for format in ActivationFormat::ALL {
            self.join(lab, &step, &q, &partial, &sums, format);
        }
    }

    /// A column's own splits are written, all of them, and no others.
    fn check_splits(&self, partial: &[u32], sums: &[u32]) {
        let p = &self.params;
        let rows = partial
            .chunks_exact(p.head_dim as usize)
            .zip(sums.chunks_exact(2));
        for (row, (values, sum)) in (0..).zip(rows) {
            let split = row / self.heads() % p.splits_max;
            let column = &self.step.columns[(row / self.heads() / p.splits_max) as usize];
            let own = split * self.split_len <= column.position;
            let written = values
                .iter()
                .chain(sum)
                .all(|&w| !f32::from_bits(w).is_nan());
            let untouched = values.iter().chain(sum).all(|&w| w == UNTOUCHED);
            assert!(
                if own { written } else { untouched },
                "split {split} of {column:?}, {p:?}"
            );
        }
    }

    fn join(
        &self,
        lab: &mut Lab,
        step: &[u32],
        q: &[f32],
        partial: &[u32],
        sums: &[u32],
        format: ActivationFormat,
    ) {
        let p = &self.params;
        let dim = self.heads() * p.head_dim;
        let params = CombineParams {
            blocks: dim / 32,
            heads: self.heads(),
            head_dim: p.head_dim,
            splits_max: p.splits_max,
        };
        let block_words = if format == ActivationFormat::Int8 {
            INT8_BLOCK_WORDS
        } else {
            32
        };
        let words = (self.columns() * params.blocks) as usize * block_words;
        let before = vec![UNTOUCHED; words];
        let buffers = [
            Buffer::uniform(&params),
            Buffer::Words(step.to_vec()),
            Buffer::Words(before.clone()),
            Buffer::Words(partial.to_vec()),
            Buffer::Words(sums.to_vec()),
        ];
        let grid = [params.blocks.div_ceil(32), self.columns(), 1];
        let after = lab.run(Kernel::Combine(format), &[("WG", 32)], &buffers, grid);
        let q = wide(q);
        let mut expected = Expected::default();
        for (n, column) in self.step.columns.iter().enumerate() {
            let a = Attention {
                shape: KvShape {
                    kv_heads: p.kv_heads as usize,
                    head_dim: p.head_dim as usize,
                    block_len: p.block_len as usize,
                },
                heads: self.heads() as usize,
                window: p.window as usize,
                k: &self.caches[0],
                v: &self.caches[1],
                table: &self.step.tables[column.table as usize..],
            };
            let from = n * dim as usize;
            let queries = &q[from..from + dim as usize];
            let values = attention(&a, queries, column.position as usize);
            for (i, o) in values.into_iter().enumerate() {
                // A score's rounding is a relative error of its weight.
                expected.set(from + i, o.value, 2e-5 * o.magnitude + 1e-30);
            }
        }
        let what = format!(
            "{:?} window {} history {}",
            params,
            p.window,
            self.step.history_max()
        );
        expected.check_acts(&what, format, &before, &after[0]);
    }
}
