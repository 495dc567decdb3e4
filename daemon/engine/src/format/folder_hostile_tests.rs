//! A catalogue of hostile folders: safetensors headers, indexes and config.json that lie. Each is
//! refused in words, and none makes the reader panic or take memory.

use std::fs::File;
use std::io::Write as _;

use serde_json::{Value, json};

use super::{Checkpoint, FormatError};

/// Names and bytes.
type Folder = Vec<(&'static str, Vec<u8>)>;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBEDDING: &str = "model.embed_tokens.weight";

fn open(folder: &Folder) -> Result<Checkpoint, FormatError> {
    let files = folder.iter().map(|(name, bytes)| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        ((*name).to_owned(), file)
    });
    Checkpoint::from_files(files.collect::<Vec<(String, File)>>())
}

/// The whole chain of an error, in one line.
fn words(error: &FormatError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4,
        "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 2,
        "max_position_embeddings": 16, "tie_word_embeddings": true})
}

/// A safetensors file whose header is this text, with `data` bytes behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn tensor(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// One embedding of [2, 4] halves.
fn embedding(dtype: &str, shape: &str, offsets: &str) -> String {
    format!("{{{}}}", tensor(EMBEDDING, dtype, shape, offsets))
}

fn sound_weights() -> Vec<u8> {
    file(&embedding("F16", "[2,4]", "[0,16]"), 16)
}

fn folder(weights: Vec<u8>) -> Folder {
    vec![
        (CONFIG, config().to_string().into_bytes()),
        (WEIGHTS, weights),
    ]
}

