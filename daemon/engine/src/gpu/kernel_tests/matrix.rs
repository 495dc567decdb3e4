//! Matrix products with each epilogue, each weight format, each mapping.

use hearth_shaders::params::MatrixParams;
use hearth_shaders::reference::{
    Bounded, KvShape, QkvShape, QkvTarget, glu, matmul, qkv_target, rms_norm, rope, rope_turn,
};
use hearth_shaders::{ActivationFormat, Epilogue, GemvInput, Kernel, MatrixKernel, WeightFormat};

use super::lab::{Buffer, Expected, Lab, NAN_WORD, UNTOUCHED};
use super::long_tests;
use super::plan::{Plan, everyday, matrix, plans};
use super::random::{Acts, Planes, Random, bits, wide};
use crate::model::{Column, StepInput};

#[test]
pub(super) fn q4_0() {
    all_products(WeightFormat::Q4_0);
}

#[test]
pub(super) fn q4_1() {
    all_products(WeightFormat::Q4_1);
}

#[test]
pub(super) fn q4_g64() {
    all_products(WeightFormat::Q4G64);
}

#[test]
pub(super) fn q4_g128() {
    all_products(WeightFormat::Q4G128);
}

#[test]
pub(super) fn q4_z32() {
    all_products(WeightFormat::Q4Z32);
}

#[test]
pub(super) fn q4_z64() {
    all_products(WeightFormat::Q4Z64);
}

#[test]
pub(super) fn q4_z128() {
    all_products(WeightFormat::Q4Z128);
}

#[test]
pub(super) fn q4_k() {
    all_products(WeightFormat::Q4K);
}

#[test]
pub(super) fn q8_0() {
    all_products(WeightFormat::Q8_0);
}

#[test]
pub(super) fn q2_k() {
    all_products(WeightFormat::Q2K);
}

#[test]
pub(super) fn q3_k() {
    all_products(WeightFormat::Q3K);
}

#[test]
pub(super) fn q5_0() {
    all_products(WeightFormat::Q5_0);
}

#[test]
pub(super) fn q5_1() {
    all_products(WeightFormat::Q5_1);
}

#[test]
pub(super) fn q5_k() {
    all_products(WeightFormat::Q5K);
}

#[test]
pub(super) fn q6_k() {
    all_products(WeightFormat::Q6K);
}

#[test]
pub(super) fn q8_z32() {
    all_products(WeightFormat::Q8Z32);
}

#[test]
pub(super) fn q8_z64() {
    all_products(WeightFormat::Q8Z64);
}

#[test]
pub(super) fn q8_z128() {
    all_products(WeightFormat::Q8Z128);
}

#[test]
pub(super) fn bf16() {
    all_products(WeightFormat::Bf16);
}

#[test]
pub(super) fn f16() {
    all_products(WeightFormat::F16);
}

#[test]
pub(super) fn f32() {
    all_products(WeightFormat::F32);
}

/// Every matrix kernel with these weights, over a few random shapes.
fn all_products(weights: WeightFormat) {
    let mut lab = Lab::open();
    let mut count = 0;
    for kernel in Kernel::all() {
        let Some((m, reduction)) = matrix(kernel).filter(|(m, _)| m.weights == weights) else {
            continue;
        };
        if !lab.runs(reduction) || !(long_tests() || everyday(kernel, m, reduction, lab.gpu())) {
            continue;
        }
        count += 1;
        // `gemv` compiles anew for each length of a row, so it has fewer cases, but all its plans.
        let gemv = matches!(kernel, Kernel::Gemv(..));
        for number in (0..COLUMNS.len()).filter(|n| !gemv || long_tests() || n % 3 == 1) {
            let mut random = Random::new((1000 * count + number) as u64);
            // Tiles are wider than eight columns, and each case still has to end within one.
            let columns = match kernel {
                Kernel::Gemm(..) | Kernel::GemmCoop(_) => 9 * COLUMNS[number],
                _ => COLUMNS[number],
            };
            let mut case = Case::new(&mut random, m, number, columns);
            if let Kernel::Gemv(_, _, GemvInput::Normed) = kernel {
                case.norm_own_input(&mut random);
            }
            let mut plans = plans(kernel, lab.gpu(), case.params.pairs, case.params.blocks);
            let chosen = (count + number) % plans.len().max(1);
            if let Some(plan) = plans.get_mut(chosen) {
                if case.norm.is_some() {
                    plan.overrides.push(("OUTPUTS", case.outputs));
                }
                case.run(&mut lab, &mut random, kernel, plan);
            }
        }
    }
    assert!(count >= 3, "{count} kernels of {}", weights.name());
}

