//! y[column, row] = sum over k of W[row, k] * x[column, k].

use super::weights::Weight;

/// A result, and what its rounding error is relative to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounded {
    /// The result.
    pub value: f64,
    /// The sum of its terms' absolute values.
    pub magnitude: f64,
}

/// y = W x for each column: `weights` is `[row, k]`, `x` is `[column, k]`, y is `[column, row]`.
pub fn matmul(weights: &[Weight], x: &[f64], k: usize) -> Vec<Bounded> {
    let mut y = Vec::new();
    for column in x.chunks_exact(k) {
        for row in weights.chunks_exact(k) {
            y.push(dot(row, column));
        }
    }
    y
}

fn dot(row: &[Weight], column: &[f64]) -> Bounded {
    row.iter()
        .zip(column)
        .fold(Bounded::default(), |sum, (w, x)| Bounded {
            value: sum.value + w.value * x,
            magnitude: sum.magnitude + w.magnitude * x.abs(),
        })
}
