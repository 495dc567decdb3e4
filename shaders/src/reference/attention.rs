//! o = softmax(q K^T / sqrt(head_dim)) V over one column's own history, out of a paged cache.

use super::matmul::Bounded;
use super::qkv::KvShape;
use super::weights::half_at;

/// What one column attends to.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Shape of both caches.
    pub shape: KvShape,
    /// Query heads; `heads / kv_heads` consecutive ones share a KV head.
    pub heads: usize,
    /// Sliding window in positions, the column's own included; 0 for none.
    pub window: usize,
    /// f16 pairs, `[block, kv_head, slot, head_dim / 2]`.
    pub k: &'a [u32],
    /// f16 pairs, `[block, kv_head, slot, head_dim / 2]`.
    pub v: &'a [u32],
    /// Block table of the column's sequence.
    pub table: &'a [u32],
}

/// The result of the column at `position` whose queries are `q`, `[head, head_dim]`.
///
/// A result's magnitude is sum(p |v|).
pub fn attention(a: &Attention<'_>, q: &[f64], position: usize) -> Vec<Bounded> {
    let dim = a.shape.head_dim;
    let scale = 1.0 / q.iter().take(dim).map(|_| 1.0).sum::<f64>().sqrt();
    let oldest = if a.window > 0 {
        (position + 1).saturating_sub(a.window)
    } else {
        0
    };
    let mut out = Vec::with_capacity(a.heads * dim);
    for head in 0..a.heads {
        let kv_head = head / (a.heads / a.shape.kv_heads);
        let at = |p: usize| a.shape.index(a.table, kv_head, p);
        let query = &q[head * dim..(head + 1) * dim];
        let scores: Vec<f64> = (oldest..=position)
            .map(|p| {
                let dot: f64 = query
                    .iter()
                    .enumerate()
                    .map(|(i, x)| x * half_at(a.k, at(p) + i))
                    .sum();
                dot * scale
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        for i in 0..dim {
            let mut sum = Bounded::default();
            for (p, w) in (oldest..=position).zip(&weights) {
                let term = w / total * half_at(a.v, at(p) + i);
                sum.value += term;
                sum.magnitude += term.abs();
            }
            out.push(sum);
        }
    }
    out
}
