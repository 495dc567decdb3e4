//! What the store remembers of a model: one JSON file each, written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use hearth_engine::format::Checkpoint;
use hearth_engine::model::ModelConfig;
use serde::{Deserialize, Serialize};

use super::name;
use crate::limits::MANIFEST_BYTES_MAX;

/// What is known of a stored model without opening its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name; also the name of the manifest's file, without `.json`.
    pub name: String,
    /// SHA-256 of its file, 64 lower-case hexadecimal digits; also the name of the file.
    pub sha256: String,
    /// Size of its file.
    pub file_bytes: u64,
    /// When it was imported, in seconds since 1970.
    pub imported_at_s: u64,
    /// What its file says.
    pub facts: ModelFacts,
}

/// What a model's file says about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// File format: `gguf` or `safetensors`.
    pub format: String,
    /// Architecture.
    pub architecture: String,
    /// Most common type of its matrices.
    pub quantization: String,
    /// Number of weights.
    pub parameter_count: u64,
    /// Longest context it was made for, in tokens.
    pub context_len: u32,
    /// Entries of its vocabulary.
    pub vocab_size: u32,
    /// Layers.
    pub n_layers: u32,
    /// Attention heads.
    pub n_heads: u32,
    /// Key and value heads.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of its hidden state.
    pub hidden_dim: u32,
    /// Width of the feed-forward layers.
    pub ffn_dim: u32,
    /// Its licence, if the file says.
    pub license: Option<String>,
    /// The name it gives itself, if it does.
    pub title: Option<String>,
    /// Whether it has a chat template.
    pub has_chat_template: bool,
}

impl ModelFacts {
    /// Gathers them from a checked file.
    pub fn new(config: &ModelConfig, has_chat_template: bool) -> Self {
        Self {
            format: config.format.to_owned(),
            architecture: config.architecture.clone(),
            quantization: config.quantization.clone(),
            parameter_count: config.parameter_count,
            context_len: config.context_len,
            vocab_size: config.vocab_size,
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            hidden_dim: config.hidden_dim,
            ffn_dim: config.ffn_dim,
            license: config.license.clone().map(short),
            title: Some(config.name.clone())
                .filter(|title| !title.is_empty())
                .map(short),
            has_chat_template,
        }
    }

    /// Reads them from a GGUF file's header.
    ///
    /// # Errors
    /// The file is not sound, or not a model that the engine runs.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, super::BadModel> {
        let config = ModelConfig::of(checkpoint)?;
        let template = checkpoint.get_str("tokenizer.chat_template")?;
        Ok(Self::new(&config, template.is_some()))
    }
}

/// Texts of a file are shown to people: a long one is cut.
fn short(text: String) -> String {
    const CHARS_MAX: usize = 200;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Where the manifest of a name lies. The name must be sound.
pub(super) fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// Reads a manifest and checks that it is what its file name says.
pub(super) fn read(path: &Path) -> io::Result<Manifest> {
    let mut text = String::new();
    super::open_inside(path)?
        .take(MANIFEST_BYTES_MAX)
        .read_to_string(&mut text)?;
    let manifest: Manifest = serde_json::from_str(&text)?;
    let named = path
        .file_stem()
        .is_some_and(|stem| stem == manifest.name.as_str());
    let hash = manifest.sha256.as_bytes();
    let hex = hash.len() == 64 && hash.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !named || !hex || name::check(&manifest.name).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "name or hash is not sound",
        ));
    }
    Ok(manifest)
}

/// Writes a manifest in one step: a reader sees the old one or the new one.
pub(super) fn write(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    let path = path_of(folder, &manifest.name);
    let part = folder.join(format!(
        "{}.json.{}.part",
        manifest.name,
        std::process::id()
    ));
    let written = (|| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut file = options.open(&part)?;
        file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        sync_folder(folder)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Makes renames in a folder last.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}
