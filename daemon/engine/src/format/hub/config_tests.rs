//! Configurations as they are published, and as they should not be.

use serde_json::{Value, json};

use super::tests::{config, files, open, problem};
use super::{HubFiles, metadata};
use crate::format::Checkpoint;

#[test]
fn a_config_is_said_in_ggufs_words() {
    let model = open(&config(), None);
    let int = |key: &str| model.get_u32(key).unwrap();
    assert_eq!(
        model.get_str("general.architecture").unwrap(),
        Some("llama")
    );
    for (key, value) in [
        ("llama.block_count", 2),
        ("llama.embedding_length", 64),
        ("llama.feed_forward_length", 128),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.context_length", 512),
        ("llama.vocab_size", 16),
    ] {
        assert_eq!(int(key), Some(value), "{key}");
    }
    let float = |key: &str| model.get_f32(key).unwrap();
    assert_eq!(float("llama.attention.layer_norm_rms_epsilon"), Some(1e-5));
    assert_eq!(float("llama.rope.freq_base"), Some(10_000.0));
    assert_eq!(int("llama.attention.key_length"), None);
    assert_eq!(model.get_str("llama.rope.scaling.type").unwrap(), None);
    let said = metadata(files(&config(), None)).unwrap();
    assert!(said.tied_output && said.quantization.is_none());
}

/// A row: fields of the config to set, and the integer or text that a key then has.
#[test]
fn variants_of_configs_are_understood() {
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"});
    let mut newer = llama3.clone();
    newer["rope_theta"] = json!(500_000.0);
    let mistral = json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral"});
    let merge = |one: &Value, other: Value| {
        let mut all = one.clone();
        for (key, value) in other.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let qwen = json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"});
    let rows: [(Value, &str, Value); 15] = [
        (
            json!({"rope_scaling": llama3}),
            "llama.rope.scaling.type",
            json!("llama3"),
        ),
        (
            json!({"rope_scaling": llama3}),
            "llama.rope.scaling.original_context_length",
            json!(8192),
        ),
        (
            json!({"rope_parameters": newer}),
            "llama.rope.freq_base",
            json!(500_000.0),
        ),
        (
            json!({"rope_parameters": newer}),
            "llama.rope.scaling.factor",
            json!(8.0),
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 4.0}}),
            "llama.rope.scaling.type",
            json!("linear"),
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
            "llama.rope.freq_base",
            json!(1e6),
        ),
        (
            json!({"rope_parameters": {"rope_type": "default"}}),
            "llama.rope.scaling.type",
            Value::Null,
        ),
        (
            json!({"head_dim": 32}),
            "llama.attention.key_length",
            json!(32),
        ),
        (
            json!({"num_key_value_heads": null}),
            "llama.attention.head_count_kv",
            json!(4),
        ),
        (
            merge(&mistral, json!({"sliding_window": 128})),
            "llama.attention.sliding_window",
            json!(128),
        ),
        (
            merge(&mistral, json!({"sliding_window": null})),
            "llama.attention.sliding_window",
            Value::Null,
        ),
        (
            merge(&mistral, json!({"max_position_embeddings": 32768})),
            "llama.attention.sliding_window",
            json!(4096),
        ),
        (
            merge(
                &qwen,
                json!({"sliding_window": 128, "use_sliding_window": false}),
            ),
            "qwen2.attention.sliding_window",
            Value::Null,
        ),
        (
            merge(
                &qwen,
                json!({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 0}),
            ),
            "qwen2.attention.sliding_window",
            json!(128),
        ),
        (
            merge(&qwen, json!({"num_experts": 0})),
            "qwen2.block_count",
            json!(2),
        ),
    ];
    for (fields, key, wanted) in rows {
        let changed = merge(&config(), fields.clone());
        let model = Checkpoint::of_hub(files(&changed, None)).unwrap();
        let found = match wanted {
            Value::String(_) | Value::Null => json!(model.get_str(key).unwrap()),
            Value::Number(ref number) if number.is_f64() => {
                json!(f64::from(model.get_f32(key).unwrap().unwrap()))
            }
            _ => json!(model.get_u32(key).unwrap()),
        };
        assert_eq!(found, wanted, "{fields}: {key}");
    }
}

