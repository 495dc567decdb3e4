//! The references themselves, held against cases whose answers are known.

use hearth_shaders::WeightFormat;
use hearth_shaders::params::Sampling;
use hearth_shaders::reference::{
    Attention, KvShape, attention, int8_block, int8_values, rms_norm, sample, uniform, weight_block,
};

const PLAIN: Sampling = Sampling {
    temperature: 1.0,
    seed_low: 7,
    ..Sampling::GREEDY
};

#[test]
fn int8_blocks_hold_their_values() {
    let values: [f32; 32] = std::array::from_fn(|i| (i as f32 - 11.0) * 0.37);
    let words = int8_block(&values);
    let d = f64::from(f32::from_bits(words[8]));
    let stored = int8_values(&words);
    for (v, s) in values.iter().zip(&stored) {
        assert!((f64::from(*v) - s).abs() <= d * 0.501, "{v} became {s}");
    }
    let sum: f64 = stored.iter().sum();
    assert!((f64::from(f32::from_bits(words[9])) - sum).abs() < 1e-5);
    assert_eq!(int8_block(&[0.0; 32]), [0; 12], "a block of zeros is zeros");
}

/// Two f16 in a word.
fn halves(low: f32, high: f32) -> u32 {
    let bits = |v| u32::from(half::f16::from_f32(v).to_bits());
    bits(low) | bits(high) << 16
}

/// Weights 0, 1, 16 and 31 of a block whose nibbles there are 1, 2, 3 and 4, the others 0.
fn four_weights(
    format: WeightFormat,
    metas: &[u32],
    blocks: usize,
    row: usize,
    block: usize,
) -> [f64; 4] {
    let mut quants = vec![u32::MAX; 4 * blocks * (row + 1)];
    quants[4 * (row * blocks + block)..][..4].copy_from_slice(&[0x0231, 0, 0, 0x4000_0000]);
    let weights = weight_block(format, &quants, metas, blocks, row, block);
    assert_eq!(weights[2].value, weights[15].value, "the others are alike");
    [0, 1, 16, 31].map(|i| weights[i].value)
}

#[test]
fn grouped_weights_find_their_scale() {
    // Rows of ten blocks: in groups of 128 that is three, the last one short; in groups of 64 five.
    let nan = f32::NAN;
    let g128 = [
        halves(1.0, 2.0),
        halves(3.0, nan),
        halves(4.0, 5.0),
        halves(0.5, nan),
    ];
    let of = |row, block| four_weights(WeightFormat::Q4G128, &g128, 10, row, block);
    assert_eq!(of(0, 0), [-7.0, -6.0, -5.0, -4.0]);
    assert_eq!(of(0, 3), of(0, 0));
    assert_eq!(of(0, 4), [-14.0, -12.0, -10.0, -8.0]);
    assert_eq!(of(1, 9), [-3.5, -3.0, -2.5, -2.0]);
    let mut g64 = [halves(nan, nan); 6];
    g64[5] = halves(2.0, nan);
    let found = four_weights(WeightFormat::Q4G64, &g64, 10, 1, 8);
    assert_eq!(found, [-14.0, -12.0, -10.0, -8.0]);
}

#[test]
fn grouped_weights_find_their_zero_point() {
    let groups = [
        (WeightFormat::Q4Z32, 20),
        (WeightFormat::Q4Z64, 10),
        (WeightFormat::Q4Z128, 6),
    ];
    for (format, count) in groups {
        let mut metas = vec![halves(f32::NAN, f32::NAN); count];
        metas[count - 1] = halves(0.5, 3.0);
        let found = four_weights(format, &metas, 10, 1, 9);
        assert_eq!(found, [-1.0, -0.5, 0.0, 0.5], "{}", format.name());
    }
}

#[test]
fn q4_k_weights_have_six_bit_scales_and_minimums() {
    // Two rows of nine blocks: two runs each. Block 5 of the third run: s = 0b10_0110, m = 0b01_1001.
    let mut metas = [halves(f32::NAN, f32::NAN); 16];
    metas[8..12].copy_from_slice(&[halves(0.25, 0.5), 0b0110 << 20, 0b1001 << 20, 0b0110 << 20]);
    let found = four_weights(WeightFormat::Q4K, &metas, 9, 1, 5);
    let (s, m) = (0.25 * 38.0, 0.5 * 25.0);
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0].map(|n| s * n - m));
}

#[test]
fn the_norm_has_unit_mean_square() {
    let x: Vec<f64> = (0..96).map(|i| f64::from(i) - 30.0).collect();
    let y = rms_norm(&x, &[1.0; 96], 0.0);
    let mean = y.iter().map(|v| v * v).sum::<f64>() / 96.0;
    assert!((mean - 1.0).abs() < 1e-12);
}

#[test]
fn attention_of_equal_keys_is_the_mean_within_the_window() {
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    // Two blocks of two positions in the order 1, 0; values are the position's number.
    let k = vec![half(0.5) | half(0.5) << 16; 4];
    let v: Vec<u32> = [2.0, 3.0, 0.0, 1.0]
        .iter()
        .map(|&p| half(p) | half(-p) << 16)
        .collect();
    let shape = KvShape {
        kv_heads: 1,
        head_dim: 2,
        block_len: 2,
    };
    let mut a = Attention {
        shape,
        heads: 2,
        window: 0,
        k: &k,
        v: &v,
        table: &[1, 0],
    };
    let values = |a: &Attention<'_>, position| -> Vec<f64> {
        attention(a, &[1.0, 2.0, 3.0, 4.0], position)
            .iter()
            .map(|b| b.value)
            .collect()
    };
    assert_eq!(values(&a, 0), [0.0, 0.0, 0.0, 0.0]);
    assert_eq!(values(&a, 3), [1.5, -1.5, 1.5, -1.5]);
    a.window = 2;
    assert_eq!(values(&a, 3), [2.5, -2.5, 2.5, -2.5]);
    assert_eq!(
        values(&a, 1),
        [0.5, -0.5, 0.5, -0.5],
        "the window reaches before the start"
    );
}

