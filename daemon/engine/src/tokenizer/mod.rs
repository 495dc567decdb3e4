//! Text to tokens and back, by the vocabulary, merges and pre-tokenizer of a GGUF file. Knows no
//! model and no GPU; of chats only that some parts of a prompt are trusted.
//!
//! Merging is the `tokenizers` crate's BPE. Cutting text into pieces is done here (`split.rs`): the
//! crate's pipeline keeps some hundred bytes for each byte of text and a cache of users' words,
//! neither of which fits a daemon that takes prompts of megabytes and promises to keep none.
//! Encoding keeps nothing: the cache is off.

mod error;
mod split;
mod stream;
#[cfg(test)]
mod tests;
mod vocab;

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use self::error::MERGES_KEY;
use self::split::Splitter;
use self::vocab::{Kind, Vocab, byte_chars, is_guarded};
use crate::chat_template::Part;
use crate::format::Checkpoint;
use crate::limits::{TOKENIZER_PIECE_BYTES_MAX, TOKENIZER_TEXT_BYTES_MAX};

pub use error::TokenizerError;
pub use stream::{Pushed, TextStream};

const MODEL_KEY: &str = "tokenizer.ggml.model";
const PRE_KEY: &str = "tokenizer.ggml.pre";

/// Names under which published models end a turn or a text. Only control tokens of these names
/// count.
const END_NAMES: [&str; 12] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens that the file asks for before and after the text (BOS, EOS).
    pub add_special: bool,
    /// Read the texts of control tokens as those tokens; otherwise they are plain text. Added
    /// tokens that are not markup (runs of spaces, say) are always read as tokens.
    pub parse_special: bool,
}

/// Token texts that are found whole before text is cut.
struct Added {
    matcher: AhoCorasick,
    ids: Vec<u32>,
}

/// A model's tokenizer.
pub struct Tokenizer {
    vocab: Vocab,
    bpe: BPE,
    splitter: Splitter,
    byte_chars: [char; 256],
    /// Added tokens that any text may hold.
    plain_added: Added,
    /// Control tokens and markup, which only trusted text may hold.
    guarded: Added,
    /// Both.
    all_added: Added,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    end_tokens: Vec<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer of a model file. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// The file holds none, one of an unsupported kind (named), or an unsound one.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let model = checkpoint
            .get_str(MODEL_KEY)?
            .ok_or(TokenizerError::Missing { key: MODEL_KEY })?;
        if model != "gpt2" {
            return Err(TokenizerError::Unsupported {
                key: MODEL_KEY,
                found: model.chars().take(80).collect(),
                supported: "gpt2 (byte-level BPE)",
            });
        }
        let pre = checkpoint.get_str(PRE_KEY)?.unwrap_or("gpt-2");
        let named = split::named(pre)
            .map_err(|error| TokenizerError::Build(error.to_string()))?
            .ok_or_else(|| TokenizerError::Unsupported {
                key: PRE_KEY,
                found: pre.chars().take(80).collect(),
                supported: "smollm, starcoder, refact, llama-bpe, llama3, gpt-2, default",
            })?;
        let vocab = Vocab::read(checkpoint)?;
        let bpe = build_bpe(checkpoint, &vocab, named.ignore_merges)?;
        let plain_added = added(&vocab, |text, kind| {
            kind != Kind::Normal && !is_guarded(text, kind)
        })?;
        let guarded = added(&vocab, is_guarded)?;
        let all_added = added(&vocab, |_, kind| kind != Kind::Normal)?;
        let bos = token_id(checkpoint, "tokenizer.ggml.bos_token_id", &vocab)?;
        let eos = token_id(checkpoint, "tokenizer.ggml.eos_token_id", &vocab)?;
        let end_tokens = end_tokens(checkpoint, &vocab, eos)?;
        Ok(Self {
            bpe,
            splitter: named.splitter,
            byte_chars: byte_chars(),
            plain_added,
            guarded,
            all_added,
            bos,
            eos,
            add_bos: checkpoint
                .get_bool("tokenizer.ggml.add_bos_token")?
                .unwrap_or(named.add_bos),
            add_eos: checkpoint
                .get_bool("tokenizer.ggml.add_eos_token")?
                .unwrap_or(false),
            end_tokens,
            vocab,
        })
    }

    /// Tokens of a text. Bytes that the vocabulary has no token for are left out, as the reference
    /// tokenizers of such models do.
    ///
    /// # Errors
    /// The text is over [`TOKENIZER_TEXT_BYTES_MAX`], or has a run without a break over
    /// [`TOKENIZER_PIECE_BYTES_MAX`].
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > TOKENIZER_TEXT_BYTES_MAX {
            return Err(TokenizerError::TooLong {
                what: "the text",
                bytes: text.len(),
                limit: TOKENIZER_TEXT_BYTES_MAX,
            });
        }
        let mut ids = Vec::new();
        if options.add_special && self.add_bos {
            ids.extend(self.bos);
        }
        let added = if options.parse_special {
            &self.all_added
        } else {
            &self.plain_added
        };
        self.encode_added(text, added, &mut ids)?;
        if options.add_special && self.add_eos {
            ids.extend(self.eos);
        }
        Ok(ids)
    }

    /// Tokens of a rendered chat. Only trusted parts give control tokens; between those, text is
    /// cut and merged as one, so that the tokens are the same as if it had come in one piece. No
    /// BOS or EOS is added: templates write their own.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_parts(&self, parts: &[Part]) -> Result<Vec<u32>, TokenizerError> {
        let bytes = parts.iter().map(|part| part.text.len()).sum();
        if bytes > TOKENIZER_TEXT_BYTES_MAX {
            return Err(TokenizerError::TooLong {
                what: "the text",
                bytes,
                limit: TOKENIZER_TEXT_BYTES_MAX,
            });
        }
        let mut ids = Vec::new();
        // Text since the last control token, across parts.
        let mut pending = String::new();
        for part in parts {
            let mut begin = 0;
            if part.trusted {
                for found in self.guarded.matcher.find_iter(&part.text) {
                    pending.push_str(part.text.get(begin..found.start()).unwrap_or_default());
                    self.encode_added(&pending, &self.plain_added, &mut ids)?;
                    pending.clear();
                    ids.extend(self.guarded.ids.get(found.pattern().as_usize()));
                    begin = found.end();
                }
            }
            pending.push_str(part.text.get(begin..).unwrap_or_default());
        }
        self.encode_added(&pending, &self.plain_added, &mut ids)?;
        Ok(ids)
    }

    /// Text in which only the tokens of `added` are found whole.
    fn encode_added(
        &self,
        text: &str,
        added: &Added,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut spelled = String::new();
        let mut begin = 0;
        for found in added.matcher.find_iter(text) {
            let before = text.get(begin..found.start()).unwrap_or_default();
            self.encode_plain(before, &mut spelled, ids)?;
            ids.extend(added.ids.get(found.pattern().as_usize()));
            begin = found.end();
        }
        self.encode_plain(text.get(begin..).unwrap_or_default(), &mut spelled, ids)
    }

    /// Text without special tokens. `spelled` is scratch.
    fn encode_plain(
        &self,
        text: &str,
        spelled: &mut String,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
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
                .tokenize(spelled)
                .map_err(|_| TokenizerError::Encode)?;
            ids.extend(tokens.iter().map(|token| token.id));
            Ok(())
        })
    }

    /// Text of tokens; bytes that are not UTF-8 become U+FFFD. With `skip_special` control tokens
    /// give nothing.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            let of_token = self
                .token_bytes(id)
                .ok_or(TokenizerError::TokenOutOfRange {
                    what: "ids",
                    id,
                    vocab_size: self.vocab_size(),
                })?;
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(of_token);
            }
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// The bytes that a token stands for, perhaps a part of a character; for control tokens their
    /// text. `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocab.bytes(id)
    }

    /// The token as the vocabulary spells it. `None` outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// Tells whether a token is a control token: its text is not part of a reply.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id) == Some(Kind::Control)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> u32 {
        self.vocab.len()
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text or a turn, in rising order.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }
}

