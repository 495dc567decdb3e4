//! What a model is: architecture and sizes from a GGUF file's metadata, and proof that every tensor
//! the forward pass needs is there in the right shape and type, before any weight is read. Knows
//! no GPU and no tokens.

use std::collections::BTreeMap;

use super::config_rope::{RopeConfig, RopeScaling, freq_factors, rope};
use super::config_tensors::check_tensors;
use crate::format::{Checkpoint, FormatError};
use crate::limits::{CONTEXT_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX};

/// Query heads that one workgroup of the attention kernel keeps in registers.
const HEADS_PER_KV_HEAD_MAX: u32 = 8;
/// Architectures that the forward pass has.
const ARCHITECTURES: [&str; 2] = ["llama", "qwen2"];
/// Values of a head that the attention kernels take.
const HEAD_DIMS: [u32; 8] = [16, 32, 48, 64, 80, 96, 128, 256];
/// Columns of every matrix are a multiple of this: the block of quantised formats.
const COLUMNS_MULTIPLE: u32 = 32;

/// A model that this engine does not run, or whose metadata and tensors do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Metadata of a wrong type.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An architecture without a forward pass here.
    #[error(
        "architecture {found:?} is not supported; supported are: llama (with Mistral and SmolLM), \
             qwen2"
    )]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// Metadata that is needed is not there.
    #[error("metadata {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// Metadata outside what is allowed.
    #[error("metadata {key:?}: {value}; {allowed}")]
    Value {
        /// The key.
        key: String,
        /// What the file says.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Something the forward pass does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it is, with the key or tensor that asks for it.
        what: String,
    },
    /// A tensor that is needed is not there.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape than the metadata say.
    #[error("tensor {name:?} has dimensions {found:?}, {wanted:?} are needed")]
    Shape {
        /// The tensor.
        name: String,
        /// Dimensions in the file.
        found: Vec<u64>,
        /// Dimensions that fit the metadata.
        wanted: Vec<u64>,
    },
    /// A tensor of a type that the engine does not run.
    #[error("tensor {name:?} is {found}; supported are: {supported}")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        found: &'static str,
        /// What is supported there.
        supported: &'static str,
    },
    /// A tensor that no Llama model has: computing without it would be wrong.
    #[error("tensor {name:?} is not part of a Llama model")]
    UnknownTensor {
        /// The tensor.
        name: String,
    },
}

/// Architecture and sizes of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Format of its files: `gguf` or `safetensors`; `none` for made-up weights.
    pub format: &'static str,
    /// Architecture as the file names it: `llama`.
    pub architecture: String,
    /// The model's own name; empty if the file has none.
    pub name: String,
    /// Licence, if the file says.
    pub license: Option<String>,
    /// The type that holds most bytes of the layers' matrices, such as `Q4_1`.
    pub quantization: String,
    /// Values in all weights.
    pub parameter_count: u64,
    /// Layers.
    pub n_layers: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u32,
    /// Values of a head.
    pub head_dim: u32,
    /// Values of the hidden state; a multiple of 32.
    pub hidden_dim: u32,
    /// Values of the feed-forward layer; a multiple of 32.
    pub ffn_dim: u32,
    /// Tokens in the vocabulary: rows of the embedding and of the output matrix.
    pub vocab_size: u32,
    /// Longest context the model was made for, in tokens.
    pub context_len: u32,
    /// Added to the mean square in RMSNorm.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// The output matrix is the token embedding.
    pub tied_output: bool,
    /// Positions that attention looks back over, its own with them; `None`: all.
    pub sliding_window: Option<u32>,
    /// Query, key and value projections of all layers have biases.
    pub attention_bias: bool,
    /// So have their output projections.
    pub output_bias: bool,
}

impl ModelConfig {
    /// Reads and checks the model of a file. No weights are read, except RoPE's few factors.
    ///
    /// # Errors
    /// The first key or tensor that is missing, out of range, or asks for what is not supported.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let architecture = checkpoint
            .get_str("general.architecture")?
            .unwrap_or_default();
        if !ARCHITECTURES.contains(&architecture) {
            return Err(ModelError::Architecture {
                found: architecture.chars().take(80).collect(),
            });
        }
        let keys = Keys {
            checkpoint,
            prefix: architecture,
        };
        refuse_unsupported(&keys)?;

