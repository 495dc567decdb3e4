//! The sampler: greedy, penalties, each cut, the draw and its distribution.

use hearth_shaders::params::{SampleParams, Sampling};
use hearth_shaders::reference::{penalised, sample};
use hearth_shaders::{Kernel, Reduction};

use super::lab::{Buffer, Expected, Lab, UNTOUCHED};
use super::random::{Random, bits};
use crate::model::{Column, StepInput};

const IN_PROMPT: u32 = 0x8000_0000;
/// Choices nearer to another than this may fall either way in f32.
const SLACK: f64 = 2e-4;

const PLAIN: Sampling = Sampling {
    temperature: 1.0,
    ..Sampling::GREEDY
};
const GREEDY: Sampling = Sampling::GREEDY;

/// One output column: its logits, its slot's history and settings, its position.
struct Row {
    logits: Vec<f32>,
    history: Vec<u32>,
    sampling: Sampling,
    position: u32,
}

impl Row {
    fn new(logits: &[f32], sampling: Sampling, position: u32) -> Self {
        Self {
            logits: logits.to_vec(),
            history: vec![0; logits.len()],
            sampling,
            position,
        }
    }
}

/// Samples all rows in one dispatch, checks everything it writes but the choice, and returns that.
fn choose(lab: &mut Lab, random: &mut Random, reduction: Reduction, rows: &[Row]) -> Vec<usize> {
    let vocab = rows[0].logits.len();
    let count = u32::try_from(rows.len()).unwrap();
    let output_first = random.within(0, 3);
    let ring_len = count + random.within(1, 9);
    let ring = random.within(0, ring_len - 1);
    // Slots are in another order than the columns, and one more than there are rows.
    let slots = random.shuffled(count + 1);
    let mut columns = vec![
        Column {
            token: 0,
            position: 999,
            table: 0,
            slot: 0
        };
        output_first as usize
    ];
    columns.extend(rows.iter().zip(&slots).map(|(row, &slot)| Column {
        token: 0,
        position: row.position,
        table: 0,
        slot,
    }));
    let mut samplings = vec![
        Sampling {
            temperature: f32::NAN,
            ..PLAIN
        };
        rows.len() + 1
    ];
    let mut history = vec![UNTOUCHED; (rows.len() + 1) * vocab];
    for (row, &slot) in rows.iter().zip(&slots) {
        samplings[slot as usize] = row.sampling;
        history[slot as usize * vocab..][..vocab].copy_from_slice(&row.history);
    }
    let logits: Vec<u32> = rows.iter().flat_map(|r| bits(&r.logits)).collect();
    let step = StepInput {
        columns,
        output_first,
        outputs: count,
        ring,
        ..StepInput::default()
    };
    let params = SampleParams {
        vocab: u32::try_from(vocab).unwrap(),
        ring_len,
        parts: random.within(1, 70),
        pad: 0,
    };
    let step_words = step.words(0, &[]);
    let settings: Vec<u32> = bytemuck::cast_slice(&samplings).to_vec();
    let peaks = [
        Buffer::uniform(&params),
        Buffer::Words(step_words.clone()),
        Buffer::Words(logits.clone()),
        Buffer::Words(history.clone()),
        Buffer::Words(settings.clone()),
        Buffer::untouched(2 * (count * params.parts) as usize),
    ];
    let grid = [params.parts, count, 1];
    let [penalised_logits, peaks] = lab
        .run(Kernel::Peaks, &[("WG", 256)], &peaks, grid)
        .try_into()
        .expect("two written buffers");
    let buffers = [
        Buffer::uniform(&params),
        Buffer::Words(peaks),
        Buffer::Words(step_words),
        Buffer::Words(penalised_logits.clone()),
        Buffer::Words(history.clone()),
        Buffer::Words(settings),
        Buffer::untouched(ring_len as usize),
        Buffer::untouched(rows.len() + 1),
    ];
    let overrides = [("WG", 256), ("TPR", 8)];
    let after = lab.run(
        Kernel::Sample(reduction),
        &overrides,
        &buffers,
        [count, 1, 1],
    );
    let tokens: Vec<usize> = slots
        .iter()
        .take(rows.len())
        .map(|&s| after[2][s as usize] as usize)
        .collect();
    let mut expected_ring = vec![UNTOUCHED; ring_len as usize];
    let mut expected_last = vec![UNTOUCHED; rows.len() + 1];
    let mut expected_logits = Expected::default();
    for (n, (row, &slot)) in rows.iter().zip(&slots).enumerate() {
        let token = u32::try_from(tokens[n]).unwrap();
        assert!(token < params.vocab, "token {token} of {vocab}");
        expected_ring[(ring as usize + n) % ring_len as usize] = token;
        expected_last[slot as usize] = token;
        history[slot as usize * vocab + tokens[n]] += 1;
        for (i, v) in penalised(&row.logits, &row.history, &row.sampling)
            .into_iter()
            .enumerate()
        {
            let most = v.abs().max(f64::from(row.logits[i].abs()));
            expected_logits.set(n * vocab + i, v, 1e-6 * most + 1e-6);
        }
    }
    expected_logits.check_floats("logits", &logits, &penalised_logits);
    assert_eq!(after[0], history, "history");
    assert_eq!(after[1], expected_ring, "ring");
    assert_eq!(after[2], expected_last, "last tokens");
    tokens
}