fn token_id(
    checkpoint: &Checkpoint,
    key: &'static str,
    vocab: &Vocab,
) -> Result<Option<u32>, TokenizerError> {
    match checkpoint.get_u32(key)? {
        Some(id) if id >= vocab.len() => Err(TokenizerError::TokenOutOfRange {
            what: key,
            id,
            vocab_size: vocab.len(),
        }),
        other => Ok(other),
    }
}

fn end_tokens(
    checkpoint: &Checkpoint,
    vocab: &Vocab,
    eos: Option<u32>,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ends: Vec<u32> = eos.into_iter().collect();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(token_id(checkpoint, key, vocab)?);
    }
    ends.extend(
        vocab
            .iter()
            .filter(|(_, text, kind)| *kind == Kind::Control && END_NAMES.contains(text))
            .map(|(id, _, _)| id),
    );
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// The matcher of the tokens that `wanted` chooses; of several that begin at one place the longest.
fn added(vocab: &Vocab, wanted: impl Fn(&str, Kind) -> bool) -> Result<Added, TokenizerError> {
    let chosen = || {
        vocab
            .iter()
            .filter(|(_, text, kind)| !text.is_empty() && wanted(text, *kind))
    };
    let matcher = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(chosen().map(|(_, text, _)| text))
        .map_err(|error| TokenizerError::Build(error.to_string()))?;
    Ok(Added {
        matcher,
        ids: chosen().map(|(id, _, _)| id).collect(),
    })
}

/// The BPE model. Every merge is checked here: the crate's builder trusts their lengths.
fn build_bpe(
    checkpoint: &Checkpoint,
    vocab: &Vocab,
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let merges = checkpoint
        .get_str_array(MERGES_KEY)?
        .ok_or(TokenizerError::Missing { key: MERGES_KEY })?;
    let mut ids: AHashMap<String, u32> = AHashMap::new();
    for (id, text, kind) in vocab.iter() {
        // So that no text can be merged into one.
        if !is_guarded(text, kind) {
            ids.entry(text.to_owned()).or_insert(id);
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    let mut joined = String::new();
    for (index, merge) in merges.iter().enumerate() {
        let bad = |problem| TokenizerError::Merge { index, problem };
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| bad("has no space between two tokens"))?;
        if !ids.contains_key(left) || !ids.contains_key(right) {
            return Err(bad("joins something that is not a token"));
        }
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if !ids.contains_key(joined.as_str()) {
            return Err(bad("makes something that is not a token"));
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(ids, pairs)
        .cache_capacity(0)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|error| TokenizerError::Build(error.to_string()))
}
