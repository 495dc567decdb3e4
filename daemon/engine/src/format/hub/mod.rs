//! The json files of a model in Hugging Face's layout, said in GGUF's words: metadata keys and values
//! as a GGUF file of the same model has them. Reads bytes, opens nothing; knows no tensor.

mod config;
#[cfg(test)]
mod config_tests;
mod json;
mod pipeline;
mod rope;
mod scheme;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer_config;
mod tokenizer_json;
#[cfg(test)]
mod tokenizer_tests;
mod vocabulary;

use self::tokenizer_config::TokenizerConfig;
use self::tokenizer_json::TokenizerFile;
use super::FormatError;
use super::metadata::Entry;

pub(super) use scheme::{Scheme, read as scheme};
pub(super) use tensors::{Facts, translate};

/// Names of the files, as published.
pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The contents of a model's json and template files.
#[derive(Default)]
pub(crate) struct HubFiles {
    /// `config.json`.
    pub(crate) config: Vec<u8>,
    /// `generation_config.json`.
    pub(crate) generation_config: Option<Vec<u8>>,
    /// `tokenizer.json`; without it the model has no tokenizer.
    pub(crate) tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub(crate) chat_template: Option<Vec<u8>>,
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

/// Translates the files, whose bytes are let go on the way.
///
/// # Errors
/// One is not sound, over a limit, or asks for what is not supported; the file and the key are named.
pub(super) fn metadata(files: HubFiles) -> Result<HubMetadata, FormatError> {
    let config = config::read(&files.config).map_err(|error| error.in_file(CONFIG))?;
    let mut entries = config.entries;
    let tokenizer_config = match &files.tokenizer_config {
        Some(bytes) => {
            tokenizer_config::read(bytes).map_err(|error| error.in_file(TOKENIZER_CONFIG))?
        }
        None => TokenizerConfig::default(),
    };
    let template = match files.chat_template {
        Some(bytes) => {
            Some(tokenizer_config::jinja(bytes).map_err(|error| error.in_file(CHAT_TEMPLATE))?)
        }
        None => tokenizer_config.chat_template.clone(),
    };
    if let Some(template) = template {
        entries.push(("tokenizer.chat_template".to_owned(), Entry::Str(template)));
    }
    let mut eos = config.eos;
    if let Some(bytes) = &files.generation_config {
        let more = tokenizer_config::end_tokens(bytes);
        eos.extend(more.map_err(|error| error.in_file(GENERATION_CONFIG))?);
    }
    if let Some(bytes) = files.tokenizer {
        let around = vocabulary::Around {
            tokenizer_config: &tokenizer_config,
            vocab_size: config.vocab_size,
            bos: &config.bos,
            eos: &eos,
        };
        let translated = TokenizerFile::parse(bytes)
            .and_then(|file| vocabulary::entries(file, &around))
            .map_err(|error| error.in_file(TOKENIZER))?;
        entries.extend(translated);
    }
    Ok(HubMetadata {
        entries,
        quantization: config.quantization,
        tied_output: config.tied_output,
    })
}
