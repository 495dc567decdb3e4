//! What the store remembers of a model: one JSON file each, written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use hearth_engine::format::{Checkpoint, is_model_file};
use hearth_engine::limits::MODEL_FILES_MAX;
use hearth_engine::model::ModelConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::name;
use crate::limits::MANIFEST_BYTES_MAX;

/// What is known of a stored model without opening its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "OnDisk")]
pub struct Manifest {
    /// Its name; also the name of the manifest's file, without `.json`.
    pub name: String,
    /// Its files, at least one, in the order of their names.
    pub files: Vec<StoredFile>,
    /// When it was imported, in seconds since 1970.
    pub imported_at_s: u64,
    /// Where it was fetched from, `hub:REPO@COMMIT`; `None`: imported from this machine.
    pub source: Option<String>,
    /// What its files say.
    pub facts: ModelFacts,
}

/// One file of a stored model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name as published.
    pub name: String,
    /// SHA-256 of its bytes, 64 lower-case hexadecimal digits; names its blob.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

impl Manifest {
    /// Size of all files.
    pub fn file_bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.bytes);
        sizes.fold(0, u64::saturating_add)
    }

    /// SHA-256 of its file. For several files that of the list that `sha256sum` prints for them in
    /// the order of their names.
    pub fn sha256(&self) -> String {
        if let [only] = self.files.as_slice() {
            return only.sha256.clone();
        }
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(format!("{}  {}\n", file.sha256, file.name));
        }
        hex(&hash.finalize())
    }
}

/// A manifest as it may lie on disk: the first version knew one file, without its name.
#[derive(Deserialize)]
struct OnDisk {
    name: String,
    #[serde(default)]
    files: Vec<StoredFile>,
    sha256: Option<String>,
    file_bytes: Option<u64>,
    imported_at_s: u64,
    source: Option<String>,
    facts: ModelFacts,
}

impl TryFrom<OnDisk> for Manifest {
    type Error = &'static str;

    fn try_from(disk: OnDisk) -> Result<Self, Self::Error> {
        let files = match (disk.sha256, disk.file_bytes) {
            (Some(sha256), Some(bytes)) if disk.files.is_empty() => vec![StoredFile {
                name: format!("{}.gguf", disk.name),
                sha256,
                bytes,
            }],
            _ => disk.files,
        };
        if files.is_empty() || files.len() > MODEL_FILES_MAX {
            return Err("the number of files is not sound");
        }
        let sound = |file: &StoredFile| is_model_file(&file.name) && is_sha256(&file.sha256);
        if !files.iter().all(sound) || !files.is_sorted_by(|a, b| a.name < b.name) {
            return Err("the name or hash of a file is not sound");
        }
        Ok(Self {
            name: disk.name,
            files,
            imported_at_s: disk.imported_at_s,
            source: disk.source,
            facts: disk.facts,
        })
    }
}

/// Whether a text is a SHA-256 as it is written here.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Bytes in lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

    /// Reads them from the headers of a model's files.
    ///
    /// # Errors
    /// They are not sound, or not a model that the engine runs.
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
    if !named || name::check(&manifest.name).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the name is not sound",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_the_first_version_is_read() {
        let facts = r#"{"format":"gguf","architecture":"llama","quantization":"F32",
            "parameter_count":1,"context_len":2,"vocab_size":3,"n_layers":4,"n_heads":5,
            "n_kv_heads":6,"head_dim":7,"hidden_dim":8,"ffn_dim":9,"license":null,"title":null,
            "has_chat_template":false}"#;
        let hash = "ab".repeat(32);
        let first = format!(
            r#"{{"name":"a","sha256":"{hash}","file_bytes":9,"imported_at_s":1,"facts":{facts}}}"#
        );
        let read: Manifest = serde_json::from_str(&first).unwrap();
        assert_eq!((read.sha256(), read.file_bytes()), (hash.clone(), 9));
        let again: Manifest = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);

        let file =
            |name: &str, hash: &str| format!(r#"{{"name":"{name}","sha256":"{hash}","bytes":1}}"#);
        for files in [
            String::new(),
            file("../a.gguf", &hash),
            file("a.sh", &hash),
            file("a.gguf", "../x"),
            format!("{0},{0}", file("a.gguf", &hash)),
            format!("{},{}", file("b.gguf", &hash), file("a.gguf", &hash)),
        ] {
            let text =
                format!(r#"{{"name":"a","files":[{files}],"imported_at_s":1,"facts":{facts}}}"#);
            assert!(serde_json::from_str::<Manifest>(&text).is_err(), "{files}");
        }
        // Several files are hashed as `sha256sum` lists them.
        let mut several = read;
        several.files = vec![
            StoredFile {
                name: "a.gguf".to_owned(),
                sha256: "00".repeat(32),
                bytes: 1,
            },
            StoredFile {
                name: "b.gguf".to_owned(),
                sha256: "11".repeat(32),
                bytes: 2,
            },
        ];
        let list = format!("{}  a.gguf\n{}  b.gguf\n", "00".repeat(32), "11".repeat(32));
        assert_eq!(several.sha256(), hex(&Sha256::digest(list)));
    }
}
