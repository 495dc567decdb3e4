//! Configurations: a tiny sound model, every way to break it, and RoPE against its formulas.

use super::config::{ModelConfig, ModelError};
use super::config_rope::RopeScaling;
use crate::format::ModelFiles;
use crate::format::gguf_writer::{GgufWriter, MetaValue};
use crate::format::{Checkpoint, TensorType};

/// A Llama of two layers: 64 wide, 4 heads of 16 over 2 key heads, feed-forward 96, 40 tokens.
fn tiny() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .metadata("general.architecture", "llama")
        .metadata("general.name", "Tiny\nLlama")
        .metadata("general.license", "mit")
        .metadata("llama.block_count", 2_u32)
        .metadata("llama.context_length", 512_u32)
        .metadata("llama.embedding_length", 64_u32)
        .metadata("llama.feed_forward_length", 96_u32)
        .metadata("llama.attention.head_count", 4_u32)
        .metadata("llama.attention.head_count_kv", 2_u32)
        .metadata("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .metadata("llama.rope.freq_base", 100_000_f32);
    add(
        &mut writer,
        "token_embd.weight",
        &[64, 40],
        TensorType::Q8_0,
    );
    add(&mut writer, "output_norm.weight", &[64], TensorType::F32);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for norm in ["attn_norm", "ffn_norm"] {
            add(&mut writer, &name(norm), &[64], TensorType::F32);
        }
        for (part, dims) in [
            ("attn_q", [64, 64]),
            ("attn_k", [64, 32]),
            ("attn_v", [64, 32]),
            ("attn_output", [64, 64]),
            ("ffn_gate", [64, 96]),
            ("ffn_up", [64, 96]),
            ("ffn_down", [96, 64]),
        ] {
            add(&mut writer, &name(part), &dims, TensorType::Q4_1);
        }
    }
    writer
}

fn add(writer: &mut GgufWriter, name: &str, dims: &[u64], tensor_type: TensorType) {
    let values: u64 = dims.iter().product();
    let bytes = values / tensor_type.block_len() * tensor_type.block_bytes();
    writer.tensor(
        name,
        dims,
        tensor_type,
        vec![0; usize::try_from(bytes).unwrap()],
    );
}

fn floats(writer: &mut GgufWriter, name: &str, values: &[f32]) {
    let data = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let length = u64::try_from(values.len()).unwrap();
    writer.tensor(name, &[length], TensorType::F32, data);
}

fn read(writer: &GgufWriter) -> Result<ModelConfig, ModelError> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &writer.to_bytes()).unwrap();
    ModelConfig::of(&Checkpoint::from_gguf(file).unwrap())
}

#[test]
fn a_sound_model_is_read() {
    let config = read(&tiny()).unwrap();
    assert_eq!(config.architecture, "llama");
    assert_eq!(config.name, "TinyLlama");
    assert_eq!(config.license.as_deref(), Some("mit"));
    assert_eq!(config.quantization, "Q4_1");
    assert_eq!(
        (config.n_layers, config.n_heads, config.n_kv_heads),
        (2, 4, 2)
    );
    assert_eq!(
        (config.head_dim, config.hidden_dim, config.ffn_dim),
        (16, 64, 96)
    );
    assert_eq!((config.vocab_size, config.context_len), (40, 512));
    let layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3 + 128;
    assert_eq!(config.parameter_count, 64 * 40 + 64 + 2 * layer);
    assert!(config.tied_output && !config.attention_bias);
    assert_eq!((config.rope.theta, config.rope.dim), (100_000.0, 16));
    assert_eq!(config.rope.scaling, RopeScaling::None);
    assert_eq!(config.rms_eps, 1e-5);
}

#[test]
fn optional_parts_are_read() {
    let mut writer = tiny();
    writer.remove_metadata("llama.attention.head_count_kv");
    for layer in 0..2 {
        for part in ["attn_k", "attn_v"] {
            add(
                &mut writer,
                &format!("blk.{layer}.{part}.weight"),
                &[64, 64],
                TensorType::F16,
            );
        }
        for part in ["attn_q", "attn_k", "attn_v"] {
            add(
                &mut writer,
                &format!("blk.{layer}.{part}.bias"),
                &[64],
                TensorType::F32,
            );
        }
    }
    add(&mut writer, "output.weight", &[64, 40, 1], TensorType::F32);
    let config = read(&writer).unwrap();
    assert_eq!(config.n_kv_heads, 4);
    assert!(!config.tied_output && config.attention_bias);

    let mut writer = tiny();
    writer.metadata("llama.attention.key_length", 32_u32);
    for layer in 0..2 {
        for (part, dims) in [
            ("attn_q", [64, 128]),
            ("attn_k", [64, 64]),
            ("attn_v", [64, 64]),
            ("attn_output", [128, 64]),
        ] {
            add(
                &mut writer,
                &format!("blk.{layer}.{part}.weight"),
                &dims,
                TensorType::Q4_0,
            );
        }
    }
    assert_eq!(read(&writer).unwrap().head_dim, 32);
}

type Break = fn(&mut GgufWriter);

