//! The choice of the next token: penalties, temperature, top-k, top-p, min-p, then the race.
//!
//! Each allowed token i has an exponential waiting time with rate p_i, from a random number keyed by
//! (seed, position, token); the earliest wins. Scores are the logarithms of 1 / time.

use crate::params::Sampling;

/// A choice, and how nearly it was another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: usize,
    /// The least distance from any other outcome: between the two best scores, of a cut's mass from
    /// what is wanted, or of a logit from a cut. f32 arithmetic may choose otherwise only where this
    /// is of the order of its rounding.
    pub slack: f64,
    /// Tokens that the cuts left.
    pub kept: usize,
}

/// Penalises the logits of tokens of the history.
///
/// A history entry has bit 31 set if the token is in the prompt; the rest counts how often it was
/// generated. The repeat penalty applies to all of the history, the other two to generated tokens.
pub fn penalised(logits: &[f32], history: &[u32], s: &Sampling) -> Vec<f64> {
    let penalise = |(&logit, &seen): (&f32, &u32)| {
        let v = f64::from(logit);
        if s.penalties == 0 || seen == 0 {
            return v;
        }
        let repeat = f64::from(s.repeat_penalty);
        let v = if v > 0.0 { v / repeat } else { v * repeat };
        let times = f64::from(seen & 0x7fff_ffff);
        let present = if times > 0.0 {
            f64::from(s.presence_penalty)
        } else {
            0.0
        };
        v - times * f64::from(s.frequency_penalty) - present
    };
    logits.iter().zip(history).map(penalise).collect()
}

/// A number in (0, 1) for this seed, position and token, as kernels/sample.wgsl mixes it.
pub fn uniform(s: &Sampling, position: u32, token: u32) -> f64 {
    let mut v = [s.seed_low, s.seed_high, position, token]
        .map(|w| w.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    mix(&mut v);
    v = v.map(|w| w ^ (w >> 16));
    mix(&mut v);
    // In f32, where the half is rounded away in the upper half of the range.
    let steps = (v[0] >> 8) as f32 + 0.5;
    f64::from((steps / 16_777_216.0).min(1.0 - f32::EPSILON / 2.0))
}

fn mix(v: &mut [u32; 4]) {
    v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
    v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
    v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
    v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
}

/// The next token from one column's logits.
///
/// Temperature 0 takes the largest penalised logit, the lowest index among equals. Otherwise:
/// top-k keeps the k largest and all that tie with the last of them; top-p keeps, of those, the
/// fewest most likely with at least `top_p` of their mass (ties kept too); min-p drops tokens less
/// likely than `min_p` times the most likely.
pub fn sample(logits: &[f32], history: &[u32], s: &Sampling, position: u32) -> Choice {
    let values = penalised(logits, history, s);
    if s.temperature <= 0.0 {
        let (token, slack) = best_two(values.iter().copied().enumerate());
        return Choice {
            token,
            slack,
            kept: values.len(),
        };
    }
    let rate = 1.0 / f64::from(s.temperature);
    let mut falling = values.clone();
    falling.sort_by(|a, b| b.total_cmp(a));
    let top = falling[0];
    let mass = |v: f64| ((v - top) * rate).exp();
    let mut slack = f64::INFINITY;
    let mut kept = falling.len();
    if s.top_k > 0 && (s.top_k as usize) < kept {
        kept = with_ties(&falling, s.top_k as usize);
    }
    if s.top_p < 1.0 {
        let all: f64 = falling[..kept].iter().map(|&v| mass(v)).sum();
        let wanted = all * f64::from(s.top_p);
        let mut sum = 0.0;
        let mut count = 0;
        while count < kept && sum < wanted {
            let end = with_ties(&falling, count + 1);
            sum += falling[count..end].iter().map(|&v| mass(v)).sum::<f64>();
            slack = slack.min((sum - wanted).abs() / all);
            count = end;
        }
        kept = kept.min(count.max(1));
    }
    if s.min_p > 0.0 {
        let cut = top + f64::from(s.min_p).ln() * f64::from(s.temperature);
        slack = falling
            .iter()
            .skip(1)
            .fold(slack, |m, v| m.min((v - cut).abs()));
        kept = kept.min(falling.iter().filter(|&&v| v >= cut).count().max(1));
    }
    let cut = falling[kept - 1];
    let race = values
        .iter()
        .enumerate()
        .zip(0..)
        .filter(|((_, v), _)| **v >= cut)
        .map(|((i, v), token)| {
            let time = -(-uniform(s, position, token)).ln_1p();
            (i, (v - top) * rate - time.ln())
        });
    let (token, distance) = best_two(race);
    Choice {
        token,
        slack: slack.min(distance),
        kept,
    }
}

/// How many of the falling values are at least the `count`th.
fn with_ties(falling: &[f64], count: usize) -> usize {
    falling.partition_point(|&v| v >= falling[count - 1])
}

/// Index of the largest value, the first among equals, and its distance from the next.
fn best_two(values: impl Iterator<Item = (usize, f64)>) -> (usize, f64) {
    let mut best = (0, f64::NEG_INFINITY);
    let mut second = f64::NEG_INFINITY;
    for (i, v) in values {
        if v > best.1 {
            second = best.1;
            best = (i, v);
        } else {
            second = second.max(v);
        }
    }
    (best.0, best.1 - second)
}