/// Columns of each case: every remainder by a tile of eight.
const COLUMNS: [u32; 8] = [1, 15, 16, 3, 4, 5, 6, 18];

/// One product: a part of a matrix, and what its epilogue needs.
struct Case {
    m: MatrixKernel,
    params: MatrixParams,
    part_rows: usize,
    columns: usize,
    step: StepInput,
    frequencies: Vec<f64>,
    /// The input is to be normed: the residual stream, of which the step's outputs are a column, and
    /// the norm's weights.
    norm: Option<[Vec<f32>; 2]>,
    /// The kernel's OUTPUTS.
    outputs: u32,
}

impl Case {
    /// Case 0 is small and whole, 1 whole with long rows; others are parts at random.
    fn new(random: &mut Random, m: MatrixKernel, case: usize, columns: u32) -> Self {
        let head_dim = [16, 64, 80, 32][random.within(0, 3) as usize];
        let kv_heads = random.within(1, 2);
        let q_rows = kv_heads * random.within(1, 3) * head_dim;
        let rows = match m.epilogue {
            Epilogue::Store | Epilogue::Residual if case == 0 => random.within(1, 9),
            Epilogue::Store | Epilogue::Residual => random.within(40, 230),
            Epilogue::Qkv => q_rows + 2 * kv_heads * head_dim,
            Epilogue::Glu(_) => 64 * random.within(1, 5),
        };
        // A part starts at an even row, and at a whole block of gate and up pairs.
        let unit = if matches!(m.epilogue, Epilogue::Glu(_)) {
            64
        } else {
            2
        };
        let first_row = if case < 2 {
            0
        } else {
            random.within(0, (rows - 1) / unit) * unit
        };
        let part_rows = match (rows - first_row) / unit {
            0 | 1 => rows - first_row,
            _ if case < 2 => rows,
            units if case.is_multiple_of(2) => unit * random.within(1, units),
            _ => rows - first_row,
        };
        let logits = m.epilogue == Epilogue::Store && case > 5;
        let rope_pairs = if !case.is_multiple_of(2) {
            head_dim / 4
        } else {
            head_dim / 2
        };
        let block_len = [16, 32][random.within(0, 1) as usize];
        let params = MatrixParams {
            pairs: part_rows.div_ceil(2),
            blocks: if case == 1 {
                random.within(17, 40)
            } else {
                random.within(1, 20)
            },
            first_row,
            rows,
            out_stride: match m.epilogue {
                Epilogue::Glu(_) => rows / 2,
                _ => rows + random.within(0, 5),
            },
            q_rows,
            kv_rows: kv_heads * head_dim,
            head_dim,
            rope_pairs,
            block_len,
            has_bias: random.within(0, 1),
            columns_max: if logits { columns } else { 0 },
            eps: 1e-5,
            pad: [0; 3],
        };
        // With `columns_max` the step's own number must not count.
        let step_columns = if logits { 3 } else { columns };
        Self {
            m,
            params,
            part_rows: part_rows as usize,
            columns: columns as usize,
            step: step_of(random, step_columns, block_len),
            frequencies: (0..rope_pairs)
                .map(|i| 0.9f64.powi(i.cast_signed()))
                .collect(),
            norm: None,
            outputs: 0,
        }
    }

    /// One column, normed by the product itself.
    fn norm_own_input(&mut self, random: &mut Random) {
        let dim = 32 * self.params.blocks as usize;
        self.columns = 1;
        if self.m.epilogue == Epilogue::Store {
            self.params.columns_max = 1;
            self.outputs = random.within(0, 1);
        } else {
            self.step.columns.truncate(1);
        }
        self.step.output_first = random.within(0, 2);
        self.norm = Some([random.floats(3 * dim), random.floats(dim)]);
    }

    /// The stored input, or what the norm has to make of the residual stream.
    fn acts(&self, random: &mut Random) -> Acts {
        let blocks = self.params.blocks as usize;
        let Some([x, weight]) = &self.norm else {
            return Acts::new(random, self.m.activations, self.columns * blocks);
        };
        let dim = 32 * blocks;
        let column = (self.outputs * self.step.output_first) as usize;
        let normed = rms_norm(
            &wide(&x[column * dim..][..dim]),
            &wide(weight),
            f64::from(self.params.eps),
        );
        Acts::of(self.m.activations, &normed)
    }