        let (n_heads, n_kv_heads) = heads(&keys)?;
        let hidden_dim = keys.required("embedding_length", WIDTH_MAX)?;
        let ffn_dim = keys.required("feed_forward_length", WIDTH_MAX)?;
        let head_dim = head_dim(&keys, hidden_dim, n_heads)?;
        for (key, value) in [
            ("embedding_length", hidden_dim),
            ("feed_forward_length", ffn_dim),
            ("attention.head_count", n_heads.saturating_mul(head_dim)),
        ] {
            if !value.is_multiple_of(COLUMNS_MULTIPLE) || value > WIDTH_MAX {
                let allowed =
                    format!("a width that is a multiple of 32 up to {WIDTH_MAX} is needed");
                return Err(keys.bad(key, value, &allowed));
            }
        }
        let vocab_size = vocab_size(checkpoint)?;
        let mut config = Self {
            format: checkpoint.format(),
            architecture: architecture.to_owned(),
            name: short(checkpoint.get_str("general.name")?.unwrap_or_default()),
            license: checkpoint.get_str("general.license")?.map(short),
            quantization: checkpoint
                .quantization()
                .map_or_else(|| quantization(checkpoint), str::to_owned),
            parameter_count: parameter_count(checkpoint),
            n_layers: keys.required("block_count", LAYERS_MAX)?,
            n_heads,
            n_kv_heads,
            head_dim,
            hidden_dim,
            ffn_dim,
            vocab_size,
            context_len: keys.required("context_length", CONTEXT_MAX)?,
            rms_eps: rms_eps(&keys)?,
            rope: rope(&keys, head_dim)?,
            tied_output: checkpoint.tensor("output.weight").is_none(),
            sliding_window: sliding_window(&keys)?,
            output_bias: checkpoint.tensor("blk.0.attn_output.bias").is_some(),
            attention_bias: checkpoint.tensor("blk.0.attn_q.bias").is_some(),
        };
        check_tensors(checkpoint, &config)?;
        if let Some(factors) = freq_factors(checkpoint)? {
            if config.rope.scaling != RopeScaling::None {
                return Err(ModelError::Unsupported {
                    what: "RoPE scaling by metadata and by tensor \"rope_freqs.weight\" at once"
                        .to_owned(),
                });
            }
            config.rope.scaling = RopeScaling::FreqFactors(factors);
        }
        Ok(config)
    }
}

/// Metadata of one architecture.
pub(super) struct Keys<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    prefix: &'a str,
}

impl Keys<'_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn bad(&self, key: &str, value: impl ToString, allowed: &str) -> ModelError {
        ModelError::Value {
            key: self.name(key),
            value: value.to_string(),
            allowed: allowed.to_owned(),
        }
    }

    /// A number from 1 to `limit`, if the key is there.
    pub(super) fn optional(&self, key: &str, limit: u32) -> Result<Option<u32>, ModelError> {
        match self.checkpoint.get_u64(&self.name(key))? {
            None => Ok(None),
            Some(value) => match u32::try_from(value) {
                Ok(small) if (1..=limit).contains(&small) => Ok(Some(small)),
                _ => Err(self.bad(key, value, &format!("1 to {limit} are allowed"))),
            },
        }
    }

    pub(super) fn required(&self, key: &str, limit: u32) -> Result<u32, ModelError> {
        self.optional(key, limit)?
            .ok_or_else(|| ModelError::MissingKey {
                key: self.name(key),
            })
    }

    /// A finite number above 0, if the key is there.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.checkpoint.get_f32(&self.name(key))?.map(f64::from) {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                Err(self.bad(key, value, "a finite number above 0 is needed"))
            }
            other => Ok(other),
        }
    }
}

/// Names from a file are shown in listings: a line's worth is kept.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Refuses by name what other members of the family have and this forward pass does not do.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), ModelError> {
    let count_keys = [
        ("expert_count", "a mixture of experts"),
        ("attention.kv_lora_rank", "low-rank attention"),
    ];
    for (key, what) in count_keys {
        if keys
            .checkpoint
            .get_u64(&keys.name(key))?
            .is_some_and(|count| count > 0)
        {
            let what = format!("{what} (metadata {:?})", keys.name(key));
            return Err(ModelError::Unsupported { what });
        }
    }
    let scale_keys = [
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
        ("attention.scale", 0.0),
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
    ];
    for (key, neutral) in scale_keys {
        if keys
            .checkpoint
            .get_f32(&keys.name(key))?
            .is_some_and(|value| value != neutral)
        {
            let what = format!("metadata {:?}", keys.name(key));
            return Err(ModelError::Unsupported { what });
        }
    }
    for (key, neutral) in [("use_parallel_residual", false), ("attention.causal", true)] {
        if keys
            .checkpoint
            .get_bool(&keys.name(key))?
            .is_some_and(|value| value != neutral)
        {
            let what = format!("metadata {:?} = {}", keys.name(key), !neutral);
            return Err(ModelError::Unsupported { what });
        }
    }
    Ok(())
}

