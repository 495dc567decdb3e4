//! What each fuzz target does with an input. Nothing from outside may panic, run long, or take
//! more than 256 MB: time is libFuzzer's to watch, memory the allocator's here.

mod apart;
mod groups;
mod memory;

use std::fs::File;
use std::io::Write as _;

use hearth_engine::chat_template::{ChatMessage, ChatTemplate};
use hearth_engine::format::Checkpoint;
use hearth_engine::model::ModelConfig;
use hearth_engine::tokenizer::{EncodeOptions, Tokenizer};
use rustix::fs::{MemfdFlags, memfd_create};

pub use groups::groups;

/// Most that an input may take, in bytes.
const MEMORY_MAX: usize = 256 << 20;
/// Largest file that is made for a header; it is a hole.
const FILE_BYTES_MAX: u64 = 1 << 42;
/// Bytes of a tensor that are read.
const READ_BYTES: u64 = 4096;
/// Text for tokenizers.
const TEXT: &str = "Hello  w\u{f6}rld\u{2581}, it's 12345 <|im_end|></s>\n\n\t\u{1f600}\u{0}x";

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

/// A file in memory with these bytes, and a hole behind them up to `size`.
fn file(bytes: &[u8], size: u64) -> Option<File> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    if size > bytes.len() as u64 {
        file.set_len(size.min(FILE_BYTES_MAX)).ok()?;
    }
    Some(file)
}

/// Does everything with a checkpoint that needs no GPU.
fn examine(checkpoint: &Checkpoint) {
    let _ = checkpoint.format();
    if let Ok(config) = ModelConfig::of(checkpoint) {
        let _ = format!("{config:?}");
    }
    for tensor in checkpoint.tensors().iter().take(16) {
        let mut bytes = vec![0; READ_BYTES as usize];
        let _ = checkpoint.read(tensor, 0, &mut bytes);
        let _ = checkpoint.read(tensor, u64::MAX - 1, &mut bytes);
    }
    if let Ok(tokenizer) = Tokenizer::of(checkpoint) {
        converse(&tokenizer);
    }
    if let Ok(Some(template)) = ChatTemplate::of(checkpoint) {
        render(&template, "user", TEXT);
    }
}

fn converse(tokenizer: &Tokenizer) {
    for add_special in [false, true] {
        let options = EncodeOptions {
            add_special,
            parse_special: add_special,
        };
        if let Ok(ids) = tokenizer.encode(TEXT, options) {
            assert!(ids.iter().all(|id| *id < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids, add_special);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, 255, u32::MAX], false);
}

fn render(template: &ChatTemplate, role: &str, text: &str) {
    let messages = [
        ChatMessage {
            role: "system",
            content: text,
        },
        ChatMessage {
            role,
            content: text,
        },
    ];
    let whole = template.render(&messages, true);
    if let (Ok(whole), Ok(parts)) = (whole, template.render_parts(&messages, true)) {
        let joined: String = parts.iter().map(|part| part.text.as_str()).collect();
        assert_eq!(joined, whole);
    }
}

/// A GGUF file; its first byte tells whether a hole follows, where tensors may lie.
pub fn gguf(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let hole = if first & 1 == 1 { 1 << 32 } else { 0 };
    memory::within(MEMORY_MAX, || {
        if let Some(file) = file(bytes, bytes.len() as u64 + hole)
            && let Ok(checkpoint) = Checkpoint::from_gguf(file)
        {
            examine(&checkpoint);
        }
    });
}

/// The bytes of a safetensors file whose header is this text, and how long the file must be. A text
/// that begins with `!` is the file itself.
fn safetensors(header: &[u8]) -> (Vec<u8>, u64) {
    if let Some(raw) = header.strip_prefix(b"!") {
        return (raw.to_vec(), 0);
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    let end = match serde_json::from_slice(header) {
        Ok(serde_json::Value::Object(tensors)) => tensors
            .values()
            .filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64())
            .max(),
        _ => None,
    };
    let size = (bytes.len() as u64).saturating_add(end.unwrap_or(0));
    (bytes, size)
}

/// Opens a folder of files by name; those that are empty are not there.
fn open(names: &[(&str, &[u8])]) -> Option<Checkpoint> {
    let mut files = Vec::new();
    for (name, bytes) in names {
        let made = if name.ends_with(".safetensors") {
            let (bytes, size) = safetensors(bytes);
            file(&bytes, size)?
        } else if bytes.is_empty() {
            continue;
        } else {
            file(bytes, 0)?
        };
        files.push(((*name).to_owned(), made));
    }
    Checkpoint::from_files(files).ok()
}

/// A folder, its texts parted by a zero byte: config.json, the header of a safetensors file, the
/// index, the header of a second file, quantize_config.json, generation_config.json.
pub fn folder(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (config, header, index, second) = (next(), next(), next(), next());
    let (scheme, generation) = (next(), next());
    let mut names = vec![
        ("config.json", config),
        ("model.safetensors", header),
        ("model.safetensors.index.json", index),
        ("quantize_config.json", scheme),
        ("generation_config.json", generation),
    ];
    if !second.is_empty() {
        names.push(("model-00002-of-00002.safetensors", second));
    }
    memory::within(MEMORY_MAX, || {
        if let Some(checkpoint) = open(&names) {
            examine(&checkpoint);
        }
    });
}

/// A folder's tokenizer.json and, behind a zero byte, its tokenizer_config.json.
pub fn tokenizer(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (tokenizer, config) = (next(), next());
    memory::within(MEMORY_MAX, || {
        let names: [(&str, &[u8]); 4] = [
            ("config.json", groups::PLAIN_CONFIG.as_bytes()),
            ("model.safetensors", b"{}"),
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
        ];
        if let Some(checkpoint) = open(&names) {
            examine(&checkpoint);
        }
    });
}

/// A folder's tokenizer.model. The first byte tells how tokenizer_config.json has text begin.
pub fn pieces(data: &[u8]) {
    let Some((first, pieces)) = data.split_first() else {
        return;
    };
    let config = format!(
        r#"{{"legacy":{},"add_prefix_space":{},"added_tokens_decoder":{{"319":{{"content":"<pad>"}}}}}}"#,
        first & 1 == 1,
        first & 2 == 0,
    );
    memory::within(MEMORY_MAX, || {
        let names: [(&str, &[u8]); 4] = [
            ("config.json", groups::PLAIN_CONFIG.as_bytes()),
            ("model.safetensors", b"{}"),
            ("tokenizer.model", pieces),
            ("tokenizer_config.json", config.as_bytes()),
        ];
        if let Some(checkpoint) = open(&names) {
            examine(&checkpoint);
        }
    });
}

/// A chat template and, behind a zero byte, a message.
pub fn template(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let text = String::from_utf8_lossy(parts.next().unwrap_or(TEXT.as_bytes()));
    let work = || {
        memory::within(MEMORY_MAX, || {
            if let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") {
                // One conversation an input, as the daemon bounds the time of one.
                let role = if text.is_empty() { "assistant" } else { "user" };
                render(&template, role, &text);
            }
        });
    };
    // A namespace can be made to hold itself, and whoever walks through it needs a stack without end;
    // products of strings may each have as much memory as the library allows.
    let hungry = source.contains("namespace") || source.contains('*');
    if !hungry || apart::survives(work) {
        work();
    }
}
