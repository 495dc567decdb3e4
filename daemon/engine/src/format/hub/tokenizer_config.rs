//! `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`: which tokens begin
//! and end texts, and the chat template. Knows no vocabulary.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{Object, check_size, small, unsound};
use crate::format::FormatError;
use crate::limits::{
    HUB_CONFIG_BYTES_MAX, HUB_PIPELINE_BYTES_MAX, HUB_TOKENIZER_CONFIG_BYTES_MAX,
    TEMPLATE_BYTES_MAX,
};

/// What `tokenizer_config.json` says.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// Text of the token that begins a text,
    pub(super) bos_token: Option<String>,
    /// and of the one that ends it.
    pub(super) eos_token: Option<String>,
    pub(super) add_bos_token: Option<bool>,
    pub(super) add_eos_token: Option<bool>,
    /// Llama's older way to put spaces.
    pub(super) legacy: Option<bool>,
    pub(super) chat_template: Option<String>,
}

/// The file as it is parsed: only what is wanted of it.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    bos_token: Option<&'a RawValue>,
    #[serde(borrow)]
    eos_token: Option<&'a RawValue>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    legacy: Option<bool>,
    #[serde(borrow)]
    chat_template: Option<&'a RawValue>,
}

/// Reads `tokenizer_config.json`.
pub(super) fn read(bytes: &[u8]) -> Result<TokenizerConfig, FormatError> {
    check_size(bytes, HUB_TOKENIZER_CONFIG_BYTES_MAX)?;
    let raw: Raw<'_> = serde_json::from_slice(bytes).map_err(unsound)?;
    Ok(TokenizerConfig {
        bos_token: token(raw.bos_token, "bos_token")?,
        eos_token: token(raw.eos_token, "eos_token")?,
        add_bos_token: raw.add_bos_token,
        add_eos_token: raw.add_eos_token,
        legacy: raw.legacy,
        chat_template: template(raw.chat_template)?,
    })
}

/// A token: its text, or an object that holds it.
fn token(raw: Option<&RawValue>, field: &'static str) -> Result<Option<String>, FormatError> {
    match small(raw, field, HUB_PIPELINE_BYTES_MAX)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        value => match value.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(bad(
                field,
                "a string or an object with \"content\" is needed",
            )),
        },
    }
}

/// The chat template: a text, or of several named ones that called `default`.
fn template(raw: Option<&RawValue>) -> Result<Option<String>, FormatError> {
    const FIELD: &str = "chat_template";
    let allowed = "a string or a list of objects with \"name\" and \"template\" is needed";
    // In json a character may take six, and there may be several.
    let limit = u64::try_from(TEMPLATE_BYTES_MAX).unwrap_or(u64::MAX) * 8;
    let all = match small(raw, FIELD, limit)? {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text)),
        Value::Array(all) => all,
        _ => return Err(bad(FIELD, allowed)),
    };
    let mut default = None;
    for one in all {
        let part = |key| one.get(key).and_then(Value::as_str);
        let (Some(name), Some(text)) = (part("name"), part("template")) else {
            return Err(bad(FIELD, allowed));
        };
        if name == "default" && default.replace(text.to_owned()).is_some() {
            return Err(bad(FIELD, "only one may be called \"default\""));
        }
    }
    Ok(default)
}

fn bad(field: &str, allowed: &'static str) -> FormatError {
    FormatError::Invalid {
        field: field.to_owned(),
        value: "another value".to_owned(),
        allowed,
    }
}

/// The tokens that end a text, by `generation_config.json`.
pub(super) fn end_tokens(bytes: &[u8]) -> Result<Vec<u32>, FormatError> {
    Object::parse(bytes, HUB_CONFIG_BYTES_MAX)?.ids("eos_token_id")
}

/// The text of `chat_template.jinja`.
pub(super) fn jinja(bytes: Vec<u8>) -> Result<String, FormatError> {
    check_size(
        &bytes,
        u64::try_from(TEMPLATE_BYTES_MAX).unwrap_or(u64::MAX),
    )?;
    String::from_utf8(bytes).map_err(|error| FormatError::NotUtf8 {
        field: "the template".to_owned(),
        at: error.utf8_error().valid_up_to(),
    })
}
