//! The files beside the weights of a model in Hugging Face's layout, said in GGUF's words: metadata keys and values
//! as a GGUF file of the same model has them. Reads bytes, opens nothing; knows no tensor.

mod config;
#[cfg(test)]
mod config_tests;
mod json;
mod pipeline;
mod rope;
mod scheme;
mod sentencepiece;
#[cfg(test)]
mod sentencepiece_tests;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer_config;
mod tokenizer_json;
#[cfg(test)]
mod tokenizer_tests;
mod vocabulary;

use self::sentencepiece::Pieces;
use self::tokenizer_config::TokenizerConfig;
use self::tokenizer_json::{AddedToken, TokenizerFile};
use super::FormatError;
use super::metadata::Entry;

pub(super) use scheme::{Scheme, read as scheme};
pub(super) use tensors::{Facts, translate};

/// Names of the files, as published.
pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const PIECES: &str = "tokenizer.model";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The contents of the files beside a model's weights.
#[derive(Default)]
pub(crate) struct HubFiles {
    /// `config.json`.
    pub(crate) config: Vec<u8>,
    /// `generation_config.json`.
    pub(crate) generation_config: Option<Vec<u8>>,
    /// `tokenizer.json`.
    pub(crate) tokenizer: Option<Vec<u8>>,
    /// `tokenizer.model`, which counts where there is no `tokenizer.json`; without both the model has no
    /// tokenizer.
    pub(crate) pieces: Option<Vec<u8>>,
    /// `added_tokens.json`, which counts with `tokenizer.model` where `tokenizer_config.json` says nothing
    /// of added tokens.
    pub(crate) added_tokens: Option<Vec<u8>>,
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
    let around = vocabulary::Around {
        tokenizer_config: &tokenizer_config,
        vocab_size: config.vocab_size,
        bos: &config.bos,
        eos: &eos,
    };
    if let Some(bytes) = files.tokenizer {
        let translated = TokenizerFile::parse(bytes)
            .and_then(|file| vocabulary::entries(file, &around))
            .map_err(|error| error.in_file(TOKENIZER))?;
        entries.extend(translated);
    } else if let Some(bytes) = files.pieces {
        let added = added_tokens(
            files.tokenizer_config.as_deref(),
            files.added_tokens.as_deref(),
        )?;
        let translated = Pieces::parse(bytes, added)
            .and_then(|pieces| vocabulary::entries_of_pieces(pieces, &around))
            .map_err(|error| error.in_file(PIECES))?;
        entries.extend(translated);
    }
    Ok(HubMetadata {
        entries,
        quantization: config.quantization,
        tied_output: config.tied_output,
    })
}

/// The tokens that are added to a vocabulary of pieces.
fn added_tokens(
    tokenizer_config: Option<&[u8]>,
    older: Option<&[u8]>,
) -> Result<Vec<AddedToken>, FormatError> {
    let added = match tokenizer_config {
        Some(bytes) => tokenizer_config::added_tokens(bytes)
            .map_err(|error| error.in_file(TOKENIZER_CONFIG))?,
        None => Vec::new(),
    };
    match older {
        Some(bytes) if added.is_empty() => {
            tokenizer_config::older_added_tokens(bytes).map_err(|error| error.in_file(ADDED_TOKENS))
        }
        _ => Ok(added),
    }
}
