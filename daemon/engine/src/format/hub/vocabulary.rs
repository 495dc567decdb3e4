//! The vocabulary of `tokenizer.json` or `tokenizer.model` in GGUF's words: every id's token and its
//! type, merges or scores, and the tokens that begin and end texts.

use ahash::AHashMap;

use super::pipeline::{self, Pipeline};
use super::sentencepiece::Pieces;
use super::tokenizer_config::TokenizerConfig;
use super::tokenizer_json::{AddedToken, Model, TokenizerFile};
use crate::format::FormatError;
use crate::format::cursor::clip;
use crate::format::metadata::{Entry, StrArray};
use crate::limits::VOCAB_MAX;

/// GGUF's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What else a model's files say of its tokens.
pub(super) struct Around<'a> {
    pub(super) tokenizer_config: &'a TokenizerConfig,
    /// Rows of the embedding.
    pub(super) vocab_size: Option<u32>,
    /// By `config.json`.
    pub(super) bos: &'a [u32],
    /// By `config.json` and `generation_config.json`.
    pub(super) eos: &'a [u32],
}

/// Translates `tokenizer.json`.
pub(super) fn entries(
    file: TokenizerFile,
    around: &Around<'_>,
) -> Result<Vec<(String, Entry)>, FormatError> {
    check_model(&file.model)?;
    let pipeline = pipeline::recognise(
        &file.normalizer,
        &file.pre_tokenizer,
        file.model.byte_fallback,
        around.tokenizer_config.legacy,
    )?;
    let template = pipeline::around(&file.post_processor)?;
    let mut words = Words::default();
    words.pipeline(pipeline, &file.model)?;
    let table = Table::of(&file, around.vocab_size)?;
    table.say(&file, &template, around, &mut words)?;
    words.add(
        "tokenizer.ggml.merges",
        Entry::StrArray(file.model.merges.0),
    );
    Ok(words.0)
}

/// Translates `tokenizer.model`. Text begins with the token for that, as in Hugging Face's code, unless
/// `tokenizer_config.json` says otherwise.
pub(super) fn entries_of_pieces(
    pieces: Pieces,
    around: &Around<'_>,
) -> Result<Vec<(String, Entry)>, FormatError> {
    let config = around.tokenizer_config;
    let named = |of: &Option<String>, piece: &Option<String>| of.clone().or_else(|| piece.clone());
    let tokenizer_config = TokenizerConfig {
        bos_token: named(&config.bos_token, &pieces.bos),
        eos_token: named(&config.eos_token, &pieces.eos),
        add_bos_token: config.add_bos_token.or(Some(true)),
        add_eos_token: config.add_eos_token,
        ..TokenizerConfig::default()
    };
    let around = Around {
        tokenizer_config: &tokenizer_config,
        ..*around
    };
    let mut words = Words::default();
    words.pipeline(pieces.pipeline(config), &pieces.file.model)?;
    let table = Table::of(&pieces.file, around.vocab_size)?;
    let mut scores = pieces.scores;
    scores.resize(table.types.len(), f32::MIN);
    table.say(
        &pieces.file,
        &pipeline::Around::default(),
        &around,
        &mut words,
    )?;
    words.add("tokenizer.ggml.scores", Entry::F32Array(scores));
    Ok(words.0)
}

/// Metadata in the making.
#[derive(Default)]
struct Words(Vec<(String, Entry)>);

impl Words {
    fn add(&mut self, key: &str, value: Entry) {
        self.0.push((key.to_owned(), value));
    }

    /// How text is cut and spelled.
    fn pipeline(&mut self, pipeline: Pipeline, model: &Model) -> Result<(), FormatError> {
        match pipeline {
            Pipeline::Bytes { pre, nfc } => {
                self.add("tokenizer.ggml.model", Entry::Str("gpt2".to_owned()));
                self.add("tokenizer.ggml.pre", Entry::Str(pre.to_owned()));
                let whole = Entry::Bool(model.ignore_merges);
                self.add("hearth.tokenizer.ignore_merges", whole);
                if nfc {
                    self.add("hearth.tokenizer.normalizer", Entry::Str("nfc".to_owned()));
                }
            }
            Pipeline::Spaces { prefix } => {
                if model.ignore_merges {
                    return Err(unsupported("model.ignore_merges", "true"));
                }
                self.add("tokenizer.ggml.model", Entry::Str("llama".to_owned()));
                let prefixed = Entry::Bool(prefix != "never");
                self.add("tokenizer.ggml.add_space_prefix", prefixed);
                let prefix = Entry::Str(prefix.to_owned());
                self.add("hearth.tokenizer.space_prefix", prefix);
            }
        }
        Ok(())
    }
}

fn unsupported(field: &str, value: &str) -> FormatError {
    FormatError::Invalid {
        field: field.to_owned(),
        value: clip(value),
        allowed: "this is not supported",
    }
}

