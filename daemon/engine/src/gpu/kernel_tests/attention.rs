//! Attention over a paged cache, split and joined again.

use hearth_shaders::params::{AttentionParams, CombineParams, attention_split_len};
use hearth_shaders::reference::{Attention, KvShape, attention};
use hearth_shaders::{ActivationFormat, Kernel, Reduction};

use super::lab::{Buffer, Expected, Lab, NAN_WORD, UNTOUCHED};
use super::long_tests;
use super::random::{Random, bits, wide};
use crate::model::plan::attention_plan;
use crate::model::{Column, StepInput};

/// (head_dim, query heads a KV head, KV heads, positions of a KV block).
type Shape = (u32, u32, u32, u32);

/// The default model's shape.
const USUAL: Shape = (64, 3, 3, 32);
/// Every head_dim that a model may have, among them those that fill no whole run of lanes, with one
/// to eight query heads to a KV head.
const EVERYDAY: [Shape; 8] = [
    USUAL,
    (16, 1, 2, 16),
    (32, 5, 2, 32),
    (64, 8, 1, 16),
    (80, 2, 1, 32),
    (96, 3, 2, 16),
    (128, 4, 2, 32),
    (256, 1, 1, 32),
];
/// With many heads to a group: software adapters compile these for up to minutes each.
const LONG: [Shape; 6] = [
    (16, 8, 1, 32),
    (64, 4, 2, 16),
    (64, 7, 1, 32),
    (96, 7, 1, 16),
    (128, 6, 1, 16),
    (256, 8, 1, 32),
];

/// (positions, window) at the edges of KV blocks of 32 and splits of 64: either a step before, at and
/// behind the edge; windows of one position, of all and of more.
const EDGES: [(u32, u32); 22] = [
    (1, 0),
    (1, 1),
    (31, 0),
    (32, 0),
    (33, 0),
    (33, 31),
    (33, 32),
    (33, 33),
    (64, 0),
    (65, 0),
    (65, 1),
    (65, 64),
    (128, 31),
    (128, 63),
    (128, 64),
    (128, 65),
    (130, 1),
    (130, 65),
    (130, 129),
    (130, 130),
    (130, 131),
    (200, 96),
];

#[test]
fn edges() {
    let mut lab = Lab::open();
    let reduction = lab.gpu().reduction;
    for (n, (history, window)) in EDGES.into_iter().enumerate() {
        let mut random = Random::new(100 + n as u64);
        let case = Case::new(&mut random, USUAL, history, 64, window);
        case.run(&mut lab, &mut random, reduction);
    }
}

#[test]
pub(super) fn shapes() {
    let mut lab = Lab::open();
    for reduction in [Reduction::Shared, Reduction::Subgroup] {
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
                (random.within(250, 700), 0, 0),
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

/// Splits of the column at `position`; a length of 0 leaves it to the rule.
fn splits_of(position: u32, split_len: u32) -> u32 {
    let len = match split_len {
        0 => attention_split_len(position + 1),
        len => len,
    };
    position / len + 1
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
        let splits = splits_of(history - 1, split_len);
        let params = AttentionParams {
            head_dim,
            kv_heads,
            block_len,
            splits_max: splits + random.within(0, 2),
            window,
            scale: 1.0 / (head_dim as f32).sqrt(),
            group,
            pad: 0,
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

    fn splits(&self) -> u32 {
        let positions = self.step.columns.iter().map(|c| c.position);
        positions
            .map(|p| splits_of(p, self.split_len))
            .max()
            .unwrap()
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
        let splits = self.splits();
        let step = self.step.words(self.split_len, &[]);
        let q = random.floats((columns * self.heads() * p.head_dim) as usize);
        let rows = (columns * p.splits_max * self.heads()) as usize;
        for format in [lab.gpu().float_format(), ActivationFormat::Int8] {
            let (kernel, threads) =
                attention_plan(lab.gpu(), p.head_dim, self.group, p.block_len, format);
            let acts = vec![UNTOUCHED; self.act_words(format)];
            let buffers = [
                Buffer::uniform(p),
                Buffer::Words(bits(&q)),
                Buffer::Words(self.caches[0].clone()),
                Buffer::Words(self.caches[1].clone()),
                Buffer::Words(step.clone()),
                Buffer::Words(acts),
                Buffer::untouched(rows * p.head_dim as usize),
                Buffer::untouched(rows * 2),
            ];
            let overrides = [("WG", threads), ("TPR", kernel.lanes)];
            let grid = [
                p.kv_heads * self.group.div_ceil(kernel.heads),
                columns,
                splits,
            ];
            let kernel_of = Kernel::Attention(kernel, reduction);
            let after = lab.run(kernel_of, &overrides, &buffers, grid);
            let [acts, partial, sums] = after.try_into().expect("three written buffers");
            self.check_splits(&partial, &sums, kernel.direct());
            self.join(
                lab,
                &step,
                &q,
                format,
                kernel.direct(),
                [acts, partial, sums],
            );
        }
    }

    fn act_words(&self, format: ActivationFormat) -> usize {
        let block_words = usize::try_from(format.block_bytes() / 4).unwrap();
        (self.columns() * self.heads() * self.params.head_dim / 32) as usize * block_words
    }

    /// A column's own splits are written, all of them, and no others; none where it has one that is
    /// stored as activations at once.
    fn check_splits(&self, partial: &[u32], sums: &[u32], direct: bool) {
        let p = &self.params;
        let rows = partial
            .chunks_exact(p.head_dim as usize)
            .zip(sums.chunks_exact(2));
        for (row, (values, sum)) in (0..).zip(rows) {
            let split = row / self.heads() % p.splits_max;
            let column = &self.step.columns[(row / self.heads() / p.splits_max) as usize];
            let splits = splits_of(column.position, self.split_len);
            let own = split < splits && !(direct && splits == 1);
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
        format: ActivationFormat,
        direct: bool,
        [acts, partial, sums]: [Vec<u32>; 3],
    ) {
        let p = &self.params;
        let dim = self.heads() * p.head_dim;
        let params = CombineParams {
            blocks: dim / 32,
            heads: self.heads(),
            head_dim: p.head_dim,
            splits_max: p.splits_max,
            direct: u32::from(direct),
            pad: [0; 3],
        };
        let before = vec![UNTOUCHED; self.act_words(format)];
        let buffers = [
            Buffer::uniform(&params),
            Buffer::Words(step.to_vec()),
            Buffer::Words(acts),
            Buffer::Words(partial),
            Buffer::Words(sums),
        ];
        let grid = [params.blocks, self.columns(), 1];
        let threads = if self.group.is_multiple_of(2) { 64 } else { 8 };
        let after = lab.run(Kernel::Combine(format), &[("WG", threads)], &buffers, grid);
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
            self.step
                .columns
                .iter()
                .map(|c| c.position + 1)
                .max()
                .unwrap_or(0)
        );
        expected.check_acts(&what, format, &before, &after[0]);
    }
}
