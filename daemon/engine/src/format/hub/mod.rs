//! The json files of a model in Hugging Face's layout, said in GGUF's words: metadata keys and values
//! as a GGUF file of the same model has them. Reads bytes, opens nothing; knows no tensor.

mod config;
mod json;
mod rope;
mod scheme;
mod tensors;

use super::FormatError;
use super::metadata::Entry;

pub(super) use scheme::{Scheme, read as scheme};
pub(super) use tensors::{Facts, translate};

/// Names of the files, as published.
pub(super) const CONFIG: &str = "config.json";

/// The contents of a model's json and template files.
#[derive(Default)]
pub(super) struct HubFiles {
    /// `config.json`.
    pub(super) config: Vec<u8>,
    /// `generation_config.json`.
    pub(super) generation_config: Option<Vec<u8>>,
    /// `tokenizer.json`; without it the model has no tokenizer.
    pub(super) tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub(super) tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub(super) chat_template: Option<Vec<u8>>,
}

/// What the files say.
pub(super) struct HubMetadata {
    /// Keys and values in GGUF's words.
    pub(super) entries: Vec<(String, Entry)>,
    /// `quantization_config`, as the file says it.
    pub(super) quantization: Option<serde_json::Value>,
    /// The output matrix is the token embedding; an `lm_head.weight` beside it does not count.
    pub(super) tied_output: bool,
}

/// Translates the files.
///
/// # Errors
/// One is not sound, over a limit, or asks for what is not supported; the file and the key are named.
pub(super) fn metadata(files: &HubFiles) -> Result<HubMetadata, FormatError> {
    let config = config::read(&files.config).map_err(|error| error.in_file(CONFIG))?;
    Ok(HubMetadata {
        entries: config.entries,
        quantization: config.quantization,
        tied_output: config.tied_output,
    })
}