/// Refuses what is not BPE, or not plain BPE.
fn check_model(model: &Model) -> Result<(), FormatError> {
    match model.kind.as_deref() {
        None | Some("BPE") => {}
        Some(other) => return Err(unsupported("model.type", other)),
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(unsupported("model.dropout", "not 0"));
    }
    for (field, text) in [
        (
            "model.continuing_subword_prefix",
            &model.continuing_subword_prefix,
        ),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            return Err(unsupported(field, text));
        }
    }
    if model.vocab.ids.is_empty() {
        return Err(FormatError::MissingField {
            field: "model.vocab".to_owned(),
        });
    }
    Ok(())
}

/// Where the token of an id is found.
#[derive(Clone, Copy)]
enum Source {
    /// Nowhere: the id is not used.
    None,
    /// In the vocabulary, at this place.
    Vocab(u32),
    /// Among the added tokens.
    Added(u32),
}

/// Every id's token.
struct Table<'a> {
    sources: Vec<Source>,
    types: Vec<i32>,
    by_text: AHashMap<&'a str, u32>,
}

impl<'a> Table<'a> {
    fn of(file: &'a TokenizerFile, vocab_size: Option<u32>) -> Result<Self, FormatError> {
        let vocab = &file.model.vocab;
        let added = file.added_tokens.iter().map(|token| token.id);
        let last = vocab.ids.iter().copied().chain(added).max().unwrap_or(0);
        // Without the embedding's size there is a row for each token.
        let count = vocab_size.unwrap_or(last.saturating_add(1));
        if count > VOCAB_MAX {
            return Err(FormatError::OverLimit {
                field: "number of tokens".to_owned(),
                value: u64::from(count),
                limit: u64::from(VOCAB_MAX),
            });
        }
        let mut table = Self {
            sources: vec![Source::None; place(count)],
            types: vec![UNUSED; place(count)],
            by_text: AHashMap::with_capacity(vocab.ids.len()),
        };
        table.place_vocab(file)?;
        table.place_added(&file.added_tokens)?;
        if file.model.byte_fallback
            && let Some(unknown) = &file.model.unk_token
            && let Some(id) = table.by_text.get(unknown.as_str())
            && let Some(kind) = table.types.get_mut(place(*id))
        {
            *kind = UNKNOWN;
        }
        Ok(table)
    }

    fn place_vocab(&mut self, file: &'a TokenizerFile) -> Result<(), FormatError> {
        let vocab = &file.model.vocab;
        for (at, (text, id)) in (0_u32..).zip(vocab.texts.iter().zip(&vocab.ids)) {
            if self.by_text.insert(text, *id).is_some() {
                return Err(duplicate("token", text));
            }
            let kind = if file.model.byte_fallback && is_byte(text) {
                BYTE
            } else {
                NORMAL
            };
            match self.sources.get_mut(place(*id)) {
                Some(slot @ Source::None) => *slot = Source::Vocab(at),
                Some(_) => return Err(duplicate("token id", &id.to_string())),
                None => {
                    return Err(FormatError::Invalid {
                        field: format!("id of token {:?}", clip(text)),
                        value: id.to_string(),
                        allowed: "config.json's vocab_size is no higher than that",
                    });
                }
            }
            if let Some(slot) = self.types.get_mut(place(*id)) {
                *slot = kind;
            }
        }
        Ok(())
    }

    /// Added tokens past the embedding's end are left out: the model cannot take them.
    fn place_added(&mut self, added: &'a [AddedToken]) -> Result<(), FormatError> {
        for (at, token) in (0_u32..).zip(added) {
            if token.single_word {
                let name = format!("added token {:?}", clip(&token.content));
                return Err(unsupported(&format!("{name}: single_word"), "true"));
            }
            if token.content.is_empty() {
                return Err(unsupported("an added token's content", "empty"));
            }
            let Some(kind) = self.types.get_mut(place(token.id)) else {
                continue;
            };
            let known = self.by_text.insert(&token.content, token.id);
            let taken = matches!(self.sources.get(place(token.id)), Some(Source::Vocab(_)));
            let agrees = match known {
                Some(id) => id == token.id && taken,
                None => !taken,
            };
            if !agrees || matches!(*kind, CONTROL | USER_DEFINED) {
                return Err(duplicate("added token", &token.content));
            }
            *kind = if token.special { CONTROL } else { USER_DEFINED };
            if let Some(slot @ Source::None) = self.sources.get_mut(place(token.id)) {
                *slot = Source::Added(at);
            }
        }
        Ok(())
    }

