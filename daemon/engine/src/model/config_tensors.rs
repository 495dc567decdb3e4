//! Which tensors a Llama model has, and of what shape and type; checks a file's list against it.

use std::collections::HashSet;

use super::config::{ModelConfig, ModelError};
use crate::format::{Checkpoint, TensorType};

/// Tensors of old files that hold what the metadata say as well.
const IGNORED_SUFFIX: &str = ".attn_rot_embd";

/// Checks that every tensor of the forward pass is there in shape and type, and that there are no
/// others.
pub(super) fn check_tensors(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
) -> Result<(), ModelError> {
    let mut check = Check {
        checkpoint,
        seen: HashSet::new(),
    };
    let hidden = u64::from(config.hidden_dim);
    let ffn = u64::from(config.ffn_dim);
    let vocab = u64::from(config.vocab_size);
    let queries = u64::from(config.n_heads) * u64::from(config.head_dim);
    let keys = u64::from(config.n_kv_heads) * u64::from(config.head_dim);

    check.table("token_embd.weight", hidden, vocab)?;
    check.vector("output_norm.weight", hidden)?;
    if !config.tied_output {
        check.matrix("output.weight", hidden, vocab)?;
    }
    if checkpoint.tensor("rope_freqs.weight").is_some() {
        check.factors("rope_freqs.weight", u64::from(config.rope.dim / 2))?;
    }
    for layer in 0..config.n_layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        check.vector(&name("attn_norm.weight"), hidden)?;
        check.matrix(&name("attn_q.weight"), hidden, queries)?;
        check.matrix(&name("attn_k.weight"), hidden, keys)?;
        check.matrix(&name("attn_v.weight"), hidden, keys)?;
        check.matrix(&name("attn_output.weight"), queries, hidden)?;
        check.vector(&name("ffn_norm.weight"), hidden)?;
        check.matrix(&name("ffn_gate.weight"), hidden, ffn)?;
        check.matrix(&name("ffn_up.weight"), hidden, ffn)?;
        check.matrix(&name("ffn_down.weight"), ffn, hidden)?;
        if config.attention_bias {
            check.vector(&name("attn_q.bias"), queries)?;
            check.vector(&name("attn_k.bias"), keys)?;
            check.vector(&name("attn_v.bias"), keys)?;
        }
        if config.output_bias {
            check.vector(&name("attn_output.bias"), hidden)?;
        }
    }
    check.nothing_else()
}

struct Check<'a> {
    checkpoint: &'a Checkpoint,
    seen: HashSet<String>,
}

impl Check<'_> {
    /// A matrix of a type that the products run.
    fn matrix(&mut self, name: &str, columns: u64, rows: u64) -> Result<(), ModelError> {
        let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, and 4 or \
                         8 bits in groups";
        let dims = [columns, rows];
        self.tensor(name, &dims, supported, TensorType::is_supported)
    }

    /// The embedding: a matrix whose rows are read one by one.
    fn table(&mut self, name: &str, columns: u64, rows: u64) -> Result<(), ModelError> {
        let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL";
        let is_supported = |found: TensorType| found.is_supported() && found.block_bytes() > 0;
        self.tensor(name, &[columns, rows], supported, is_supported)
    }

    /// A vector, always of floats.
    fn vector(&mut self, name: &str, length: u64) -> Result<(), ModelError> {
        let is_float =
            |found| matches!(found, TensorType::F32 | TensorType::F16 | TensorType::Bf16);
        self.tensor(name, &[length], "F32, F16, BF16", is_float)
    }

    /// RoPE's factors, which are read as they are.
    fn factors(&mut self, name: &str, length: u64) -> Result<(), ModelError> {
        self.tensor(name, &[length], "F32", |found| found == TensorType::F32)
    }

    fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        supported: &'static str,
        is_supported: fn(TensorType) -> bool,
    ) -> Result<(), ModelError> {
        let tensor = self
            .checkpoint
            .tensor(name)
            .ok_or_else(|| ModelError::MissingTensor {
                name: name.to_owned(),
            })?;
        // Trailing dimensions of 1 say nothing.
        let mut found = tensor.dims.clone();
        while found.len() > dims.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != dims {
            return Err(ModelError::Shape {
                name: name.to_owned(),
                found: tensor.dims.clone(),
                wanted: dims.to_vec(),
            });
        }
        if !is_supported(tensor.tensor_type) {
            return Err(ModelError::TensorType {
                name: name.to_owned(),
                found: tensor.tensor_type.name(),
                supported,
            });
        }
        self.seen.insert(name.to_owned());
        Ok(())
    }

    fn nothing_else(&self) -> Result<(), ModelError> {
        match self.checkpoint.tensors().iter().find(|tensor| {
            !self.seen.contains(&tensor.name) && !tensor.name.contains(IGNORED_SUFFIX)
        }) {
            None => Ok(()),
            Some(tensor) => Err(ModelError::UnknownTensor {
                name: tensor.name.chars().take(80).collect(),
            }),
        }
    }
}
