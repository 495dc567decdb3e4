//! Rotary position embedding: what a file says of it, and the frequencies that follow. Knows no
//! other part of a model.

use super::config::{Keys, ModelConfig, ModelError};
use crate::format::Checkpoint;
use crate::limits::{CONTEXT_MAX, WIDTH_MAX};

/// Rotary position embedding. GGUF stores Llama weights so that neighbouring values make a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Values of a head that turn; even, at most `head_dim`.
    pub dim: u32,
    /// How frequencies are scaled for long contexts.
    pub scaling: RopeScaling,
}

/// How RoPE frequencies are scaled.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor; finite and above 0.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, those between mixed.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths over `original_context_len / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths under `original_context_len / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context before the scaling, in tokens.
        original_context_len: u32,
    },
    /// Each divided by its own factor; `dim / 2` of them. GGUF's way to store Llama-3 scaling
    /// (`rope_freqs.weight`).
    FreqFactors(Vec<f32>),
}

impl ModelConfig {
    /// The angle in radians that each pair of a head turns by per position: `rope.dim / 2` values,
    /// scaling applied.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let rope = &self.rope;
        let plain = (0..rope.dim / 2).map(|pair| {
            rope.theta
                .powf(-2.0 * f64::from(pair) / f64::from(rope.dim))
        });
        match &rope.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::FreqFactors(factors) => plain
                .zip(factors)
                .map(|(frequency, factor)| frequency / f64::from(*factor))
                .collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_len,
            } => plain
                .map(|frequency| {
                    let turns =
                        f64::from(*original_context_len) * frequency / std::f64::consts::TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                        .clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                })
                .collect(),
        }
    }
}

/// Reads how positions turn, but for the factors that a tensor may hold.
pub(super) fn rope(keys: &Keys<'_>, head_dim: u32) -> Result<RopeConfig, ModelError> {
    let dim = keys
        .optional("rope.dimension_count", WIDTH_MAX)?
        .unwrap_or(head_dim);
    if dim > head_dim || !dim.is_multiple_of(2) {
        let allowed = format!("an even number up to the head's {head_dim} is needed");
        return Err(keys.bad("rope.dimension_count", dim, &allowed));
    }
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let name = keys.name("rope.scaling.type");
    let factor = keys.positive("rope.scaling.factor")?;
    let scaling = match keys.checkpoint.get_str(&name)? {
        // Older files have the factor without a type.
        None => match factor.or(keys.positive("rope.scale_linear")?) {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: factor.unwrap_or(1.0),
        },
        Some("llama3") => llama3_scaling(keys, factor)?,
        Some(other) => {
            let kind: String = other.chars().take(80).collect();
            let what = format!("RoPE scaling {kind:?} (metadata {name:?})");
            return Err(ModelError::Unsupported { what });
        }
    };
    Ok(RopeConfig {
        theta,
        dim,
        scaling,
    })
}

fn llama3_scaling(keys: &Keys<'_>, factor: Option<f64>) -> Result<RopeScaling, ModelError> {
    let missing = |key: &str| ModelError::MissingKey {
        key: keys.name(key),
    };
    let number = |key: &str| keys.positive(key)?.ok_or_else(|| missing(key));
    let low_freq_factor = number("rope.scaling.low_freq_factor")?;
    let high_freq_factor = number("rope.scaling.high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let allowed = format!("more than low_freq_factor {low_freq_factor} is needed");
        return Err(keys.bad("rope.scaling.high_freq_factor", high_freq_factor, &allowed));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor.ok_or_else(|| missing("rope.scaling.factor"))?,
        low_freq_factor,
        high_freq_factor,
        original_context_len: keys.required("rope.scaling.original_context_length", CONTEXT_MAX)?,
    })
}

/// RoPE's factors, whose shape and type were checked.
pub(super) fn freq_factors(checkpoint: &Checkpoint) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(tensor) = checkpoint.tensor("rope_freqs.weight") else {
        return Ok(None);
    };
    let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap_or(0)];
    checkpoint.read(tensor, 0, &mut bytes)?;
    let factors: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect();
    match factors
        .iter()
        .find(|factor| !(factor.is_finite() && **factor > 0.0))
    {
        None => Ok(Some(factors)),
        Some(factor) => Err(ModelError::Value {
            key: tensor.name.clone(),
            value: factor.to_string(),
            allowed: "finite factors above 0 are needed".to_owned(),
        }),
    }
}