    /// Says all that it knows.
    fn say(
        self,
        file: &TokenizerFile,
        template: &pipeline::Around,
        around: &Around<'_>,
        words: &mut Words,
    ) -> Result<(), FormatError> {
        self.stripping(&file.added_tokens, words);
        self.ends(template, around, words)?;
        if let Some(unknown) = &file.model.unk_token
            && let Some(id) = self.by_text.get(unknown.as_str())
        {
            let id = Entry::Int(u64::from(*id));
            words.add("tokenizer.ggml.unknown_token_id", id);
        }
        let (tokens, types) = self.tokens(file);
        words.add("tokenizer.ggml.tokens", Entry::StrArray(tokens));
        words.add("tokenizer.ggml.token_type", Entry::I32Array(types));
        Ok(())
    }

    /// All tokens in order of their ids, and their types.
    fn tokens(self, file: &TokenizerFile) -> (StrArray, Vec<i32>) {
        let mut tokens = StrArray::default();
        for (id, source) in self.sources.iter().enumerate() {
            let text = match source {
                Source::Vocab(at) => file.model.vocab.texts.get(place(*at)),
                Source::Added(at) => file
                    .added_tokens
                    .get(place(*at))
                    .map(|token| token.content.as_str()),
                Source::None => None,
            };
            match text {
                Some(text) => tokens.push(&[text]),
                // As GGUF's converters name such ids.
                None => tokens.push(&[&format!("[PAD{id}]")]),
            }
        }
        (tokens, self.types)
    }

    /// Which added tokens take white space with them.
    fn stripping(&self, added: &[AddedToken], words: &mut Words) {
        type Takes = fn(&AddedToken) -> bool;
        let sides: [(&str, Takes); 2] = [
            ("hearth.tokenizer.lstrip_token_ids", |token| token.lstrip),
            ("hearth.tokenizer.rstrip_token_ids", |token| token.rstrip),
        ];
        for (key, takes) in sides {
            let ids: Vec<i32> = added
                .iter()
                .filter(|token| place(token.id) < self.types.len() && takes(token))
                .filter_map(|token| i32::try_from(token.id).ok())
                .collect();
            if !ids.is_empty() {
                words.add(key, Entry::I32Array(ids));
            }
        }
    }

    /// The tokens that begin and end texts, and whether they are put there.
    fn ends(
        &self,
        template: &pipeline::Around,
        around: &Around<'_>,
        words: &mut Words,
    ) -> Result<(), FormatError> {
        let config = around.tokenizer_config;
        let bos = self.end("bos_token", config.bos_token.as_deref(), &template.before)?;
        let eos = self.end("eos_token", config.eos_token.as_deref(), &template.after)?;
        let bos = bos.or(around.bos.first().copied());
        let mut ends: Vec<u32> = eos.into_iter().chain(around.eos.iter().copied()).collect();
        let eos = ends.first().copied();
        ends.sort_unstable();
        ends.dedup();
        for id in bos.iter().chain(&ends) {
            if place(*id) >= self.types.len() {
                return Err(FormatError::Invalid {
                    field: "bos_token_id or eos_token_id".to_owned(),
                    value: id.to_string(),
                    allowed: "the vocabulary has no such token",
                });
            }
        }
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", bos),
            ("tokenizer.ggml.eos_token_id", eos),
        ] {
            if let Some(id) = id {
                words.add(key, Entry::Int(u64::from(id)));
            }
        }
        let ends = ends.into_iter().filter_map(|id| i32::try_from(id).ok());
        words.add(
            "hearth.tokenizer.end_token_ids",
            Entry::I32Array(ends.collect()),
        );
        let add_bos = config.add_bos_token.unwrap_or(template.before.is_some());
        let add_eos = config.add_eos_token.unwrap_or(template.after.is_some());
        words.add("tokenizer.ggml.add_bos_token", Entry::Bool(add_bos));
        words.add("tokenizer.ggml.add_eos_token", Entry::Bool(add_eos));
        Ok(())
    }

    /// The id of the token that begins or ends a text: as the configuration names it, which must be
    /// what the template puts there.
    fn end(
        &self,
        field: &str,
        named: Option<&str>,
        put: &Option<String>,
    ) -> Result<Option<u32>, FormatError> {
        let text = match (named, put.as_deref()) {
            (Some(named), Some(put)) if named != put => {
                let value = format!("{:?}, the post_processor puts {:?}", clip(named), clip(put));
                return Err(FormatError::Invalid {
                    field: field.to_owned(),
                    value,
                    allowed: "they must be one",
                });
            }
            (named, put) => named.or(put),
        };
        let Some(text) = text else {
            return Ok(None);
        };
        match self.by_text.get(text) {
            Some(id) => Ok(Some(*id)),
            None => Err(FormatError::Invalid {
                field: field.to_owned(),
                value: format!("{:?}", clip(text)),
                allowed: "the vocabulary has no such token",
            }),
        }
    }
}

/// Tells whether a token stands for one byte: `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| {
        digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

fn duplicate(what: &'static str, name: &str) -> FormatError {
    FormatError::Duplicate {
        what,
        name: clip(name),
    }
}

fn place(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}
