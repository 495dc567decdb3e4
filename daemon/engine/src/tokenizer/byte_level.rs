//! Byte-level BPE ("gpt2" in GGUF): text is cut into pieces, whose bytes are spelled as characters
//! and merged in the order of a list. Merging is the `tokenizers` crate's.

use ahash::AHashMap;
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};

use super::TokenizerError;
use super::error::MERGES_KEY;
use super::merges::Merges;
use super::split::{self, Splitter};
use super::vocab::{Vocab, byte_chars};
use crate::format::Checkpoint;
use crate::limits::TOKENIZER_PIECE_BYTES_MAX;

const PRE_KEY: &str = "tokenizer.ggml.pre";
/// Whether a piece that is a token is taken without merging, where the name of the pre-tokenizer
/// does not decide.
const IGNORE_MERGES_KEY: &str = "hearth.tokenizer.ignore_merges";
/// What text goes through first: `nfc` or nothing.
const NORMALIZER_KEY: &str = "hearth.tokenizer.normalizer";

/// A byte-level model.
pub(super) struct ByteLevel {
    pub(super) bpe: BPE,
    splitter: Splitter,
    byte_chars: [char; 256],
    nfc: bool,
}

impl ByteLevel {
    /// Builds the model of a file's vocabulary; with it, whether BOS is put first unless the file says
    /// otherwise.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        vocab: &Vocab,
    ) -> Result<(Self, bool), TokenizerError> {
        let pre = checkpoint.get_str(PRE_KEY)?.unwrap_or("default");
        let named = split::named(pre)
            .map_err(|error| TokenizerError::Build(error.to_string()))?
            .ok_or_else(|| TokenizerError::Unsupported {
                key: PRE_KEY,
                found: pre.chars().take(80).collect(),
                supported: split::NAMES,
            })?;
        let ignore_merges = checkpoint
            .get_bool(IGNORE_MERGES_KEY)?
            .unwrap_or(named.ignore_merges);
        let nfc = match checkpoint.get_str(NORMALIZER_KEY)? {
            None => false,
            Some("nfc") => true,
            Some(other) => {
                return Err(TokenizerError::Unsupported {
                    key: NORMALIZER_KEY,
                    found: other.chars().take(80).collect(),
                    supported: "nfc",
                });
            }
        };
        let model = Self {
            bpe: build_bpe(checkpoint, vocab, ignore_merges)?,
            splitter: named.splitter,
            byte_chars: byte_chars(),
            nfc,
        };
        Ok((model, named.add_bos))
    }

    /// Tokens of text without added tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if self.nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            let composed: String = text.nfc().collect();
            return self.encode_normal(&composed, ids);
        }
        self.encode_normal(text, ids)
    }

    fn encode_normal(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut spelled = String::new();
        self.splitter.pieces(text, &mut |piece| {
            if piece.len() > TOKENIZER_PIECE_BYTES_MAX {
                return Err(TokenizerError::TooLong {
                    what: "a run of text without a break",
                    bytes: piece.len(),
                    limit: TOKENIZER_PIECE_BYTES_MAX,
                });
            }
            spelled.clear();
            spelled.extend(
                piece
                    .bytes()
                    .filter_map(|byte| self.byte_chars.get(usize::from(byte))),
            );
            let tokens = self
                .bpe
                .tokenize(&spelled)
                .map_err(|_| TokenizerError::Encode)?;
            ids.extend(tokens.iter().map(|token| token.id));
            Ok(())
        })
    }
}

/// The BPE model. Every merge is checked: the crate's builder trusts their lengths.
fn build_bpe(
    checkpoint: &Checkpoint,
    vocab: &Vocab,
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let list = checkpoint
        .get_str_array(MERGES_KEY)?
        .ok_or(TokenizerError::Missing { key: MERGES_KEY })?;
    let merges = Merges::of(vocab, list);
    let mut pairs = Vec::with_capacity(merges.len());
    merges.each(|_, merge| {
        pairs.push((merge.texts.0.to_owned(), merge.texts.1.to_owned()));
    })?;
    let ids: AHashMap<String, u32> = merges
        .ids
        .iter()
        .map(|(text, id)| ((*text).to_owned(), *id))
        .collect();
    BPE::builder()
        .vocab_and_merges(ids, pairs)
        .cache_capacity(0)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|error| TokenizerError::Build(error.to_string()))
}
