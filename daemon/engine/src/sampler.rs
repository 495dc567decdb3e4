//! Log-probabilities from logits, on the CPU: only for requests that ask for them.

use crate::event::TokenLogprob;

/// Log-probability of `target` and the `top` most likely tokens, most likely first.
///
/// Summed in f64: with a large vocabulary f32 sums would lose the small terms.
pub(crate) fn log_probabilities(logits: &[f32], target: u32, top: u32) -> (f32, Vec<TokenLogprob>) {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - peak).exp()).sum();
    let norm = f64::from(peak) + sum.ln();
    let logprob = |id: u32| single(f64::from(logits[id as usize]) - norm);
    let mut best: Vec<u32> = Vec::with_capacity(top as usize + 1);
    if top > 0 {
        let ids = 0..u32::try_from(logits.len()).unwrap_or(u32::MAX);
        for id in ids {
            let value = logits[id as usize];
            if best.len() == top as usize
                && best
                    .last()
                    .is_some_and(|&last| logits[last as usize] >= value)
            {
                continue;
            }
            let at = best.partition_point(|&other| logits[other as usize] >= value);
            best.insert(at, id);
            best.truncate(top as usize);
        }
    }
    let best = best
        .into_iter()
        .map(|id| TokenLogprob {
            id,
            logprob: logprob(id),
        })
        .collect();
    (logprob(target), best)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is the point"
)]
fn single(v: f64) -> f32 {
    v as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_rank() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.5];
        let (_, top) = log_probabilities(&logits, 0, 5);
        let sum: f32 = top.iter().map(|t| t.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        let ids: Vec<u32> = top.iter().map(|t| t.id).collect();
        assert_eq!(ids, [1, 3, 0, 4, 2]);
        let (logprob, two) = log_probabilities(&logits, 4, 2);
        assert_eq!(two.len(), 2);
        assert!((logprob - top[3].logprob).abs() < 1e-7);
    }
}
