//! `tokenizer_config.json`, `generation_config.json`, `added_tokens.json` and `chat_template.jinja`:
//! which tokens begin and end texts or are added, and the chat template. Knows no vocabulary.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{Object, check_size, small, unsound};
use super::tokenizer_json::AddedToken;
use crate::format::FormatError;
use crate::limits::{
    HUB_ADDED_TOKENS_MAX, HUB_CONFIG_BYTES_MAX, HUB_PIPELINE_BYTES_MAX,
    HUB_TOKENIZER_CONFIG_BYTES_MAX, TEMPLATE_BYTES_MAX,
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
    /// Whether a space is put before text; `tokenizer.json` says it better.
    pub(super) add_prefix_space: Option<bool>,
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
    add_prefix_space: Option<bool>,
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
        add_prefix_space: raw.add_prefix_space,
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

/// The tokens that are added to a vocabulary of pieces, by `added_tokens_decoder` of
/// `tokenizer_config.json`.
pub(super) fn added_tokens(bytes: &[u8]) -> Result<Vec<AddedToken>, FormatError> {
    const FIELD: &str = "added_tokens_decoder";
    let mut config = Object::parse(bytes, HUB_TOKENIZER_CONFIG_BYTES_MAX)?;
    let Some(decoder) = config.take_object(FIELD, "added_tokens_decoder.")? else {
        return Ok(Vec::new());
    };
    check_count(decoder.keys().count(), FIELD)?;
    let mut all = Vec::new();
    for key in decoder.keys() {
        let Some(Value::Object(fields)) = decoder.get(key) else {
            continue;
        };
        let Ok(id) = key.parse::<u32>() else {
            return Err(bad(&decoder.name(key), "a token's id is needed"));
        };
        let mut fields = fields.clone();
        fields.insert("id".to_owned(), id.into());
        all.push(serde_json::from_value(Value::Object(fields)).map_err(unsound)?);
    }
    Ok(all)
}

/// The same by `added_tokens.json` of older models: texts and ids. None of them is a control token for
/// certain.
pub(super) fn older_added_tokens(bytes: &[u8]) -> Result<Vec<AddedToken>, FormatError> {
    let file = Object::parse(bytes, HUB_CONFIG_BYTES_MAX)?;
    check_count(file.keys().count(), "added tokens")?;
    let token = |key: &str| {
        Ok(AddedToken {
            id: file.required_u32(key)?,
            content: key.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            special: false,
        })
    };
    file.keys().map(token).collect()
}

fn check_count(count: usize, field: &str) -> Result<(), FormatError> {
    if count <= HUB_ADDED_TOKENS_MAX {
        return Ok(());
    }
    Err(FormatError::OverLimit {
        field: field.to_owned(),
        value: u64::try_from(count).unwrap_or(u64::MAX),
        limit: u64::try_from(HUB_ADDED_TOKENS_MAX).unwrap_or(u64::MAX),
    })
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
