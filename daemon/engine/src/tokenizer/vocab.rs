//! The vocabulary of a GGUF file: token texts, kinds and the bytes they stand for. Knows how
//! byte-level vocabularies spell bytes; knows no merging.

use std::collections::HashMap;

use super::TokenizerError;
use crate::format::{Checkpoint, StrArray};
use crate::limits::VOCAB_MAX;

pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";

/// What kind of token one is, as the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made of text by merging.
    Normal,
    /// A control token: never made of a user's text.
    Control,
    /// Added whole: found in text before it is cut.
    UserDefined,
}

/// All tokens of a model.
pub(super) struct Vocab {
    texts: StrArray,
    kinds: Vec<Kind>,
    /// Bytes of all tokens one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Vocab {
    /// Reads tokens and their types.
    pub(super) fn read(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let texts = checkpoint
            .get_str_array(TOKENS_KEY)?
            .ok_or(TokenizerError::Missing { key: TOKENS_KEY })?
            .clone();
        let count = u32::try_from(texts.len()).unwrap_or(u32::MAX);
        if count == 0 || count > VOCAB_MAX {
            return Err(TokenizerError::VocabSize {
                count,
                limit: VOCAB_MAX,
            });
        }
        let kinds = match checkpoint.get_i32_array(TYPES_KEY)? {
            None => vec![Kind::Normal; texts.len()],
            Some(types) if types.len() == texts.len() => {
                types.into_iter().map(kind).collect::<Vec<_>>()
            }
            Some(types) => {
                return Err(TokenizerError::Lengths {
                    key: TYPES_KEY,
                    found: types.len(),
                    wanted: texts.len(),
                });
            }
        };
        let byte_of: HashMap<char, u8> = byte_chars().into_iter().zip(0_u8..=255).collect();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(texts.len());
        for (text, kind) in texts.iter().zip(&kinds) {
            let before = bytes.len();
            let mut spelled = *kind == Kind::Normal;
            if spelled {
                for spelling in text.chars() {
                    match byte_of.get(&spelling) {
                        Some(byte) => bytes.push(*byte),
                        None => spelled = false,
                    }
                }
            }
            if !spelled {
                // Control and added tokens, and oddities such as padding entries, stand for their text.
                bytes.truncate(before);
                bytes.extend_from_slice(text.as_bytes());
            }
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Ok(Self {
            texts,
            kinds,
            bytes,
            ends,
        })
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.kinds.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(usize::try_from(id).ok()?)
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(usize::try_from(id).ok()?).copied()
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = usize::try_from(id).ok()?;
        let end = usize::try_from(*self.ends.get(index)?).ok()?;
        let begin = match index.checked_sub(1) {
            None => 0,
            Some(before) => usize::try_from(*self.ends.get(before)?).ok()?,
        };
        self.bytes.get(begin..end)
    }

    /// Id, text and kind of every token in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, Kind)> {
        (0_u32..)
            .zip(self.texts.iter())
            .zip(&self.kinds)
            .map(|((id, text), kind)| (id, text, *kind))
    }
}

/// The kind of a GGUF token type. Unknown, unused and byte tokens are never produced by merging of
/// a byte-level vocabulary unless merges say so, hence they count as normal.
fn kind(token_type: i32) -> Kind {
    match token_type {
        3 => Kind::Control,
        4 => Kind::UserDefined,
        _ => Kind::Normal,
    }
}

/// Tells whether only trusted text may become this token: control tokens, and added tokens that look
/// like markup (`<tool_call>`, `<|im_start|>`), whatever type the file gives them, for they steer
/// the model.
pub(super) fn is_guarded(text: &str, kind: Kind) -> bool {
    let markup = text.len() > 2
        && ((text.starts_with('<') && text.ends_with('>'))
            || (text.starts_with('[') && text.ends_with(']')));
    kind == Kind::Control || (kind == Kind::UserDefined && markup)
}

/// The character that byte-level vocabularies write for each byte: printable Latin-1 stands for
/// itself, the rest for code points from 256 on, in order.
pub(super) fn byte_chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut next = 256_u32;
    for (byte, to) in (0_u8..=255).zip(chars.iter_mut()) {
        *to = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            let spare = char::from_u32(next).unwrap_or('\u{FFFD}');
            next += 1;
            spare
        };
    }
    chars
}