const BROKEN_METADATA: [(&str, Break); 24] = [
    ("architecture \"\" is not supported", |w| {
        w.remove_metadata("general.architecture");
    }),
    ("architecture \"qwen3\" is not supported", |w| {
        w.metadata("general.architecture", "qwen3");
    }),
    ("\"general.architecture\" is u32, not string", |w| {
        w.metadata("general.architecture", 1_u32);
    }),
    ("\"llama.block_count\" is missing", |w| {
        w.remove_metadata("llama.block_count");
    }),
    ("\"llama.block_count\": 0; 1 to 512", |w| {
        w.metadata("llama.block_count", 0_u32);
    }),
    ("\"llama.block_count\": 513; 1 to 512", |w| {
        w.metadata("llama.block_count", 513_u32);
    }),
    ("\"llama.context_length\": 4294967295;", |w| {
        w.metadata("llama.context_length", u32::MAX);
    }),
    ("\"llama.embedding_length\": 4294967295;", |w| {
        w.metadata("llama.embedding_length", u32::MAX);
    }),
    ("\"llama.feed_forward_length\": 97; a width", |w| {
        w.metadata("llama.feed_forward_length", 97_u32);
    }),
    (
        "\"llama.attention.head_count\": 3; a divisor of embedding_length 64",
        |w| {
            w.metadata("llama.attention.head_count", 3_u32)
                .metadata("llama.attention.head_count_kv", 1_u32);
        },
    ),
    (
        "\"llama.attention.head_count_kv\": 3; a divisor of the 4",
        |w| {
            w.metadata("llama.attention.head_count_kv", 3_u32);
        },
    ),
    ("\"llama.attention.head_count_kv\" is array of i32", |w| {
        w.metadata(
            "llama.attention.head_count_kv",
            MetaValue::I32Array(vec![2, 2]),
        );
    }),
    ("a head of 24 values", |w| {
        w.metadata("llama.attention.key_length", 24_u32);
    }),
    (
        "\"llama.attention.value_length\": 32; the keys' length 16",
        |w| {
            w.metadata("llama.attention.value_length", 32_u32);
        },
    ),
    ("rms_epsilon\" is missing", |w| {
        w.remove_metadata("llama.attention.layer_norm_rms_epsilon");
    }),
    ("rms_epsilon\": NaN; a finite number", |w| {
        w.metadata("llama.attention.layer_norm_rms_epsilon", f32::NAN);
    }),
    ("\"llama.rope.freq_base\": -1; a finite", |w| {
        w.metadata("llama.rope.freq_base", -1_f32);
    }),
    ("\"llama.rope.dimension_count\": 18; an even", |w| {
        w.metadata("llama.rope.dimension_count", 18_u32);
    }),
    ("\"llama.rope.dimension_count\": 7; an even", |w| {
        w.metadata("llama.rope.dimension_count", 7_u32);
    }),
    ("RoPE scaling \"yarn\"", |w| {
        w.metadata("llama.rope.scaling.type", "yarn");
    }),
    ("\"llama.rope.scaling.low_freq_factor\" is missing", |w| {
        w.metadata("llama.rope.scaling.type", "llama3")
            .metadata("llama.rope.scaling.factor", 8_f32);
    }),
    ("a mixture of experts", |w| {
        w.metadata("llama.expert_count", 8_u32);
    }),
    ("metadata \"llama.logit_scale\" is not supported", |w| {
        w.metadata("llama.logit_scale", 0.5_f32);
    }),
    ("\"tokenizer.ggml.tokens\": 1 tokens;", |w| {
        w.metadata(
            "tokenizer.ggml.tokens",
            MetaValue::StrArray(vec!["a".to_owned()]),
        );
    }),
];

const BROKEN_TENSORS: [(&str, Break); 12] = [
    ("tensor \"token_embd.weight\" is missing", |w| {
        w.remove_tensor("token_embd.weight");
    }),
    ("tensor \"blk.1.ffn_up.weight\" is missing", |w| {
        w.remove_tensor("blk.1.ffn_up.weight");
    }),
    ("tensor \"output_norm.weight\" is missing", |w| {
        w.remove_tensor("output_norm.weight");
    }),
    (
        "\"blk.0.attn_q.weight\" has dimensions [32, 64], [64, 64] are needed",
        |w| {
            add(w, "blk.0.attn_q.weight", &[32, 64], TensorType::F16);
        },
    ),
    (
        "\"blk.0.attn_norm.weight\" has dimensions [32], [64]",
        |w| {
            add(w, "blk.0.attn_norm.weight", &[32], TensorType::F32);
        },
    ),
    (
        "\"blk.1.ffn_down.weight\" is Q8_1; supported are: F32, F16, BF16",
        |w| {
            add(w, "blk.1.ffn_down.weight", &[96, 64], TensorType::Other(9));
        },
    ),
    (
        "\"blk.0.ffn_norm.weight\" is Q8_0; supported are: F32",
        |w| {
            add(w, "blk.0.ffn_norm.weight", &[64], TensorType::Q8_0);
        },
    ),
    ("\"blk.2.attn_q.weight\" is not part of", |w| {
        add(w, "blk.2.attn_q.weight", &[64, 64], TensorType::F16);
    }),
    ("\"blk.0.attn_q_norm.weight\" is not part of", |w| {
        add(w, "blk.0.attn_q_norm.weight", &[16], TensorType::F32);
    }),
    ("\"blk.0.attn_k.bias\" is missing", |w| {
        add(w, "blk.0.attn_q.bias", &[64], TensorType::F32)
    }),
    ("\"rope_freqs.weight\" has dimensions [4], [8]", |w| {
        floats(w, "rope_freqs.weight", &[1.0; 4])
    }),
    ("\"rope_freqs.weight\": 0; finite", |w| {
        floats(w, "rope_freqs.weight", &[0.0; 8])
    }),
];

