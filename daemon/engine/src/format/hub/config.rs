//! `config.json` in GGUF's words: architecture and sizes. What would change the mathematics and is
//! not done here is refused by name. Knows no tokenizer.

use serde_json::Value;

use super::json::Object;
use super::rope;
use crate::format::FormatError;
use crate::format::cursor::clip;
use crate::format::metadata::Entry;
use crate::limits::HUB_CONFIG_BYTES_MAX;

/// What `config.json` says.
pub(super) struct Config {
    /// Metadata of the model itself.
    pub(super) entries: Vec<(String, Entry)>,
    /// How weights are quantised, as the file says it.
    pub(super) quantization: Option<Value>,
    /// The output matrix is the token embedding, whatever else the files hold.
    pub(super) tied_output: bool,
    /// Rows of the embedding.
    pub(super) vocab_size: Option<u32>,
    /// Tokens that begin a text, by the model; empty if it does not say.
    pub(super) bos: Vec<u32>,
    /// Tokens that end one.
    pub(super) eos: Vec<u32>,
}

/// A family of models whose mathematics the engine has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
}

/// Class, `model_type` and family of every model that is read.
const FAMILIES: [(&str, &str, Family); 4] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("LLaMAForCausalLM", "llama", Family::Llama),
    ("MistralForCausalLM", "mistral", Family::Mistral),
    ("Qwen2ForCausalLM", "qwen2", Family::Qwen2),
];

/// Numbers that other members of the family have and that must have no effect: name, and the values
/// that mean none.
const NEUTRAL_NUMBERS: [(&str, &[f64]); 23] = [
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("attention_multiplier", &[]),
    ("embedding_multiplier", &[1.0]),
    ("residual_multiplier", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("logit_scale", &[1.0]),
    ("lm_head_multiplier", &[1.0]),
    ("query_pre_attn_scalar", &[]),
    ("clip_qkv", &[0.0]),
    ("partial_rotary_factor", &[1.0]),
    ("rotary_pct", &[1.0]),
    ("rope_local_base_freq", &[]),
    ("rope_ratio", &[1.0]),
    ("num_experts", &[0.0, 1.0]),
    ("num_local_experts", &[0.0, 1.0]),
    ("n_routed_experts", &[0.0]),
    ("num_experts_per_tok", &[0.0]),
    ("moe_intermediate_size", &[0.0]),
    ("attention_chunk_size", &[0.0]),
    ("kv_lora_rank", &[0.0]),
    ("q_lora_rank", &[0.0]),
    ("no_rope_layer_interval", &[0.0]),
];

/// Switches that must have this value if they are there.
const NEUTRAL_SWITCHES: [(&str, bool); 11] = [
    ("mlp_bias", false),
    ("is_encoder_decoder", false),
    ("add_cross_attention", false),
    ("use_qk_norm", false),
    ("qk_norm", false),
    ("qk_layernorm", false),
    ("alibi", false),
    ("parallel_attn", false),
    ("use_parallel_residual", false),
    ("use_mrope", false),
    ("is_causal", true),
];

/// What may not be there at all.
const FOREIGN: [&str; 5] = [
    "no_rope_layers",
    "mrope_section",
    "vision_config",
    "text_config",
    "block_configs",
];

/// Translates the file.
pub(super) fn read(bytes: &[u8]) -> Result<Config, FormatError> {
    let mut file = Object::parse(bytes, HUB_CONFIG_BYTES_MAX)?;
    let family = family(&file)?;
    refuse_foreign(&file)?;
    let mut words = Words {
        prefix: match family {
            // GGUF's converters give Mistral's models to Llama's forward pass.
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
        },
        entries: Vec::new(),
    };
    let architecture = Entry::Str(words.prefix.to_owned());
    words
        .entries
        .push(("general.architecture".to_owned(), architecture));
    let vocab_size = file.u32("vocab_size")?;
    if let Some(size) = vocab_size {
        words.int("vocab_size", size);
    }
    let context_len = sizes(&file, family, &mut words)?;
    if let Some(window) = sliding_window(&file, family, context_len)? {
        words.int("attention.sliding_window", window);
    }
    for (key, value) in rope::read(&mut file)? {
        words.add(key, value);
    }
    let bos = file.ids("bos_token_id")?;
    let eos = file.ids("eos_token_id")?;
    let tied_output = file.bool("tie_word_embeddings")?.unwrap_or(false);
    let quantization = file
        .take("quantization_config")
        .or_else(|| file.take("compression_config"));
    Ok(Config {
        entries: words.entries,
        quantization,
        tied_output,
        vocab_size,
        bos,
        eos,
    })
}

/// Metadata in the making, of one architecture.
struct Words {
    prefix: &'static str,
    entries: Vec<(String, Entry)>,
}

impl Words {
    fn add(&mut self, key: &str, value: Entry) {
        self.entries.push((format!("{}.{key}", self.prefix), value));
    }

    fn int(&mut self, key: &str, value: u32) {
        self.add(key, Entry::Int(u64::from(value)));
    }
}

fn family(file: &Object) -> Result<Family, FormatError> {
    let unsupported = |key: &str, found: &str| FormatError::Invalid {
        field: key.to_owned(),
        value: format!("{:?} is not supported", clip(found)),
        allowed: "LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM are",
    };
    let kind = file.str("model_type")?;
    let class = match file.get("architectures") {
        None => None,
        Some(Value::Array(all)) if all.len() <= 1 => match all.first() {
            None => None,
            Some(Value::String(class)) => Some(class.as_str()),
            Some(other) => return Err(file.bad("architectures", other, "a name is needed")),
        },
        Some(other) => {
            return Err(file.bad("architectures", other, "a list of one name is needed"));
        }
    };
    let row = match (class, kind) {
        (Some(class), _) => FAMILIES
            .iter()
            .find(|row| row.0 == class)
            .ok_or_else(|| unsupported("architectures", class))?,
        (None, Some(kind)) => FAMILIES
            .iter()
            .find(|row| row.1 == kind)
            .ok_or_else(|| unsupported("model_type", kind))?,
        (None, None) => {
            return Err(FormatError::MissingField {
                field: "architectures".to_owned(),
            });
        }
    };
    match kind {
        Some(kind) if kind != row.1 => Err(unsupported("model_type", kind)),
        _ => Ok(row.2),
    }
}

/// Refuses by name what asks for other mathematics.
fn refuse_foreign(file: &Object) -> Result<(), FormatError> {
    let unsupported = |key: &str, value: &Value| {
        file.bad(
            key,
            value,
            "this changes what a model computes and is not supported",
        )
    };
    for key in FOREIGN {
        if let Some(value) = file.get(key) {
            return Err(unsupported(key, value));
        }
    }
    for (key, neutral) in NEUTRAL_NUMBERS {
        if let Some(value) = file.get(key) {
            let number = file.f64(key)?.unwrap_or_default();
            if !neutral.contains(&number) {
                return Err(unsupported(key, value));
            }
        }
    }
    for (key, neutral) in NEUTRAL_SWITCHES {
        if let Some(value) = file.get(key)
            && file.bool(key)? != Some(neutral)
        {
            return Err(unsupported(key, value));
        }
    }
    for key in ["hidden_act", "hidden_activation"] {
        match file.str(key)? {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                let value = Value::from(other);
                return Err(file.bad(key, &value, "silu is the only one supported"));
            }
        }
    }
    Ok(())
}