    fn run(&self, lab: &mut Lab, random: &mut Random, kernel: Kernel, plan: &Plan) {
        let blocks = self.params.blocks as usize;
        let planes = Planes::new(random, self.m.weights, self.part_rows, blocks);
        let mut acts = self.acts(random);
        let products = matmul(&planes.weights, &acts.values, 32 * blocks);
        let block_words = acts.words.len() / (self.columns * blocks);
        let tiles = self.columns.next_multiple_of(plan.columns as usize);
        acts.words.resize(tiles * blocks * block_words, NAN_WORD);
        if let Some([x, _]) = &self.norm {
            acts.words = bits(x);
        }
        let step = self.step.words(0, &self.frequencies);
        let [quants, metas] = planes.buffers();
        let mut buffers = vec![
            Buffer::uniform(&self.params),
            quants,
            metas,
            Buffer::Words(acts.words),
            Buffer::Words(step.clone()),
        ];
        let targets = self.targets(random);
        buffers.extend(targets.iter().map(|t| Buffer::Words(t.clone())));
        buffers.extend(self.norm.iter().map(|[_, w]| Buffer::Words(bits(w))));
        let columns = u32::try_from(self.columns).unwrap();
        let grid = [
            self.params.pairs.div_ceil(plan.pairs),
            columns.div_ceil(plan.columns),
            1,
        ];
        let after = lab.run(kernel, &plan.overrides, &buffers, grid);
        let what = format!(
            "{} {:?} of {} columns:",
            kernel.name(),
            self.params,
            self.columns
        );
        let results = Results {
            case: self,
            products: &products,
        };
        match self.m.epilogue {
            Epilogue::Store => results.check_stored(&what, &targets[0], &after[0], false),
            Epilogue::Residual => results.check_stored(&what, &targets[0], &after[0], true),
            Epilogue::Glu(format) => results.check_glu(&what, format, &targets[0], &after[0]),
            Epilogue::Qkv => results.check_qkv(&what, &step, &targets, &after),
        }
    }

    /// The epilogue's buffers before the run.
    fn targets(&self, random: &mut Random) -> Vec<Vec<u32>> {
        let p = &self.params;
        let stride = p.out_stride as usize;
        match self.m.epilogue {
            Epilogue::Store => vec![vec![UNTOUCHED; self.columns * stride]],
            Epilogue::Residual => vec![bits(&random.floats(self.columns * stride))],
            Epilogue::Glu(format) => {
                let block_words = usize::try_from(format.block_bytes() / 4).unwrap();
                vec![vec![UNTOUCHED; self.columns * stride / 32 * block_words]]
            }
            Epilogue::Qkv => {
                let cache =
                    vec![UNTOUCHED; KV_BLOCKS as usize * (p.kv_rows * p.block_len / 2) as usize];
                let bias = match p.has_bias {
                    1 => bits(&random.floats((p.q_rows + 2 * p.kv_rows) as usize)),
                    _ => vec![NAN_WORD],
                };
                vec![
                    vec![UNTOUCHED; self.columns * p.q_rows as usize],
                    cache.clone(),
                    cache,
                    bias,
                ]
            }
        }
    }
}

/// Blocks of the KV cache of a case: more than its columns take.
const KV_BLOCKS: u32 = 24;

/// Columns of two sequences whose block tables are shuffled.
fn step_of(random: &mut Random, columns: u32, block_len: u32) -> StepInput {
    let tables = random.shuffled(KV_BLOCKS);
    let half = columns / 2;
    let start = random.within(0, 3 * block_len);
    let columns = (0..columns)
        .map(|c| {
            let (position, table) = if c < half {
                (start + c, 0)
            } else {
                (c - half, KV_BLOCKS / 2)
            };
            Column {
                token: 0,
                position,
                table,
                slot: 0,
            }
        })
        .collect();
    StepInput {
        columns,
        tables,
        ..StepInput::default()
    }
}

/// The case's products and what becomes of them.
struct Results<'a> {
    case: &'a Case,
    /// `[column, row of the part]`.
    products: &'a [Bounded],
}