/// Rows whose choice is clear must fall as the reference's; most are.
fn compare(lab: &mut Lab, random: &mut Random, reduction: Reduction, rows: &[Row]) {
    let tokens = choose(lab, random, reduction, rows);
    let mut clear = 0;
    for (row, &token) in rows.iter().zip(&tokens) {
        let wanted = sample(&row.logits, &row.history, &row.sampling, row.position);
        if wanted.slack > SLACK {
            clear += 1;
            assert_eq!(token, wanted.token, "{wanted:?} with {:?}", row.sampling);
        }
    }
    assert!(
        4 * clear >= 3 * rows.len(),
        "only {clear} of {} choices are clear",
        rows.len()
    );
}

fn each_reduction(test: impl Fn(&mut Lab, &mut Random, Reduction)) {
    let mut lab = Lab::open();
    for kernel in Kernel::all() {
        if let Kernel::Sample(reduction) = kernel
            && lab.runs(reduction)
        {
            test(&mut lab, &mut Random::new(11), reduction);
        }
    }
}

/// Logits as a model's are: a few high ones above a broad field.
fn logits_of(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = random.floats(vocab).iter().map(|v| 6.0 * v - 2.0).collect();
    for _ in 0..8 {
        let at = random.within(0, u32::try_from(vocab).unwrap() - 1) as usize;
        logits[at] = 9.0 + 3.0 * random.signed();
    }
    logits
}

fn history_of(random: &mut Random, vocab: usize) -> Vec<u32> {
    (0..vocab)
        .map(|_| match random.within(0, 9) {
            0 => IN_PROMPT,
            1 => random.within(1, 4),
            2 => IN_PROMPT + random.within(1, 4),
            _ => 0,
        })
        .collect()
}

#[test]
pub(super) fn settings() {
    each_reduction(|lab, random, reduction| {
        for vocab in [3, 300, 5003] {
            let mut rows = Vec::new();
            for base in [
                GREEDY,
                PLAIN,
                Sampling {
                    temperature: 0.3,
                    ..PLAIN
                },
                Sampling {
                    temperature: 10.0,
                    ..PLAIN
                },
                Sampling { top_k: 1, ..PLAIN },
                Sampling { top_k: 2, ..PLAIN },
                Sampling { top_k: 40, ..PLAIN },
                Sampling {
                    top_k: 100_000,
                    ..PLAIN
                },
                Sampling {
                    top_p: 0.5,
                    ..PLAIN
                },
                Sampling {
                    top_p: 0.95,
                    ..PLAIN
                },
                Sampling {
                    top_p: 0.001,
                    ..PLAIN
                },
                Sampling {
                    min_p: 0.05,
                    ..PLAIN
                },
                Sampling {
                    min_p: 1.0,
                    ..PLAIN
                },
                Sampling {
                    temperature: 0.7,
                    top_k: 20,
                    top_p: 0.9,
                    min_p: 0.02,
                    ..PLAIN
                },
            ] {
                for penalties in [0, 1] {
                    let sampling = Sampling {
                        penalties,
                        repeat_penalty: 1.3,
                        frequency_penalty: 0.4,
                        presence_penalty: -0.3,
                        seed_low: random.word(),
                        seed_high: random.word(),
                        ..base
                    };
                    let logits = logits_of(random, vocab);
                    let history = history_of(random, vocab);
                    let position = random.within(0, 8000);
                    rows.push(Row {
                        logits,
                        history,
                        sampling,
                        position,
                    });
                }
            }
            compare(lab, random, reduction, &rows);
        }
    });
}

#[test]
fn greedy_ties_fall_to_the_lowest_index() {
    each_reduction(|lab, random, reduction| {
        let vocab = 1031;
        let mut rows = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..20 {
            let mut logits: Vec<f32> = random.floats(vocab);
            let mut first = vocab;
            for _ in 0..random.within(2, 6) {
                let at = random.within(0, 1030) as usize;
                logits[at] = 2.5;
                first = first.min(at);
            }
            rows.push(Row::new(&logits, GREEDY, 3));
            wanted.push(first);
        }
        rows.push(Row::new(&vec![-7.25; vocab], GREEDY, 3));
        wanted.push(0);
        assert_eq!(choose(lab, random, reduction, &rows), wanted);
    });
}