/// Sizes of layers and heads. Gives the longest context. Fields that files leave out have the values
/// that the family's own configuration gives them.
fn sizes(file: &Object, family: Family, words: &mut Words) -> Result<u32, FormatError> {
    let context_len = match (file.u32("max_position_embeddings")?, family) {
        (Some(length), _) => length,
        (None, Family::Llama) => file.u32("max_sequence_length")?.unwrap_or(2048),
        (None, _) => file.required_u32("max_position_embeddings")?,
    };
    let heads = file.required_u32("num_attention_heads")?;
    let kv_heads = match (file.u32("num_key_value_heads")?, family) {
        (Some(count), _) => count,
        (None, Family::Llama) => heads,
        (None, _) => file.required_u32("num_key_value_heads")?,
    };
    words.int("context_length", context_len);
    words.int("embedding_length", file.required_u32("hidden_size")?);
    words.int("block_count", file.required_u32("num_hidden_layers")?);
    words.int(
        "feed_forward_length",
        file.required_u32("intermediate_size")?,
    );
    words.int("attention.head_count", heads);
    words.int("attention.head_count_kv", kv_heads);
    if let Some(length) = file.u32("head_dim")? {
        for key in [
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
        ] {
            words.int(key, length);
        }
    }
    let eps = file.f64("rms_norm_eps")?.unwrap_or(1e-6);
    words.add("attention.layer_norm_rms_epsilon", Entry::Float(eps));
    Ok(context_len)
}

/// The window of all layers' attention, if they have one that is shorter than the context.
fn sliding_window(
    file: &Object,
    family: Family,
    context_len: u32,
) -> Result<Option<u32>, FormatError> {
    const KEY: &str = "sliding_window";
    let (full, sliding) = layer_types(file)?;
    let window = match file.u32(KEY)? {
        // Mistral's configuration has a window unless the file says `null`.
        None if family == Family::Mistral && !file.keys().any(|key| key == KEY) => Some(4096),
        window => window.filter(|window| *window > 0),
    };
    let used = match family {
        Family::Qwen2 => {
            let used = file.bool("use_sliding_window")?.unwrap_or(false) || sliding;
            let first = file.u32("max_window_layers")?.unwrap_or(0);
            if used && first > 0 && !sliding && first < file.required_u32("num_hidden_layers")? {
                let value = Value::from(first);
                let allowed = "a window in some layers only is not supported";
                return Err(file.bad("max_window_layers", &value, allowed));
            }
            used && (sliding || first == 0)
        }
        Family::Mistral => !full,
        Family::Llama => true,
    };
    match window.filter(|window| used && *window < context_len) {
        Some(window) if family == Family::Llama && !sliding => {
            // Llama's own code takes no notice of it, others' do.
            let allowed = "a Llama model has no sliding window";
            Err(file.bad(KEY, &Value::from(window), allowed))
        }
        other => Ok(other),
    }
}

/// Whether the file lists all layers' attention as full, or all as sliding.
fn layer_types(file: &Object) -> Result<(bool, bool), FormatError> {
    const KEY: &str = "layer_types";
    let Some(value) = file.get(KEY) else {
        return Ok((false, false));
    };
    let all = |wanted: &str| {
        value
            .as_array()
            .is_some_and(|types| types.iter().all(|one| one.as_str() == Some(wanted)))
    };
    match (all("full_attention"), all("sliding_attention")) {
        (false, false) => Err(file.bad(
            KEY,
            value,
            "all full_attention or all sliding_attention is supported",
        )),
        found => Ok(found),
    }
}
