//! Text to tokens and back, by the vocabulary, merges and pre-tokenizer of a model's files. Knows no
//! model and no GPU; of chats only that some parts of a prompt are trusted.
//!
//! Two kinds of vocabulary are read: byte-level BPE and SentencePiece-style BPE. Merging byte-level
//! pieces is the `tokenizers` crate's; all else is done here: the crate's pipeline keeps some hundred
//! bytes for each byte of text and a cache of users' words, neither of which fits a daemon that takes
//! prompts of megabytes and promises to keep none. Encoding keeps nothing.

mod added;
mod byte_level;
mod ends;
mod error;
mod merges;
mod merging;
mod pieces;
#[cfg(test)]
mod pieces_tests;
mod split;
mod stream;
#[cfg(test)]
mod tests;
mod vocab;

use self::added::{Added, AddedToken, Cut, Stripping};
use self::byte_level::ByteLevel;
use self::ends::{end_tokens, ends_of_text};
use self::pieces::Pieces;
use self::vocab::{Kind, Spelling, Vocab, is_guarded};
use crate::chat_template::Part;
use crate::format::Checkpoint;
use crate::limits::TOKENIZER_TEXT_BYTES_MAX;

pub use error::TokenizerError;
pub use stream::{Pushed, TextStream};

const MODEL_KEY: &str = "tokenizer.ggml.model";
/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens that the file asks for before and after the text (BOS, EOS).
    pub add_special: bool,
    /// Read the texts of control tokens as those tokens; otherwise they are plain text. Added
    /// tokens that are not markup (runs of spaces, say) are always read as tokens.
    pub parse_special: bool,
}

/// How text between added tokens becomes tokens.
enum Model {
    /// Byte-level BPE.
    ByteLevel(Box<ByteLevel>),
    /// SentencePiece-style BPE.
    Pieces(Box<Pieces>),
}

/// A model's tokenizer.
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
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
        let name = checkpoint
            .get_str(MODEL_KEY)?
            .ok_or(TokenizerError::Missing { key: MODEL_KEY })?;
        let (vocab, model, add_bos) = match name {
            "gpt2" => {
                let vocab = Vocab::read(checkpoint, Spelling::Bytes)?;
                let (model, add_bos) = ByteLevel::of(checkpoint, &vocab)?;
                (vocab, Model::ByteLevel(Box::new(model)), add_bos)
            }
            "llama" => {
                let vocab = Vocab::read(checkpoint, Spelling::Spaces)?;
                let model = Pieces::of(checkpoint, &vocab)?;
                (vocab, Model::Pieces(Box::new(model)), true)
            }
            other => {
                return Err(TokenizerError::Unsupported {
                    key: MODEL_KEY,
                    found: other.chars().take(80).collect(),
                    supported: "gpt2 (byte-level BPE) and llama (SentencePiece-style BPE)",
                });
            }
        };
        let stripping = Stripping::of(checkpoint)?;
        let is_added = |kind| !matches!(kind, Kind::Normal | Kind::Byte);
        let plain_added = Added::of(&vocab, &stripping, |text, kind| {
            is_added(kind) && !is_guarded(text, kind)
        })?;
        let guarded = Added::of(&vocab, &stripping, is_guarded)?;
        let all_added = Added::of(&vocab, &stripping, |_, kind| is_added(kind))?;
        let usual = matches!(model, Model::Pieces(_));
        let (bos, eos) = ends_of_text(checkpoint, &vocab, usual)?;
        let end_tokens = end_tokens(checkpoint, &vocab, eos)?;
        Ok(Self {
            model,
            plain_added,
            guarded,
            all_added,
            bos,
            eos,
            add_bos: checkpoint
                .get_bool("tokenizer.ggml.add_bos_token")?
                .unwrap_or(add_bos),
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
        let mut run = Run::new(self, added, ids);
        run.section(text)?;
        let mut ids = run.ids;
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
        let mut run = Run::new(self, &self.plain_added, Vec::new());
        // Text since the last control token, across parts.
        let mut pending = String::new();
        for part in parts {
            if !part.trusted {
                pending.push_str(&part.text);
                continue;
            }
            self.guarded.cut(&part.text, &mut |cut| {
                match cut {
                    Cut::Text(text) => pending.push_str(text),
                    Cut::Token(token) => {
                        let text = std::mem::take(&mut pending);
                        // What comes before may be of an earlier part.
                        let text = if token.strips_before {
                            text.trim_end()
                        } else {
                            &text
                        };
                        run.section(text)?;
                        run.token(token);
                    }
                }
                Ok::<(), TokenizerError>(())
            })?;
        }
        run.section(&pending)?;
        Ok(run.ids)
    }

    /// Text of tokens; bytes that are not UTF-8 become U+FFFD. With `skip_special` control tokens
    /// give nothing. Where encoding puts a space before text, one at the beginning is left out.
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
        // The space that encoding put before the text.
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if self.puts_space_first() => rest.to_vec(),
            _ => bytes,
        };
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
        matches!(self.vocab.kind(id), Some(Kind::Control | Kind::Unknown))
    }

    /// Tells whether encoding puts a space before a text, so that the first one of a decoded text is
    /// no part of it.
    pub fn puts_space_first(&self) -> bool {
        match &self.model {
            Model::ByteLevel(_) => false,
            Model::Pieces(pieces) => pieces.puts_space_first(),
        }
    }

    /// The stream of a text's own tokens, from its beginning: without the space that encoding puts
    /// there.
    pub fn text_stream(&self, stops: &[String]) -> TextStream {
        let stream = TextStream::new(stops);
        if self.puts_space_first() {
            stream.without_first_space()
        } else {
            stream
        }
    }

    /// The stream of a reply to `prompt`: a text of its own if `new_text` says so or a control token
    /// comes before it, else it goes on with the prompt's text and keeps its first space.
    pub fn reply_stream(&self, stops: &[String], prompt: &[u32], new_text: bool) -> TextStream {
        if new_text || prompt.last().is_none_or(|id| self.is_special(*id)) {
            self.text_stream(stops)
        } else {
            TextStream::new(stops)
        }
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

/// Encoding of one text, section by section.
struct Run<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that are found whole in sections.
    added: &'a Added,
    ids: Vec<u32>,
    /// Nothing of the text was encoded yet.
    first: bool,
    /// The last token takes the white space that follows.
    strips_after: bool,
}

impl<'a> Run<'a> {
    fn new(tokenizer: &'a Tokenizer, added: &'a Added, ids: Vec<u32>) -> Self {
        Self {
            tokenizer,
            added,
            ids,
            first: true,
            strips_after: false,
        }
    }

    /// Text in which only the run's added tokens are found whole.
    fn section(&mut self, text: &str) -> Result<(), TokenizerError> {
        let added = self.added;
        added.cut(text, &mut |cut| match cut {
            Cut::Text(text) => self.plain(text),
            Cut::Token(token) => {
                self.token(token);
                Ok(())
            }
        })
    }

    /// Text without added tokens.
    fn plain(&mut self, text: &str) -> Result<(), TokenizerError> {
        let text = if self.strips_after {
            text.trim_start()
        } else {
            text
        };
        if text.is_empty() {
            return Ok(());
        }
        self.strips_after = false;
        let first = std::mem::replace(&mut self.first, false);
        match &self.tokenizer.model {
            Model::ByteLevel(model) => model.encode(text, &mut self.ids),
            Model::Pieces(model) => model.encode(text, first, &mut self.ids),
        }
    }

    /// An added token.
    fn token(&mut self, token: AddedToken) {
        self.ids.push(token.id);
        self.first = false;
        self.strips_after = token.strips_after;
    }
}
