//! What `tokenizer.json` says of how text is cut, in GGUF's words. The kinds that are known are
//! recognised by their content, others are refused with an excerpt of it.

use serde_json::{Value, json};

use crate::format::FormatError;

/// How a vocabulary is used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pipeline {
    /// Byte-level: GGUF's name of the pre-tokenizer, and whether text is composed first.
    Bytes { pre: &'static str, nfc: bool },
    /// SentencePiece-style: where a space is put before text, in the tokenizer's own words.
    Spaces { prefix: &'static str },
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same as Llama 3's, as some files write it: the flag spelled out.
const LLAMA3_SPELLED: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Recognises how a vocabulary is used. `legacy` is what `tokenizer_config.json` says of Llama's
/// older way to put spaces.
pub(super) fn recognise(
    normalizer: &Value,
    pre_tokenizer: &Value,
    byte_fallback: bool,
    legacy: Option<bool>,
) -> Result<Pipeline, FormatError> {
    if byte_fallback {
        return spaces(normalizer, pre_tokenizer, legacy);
    }
    let nfc = match flat(normalizer, "normalizers").as_slice() {
        [] => false,
        [only] if kind(only) == "NFC" => true,
        _ => return Err(unknown("normalizer", normalizer)),
    };
    let stages = flat(pre_tokenizer, "pretokenizers");
    let pre = bytes(&stages).ok_or_else(|| unknown("pre_tokenizer", pre_tokenizer))?;
    Ok(Pipeline::Bytes { pre, nfc })
}

/// GGUF's name of a byte-level pre-tokenizer.
fn bytes(stages: &[&Value]) -> Option<&'static str> {
    let (last, before) = stages.split_last()?;
    if kind(last) != "ByteLevel" || flag(last, "add_prefix_space", true) {
        return None;
    }
    let own_pattern = flag(last, "use_regex", true);
    match before {
        [] if own_pattern => Some("gpt-2"),
        [digits] if own_pattern && is_digits(digits) => Some("smollm"),
        [split] if !own_pattern => match pattern(split)? {
            LLAMA3 | LLAMA3_SPELLED => Some("llama-bpe"),
            QWEN2 => Some("qwen2"),
            TEKKEN => Some("tekken"),
            GPT2 => Some("gpt-2"),
            _ => None,
        },
        [digits, split] if !own_pattern && is_digits(digits) => {
            (pattern(split)? == GPT2).then_some("smollm")
        }
        _ => None,
    }
}

fn is_digits(stage: &Value) -> bool {
    kind(stage) == "Digits" && flag(stage, "individual_digits", false)
}

/// The expression of a stage whose matches become pieces of their own.
fn pattern(stage: &Value) -> Option<&str> {
    if kind(stage) != "Split"
        || stage.get("behavior")?.as_str()? != "Isolated"
        || flag(stage, "invert", false)
    {
        return None;
    }
    stage.get("pattern")?.get("Regex")?.as_str()
}

/// How a SentencePiece-style vocabulary puts spaces: by a normalizer in older files, by a
/// pre-tokenizer in newer ones.
fn spaces(
    normalizer: &Value,
    pre_tokenizer: &Value,
    legacy: Option<bool>,
) -> Result<Pipeline, FormatError> {
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let steps = flat(normalizer, "normalizers");
    let stages = flat(pre_tokenizer, "pretokenizers");
    let prefix = match (steps.as_slice(), stages.as_slice()) {
        ([first, second], []) if **first == prepend && **second == replace => {
            // As Hugging Face's own code, which then takes no notice of the normalizer.
            if legacy == Some(false) {
                "open-text"
            } else {
                "sections"
            }
        }
        ([only], []) if **only == replace => "never",
        ([], [only]) if kind(only) == "Metaspace" => {
            metaspace(only).ok_or_else(|| unknown("pre_tokenizer", pre_tokenizer))?
        }
        (_, []) => return Err(unknown("normalizer", normalizer)),
        _ => return Err(unknown("pre_tokenizer", pre_tokenizer)),
    };
    Ok(Pipeline::Spaces { prefix })
}

/// Where Metaspace puts a space. It may cut text at spaces too, which no Llama's does.
fn metaspace(stage: &Value) -> Option<&'static str> {
    let replacement = stage.get("replacement").and_then(Value::as_str);
    if replacement.is_some_and(|text| text != "▁") || flag(stage, "split", true) {
        return None;
    }
    match stage.get("prepend_scheme").and_then(Value::as_str) {
        Some("first") => Some("open-text"),
        Some("always") => Some("open-sections"),
        Some("never") => Some("never"),
        Some(_) => None,
        None if flag(stage, "add_prefix_space", true) => Some("open-sections"),
        None => Some("never"),
    }
}

/// The steps of a sequence, sequences within it opened; one step otherwise, none for `null`.
fn flat<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => Vec::new(),
        _ if kind(value) == "Sequence" => value
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .flat_map(|step| flat(step, list))
            .collect(),
        one => vec![one],
    }
}

fn kind(value: &Value) -> &str {
    value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A switch; anything but `true` or `false` is refused by what is recognised next to it.
fn flag(value: &Value, key: &str, default: bool) -> bool {
    match value.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => value.as_bool().unwrap_or(default),
    }
}

/// Enough of a value to know it by.
fn excerpt(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}

fn unknown(field: &str, value: &Value) -> FormatError {
    FormatError::Invalid {
        field: field.to_owned(),
        value: excerpt(value),
        allowed: "it is none that is known: those of GPT-2, SmolLM, Llama 2 and 3, Mistral and Qwen 2",
    }
}

/// What a post-processor puts before and after a text: names of tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// Reads a post-processor.
pub(super) fn around(post_processor: &Value) -> Result<Around, FormatError> {
    let unsupported = || FormatError::Invalid {
        field: "post_processor".to_owned(),
        value: excerpt(post_processor),
        allowed: "one token before and one after a text are supported",
    };
    let mut found = Around::default();
    for step in flat(post_processor, "processors") {
        match kind(step) {
            "ByteLevel" => {}
            "TemplateProcessing" if found == Around::default() => {
                let pieces = step.get("single").and_then(Value::as_array);
                found = template(pieces.ok_or_else(unsupported)?).ok_or_else(unsupported)?;
            }
            _ => return Err(unsupported()),
        }
    }
    Ok(found)
}

fn template(pieces: &[Value]) -> Option<Around> {
    let token = |piece: &Value| {
        let id = piece.get("SpecialToken")?.get("id")?.as_str()?;
        Some(id.to_owned())
    };
    let is_text = |piece: &Value| piece.get("Sequence").is_some();
    let (before, after) = match pieces {
        [text] if is_text(text) => (None, None),
        [before, text] if is_text(text) => (Some(token(before)?), None),
        [text, after] if is_text(text) => (None, Some(token(after)?)),
        [before, text, after] if is_text(text) => (Some(token(before)?), Some(token(after)?)),
        _ => return None,
    };
    Some(Around { before, after })
}
