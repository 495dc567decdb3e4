//! The vocabulary of a model: token texts, kinds and the bytes they stand for. Knows how
//! vocabularies spell bytes and spaces; knows no merging.

use std::collections::HashMap;

use super::TokenizerError;
use super::pieces::SPACE;
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
    /// One byte, of a character that is no token.
    Byte,
    /// Stands for what is no token; like a control token.
    Unknown,
}

/// How a vocabulary spells what normal tokens stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// A character for each byte.
    Bytes,
    /// As it is, but for spaces; single bytes as `<0x0A>`.
    Spaces,
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
    pub(super) fn read(
        checkpoint: &Checkpoint,
        spelling: Spelling,
    ) -> Result<Self, TokenizerError> {
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
            None if spelling == Spelling::Bytes => vec![Kind::Normal; texts.len()],
            None => texts.iter().map(kind_by_text).collect(),
            Some(types) if types.len() == texts.len() => types
                .into_iter()
                .map(|number| kind(number, spelling))
                .collect(),
            Some(types) => {
                return Err(TokenizerError::Lengths {
                    key: TYPES_KEY,
                    found: types.len(),
                    wanted: texts.len(),
                });
            }
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(texts.len());
        let speller = Speller::new(spelling);
        for (text, kind) in texts.iter().zip(&kinds) {
            speller.bytes(text, *kind, &mut bytes);
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

/// From spelling to bytes.
struct Speller {
    spelling: Spelling,
    byte_of: HashMap<char, u8>,
}

impl Speller {
    fn new(spelling: Spelling) -> Self {
        Self {
            spelling,
            byte_of: byte_chars().into_iter().zip(0_u8..=255).collect(),
        }
    }

    /// Appends what a token stands for.
    fn bytes(&self, text: &str, kind: Kind, out: &mut Vec<u8>) {
        let before = out.len();
        match (self.spelling, kind) {
            (Spelling::Bytes, Kind::Normal) => {
                for spelling in text.chars() {
                    match self.byte_of.get(&spelling) {
                        Some(byte) => out.push(*byte),
                        None => {
                            // Oddities such as padding entries stand for their text.
                            out.truncate(before);
                            out.extend_from_slice(text.as_bytes());
                            return;
                        }
                    }
                }
            }
            (Spelling::Spaces, Kind::Normal) => {
                let mut parts = text.split(SPACE);
                out.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
                for part in parts {
                    out.push(b' ');
                    out.extend_from_slice(part.as_bytes());
                }
            }
            (Spelling::Spaces, Kind::Byte) => match byte_of(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.as_bytes()),
            },
            _ => out.extend_from_slice(text.as_bytes()),
        }
    }
}

/// The byte of a text such as `<0x0A>`.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The kind of a GGUF token type. In byte-level vocabularies unknown and byte tokens are tokens like
/// others. Unused ones come of no merging unless the file says so.
fn kind(token_type: i32, spelling: Spelling) -> Kind {
    match (token_type, spelling) {
        (2, Spelling::Spaces) => Kind::Unknown,
        (3, _) => Kind::Control,
        (4, _) => Kind::UserDefined,
        (6, Spelling::Spaces) => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// The kind of a SentencePiece token whose file names none.
fn kind_by_text(text: &str) -> Kind {
    match text {
        "<unk>" => Kind::Unknown,
        "<s>" | "</s>" | "<pad>" => Kind::Control,
        _ if byte_of(text).is_some() => Kind::Byte,
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
    matches!(kind, Kind::Control | Kind::Unknown) || (kind == Kind::UserDefined && markup)
}

/// Tells whether text can be merged into this token.
pub(super) fn is_mergeable(text: &str, kind: Kind) -> bool {
    kind != Kind::Byte && !text.is_empty() && !is_guarded(text, kind)
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