#[test]
fn what_changes_the_mathematics_is_refused_by_name() {
    let rows = [
        (
            json!({"architectures": ["FalconForCausalLM"]}),
            "architectures: \"FalconForCausalLM\" is not supported",
        ),
        (
            json!({"model_type": "mixtral"}),
            "model_type: \"mixtral\" is not supported",
        ),
        (
            json!({"architectures": ["LlamaForCausalLM", "X"]}),
            "architectures",
        ),
        (
            json!({"attn_logit_softcapping": 50.0}),
            "attn_logit_softcapping: 50.0",
        ),
        (json!({"num_local_experts": 8}), "num_local_experts: 8"),
        (json!({"num_experts": "many"}), "num_experts: \"many\""),
        (json!({"mlp_bias": true}), "mlp_bias: true"),
        (
            json!({"hidden_act": "gelu"}),
            "hidden_act: \"gelu\"; silu is the only one",
        ),
        (json!({"logits_scaling": 8.0}), "logits_scaling: 8.0"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            json!({"sliding_window": 128}),
            "sliding_window: 128; a Llama model has no sliding window",
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types",
        ),
        (json!({"vision_config": {}}), "vision_config"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}),
            "rope_scaling.type: \"yarn\"",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling.factor is missing",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
            "rope_scaling.low_freq_factor is missing",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}),
            "rope_scaling.mscale",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "rope_parameters.full_attention",
        ),
        (
            json!({"rope_scaling": [1]}),
            "rope_scaling: [1]; an object is needed",
        ),
        (json!({"hidden_size": 64.5}), "hidden_size: 64.5"),
        (json!({"hidden_size": -64}), "hidden_size: -64"),
        (
            json!({"hidden_size": 5_000_000_000_u64}),
            "hidden_size: 5000000000",
        ),
        (json!({"hidden_size": null}), "hidden_size is missing"),
        (json!({"rms_norm_eps": "small"}), "rms_norm_eps: \"small\""),
        (json!({"eos_token_id": [1, "2"]}), "eos_token_id"),
        (json!({"eos_token_id": -1}), "eos_token_id: -1"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings: 1"),
    ];
    for (fields, wanted) in rows {
        let mut changed = config();
        for (key, value) in fields.as_object().unwrap() {
            changed[key] = value.clone();
        }
        let problem = problem(files(&changed, None));
        assert!(problem.starts_with("config.json: "), "{problem}");
        assert!(problem.contains(wanted), "wanted {wanted:?} in {problem:?}");
    }
}

#[test]
fn unsound_json_is_refused() {
    let deep = |open: &str, close: &str| open.repeat(50_000) + &close.repeat(50_000);
    let rows = [
        ("".to_owned(), "EOF"),
        ("[]".to_owned(), "not an object"),
        ("{".to_owned(), "EOF"),
        (
            "{\"hidden_size\": 1, \"hidden_size\": 2}".to_owned(),
            "the name \"hidden_size\" appears twice",
        ),
        (
            "{\"x\": {\"a\": 1, \"a\": 2}}".to_owned(),
            "the name \"a\" appears twice",
        ),
        (format!("{{\"x\": {}}}", deep("[", "]")), "recursion limit"),
        (
            format!(
                "{{\"x\": {}1{}}}",
                "{\"a\":".repeat(50_000),
                "}".repeat(50_000)
            ),
            "recursion limit",
        ),
        ("{\"x\": 1e999}".to_owned(), "number out of range"),
        ("{\"x\": NaN}".to_owned(), "expected"),
        (
            "{\"x\": \"\u{fffd}\"} trailing".to_owned(),
            "trailing characters",
        ),
        (
            format!("{{\"x\": \"{}\"}}", "a".repeat(1 << 20)),
            "size in bytes",
        ),
        (
            format!(
                "{{\"{}\": 1, \"model_type\": [\"{}\"]}}",
                "k".repeat(1000),
                "v".repeat(1000)
            ),
            "a string is needed",
        ),
    ];
    for (text, wanted) in rows {
        let problem = problem(HubFiles {
            config: text.into_bytes(),
            ..HubFiles::default()
        });
        assert!(problem.contains(wanted), "wanted {wanted:?} in {problem:?}");
        assert!(problem.len() < 400, "{problem}");
    }
}
