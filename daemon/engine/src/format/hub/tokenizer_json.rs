//! `tokenizer.json` as it lies in the file: typed, bounded, without what is not needed. Vocabulary
//! and merges go straight into compact tables. Knows the file's words, not GGUF's.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{check_size, small, unsound};
use crate::format::FormatError;
use crate::format::cursor::clip;
use crate::format::metadata::StrArray;
use crate::limits::{
    HUB_ADDED_TOKENS_MAX, HUB_PIPELINE_BYTES_MAX, HUB_TOKENIZER_BYTES_MAX, MERGES_MAX,
    TOKEN_BYTES_MAX, VOCAB_MAX,
};

/// The whole file. What may have any shape is kept as values, of bounded size.
pub(super) struct TokenizerFile {
    pub(super) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) model: Model,
}

/// The file as it is parsed.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(default)]
    added_tokens: AddedTokens,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    model: Model,
}

impl TokenizerFile {
    /// Parses the file and lets its bytes go.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "frees tens of megabytes early"
    )]
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, FormatError> {
        check_size(&bytes, HUB_TOKENIZER_BYTES_MAX)?;
        let raw: Raw<'_> = serde_json::from_slice(&bytes).map_err(unsound)?;
        Ok(Self {
            normalizer: small(raw.normalizer, "normalizer", HUB_PIPELINE_BYTES_MAX)?,
            pre_tokenizer: small(raw.pre_tokenizer, "pre_tokenizer", HUB_PIPELINE_BYTES_MAX)?,
            post_processor: small(raw.post_processor, "post_processor", HUB_PIPELINE_BYTES_MAX)?,
            added_tokens: raw.added_tokens.0,
            model: raw.model,
        })
    }
}

/// A token that is found whole.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    #[serde(deserialize_with = "token")]
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) special: bool,
}

/// The model: what merges.
#[derive(Default, Deserialize)]
pub(super) struct Model {
    /// Missing in old files, all of which hold BPE.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) dropout: Option<f64>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    pub(super) vocab: Vocabulary,
    #[serde(default)]
    pub(super) merges: Merges,
}

/// A token's text, not too long.
fn token<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    check_token(&text)?;
    Ok(text)
}

fn check_token<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(E::custom(format!(
            "a token of {} bytes; at most {TOKEN_BYTES_MAX} are allowed",
            text.len()
        )));
    }
    Ok(())
}

/// The added tokens, a bounded number of them.
#[derive(Default)]
pub(super) struct AddedTokens(pub(super) Vec<AddedToken>);

impl<'de> Deserialize<'de> for AddedTokens {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = AddedTokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of added tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<AddedTokens, A::Error> {
                let mut all = Vec::new();
                while let Some(token) = from.next_element()? {
                    if all.len() >= HUB_ADDED_TOKENS_MAX {
                        let problem = format!("more than {HUB_ADDED_TOKENS_MAX} added tokens");
                        return Err(A::Error::custom(problem));
                    }
                    all.push(token);
                }
                Ok(AddedTokens(all))
            }
        }
        from.deserialize_seq(Of)
    }
}

/// The tokens of a vocabulary in the file's order, and the id of each.
#[derive(Default)]
pub(super) struct Vocabulary {
    pub(super) texts: StrArray,
    pub(super) ids: Vec<u32>,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from token to id (the vocabulary of BPE)")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Vocabulary, A::Error> {
                let mut all = Vocabulary::default();
                while let Some(text) = from.next_key::<String>()? {
                    check_token(&text)?;
                    let id: u32 = from.next_value()?;
                    if id >= VOCAB_MAX {
                        let problem = format!(
                            "token {:?} has id {id}; ids below {VOCAB_MAX} are allowed",
                            clip(&text)
                        );
                        return Err(A::Error::custom(problem));
                    }
                    if all.ids.len() >= usize::try_from(VOCAB_MAX).unwrap_or(usize::MAX) {
                        return Err(A::Error::custom(format!("more than {VOCAB_MAX} tokens")));
                    }
                    all.texts.push(&[&text]);
                    all.ids.push(id);
                }
                Ok(all)
            }

            // Unigram models have a list here; that the kind is wrong is said better later.
            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vocabulary, A::Error> {
                while from.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocabulary::default())
            }
        }
        from.deserialize_any(Of)
    }
}

/// Merges in order, as GGUF writes them: two tokens with a space between.
#[derive(Default)]
pub(super) struct Merges(pub(super) StrArray);

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Merges, A::Error> {
                let mut all = Merges::default();
                while let Some(merge) = from.next_element::<Merge>()? {
                    if all.0.len() >= MERGES_MAX {
                        return Err(A::Error::custom(format!("more than {MERGES_MAX} merges")));
                    }
                    match &merge {
                        Merge::Joined(text) => {
                            check_token(text)?;
                            all.0.push(&[text]);
                        }
                        Merge::Pair(left, right) => {
                            check_token(left)?;
                            check_token(right)?;
                            if left.contains(' ') || right.contains(' ') {
                                let problem =
                                    format!("merge {} joins a token with a space", all.0.len());
                                return Err(A::Error::custom(problem));
                            }
                            all.0.push(&[left, " ", right]);
                        }
                    }
                }
                Ok(all)
            }
        }
        from.deserialize_seq(Of)
    }
}

/// One merge, written in one of two ways.
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: \"a b\" or [\"a\", \"b\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                Ok(Merge::Joined(text.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Merge, E> {
                Ok(Merge::Joined(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Merge, A::Error> {
                let missing = || A::Error::custom("a merge joins two tokens");
                let left = from.next_element()?.ok_or_else(missing)?;
                let right = from.next_element()?.ok_or_else(missing)?;
                match from.next_element::<IgnoredAny>()? {
                    None => Ok(Merge::Pair(left, right)),
                    Some(_) => Err(missing()),
                }
            }
        }
        from.deserialize_any(Of)
    }
}
