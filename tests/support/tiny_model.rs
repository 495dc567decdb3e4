//! A tiny model with random weights and a byte-level vocabulary: its replies mean nothing, but
//! everything about it is real, and a step takes a moment.

use std::path::{Path, PathBuf};

use hearth_engine::format::TensorType;
use hearth_engine::format::gguf_writer::{GgufWriter, MetaValue};
use serde_json::{Map, Value, json};

pub const HIDDEN: u32 = 64;
pub const FFN: u32 = 128;
pub const LAYERS: u32 = 2;
pub const HEADS: u32 = 4;
pub const KV_HEADS: u32 = 2;
pub const HEAD_DIM: u32 = 16;
pub const CONTEXT: u32 = 2048;
pub const END_OF_TEXT: u32 = 0;
pub const IM_START: u32 = 1;
pub const IM_END: u32 = 2;

const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: [(&str, &str); 6] = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ġ", "w"),
    ("o", "r"),
];

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                        message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Number of tokens in its vocabulary.
pub fn vocab_size() -> u32 {
    u32::try_from(SPECIALS.len() + 256 + MERGES.len()).unwrap()
}

/// Writes the model. Another `seed` gives another file of the same shape.
pub fn write(path: &Path, seed: u64) {
    write_with_template(path, seed, TEMPLATE);
}

/// As [`write`], with another chat template.
pub fn write_with_template(path: &Path, seed: u64, template: &str) {
    let mut writer = GgufWriter::new();
    metadata(&mut writer, template);
    tensors(seed, &mut |name, shape, data| {
        writer.tensor(name, shape, TensorType::F32, data);
    });
    writer.write(path).unwrap();
}

/// Writes the model with a sliding window of so many positions.
pub fn write_windowed(path: &Path, seed: u64, window: u32) {
    let mut writer = GgufWriter::new();
    metadata(&mut writer, TEMPLATE);
    writer.metadata("llama.attention.sliding_window", window);
    tensors(seed, &mut |name, shape, data| {
        writer.tensor(name, shape, TensorType::F32, data);
    });
    writer.write(path).unwrap();
}

/// Writes the model in two parts, `NAME-00001-of-00002.gguf` and its other. Returns the first.
pub fn write_split(folder: &Path, name: &str, seed: u64) -> PathBuf {
    let mut parts = [GgufWriter::new(), GgufWriter::new()];
    metadata(&mut parts[0], TEMPLATE);
    let mut count = 0;
    tensors(seed, &mut |name, shape, data| {
        parts[count % 2].tensor(name, shape, TensorType::F32, data);
        count += 1;
    });
    let path = |part: u32| folder.join(format!("{name}-{:05}-of-00002.gguf", part + 1));
    for (mut part, number) in parts.into_iter().zip(0_u32..) {
        part.metadata("split.count", 2_u32)
            .metadata("split.no", number);
        part.write(&path(number)).unwrap();
    }
    path(0)
}

/// Writes a folder in Hugging Face's layout of the same sizes, its weights in two shards, all zero.
/// Beside them lies what is no part of a model.
pub fn write_folder(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size(),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "bos_token_id": IM_START,
        "eos_token_id": IM_END,
        "torch_dtype": "float32",
    });
    let mut shards = [Vec::new(), Vec::new()];
    let mut weight_map = Map::new();
    let mut count = 0;
    tensors(1, &mut |name, shape, data| {
        let name = hub_name(name);
        let file = format!("model-0000{}-of-00002.safetensors", count % 2 + 1);
        weight_map.insert(name.clone(), file.into());
        // Rows first, where GGUF has columns first.
        let shape: Vec<u64> = shape.iter().rev().copied().collect();
        shards[count % 2].push((name, shape, data.len()));
        count += 1;
    });
    for (shard, number) in shards.iter().zip(1..) {
        let name = format!("model-0000{number}-of-00002.safetensors");
        std::fs::write(folder.join(name), zeros(shard)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    for (name, text) in [
        ("config.json", config.to_string()),
        ("model.safetensors.index.json", index.to_string()),
        ("tokenizer.json", tokenizer_json().to_string()),
        (
            "tokenizer_config.json",
            json!({ "chat_template": TEMPLATE }).to_string(),
        ),
        ("README.md", "what it is".to_owned()),
        ("pytorch_model.bin", "a pickle".to_owned()),
        ("modeling_tiny.py", "print()".to_owned()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// The vocabulary as tokenizer.json has it.
fn tokenizer_json() -> Value {
    let vocab: Map<String, Value> = tokens()
        .into_iter()
        .zip(0_u32..)
        .map(|(token, id)| (token, id.into()))
        .collect();
    let merges = MERGES.map(|(left, right)| format!("{left} {right}"));
    let special = |(content, id): (&str, u32)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
    };
    let added: Vec<Value> = SPECIALS.into_iter().zip(0..).map(special).collect();
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ]},
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                     "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })
}

/// A safetensors file of zeros.
fn zeros(tensors: &[(String, Vec<u64>, usize)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape, bytes) in tensors {
        let offsets = [at, at + bytes];
        header.insert(
            name.clone(),
            json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }),
        );
        at += bytes;
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + at, 0);
    file
}