/// The window of attention: none where it is 0, or no shorter than the context.
fn sliding_window(keys: &Keys<'_>) -> Result<Option<u32>, ModelError> {
    const KEY: &str = "attention.sliding_window";
    if keys.checkpoint.get_u64(&keys.name(KEY))? == Some(0) {
        return Ok(None);
    }
    let window = keys.optional(KEY, u32::MAX)?;
    let context_len = keys.required("context_length", CONTEXT_MAX)?;
    Ok(window.filter(|window| *window < context_len))
}

/// Query heads, and key and value heads.
fn heads(keys: &Keys<'_>) -> Result<(u32, u32), ModelError> {
    let n_heads = keys.required("attention.head_count", WIDTH_MAX)?;
    let n_kv_heads = keys
        .optional("attention.head_count_kv", WIDTH_MAX)?
        .unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(keys.bad(
            "attention.head_count_kv",
            n_kv_heads,
            &format!("a divisor of the {n_heads} query heads is needed"),
        ));
    }
    if n_heads / n_kv_heads > HEADS_PER_KV_HEAD_MAX {
        let what = format!(
            "{} query heads for each key and value head (up to {HEADS_PER_KV_HEAD_MAX} are)",
            n_heads / n_kv_heads
        );
        return Err(ModelError::Unsupported { what });
    }
    Ok((n_heads, n_kv_heads))
}

fn head_dim(keys: &Keys<'_>, hidden_dim: u32, n_heads: u32) -> Result<u32, ModelError> {
    let head_dim = match keys.optional("attention.key_length", WIDTH_MAX)? {
        Some(length) => length,
        None if hidden_dim.is_multiple_of(n_heads) => hidden_dim / n_heads,
        None => {
            let allowed = format!("a divisor of embedding_length {hidden_dim} is needed");
            return Err(keys.bad("attention.head_count", n_heads, &allowed));
        }
    };
    if let Some(length) = keys.optional("attention.value_length", WIDTH_MAX)?
        && length != head_dim
    {
        let allowed = format!("the keys' length {head_dim} is needed");
        return Err(keys.bad("attention.value_length", length, &allowed));
    }
    if !HEAD_DIMS.contains(&head_dim) {
        let what = format!("a head of {head_dim} values (supported are {HEAD_DIMS:?})");
        return Err(ModelError::Unsupported { what });
    }
    Ok(head_dim)
}

/// Rows of the embedding, which the tokenizer's list must match.
fn vocab_size(checkpoint: &Checkpoint) -> Result<u32, ModelError> {
    const TENSOR: &str = "token_embd.weight";
    let tensor = checkpoint
        .tensor(TENSOR)
        .ok_or_else(|| ModelError::MissingTensor {
            name: TENSOR.to_owned(),
        })?;
    let rows = tensor.rows();
    match u32::try_from(rows) {
        Ok(size) if size <= VOCAB_MAX => {
            let key = "tokenizer.ggml.tokens";
            match checkpoint.array_len(key) {
                Some(tokens) if u64::try_from(tokens) != Ok(rows) => Err(ModelError::Value {
                    key: key.to_owned(),
                    value: format!("{tokens} tokens"),
                    allowed: format!("tensor {TENSOR:?} has {rows} rows: one for each is needed"),
                }),
                _ => Ok(size),
            }
        }
        _ => Err(ModelError::Value {
            key: TENSOR.to_owned(),
            value: format!("{rows} rows"),
            allowed: format!("at most {VOCAB_MAX} are allowed"),
        }),
    }
}

fn rms_eps(keys: &Keys<'_>) -> Result<f32, ModelError> {
    const KEY: &str = "attention.layer_norm_rms_epsilon";
    keys.positive(KEY)?;
    keys.checkpoint
        .get_f32(&keys.name(KEY))?
        .ok_or_else(|| ModelError::MissingKey {
            key: keys.name(KEY),
        })
}

/// The type that holds most bytes of the layers' matrices.
fn quantization(checkpoint: &Checkpoint) -> String {
    let mut bytes_of: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        if tensor.name.starts_with("blk.") && tensor.dims.len() == 2 {
            // Sums stay within the file's size.
            *bytes_of.entry(tensor.tensor_type.name()).or_default() += tensor.bytes;
        }
    }
    bytes_of
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or("unknown", |(name, _)| name)
        .to_owned()
}

fn parameter_count(checkpoint: &Checkpoint) -> u64 {
    checkpoint
        .tensors()
        .iter()
        .filter(|tensor| tensor.name != "rope_freqs.weight")
        .fold(0, |sum: u64, tensor| {
            sum.saturating_add(tensor.columns() * tensor.rows())
        })
}
