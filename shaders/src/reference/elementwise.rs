//! The operations without a matrix: the norm, the gate of the feed-forward layer, another order.

/// y_i = x_i / sqrt(mean(x^2) + eps) * weight_i.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let count = x.iter().map(|_| 1.0).sum::<f64>();
    let mean = x.iter().map(|v| v * v).sum::<f64>() / count;
    x.iter()
        .zip(weight)
        .map(|(v, w)| v / (mean + eps).sqrt() * w)
        .collect()
}

/// h = silu(gate) * up, silu(v) = v / (1 + exp(-v)).
pub fn glu(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// y_k = x_order[k].
pub fn gather(x: &[f64], order: &[u32]) -> Vec<f64> {
    order.iter().map(|&k| x[k as usize]).collect()
}

/// x_i + bias_i.
pub fn add_bias(x: &[f64], bias: &[f64]) -> Vec<f64> {
    x.iter().zip(bias).map(|(x, b)| x + b).collect()
}