/// A tensor's name in Hugging Face's layout.
fn hub_name(name: &str) -> String {
    let Some((layer, part)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            _ => "model.norm.weight",
        }
        .to_owned();
    };
    let part = match part.trim_end_matches(".weight") {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        _ => "post_attention_layernorm",
    };
    format!("model.layers.{layer}.{part}.weight")
}

fn tokens() -> Vec<String> {
    let mut tokens: Vec<String> = SPECIALS.map(str::to_owned).to_vec();
    tokens.extend(byte_letters().map(String::from));
    tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
    tokens
}

fn metadata(writer: &mut GgufWriter, template: &str) {
    let tokens = tokens();
    let types = (0..tokens.len())
        .map(|i| if i < SPECIALS.len() { 3 } else { 1 })
        .collect();
    let merges = MERGES
        .map(|(left, right)| format!("{left} {right}"))
        .to_vec();
    writer
        .metadata("general.architecture", "llama")
        .metadata("general.name", "Tiny")
        .metadata("general.license", "mit")
        .metadata("llama.context_length", CONTEXT)
        .metadata("llama.embedding_length", HIDDEN)
        .metadata("llama.block_count", LAYERS)
        .metadata("llama.feed_forward_length", FFN)
        .metadata("llama.attention.head_count", HEADS)
        .metadata("llama.attention.head_count_kv", KV_HEADS)
        .metadata("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .metadata("llama.rope.dimension_count", HEAD_DIM)
        .metadata("llama.rope.freq_base", 10_000.0_f32)
        .metadata("llama.vocab_size", vocab_size())
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.pre", "smollm")
        .metadata("tokenizer.ggml.tokens", MetaValue::StrArray(tokens))
        .metadata("tokenizer.ggml.token_type", MetaValue::I32Array(types))
        .metadata("tokenizer.ggml.merges", MetaValue::StrArray(merges))
        .metadata("tokenizer.ggml.bos_token_id", IM_START)
        .metadata("tokenizer.ggml.eos_token_id", IM_END)
        .metadata("tokenizer.ggml.add_bos_token", false)
        .metadata("tokenizer.chat_template", template);
}

/// Takes a tensor: its name, its sizes with columns first, its bytes.
type TakeTensor<'a> = dyn FnMut(&str, &[u64], Vec<u8>) + 'a;

/// Hands out the tensors: name, columns and rows, values.
fn tensors(seed: u64, to: &mut TakeTensor<'_>) {
    let mut random = Random(seed);
    let (hidden, ffn) = (u64::from(HIDDEN), u64::from(FFN));
    let kv = u64::from(KV_HEADS * HEAD_DIM);
    let ones = |n: u64| {
        (0..n)
            .flat_map(|_| 1.0_f32.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut matrix = |name: &str, columns: u64, rows: u64, to: &mut TakeTensor<'_>| {
        to(
            name,
            &[columns, rows],
            random.matrix(columns * rows, columns),
        );
    };
    matrix("token_embd.weight", hidden, u64::from(vocab_size()), to);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        matrix(&name("attn_q"), hidden, hidden, to);
        matrix(&name("attn_k"), hidden, kv, to);
        matrix(&name("attn_v"), hidden, kv, to);
        matrix(&name("attn_output"), hidden, hidden, to);
        matrix(&name("ffn_gate"), hidden, ffn, to);
        matrix(&name("ffn_up"), hidden, ffn, to);
        matrix(&name("ffn_down"), ffn, hidden, to);
        to(&name("attn_norm"), &[hidden], ones(hidden));
        to(&name("ffn_norm"), &[hidden], ones(hidden));
    }
    to("output_norm.weight", &[hidden], ones(hidden));
}

/// The letter that stands for each byte in byte-level vocabularies: printable bytes for
/// themselves, the rest for U+0100 and on.
fn byte_letters() -> impl Iterator<Item = char> {
    let mut next = 0x100;
    (0..=255_u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    })
}

/// A linear congruential generator: enough for weights.
struct Random(u64);

impl Random {
    /// Between -1 and 1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = u16::try_from(self.0 >> 48).unwrap();
        f32::from(bits) / 32_768.0 - 1.0
    }

    /// Numbers small enough that a row of `columns` keeps its input's size.
    fn matrix(&mut self, n: u64, columns: u64) -> Vec<u8> {
        let columns = f32::from(u16::try_from(columns).unwrap());
        let scale = (3.0 / columns).sqrt();
        (0..n)
            .flat_map(|_| (self.next() * scale).to_le_bytes())
            .collect()
    }
}