impl Results<'_> {
    /// A product and its greatest error: f32 rounding of a chain of sums as long as the row.
    fn product(&self, column: usize, part_row: usize) -> (f64, f64) {
        let p = self.products[column * self.case.part_rows + part_row];
        let roundings = f64::from(self.case.params.blocks) + 24.0;
        let mut error = p.magnitude * roundings * f64::from(f32::EPSILON) + 1e-30;
        if self.case.m.activations == ActivationFormat::Half {
            // Weights are rounded to f16, which WGSL lets an adapter do either way.
            error += p.magnitude / 1024.0 + 1e-6;
        }
        if self.case.norm.is_some() {
            // The norm's own rounding; and a value half-way between two int8 may fall either way.
            error += 4e-6 * p.magnitude;
            if self.case.m.activations == ActivationFormat::Int8 {
                error += 0.02 * p.magnitude / f64::from(self.case.params.blocks).sqrt();
            }
        }
        (p.value, error)
    }

    fn check_stored(&self, what: &str, before: &[u32], after: &[u32], residual: bool) {
        let p = &self.case.params;
        let mut expected = Expected::default();
        for column in 0..self.case.columns {
            for row in 0..self.case.part_rows {
                let index = column * p.out_stride as usize + p.first_row as usize + row;
                let (value, error) = self.product(column, row);
                let old = if residual {
                    f64::from(f32::from_bits(before[index]))
                } else {
                    0.0
                };
                expected.set(index, old + value, error + 1e-7 * (old.abs() + value.abs()));
            }
        }
        expected.check_floats(what, before, after);
    }

    fn check_glu(&self, what: &str, format: ActivationFormat, before: &[u32], after: &[u32]) {
        let p = &self.case.params;
        let mut expected = Expected::default();
        for column in 0..self.case.columns {
            for pair in 0..self.case.part_rows / 2 {
                let index = column * p.out_stride as usize + p.first_row as usize / 2 + pair;
                let (gate, gate_error) = self.product(column, 2 * pair);
                let (up, up_error) = self.product(column, 2 * pair + 1);
                let h = glu(gate, up);
                // silu's slope is at most 1.1; exp and the division cost some last places.
                let error = 1.1 * gate_error * up.abs()
                    + up_error * (gate.abs() + gate_error)
                    + 4e-6 * h.abs();
                expected.set(index, h, error + 1e-30);
            }
        }
        expected.check_acts(what, format, before, after);
    }

    fn check_qkv(&self, what: &str, step: &[u32], before: &[Vec<u32>], after: &[Vec<u32>]) {
        let p = &self.case.params;
        let shape = QkvShape {
            q_rows: p.q_rows as usize,
            kv_rows: p.kv_rows as usize,
            head_dim: p.head_dim as usize,
            rope_pairs: p.rope_pairs as usize,
        };
        let kv = KvShape {
            kv_heads: (p.kv_rows / p.head_dim) as usize,
            head_dim: p.head_dim as usize,
            block_len: p.block_len as usize,
        };
        let [mut q, mut k, mut v] = [(); 3].map(|()| Expected::default());
        for (n, column) in self.case.step.columns.iter().enumerate() {
            let table = &self.case.step.tables[column.table as usize..];
            for pair in 0..self.case.part_rows / 2 {
                let row = p.first_row as usize + 2 * pair;
                let (values, error) = self.turned(shape, step, &before[3], n, pair);
                for (i, value) in values.into_iter().enumerate() {
                    // To f16, which WGSL lets an adapter round either way.
                    let half_error = error + value.abs() / 1024.0 + 6e-8;
                    let at = |head| kv.index(table, head, column.position as usize) + i;
                    match qkv_target(shape, row) {
                        QkvTarget::Q(row) => q.set(n * shape.q_rows + row + i, value, error),
                        QkvTarget::K(head, first) => k.set(at(head) + first, value, half_error),
                        QkvTarget::V(head, first) => v.set(at(head) + first, value, half_error),
                    }
                }
            }
        }
        q.check_floats(&format!("{what} q"), &before[0], &after[0]);
        k.check_halves(&format!("{what} k"), &before[1], &after[1]);
        v.check_halves(&format!("{what} v"), &before[2], &after[2]);
    }

    /// A row pair with bias and rotation, and its greatest error.
    fn turned(
        &self,
        shape: QkvShape,
        step: &[u32],
        bias: &[u32],
        column: usize,
        pair: usize,
    ) -> ([f64; 2], f64) {
        let row = self.case.params.first_row as usize + 2 * pair;
        let (mut a, a_error) = self.product(column, 2 * pair);
        let (mut b, b_error) = self.product(column, 2 * pair + 1);
        if self.case.params.has_bias == 1 {
            a += f64::from(f32::from_bits(bias[row]));
            b += f64::from(f32::from_bits(bias[row + 1]));
        }
        let error = a_error + b_error + 1e-6 * (a.abs() + b.abs());
        if let Some(turn) = rope_turn(shape, row) {
            let word = 8 + 4 * self.case.columns + 2 * (column * shape.rope_pairs + turn);
            let [cos, sin] = [step[word], step[word + 1]].map(|w| f64::from(f32::from_bits(w)));
            (a, b) = rope(a, b, cos, sin);
        }
        ([a, b], error)
    }
}