#[test]
fn a_seed_gives_the_same_tokens_whatever_the_slot() {
    each_reduction(|lab, random, reduction| {
        let logits = logits_of(random, 700);
        let rows = |from: u32| -> Vec<Row> {
            (0..60)
                .map(|i| {
                    let sampling = Sampling {
                        temperature: 2.0,
                        seed_low: i % 30,
                        ..PLAIN
                    };
                    Row::new(&logits, sampling, from + i % 30)
                })
                .collect()
        };
        let first = choose(lab, random, reduction, &rows(100));
        assert_eq!(first[..30], first[30..]);
        assert_eq!(first, choose(lab, random, reduction, &rows(100)));
        assert_ne!(first, choose(lab, random, reduction, &rows(101)));
    });
}

#[test]
fn draws_follow_the_probabilities() {
    let weights = [
        16.0f32, 1.0, 8.0, 2.0, 0.5, 4.0, 3.0, 6.0, 1.5, 12.0, 2.5, 5.0,
    ];
    let logits = weights.map(f32::ln);
    let all: f32 = weights.iter().sum();
    each_reduction(|lab, random, reduction| {
        // Seeds one apart at one position, and positions one apart of one seed.
        for by_seed in [true, false] {
            let rows: Vec<Row> = (0..2000)
                .map(|i| {
                    let seed_low = if by_seed { i } else { 5 };
                    let position = if by_seed { 5 } else { i };
                    Row::new(&logits, Sampling { seed_low, ..PLAIN }, position)
                })
                .collect();
            let mut counts = [0u32; 12];
            for token in choose(lab, random, reduction, &rows) {
                counts[token] += 1;
            }
            let chi_square: f64 = counts
                .iter()
                .zip(weights)
                .map(|(&count, w)| {
                    let expected = 2000.0 * f64::from(w) / f64::from(all);
                    (f64::from(count) - expected).powi(2) / expected
                })
                .sum();
            // 11 degrees of freedom: a right sampler exceeds 65.2 with p < 1e-9.
            assert!(chi_square < 65.2, "{chi_square} of {counts:?}");
            compare(lab, random, reduction, &rows);
        }
    });
}

#[test]
fn cuts_leave_nothing_else() {
    // Probabilities 0.4, 0.3, 0.2, 0.1 in a shuffled order.
    let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
    let cases: [(Sampling, &[usize]); 6] = [
        (Sampling { top_k: 1, ..PLAIN }, &[1]),
        (Sampling { top_k: 3, ..PLAIN }, &[0, 1, 3]),
        (
            Sampling {
                top_p: 0.35,
                ..PLAIN
            },
            &[1],
        ),
        (
            Sampling {
                top_p: 0.65,
                ..PLAIN
            },
            &[1, 3],
        ),
        (
            Sampling {
                min_p: 0.45,
                ..PLAIN
            },
            &[0, 1, 3],
        ),
        (
            Sampling {
                min_p: 0.9,
                ..PLAIN
            },
            &[1],
        ),
    ];
    each_reduction(|lab, random, reduction| {
        for (sampling, allowed) in cases {
            let rows: Vec<Row> = (0..300)
                .map(|i| {
                    Row::new(
                        &logits,
                        Sampling {
                            seed_low: i,
                            ..sampling
                        },
                        9,
                    )
                })
                .collect();
            let mut seen = choose(lab, random, reduction, &rows);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, allowed, "{sampling:?}");
        }
    });
}

#[test]
fn the_likeliest_wins_where_it_must() {
    each_reduction(|lab, random, reduction| {
        // This seed's number for token 2 at position 9 is the largest there is.
        let lone = Sampling {
            top_k: 1,
            seed_low: 15_147_567,
            ..PLAIN
        };
        let mut rows = vec![Row::new(&[0.0, 1.0, 5.0, 1.0], lone, 9)];
        // Temperatures whose inverse is near the largest f32, or beyond it.
        for temperature in [1e-6, 1e-30, 1e-38, f32::MIN_POSITIVE, 1e-40, 1e-45] {
            let cold = Sampling {
                temperature,
                ..PLAIN
            };
            rows.push(Row::new(&[0.0, 1.0, 5.0, 1.0], cold, 9));
        }
        assert_eq!(choose(lab, random, reduction, &rows), [2; 7]);
    });
}