#[test]
fn greedy_ties_fall_to_the_lowest_index() {
    let greedy = Sampling {
        temperature: 0.0,
        ..PLAIN
    };
    let choice = sample(&[1.0, 4.0, 4.0, -2.0], &[0; 4], &greedy, 0);
    assert_eq!((choice.token, choice.slack), (1, 0.0));
}

#[test]
fn cuts_keep_what_their_definitions_say() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    let kept = |s: Sampling| sample(&logits, &[0; 4], &s, 3).kept;
    assert_eq!(kept(PLAIN), 4);
    assert_eq!(kept(Sampling { top_k: 1, ..PLAIN }), 1);
    assert_eq!(
        kept(Sampling { top_k: 3, ..PLAIN }),
        4,
        "the fourth ties with the third"
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.4,
            ..PLAIN
        }),
        1
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.6,
            ..PLAIN
        }),
        2
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.8,
            ..PLAIN
        }),
        4,
        "ties again"
    );
    assert_eq!(
        kept(Sampling {
            top_k: 2,
            top_p: 0.6,
            ..PLAIN
        }),
        1,
        "of the mass of two"
    );
    assert_eq!(
        kept(Sampling {
            min_p: 0.4,
            ..PLAIN
        }),
        2
    );
    assert_eq!(
        kept(Sampling {
            min_p: 1.0,
            ..PLAIN
        }),
        1
    );
}

#[test]
fn penalties_reach_the_right_tokens() {
    let greedy = Sampling {
        temperature: 0.0,
        penalties: 1,
        ..PLAIN
    };
    let prompt = 0x8000_0000;
    let logits = [2.0, 1.9, -1.0];
    let token = |s: Sampling, history: [u32; 3]| sample(&logits, &history, &s, 0).token;
    let repeat = Sampling {
        repeat_penalty: 1.2,
        ..greedy
    };
    assert_eq!(token(repeat, [prompt, 0, 0]), 1);
    assert_eq!(token(repeat, [1, 0, 0]), 1);
    let presence = Sampling {
        presence_penalty: 0.5,
        ..greedy
    };
    assert_eq!(
        token(presence, [prompt, 0, 0]),
        0,
        "prompt tokens were not generated"
    );
    assert_eq!(token(presence, [2, 0, 0]), 1);
    let frequency = Sampling {
        frequency_penalty: 0.06,
        ..greedy
    };
    assert_eq!(token(frequency, [1, 0, 0]), 0);
    assert_eq!(token(frequency, [2, 0, 0]), 1);
    assert_eq!(
        token(
            Sampling {
                penalties: 0,
                ..frequency
            },
            [2, 0, 0]
        ),
        0
    );
}

/// Chi-square of `counts` against `expected` probabilities.
fn chi_square(counts: &[u32], probabilities: &[f64]) -> f64 {
    let all: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    counts
        .iter()
        .zip(probabilities)
        .map(|(&c, p)| (f64::from(c) - all * p).powi(2) / (all * p))
        .sum()
}

#[test]
fn the_race_draws_by_probability() {
    let weights = [8.0, 1.0, 4.0, 2.0, 0.5, 3.0, 1.5, 6.0];
    let all: f64 = weights.iter().sum();
    let probabilities = weights.map(|w| w / all);
    let logits = [8.0f32, 1.0, 4.0, 2.0, 0.5, 3.0, 1.5, 6.0].map(f32::ln);
    let mut by_seed = [0; 8];
    let mut by_position = [0; 8];
    for i in 0..20_000 {
        let s = Sampling {
            seed_low: i,
            ..PLAIN
        };
        by_seed[sample(&logits, &[0; 8], &s, 5).token] += 1;
        by_position[sample(&logits, &[0; 8], &PLAIN, i).token] += 1;
    }
    // 7 degrees of freedom: a right sampler exceeds 56 with p < 1e-9.
    assert!(chi_square(&by_seed, &probabilities) < 56.0, "{by_seed:?}");
    assert!(
        chi_square(&by_position, &probabilities) < 56.0,
        "{by_position:?}"
    );
}

#[test]
fn random_numbers_are_uniform_in_every_key() {
    for vary in 0..4u32 {
        let mut counts = [0; 16];
        for i in 0..16_000 {
            let key = |n: u32| if n == vary { i } else { 3 };
            let s = Sampling {
                seed_low: key(0),
                seed_high: key(1),
                ..PLAIN
            };
            let u = uniform(&s, key(2), key(3));
            assert!(u > 0.0 && u < 1.0);
            counts[(0..15).filter(|&b| u * 16.0 >= f64::from(b + 1)).count()] += 1;
        }
        // 15 degrees of freedom: p < 1e-9 above 75.
        assert!(
            chi_square(&counts, &[1.0 / 16.0; 16]) < 75.0,
            "word {vary}: {counts:?}"
        );
    }
}
