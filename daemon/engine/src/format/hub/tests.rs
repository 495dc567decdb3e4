//! Json files for the tests of their readers: a sound one of each.

use serde_json::{Value, json};

use super::{HubFiles, metadata};
use crate::format::{Checkpoint, FormatError};

/// A `config.json` of a small Llama.
pub(super) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "vocab_size": 16,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1, "use_cache": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.0", "rope_scaling": null
    })
}

/// A SentencePiece-style `tokenizer.json`.
pub(super) fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7, "ab": 8},
            "merges": ["▁ a", "a b"]}
    })
}

pub(super) fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

pub(super) fn files(config: &Value, tokenizer: Option<&Value>) -> HubFiles {
    HubFiles {
        config: config.to_string().into_bytes(),
        tokenizer: tokenizer.map(|value| value.to_string().into_bytes()),
        ..HubFiles::default()
    }
}

pub(super) fn open(config: &Value, tokenizer: Option<&Value>) -> Checkpoint {
    Checkpoint::of_hub(files(config, tokenizer)).unwrap()
}

/// An error with all that caused it.
pub(super) fn problem(files: HubFiles) -> String {
    fn text(error: &FormatError) -> String {
        match error {
            FormatError::InFile { file, error } => format!("{file}: {}", text(error)),
            other => other.to_string(),
        }
    }
    text(&metadata(files).err().unwrap())
}
