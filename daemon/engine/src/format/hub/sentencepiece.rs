//! `tokenizer.model`, SentencePiece's own file, for models that have no `tokenizer.json`: its pieces as
//! the vocabulary of one, with a score for each in the place of merges. What SentencePiece would do to
//! text and is not done here is refused by name. Knows the file's words, not GGUF's.

use prost::Message as _;

use super::json::check_size;
use super::pipeline::Pipeline;
use super::tokenizer_config::TokenizerConfig;
use super::tokenizer_json::{AddedToken, Model, TokenizerFile, Vocabulary};
use crate::format::FormatError;
use crate::format::cursor::clip;
use crate::limits::{HUB_ADDED_TOKENS_MAX, HUB_PIECES_BYTES_MAX, TOKEN_BYTES_MAX, VOCAB_MAX};

/// Of the published `sentencepiece_model.proto`: what bears on tokens.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct File {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer: Option<Normalizer>,
}

/// A token. A kind that is not there is read as 0 and means [`NORMAL`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(string, tag = "1")]
    pub(super) text: String,
    #[prost(float, tag = "2")]
    pub(super) score: f32,
    #[prost(int32, tag = "3")]
    pub(super) kind: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Trainer {
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub(super) whitespace_as_suffix: Option<bool>,
    #[prost(int32, optional, tag = "41")]
    pub(super) bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub(super) eos_id: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Normalizer {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(super) escape_whitespaces: Option<bool>,
}

/// Kinds of pieces.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;
/// `TrainerSpec.ModelType`, and what it is where the file does not say.
const MODEL_TYPES: [&str; 5] = ["", "UNIGRAM", "BPE", "WORD", "CHAR"];
const UNIGRAM: i32 = 1;
const BPE: i32 = 2;
/// Ids of the tokens that begin and end a text, where the file does not say.
const BOS_ID: i32 = 1;
const EOS_ID: i32 = 2;

/// What the file says.
pub(super) struct Pieces {
    /// As a `tokenizer.json` would say it, without merges.
    pub(super) file: TokenizerFile,
    /// The score of each token in the order of the vocabulary: the higher one merges first.
    pub(super) scores: Vec<f32>,
    /// Texts of the tokens that begin and end a text.
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    add_dummy_prefix: bool,
}

impl Pieces {
    /// Parses the file and lets its bytes go. `added` are the tokens that other files add; they say
    /// more of a control token than this one.
    pub(super) fn parse(bytes: Vec<u8>, added: Vec<AddedToken>) -> Result<Self, FormatError> {
        check_size(&bytes, HUB_PIECES_BYTES_MAX)?;
        let file = File::decode(bytes.as_slice()).map_err(|error| FormatError::Unsound {
            problem: clip(&error.to_string()),
        })?;
        drop(bytes);
        let trainer = file.trainer.unwrap_or_default();
        let normalizer = file.normalizer.unwrap_or_default();
        check_trainer(&trainer)?;
        check_normalizer(&normalizer)?;
        check_pieces(&file.pieces)?;
        let text_of = |id: Option<i32>, usual| {
            let piece = file
                .pieces
                .get(usize::try_from(id.unwrap_or(usual)).ok()?)?;
            (piece.kind == CONTROL).then(|| piece.text.clone())
        };
        let (bos, eos) = (
            text_of(trainer.bos_id, BOS_ID),
            text_of(trainer.eos_id, EOS_ID),
        );
        Ok(Self {
            scores: file.pieces.iter().map(|piece| piece.score).collect(),
            file: as_tokenizer_file(file.pieces, added)?,
            bos,
            eos,
            add_dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
        })
    }

    /// Where a space is put before text, by Hugging Face's own reading of such files.
    pub(super) fn pipeline(&self, config: &TokenizerConfig) -> Pipeline {
        let prefix = if !self.add_dummy_prefix || config.add_prefix_space == Some(false) {
            "never"
        } else if config.legacy == Some(false) {
            "open-text"
        } else {
            "sections"
        };
        Pipeline::Spaces { prefix }
    }
}

/// The pieces as a vocabulary; control tokens and such that are found whole as added tokens.
fn as_tokenizer_file(
    pieces: Vec<Piece>,
    mut added: Vec<AddedToken>,
) -> Result<TokenizerFile, FormatError> {
    let mut vocab = Vocabulary::default();
    let mut unk_token = None;
    let known: Vec<u32> = added.iter().map(|token| token.id).collect();
    for (id, piece) in (0_u32..).zip(pieces) {
        vocab.texts.push(&[&piece.text]);
        vocab.ids.push(id);
        match piece.kind {
            UNKNOWN => unk_token = Some(piece.text),
            CONTROL | USER_DEFINED if !known.contains(&id) => {
                if added.len() >= HUB_ADDED_TOKENS_MAX {
                    return Err(FormatError::OverLimit {
                        field: "control and user-defined pieces".to_owned(),
                        value: u64::try_from(added.len()).unwrap_or(u64::MAX) + 1,
                        limit: u64::try_from(HUB_ADDED_TOKENS_MAX).unwrap_or(u64::MAX),
                    });
                }
                added.push(AddedToken {
                    id,
                    content: piece.text,
                    single_word: false,
                    lstrip: false,
                    rstrip: false,
                    special: piece.kind == CONTROL,
                });
            }
            _ => {}
        }
    }
    Ok(TokenizerFile {
        added_tokens: added,
        normalizer: serde_json::Value::Null,
        pre_tokenizer: serde_json::Value::Null,
        post_processor: serde_json::Value::Null,
        model: Model {
            unk_token,
            byte_fallback: true,
            vocab,
            ..Model::default()
        },
    })
}

fn check_trainer(trainer: &Trainer) -> Result<(), FormatError> {
    let kind = trainer.model_type.unwrap_or(UNIGRAM);
    if kind != BPE {
        let name = usize::try_from(kind)
            .ok()
            .and_then(|kind| MODEL_TYPES.get(kind));
        return Err(FormatError::Invalid {
            field: "trainer_spec.model_type".to_owned(),
            value: name.map_or_else(|| kind.to_string(), |name| (*name).to_owned()),
            allowed: "BPE is supported",
        });
    }
    if trainer.whitespace_as_suffix == Some(true) {
        return Err(unsupported("trainer_spec.treat_whitespace_as_suffix", true));
    }
    Ok(())
}

fn check_normalizer(normalizer: &Normalizer) -> Result<(), FormatError> {
    if normalizer
        .charsmap
        .as_ref()
        .is_some_and(|map| !map.is_empty())
    {
        return Err(FormatError::Invalid {
            field: "normalizer_spec.name".to_owned(),
            value: clip(normalizer.name.as_deref().unwrap_or_default()),
            allowed: "\"identity\" is supported, without a map of characters",
        });
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        return Err(unsupported(
            "normalizer_spec.remove_extra_whitespaces",
            true,
        ));
    }
    if normalizer.escape_whitespaces == Some(false) {
        return Err(unsupported("normalizer_spec.escape_whitespaces", false));
    }
    Ok(())
}

fn unsupported(field: &str, value: bool) -> FormatError {
    FormatError::Invalid {
        field: field.to_owned(),
        value: value.to_string(),
        allowed: "this is not supported",
    }
}

fn check_pieces(pieces: &[Piece]) -> Result<(), FormatError> {
    let count = u64::try_from(pieces.len()).unwrap_or(u64::MAX);
    if count > u64::from(VOCAB_MAX) {
        return Err(FormatError::OverLimit {
            field: "number of pieces".to_owned(),
            value: count,
            limit: u64::from(VOCAB_MAX),
        });
    }
    if pieces.is_empty() {
        return Err(FormatError::MissingField {
            field: "pieces".to_owned(),
        });
    }
    pieces
        .iter()
        .enumerate()
        .try_for_each(|(id, piece)| check_piece(id, piece))
}

fn check_piece(id: usize, piece: &Piece) -> Result<(), FormatError> {
    let bad = |value: String, allowed| FormatError::Invalid {
        field: format!("piece {id}"),
        value,
        allowed,
    };
    if piece.text.is_empty() {
        return Err(bad("empty".to_owned(), "a piece has a text"));
    }
    if piece.text.len() > TOKEN_BYTES_MAX {
        return Err(FormatError::OverLimit {
            field: format!("bytes of piece {id}"),
            value: u64::try_from(piece.text.len()).unwrap_or(u64::MAX),
            limit: u64::try_from(TOKEN_BYTES_MAX).unwrap_or(u64::MAX),
        });
    }
    if piece.score.is_nan() {
        return Err(bad("its score".to_owned(), "a number is needed"));
    }
    match piece.kind {
        0 | NORMAL | UNKNOWN | CONTROL | USER_DEFINED => {}
        BYTE if super::vocabulary::is_byte(&piece.text) => {}
        BYTE => return Err(bad(clip(&piece.text), "a byte is written as <0x0A>")),
        other => {
            let value = format!("type {other}");
            let allowed = "NORMAL, UNKNOWN, CONTROL, USER_DEFINED and BYTE are supported";
            return Err(bad(value, allowed));
        }
    }
    Ok(())
}
