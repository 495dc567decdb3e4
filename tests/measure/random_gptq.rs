//! Writes a GPTQ checkpoint of a known model's sizes with random weights, for measuring loads: a folder as
//! the hub has it, without a tokenizer unless one is copied there.
//!
//! `cargo run --release -p hearth-tests --example random_gptq FOLDER [7b|13b|1b] [ordered|sorted]`
//!
//! `sorted`: columns as `desc_act` leaves them, each row's groups all over it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

const GROUP: u64 = 128;
/// Columns whose groups are mixed stand this far apart: odd, so that it meets every column.
const STRIDE: u64 = 1021;

struct Sizes {
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    hidden: u64,
    ffn: u64,
    vocab: u64,
}

fn sizes(name: &str) -> Option<Sizes> {
    let of = |[layers, heads, kv_heads, head_dim, hidden, ffn, vocab]: [u64; 7]| Sizes {
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden,
        ffn,
        vocab,
    };
    Some(match name {
        "1b" => of([16, 32, 8, 64, 2048, 8192, 32000]),
        "7b" => of([32, 32, 32, 128, 4096, 11008, 32000]),
        "13b" => of([40, 40, 40, 128, 5120, 13824, 32000]),
        _ => return None,
    })
}

/// What fills a tensor.
enum Fill {
    /// Any bits.
    Words,
    /// f16 between 2^-11 and 2^-10.
    Scales,
    /// f16 around 0.01.
    Halves,
    /// f16 1.
    Ones,
    /// Each column's group.
    Groups { sorted: bool },
}

struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    fill: Fill,
}

impl Tensor {
    fn bytes(&self) -> u64 {
        let each = if self.dtype == "I32" { 4 } else { 2 };
        each * self.shape.iter().product::<u64>()
    }
}

fn tensors(s: &Sizes, sorted: bool) -> Vec<Tensor> {
    let mut list = Vec::new();
    let mut add = |name: String, dtype, shape: &[u64], fill| {
        list.push(Tensor {
            name,
            dtype,
            shape: shape.to_vec(),
            fill,
        });
    };
    let (attention, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    add(
        "model.embed_tokens.weight".to_owned(),
        "F16",
        &[s.vocab, s.hidden],
        Fill::Halves,
    );
    for layer in 0..s.layers {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            add(at(norm), "F16", &[s.hidden], Fill::Ones);
        }
        for (module, columns, rows) in [
            ("self_attn.q_proj", s.hidden, attention),
            ("self_attn.k_proj", s.hidden, keys),
            ("self_attn.v_proj", s.hidden, keys),
            ("self_attn.o_proj", attention, s.hidden),
            ("mlp.gate_proj", s.hidden, s.ffn),
            ("mlp.up_proj", s.hidden, s.ffn),
            ("mlp.down_proj", s.ffn, s.hidden),
        ] {
            let part = |part: &str| at(&format!("{module}.{part}"));
            let groups = columns / GROUP;
            add(part("qweight"), "I32", &[columns / 8, rows], Fill::Words);
            add(part("qzeros"), "I32", &[groups, rows / 8], Fill::Words);
            add(part("scales"), "F16", &[groups, rows], Fill::Scales);
            add(part("g_idx"), "I32", &[columns], Fill::Groups { sorted });
        }
    }
    add(
        "model.norm.weight".to_owned(),
        "F16",
        &[s.hidden],
        Fill::Ones,
    );
    add(
        "lm_head.weight".to_owned(),
        "F16",
        &[s.vocab, s.hidden],
        Fill::Halves,
    );
    list
}

fn config(s: &Sizes, sorted: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": s.hidden,
        "intermediate_size": s.ffn, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "vocab_size": s.vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP,
            "desc_act": sorted, "sym": false, "checkpoint_format": "gptq"},
    })
}

/// A xorshift generator's words.
struct Random(u64);

impl Random {
    fn word(&mut self) -> [u8; 4] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let [.., a, b, c, d] = self.0.to_le_bytes();
        [a, b, c, d]
    }
}

fn write_data(tensor: &Tensor, random: &mut Random, out: &mut impl Write) -> std::io::Result<()> {
    let words = tensor.bytes() / 4;
    match tensor.fill {
        Fill::Words => (0..words).try_for_each(|_| out.write_all(&random.word())),
        Fill::Scales => (0..words).try_for_each(|_| {
            let [a, b, c, d] = random.word();
            out.write_all(&[a, 0x10 | b & 3, c, 0x10 | d & 3])
        }),
        Fill::Halves => (0..words).try_for_each(|_| {
            let [a, b, c, d] = random.word();
            out.write_all(&[a, 0x20 | b & 0x83, c, 0x20 | d & 0x83])
        }),
        Fill::Ones => (0..words).try_for_each(|_| out.write_all(&[0, 0x3c, 0, 0x3c])),
        Fill::Groups { sorted } => (0..words).try_for_each(|column| {
            let place = if sorted {
                column * STRIDE % words
            } else {
                column
            };
            let group = u32::try_from(place / GROUP).unwrap_or(0);
            out.write_all(&group.to_le_bytes())
        }),
    }
}

fn write(folder: &Path, s: &Sizes, sorted: bool) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config(s, sorted).to_string())?;
    let tensors = tensors(s, sorted);
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for tensor in &tensors {
        let end = offset + tensor.bytes();
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(folder.join("model.safetensors"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for tensor in &tensors {
        write_data(tensor, &mut random, &mut out)?;
    }
    out.flush()
}

fn main() -> Result<(), String> {
    const USAGE: &str = "usage: random_gptq FOLDER [1b|7b|13b] [ordered|sorted]";
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or(USAGE)?;
    let sizes = sizes(args.next().as_deref().unwrap_or("7b")).ok_or(USAGE)?;
    let sorted = match args.next().as_deref() {
        None | Some("ordered") => false,
        Some("sorted") => true,
        Some(_) => return Err(USAGE.to_owned()),
    };
    write(Path::new(&folder), &sizes, sorted).map_err(|error| format!("{folder}: {error}"))
}