#[test]
fn models_that_cannot_run_are_refused_by_name() {
    for (wanted, break_it) in BROKEN_METADATA.into_iter().chain(BROKEN_TENSORS) {
        let mut writer = tiny();
        break_it(&mut writer);
        let error = match read(&writer) {
            Ok(_) => panic!("accepted: {wanted}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(wanted), "wanted {wanted:?} in {error:?}");
    }
}

#[test]
fn windows_shorter_than_the_context_count() {
    let window = |window: u32| {
        let mut writer = tiny();
        writer.metadata("llama.attention.sliding_window", window);
        read(&writer).unwrap().sliding_window
    };
    let context_len = read(&tiny()).unwrap().context_len;
    assert_eq!(window(0), None);
    assert_eq!(window(context_len), None);
    assert_eq!(window(context_len - 1), Some(context_len - 1));
    assert_eq!(read(&tiny()).unwrap().sliding_window, None);
}

fn assert_close(got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got / wanted - 1.0).abs() < 1e-9, "{got} is not {wanted}");
    }
}

#[test]
fn rope_frequencies_follow_their_formulas() {
    let plain: Vec<f64> = (0..8)
        .map(|i| 100_000_f64.powf(-f64::from(i) / 8.0))
        .collect();
    assert_close(&read(&tiny()).unwrap().inverse_frequencies(), &plain);

    let mut writer = tiny();
    writer
        .metadata("llama.rope.scaling.type", "linear")
        .metadata("llama.rope.scaling.factor", 4_f32);
    let quarter: Vec<f64> = plain.iter().map(|f| f / 4.0).collect();
    assert_close(&read(&writer).unwrap().inverse_frequencies(), &quarter);

    let factors = [1.0, 1.0, 1.0, 2.0, 3.5, 8.0, 8.0, 8.0];
    let mut writer = tiny();
    floats(&mut writer, "rope_freqs.weight", &factors);
    let divided: Vec<f64> = plain
        .iter()
        .zip(factors)
        .map(|(f, by)| f / f64::from(by))
        .collect();
    assert_close(&read(&writer).unwrap().inverse_frequencies(), &divided);
    writer.metadata("llama.rope.scaling.factor", 4_f32);
    assert!(read(&writer).is_err());
}

#[test]
fn llama3_scaling_follows_the_published_formula() {
    let mut writer = tiny();
    writer
        .metadata("llama.rope.scaling.type", "llama3")
        .metadata("llama.rope.scaling.factor", 8_f32)
        .metadata("llama.rope.scaling.low_freq_factor", 1_f32)
        .metadata("llama.rope.scaling.high_freq_factor", 4_f32)
        .metadata("llama.rope.scaling.original_context_length", 8192_u32);
    let config = read(&writer).unwrap();
    // As published: by wavelengths, in three cases.
    let wanted: Vec<f64> = (0..8)
        .map(|i| 100_000_f64.powf(-f64::from(i) / 8.0))
        .map(|frequency| {
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < 8192.0 / 4.0 {
                frequency
            } else if wavelength > 8192.0 / 1.0 {
                frequency / 8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * frequency / 8.0 + smooth * frequency
            }
        })
        .collect();
    assert_close(&config.inverse_frequencies(), &wanted);
    writer.metadata("llama.rope.scaling.high_freq_factor", 1_f32);
    assert!(
        read(&writer)
            .unwrap_err()
            .to_string()
            .contains("more than low_freq_factor 1")
    );
}

#[test]
fn the_default_model_is_read() {
    let path = std::env::var_os("HEARTH_MODEL_FILE").map_or_else(
        || {
            std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        std::path::PathBuf::from,
    );
    assert!(
        path.exists(),
        "no model file: run `make setup`, or set HEARTH_MODEL_FILE"
    );
    let config =
        ModelConfig::of(&Checkpoint::open(&ModelFiles::at(&path).unwrap()).unwrap()).unwrap();
    assert_eq!(
        (config.n_layers, config.n_heads, config.n_kv_heads),
        (30, 9, 3)
    );
    assert_eq!(
        (config.head_dim, config.hidden_dim, config.ffn_dim),
        (64, 576, 1536)
    );
    assert_eq!((config.vocab_size, config.context_len), (49152, 8192));
    assert_eq!(config.quantization, "Q4_1");
    assert_eq!(
        (config.parameter_count, config.tied_output),
        (134_515_008, true)
    );
}