/// Files that are no sound safetensors: what the refusal says, and the file.
fn hostile_weights() -> Vec<(&'static str, Vec<u8>)> {
    let length = |bytes: u64| {
        let mut file = bytes.to_le_bytes().to_vec();
        file.extend_from_slice(b"{}");
        file
    };
    let one = |dtype: &str, shape: &str, offsets: &str| file(&embedding(dtype, shape, offsets), 16);
    let two = |first: &str, second: &str, data: usize| {
        let parts =
            [("a", first), ("b", second)].map(|(name, at)| tensor(name, "F16", "[2,4]", at));
        file(&format!("{{{}}}", parts.join(",")), data)
    };
    let far = "18446744073709551615";
    vec![
        ("header length", Vec::new()),
        ("header length", vec![1, 0, 0]),
        ("header length", length(u64::MAX)),
        ("header length", length(1 << 62)),
        ("header: needs 3 bytes", length(3)),
        ("header", length(0)),
        ("header", file("", 0)),
        ("header", file("[]", 0)),
        ("header", file("null", 0)),
        ("header", file("{", 0)),
        ("header", file("{}{}", 0)),
        ("header", file("\u{0}\u{0}", 0)),
        ("header", file(r#"{"a":1}"#, 0)),
        ("header", file(r#"{"a":{}}"#, 0)),
        ("header", file(&"[".repeat(50_000), 0)),
        ("header", file(&r#"{"a":"#.repeat(50_000), 0)),
        // Offsets.
        ("header", one("F16", "[2,4]", "[16,0]")),
        ("header", one("F16", "[2,4]", "[0,15]")),
        ("header", one("F16", "[2,4]", "[0,17]")),
        ("header", one("F16", "[2,4]", "[1,17]")),
        ("header", one("F16", "[2,4]", "[0]")),
        ("header", one("F16", "[2,4]", "[0,8,16]")),
        ("header", one("F16", "[2,4]", "[-16,0]")),
        ("header", one("F16", "[2,4]", "[0,1e1]")),
        ("header", one("F16", "[2,4]", &format!("[0,{far}]"))),
        ("header", one("F16", "[2,4]", &format!("[{far},15]"))),
        (
            "fill the file",
            file(&embedding("F16", "[2,4]", "[0,16]"), 15),
        ),
        (
            "fill the file",
            file(&embedding("F16", "[2,4]", "[0,16]"), 17),
        ),
        ("fill the file", file("{}", 1)),
        ("header", two("[0,16]", "[0,16]", 16)),
        ("header", two("[0,16]", "[8,24]", 24)),
        ("header", two("[0,16]", "[17,33]", 33)),
        ("header", two("[16,32]", "[0,15]", 32)),
        // Types and shapes.
        ("header", one("F32", "[2,4]", "[0,16]")),
        ("header", one("F17", "[2,4]", "[0,16]")),
        ("header", one("f16", "[2,4]", "[0,16]")),
        ("header", one("", "[2,4]", "[0,16]")),
        ("header", one("F16", "[2,5]", "[0,16]")),
        ("header", one("F16", "[]", "[0,16]")),
        ("header", one("F16", "[-2,-4]", "[0,16]")),
        ("header", one("F16", "[2.0,4]", "[0,16]")),
        ("header", one("F16", "\"24\"", "[0,16]")),
        ("header", one("F16", &format!("[{far},2]"), "[0,16]")),
        ("header", one("F16", "[4294967296,4294967296]", "[0,0]")),
        ("header", one("F16", "[9223372036854775808,2,4]", "[0,16]")),
    ]
}

#[test]
fn every_hostile_safetensors_file_is_refused_by_name() {
    let table = hostile_weights();
    assert!(table.len() >= 40, "{}", table.len());
    for (number, (wanted, weights)) in table.into_iter().enumerate() {
        let error = open(&folder(weights))
            .err()
            .unwrap_or_else(|| panic!("accepted: number {number}, {wanted}"));
        let text = words(&error);
        assert!(
            text.contains(wanted) && text.contains(WEIGHTS),
            "number {number}: wanted {wanted:?} in \"{text}\""
        );
        assert!(text.len() < 2000, "number {number}: {} bytes", text.len());
    }
}

#[test]
fn sizes_and_names_that_no_model_has_are_refused() {
    let weights = |part: String, data| folder(file(&format!("{{{part}}}"), data));
    let table = [
        (
            "1 to 1024 bytes",
            weights(tensor("", "F16", "[2]", "[0,4]"), 4),
        ),
        (
            "1 to 1024 bytes",
            weights(tensor(&"n".repeat(1025), "F16", "[2]", "[0,4]"), 4),
        ),
        (
            "not part of",
            weights(tensor("../../weights", "F16", "[2]", "[0,4]"), 4),
        ),
        (
            "not part of",
            weights(
                tensor("model.layers.0.mlp.experts", "F16", "[2]", "[0,4]"),
                4,
            ),
        ),
    ];
    for (wanted, folder) in table {
        let error = open(&folder)
            .err()
            .unwrap_or_else(|| panic!("accepted: {wanted}"));
        let text = words(&error);
        assert!(text.contains(wanted), "wanted {wanted:?} in \"{text}\"");
    }
}

#[test]
fn duplicate_names_do_not_pass() {
    let twice = format!(
        "{{{},{}}}",
        tensor(EMBEDDING, "F16", "[2,4]", "[0,16]"),
        tensor(EMBEDDING, "F16", "[2,4]", "[16,32]")
    );
    let Err(error) = open(&folder(file(&twice, 32))) else {
        panic!("one name of two tensors was accepted");
    };
    assert!(words(&error).contains(WEIGHTS), "{}", words(&error));

    // The same name in two files.
    let mut both = folder(sound_weights());
    both[1].0 = "model-00001-of-00002.safetensors";
    both.push(("model-00002-of-00002.safetensors", sound_weights()));
    let error = open(&both).err().unwrap();
    assert!(words(&error).contains(EMBEDDING), "{}", words(&error));
}

#[test]
fn an_index_cannot_name_what_is_not_there() {
    let outside = [
        "../model.safetensors",
        "/etc/passwd",
        "model.safetensors/..",
        "",
        "config.json",
        "C:\\model.safetensors",
    ];
    for name in outside {
        let mut folder = folder(sound_weights());
        let index = json!({"weight_map": {EMBEDDING: name}});
        folder.push((INDEX, index.to_string().into_bytes()));
        let error = open(&folder)
            .err()
            .unwrap_or_else(|| panic!("accepted {name:?}"));
        let text = words(&error);
        assert!(
            text.contains("weight_map") && text.contains(INDEX),
            "{text}"
        );
    }
    for bytes in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"weight_map":[]}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":null}"#,
    ] {
        let mut folder = folder(sound_weights());
        folder.push((INDEX, bytes.as_bytes().to_vec()));
        let error = open(&folder)
            .err()
            .unwrap_or_else(|| panic!("accepted {bytes:?}"));
        assert!(words(&error).contains(INDEX), "{}", words(&error));
    }
    let mut deep = folder(sound_weights());
    deep.push((INDEX, r#"{"a":"#.repeat(50_000).into_bytes()));
    assert!(open(&deep).is_err());
}

#[test]
fn numbers_of_config_json_that_cannot_be_are_refused() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
        "head_dim",
    ] {
        for value in [
            json!(-1),
            json!(4.5),
            json!(u64::MAX),
            json!(1_u64 << 32),
            json!("4"),
            json!([4]),
            json!({"a": 4}),
            json!(true),
        ] {
            let mut config = config();
            config[key] = value.clone();
            let folder = vec![
                (CONFIG, config.to_string().into_bytes()),
                (WEIGHTS, sound_weights()),
            ];
            let error = open(&folder)
                .err()
                .unwrap_or_else(|| panic!("accepted {key}: {value}"));
            let text = words(&error);
            assert!(text.contains(key), "{key}: {value}: {text}");
        }
    }
}

#[test]
fn every_truncation_and_flipped_bytes_of_a_folder_are_borne() {
    let whole = folder(sound_weights());
    assert!(
        open(&whole).is_ok(),
        "{}",
        words(&open(&whole).err().unwrap())
    );
    for length in 0..whole[1].1.len() {
        let mut cut = whole.clone();
        cut[1].1.truncate(length);
        assert!(open(&cut).is_err(), "{length} bytes of {WEIGHTS}");
    }
    for length in 0..whole[0].1.len() {
        let mut cut = whole.clone();
        cut[0].1.truncate(length);
        assert!(open(&cut).is_err(), "{length} bytes of {CONFIG}");
    }
    for (part, at) in (0..2).flat_map(|part| (0..whole[part].1.len()).map(move |at| (part, at))) {
        for flip in [0x01, 0x20, 0x80] {
            let mut changed = whole.clone();
            changed[part].1[at] ^= flip;
            if let Ok(checkpoint) = open(&changed) {
                for tensor in checkpoint.tensors() {
                    let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap()];
                    checkpoint.read(tensor, 0, &mut bytes).unwrap();
                }
            }
        }
    }
}
