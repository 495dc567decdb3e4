//! Sizes of weights in groups: a folder whose files are sound and whose numbers are the input's.

use std::fmt::Write as _;

use super::{MEMORY_MAX, examine, memory, open};

/// The config.json of a sound small model.
pub(crate) const PLAIN_CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama",
"hidden_size":64,"intermediate_size":96,"num_attention_heads":4,"num_key_value_heads":2,
"num_hidden_layers":1,"vocab_size":320,"max_position_embeddings":512,"rms_norm_eps":1e-5,
"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":2}"#;

const TYPES: [(&str, u64); 6] = [
    ("I32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("F32", 4),
    ("I64", 8),
    ("U8", 1),
];
const PARTS: [&str; 9] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
];
const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
/// Numbers at which sizes break.
const EDGES: [u64; 12] = [
    0,
    1,
    7,
    8,
    31,
    127,
    576,
    65_535,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    u64::MAX,
];

/// Choices out of an input's bytes; zeros when they are used up.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.byte()) % list.len()]
    }

    /// What it should be, three times of four and more; something near or an edge otherwise.
    fn size(&mut self, sound: u64) -> u64 {
        match self.byte() {
            0..224 => sound,
            224..232 => sound.wrapping_add(1),
            232..240 => sound.wrapping_sub(1),
            240..248 => sound.saturating_mul(2),
            _ => self.of(&EDGES),
        }
    }
}

struct Sizes {
    hidden: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    bits: u64,
    group: i64,
}

impl Sizes {
    fn module(&self, name: &str) -> (u64, u64) {
        let head = self.hidden / self.heads.max(1);
        match &name[name.len() - 6..] {
            "k_proj" | "v_proj" => (self.kv_heads.saturating_mul(head), self.hidden),
            "q_proj" | "o_proj" => (self.hidden, self.hidden),
            "n_proj" => (self.hidden, self.ffn),
            _ => (self.ffn, self.hidden),
        }
    }
}

/// Adds a tensor to the header.
fn add(header: &mut String, at: &mut u64, name: &str, (dtype, bytes): (&str, u64), shape: &[u64]) {
    let size = shape
        .iter()
        .fold(bytes, |product, n| product.saturating_mul(*n))
        .min(1 << 38);
    let end = at.saturating_add(size);
    let comma = if header.len() > 1 { "," } else { "" };
    let _ = write!(
        header,
        r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
    );
    *at = end;
}

/// The shape of a part of a module: the tool's own, before choices change it.
fn shape(part: &str, sizes: &Sizes, rows: u64, columns: u64, along_rows: bool) -> Vec<u64> {
    let word = 32 / sizes.bits.clamp(1, 32);
    let groups = u64::try_from(sizes.group).map_or(1, |len| columns.div_ceil(len.max(1)));
    match part {
        "qweight" if along_rows => vec![columns, rows / word],
        "qweight" => vec![columns / word, rows],
        "qzeros" => vec![groups, rows / word],
        "scales" => vec![groups, rows],
        "g_idx" | "weight_g_idx" => vec![columns],
        "weight_packed" => vec![rows, columns / word],
        "weight_scale" => vec![rows, groups],
        "weight_zero_point" => vec![rows / word, groups],
        _ => vec![2],
    }
}

fn header(choices: &mut Choices<'_>, sizes: &Sizes, kind: u8) -> String {
    let (mut text, mut at) = (String::from("{"), 0);
    let floats = TYPES[1];
    let parts: &[&str] = match kind {
        0 => &PARTS[..4],
        1 => &PARTS[..3],
        _ => &PARTS[4..8],
    };
    for module in MODULES {
        let (rows, columns) = sizes.module(module);
        for part in parts {
            let mut shape = shape(part, sizes, rows, columns, kind == 1);
            for n in &mut shape {
                *n = choices.size(*n);
            }
            let choice = choices.byte();
            let sound = match *part {
                "scales" | "weight_scale" => floats,
                "weight_shape" => TYPES[4],
                _ => TYPES[0],
            };
            let dtype = if choice > 240 {
                choices.of(&TYPES)
            } else {
                sound
            };
            if choice == 240 {
                continue;
            }
            if choice == 239 {
                shape.push(1);
            }
            let name = format!("model.layers.0.{module}.{part}");
            add(&mut text, &mut at, &name, dtype, &shape);
        }
    }
    let hidden = sizes.hidden;
    for (name, shape) in [
        ("model.embed_tokens.weight", vec![320, hidden]),
        ("model.norm.weight", vec![hidden]),
        ("model.layers.0.input_layernorm.weight", vec![hidden]),
        (
            "model.layers.0.post_attention_layernorm.weight",
            vec![hidden],
        ),
    ] {
        add(&mut text, &mut at, name, floats, &shape);
    }
    text.push('}');
    text
}

/// GPTQ, AWQ or pack-quantized weights with sizes out of the input.
pub fn groups(data: &[u8]) {
    let mut choices = Choices(data.iter());
    let kind = choices.byte() % 3;
    let sizes = Sizes {
        hidden: choices.size(128),
        ffn: choices.size(256),
        heads: choices.size(2),
        kv_heads: choices.size(1),
        bits: choices.of(&[4, 4, 4, 8, 8, 2, 3, 0, 32, 33]),
        group: choices.of(&[32, 64, 128, -1, 32, 64, 0, 1, 7, -2, i64::MAX]),
    };
    let flag = |choices: &mut Choices<'_>| choices.byte() & 1 == 1;
    let (symmetric, ordered, second) = (flag(&mut choices), flag(&mut choices), flag(&mut choices));
    let (bits, group) = (sizes.bits, sizes.group);
    let quantization = match kind {
        0 => {
            let format = if second { "gptq_v2" } else { "gptq" };
            format!(
                r#"{{"quant_method":"gptq","bits":{bits},"group_size":{group},"sym":{symmetric},"desc_act":{ordered},"checkpoint_format":"{format}"}}"#
            )
        }
        1 => format!(
            r#"{{"quant_method":"awq","bits":{bits},"group_size":{group},"zero_point":true,"version":"gemm"}}"#
        ),
        _ => {
            let strategy = if group < 0 { "channel" } else { "group" };
            format!(
                r#"{{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{{"group_0":{{"targets":["Linear"],"weights":{{"num_bits":{bits},"type":"int","symmetric":{symmetric},"strategy":"{strategy}","group_size":{group}}}}}}},"ignore":["lm_head"]}}"#
            )
        }
    };
    let config = format!(
        r#"{{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":{},"intermediate_size":{},"num_attention_heads":{},"num_key_value_heads":{},"num_hidden_layers":1,"vocab_size":320,"max_position_embeddings":512,"rms_norm_eps":1e-5,"tie_word_embeddings":true,"quantization_config":{quantization}}}"#,
        sizes.hidden, sizes.ffn, sizes.heads, sizes.kv_heads
    );
    let header = header(&mut choices, &sizes, kind);
    memory::within(MEMORY_MAX, || {
        if let Some(checkpoint) = open(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", header.as_bytes()),
        ]) {
            examine(&checkpoint);
            for tensor in checkpoint.tensors().iter().take(16) {
                let rows = tensor.dims.get(1).copied().unwrap_or(1).min(8);
                if tensor.dims.iter().all(|n| *n <= 4096) {
                    let _ = checkpoint.read_first_rows(tensor, rows);
                }
            }
        }
    });
}
