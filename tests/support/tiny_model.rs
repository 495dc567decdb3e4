//! A tiny model with random weights and a byte-level vocabulary: its replies mean nothing, but
//! everything about it is real, and a step takes a moment.

use std::path::Path;

use hearth_engine::format::TensorType;
use hearth_engine::format::gguf_writer::{GgufWriter, MetaValue};

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
    let mut writer = GgufWriter::new();
    metadata(&mut writer);
    tensors(&mut writer, seed);
    writer.write(path).unwrap();
}

fn metadata(writer: &mut GgufWriter) {
    let mut tokens: Vec<String> = SPECIALS.map(str::to_owned).to_vec();
    tokens.extend(byte_letters().map(String::from));
    tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
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
        .metadata("tokenizer.chat_template", TEMPLATE);
}

fn tensors(writer: &mut GgufWriter, seed: u64) {
    let mut random = Random(seed);
    let (hidden, ffn) = (u64::from(HIDDEN), u64::from(FFN));
    let kv = u64::from(KV_HEADS * HEAD_DIM);
    let mut matrix = |writer: &mut GgufWriter, name: &str, columns: u64, rows: u64| {
        let data = random.matrix(columns * rows, columns);
        writer.tensor(name, &[columns, rows], TensorType::F32, data);
    };
    let ones = |n: u64| {
        (0..n)
            .flat_map(|_| 1.0_f32.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    matrix(writer, "token_embd.weight", hidden, u64::from(vocab_size()));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        matrix(writer, &name("attn_q"), hidden, hidden);
        matrix(writer, &name("attn_k"), hidden, kv);
        matrix(writer, &name("attn_v"), hidden, kv);
        matrix(writer, &name("attn_output"), hidden, hidden);
        matrix(writer, &name("ffn_gate"), hidden, ffn);
        matrix(writer, &name("ffn_up"), hidden, ffn);
        matrix(writer, &name("ffn_down"), ffn, hidden);
        writer.tensor(&name("attn_norm"), &[hidden], TensorType::F32, ones(hidden));
        writer.tensor(&name("ffn_norm"), &[hidden], TensorType::F32, ones(hidden));
    }
    writer.tensor(
        "output_norm.weight",
        &[hidden],
        TensorType::F32,
        ones(hidden),
    );
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
