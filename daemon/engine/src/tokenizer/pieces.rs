//! SentencePiece-style vocabularies ("llama" in GGUF): `▁` for spaces, merging by scores or by
//! listed merges, bytes for characters that are no token. Knows no control tokens: none can be
//! made here.
//!
//! Text has no words here: pieces are cut where two neighbouring characters are neighbours in no
//! token. A token that spans such a place would hold the two, so nothing can be merged across it, and
//! merging on one side takes no notice of the other: the tokens are those of the whole text.

use ahash::{AHashMap, AHashSet};

use super::TokenizerError;
use super::error::MERGES_KEY;
use super::merges::Merges;
use super::merging::{NO_TOKEN, Table, Work};
use super::vocab::{Kind, Vocab, byte_of, is_mergeable};
use crate::format::{Checkpoint, StrArray};
use crate::limits::{NEIGHBOURS_MAX, TOKEN_BYTES_MAX, TOKENIZER_PIECE_BYTES_MAX};

const SCORES_KEY: &str = "tokenizer.ggml.scores";
const UNKNOWN_KEY: &str = "tokenizer.ggml.unknown_token_id";
const ADD_SPACE_KEY: &str = "tokenizer.ggml.add_space_prefix";
/// How a space is put before text, where a file says more than GGUF's own key can.
const SPACE_PREFIX_KEY: &str = "hearth.tokenizer.space_prefix";
/// What stands for a space.
pub(super) const SPACE: char = '▁';

/// Where a space is put before text. A section is text between two added tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpacePrefix {
    /// Nowhere.
    Never,
    /// Before every section, as GGUF's vocabularies and Hugging Face's `legacy` tokenizers have it.
    Sections,
    /// Before every section that does not begin with one.
    OpenSections,
    /// Only at the beginning of the text, if it does not begin with one.
    OpenText,
}

/// A SentencePiece-style model.
pub(super) struct Pieces {
    table: Table,
    /// All pairs of neighbouring characters of tokens; `None` if there are too many.
    neighbours: Option<AHashSet<(char, char)>>,
    byte_ids: [Option<u32>; 256],
    unknown: Option<u32>,
    prefix: SpacePrefix,
}

impl Pieces {
    /// Builds the model of a file's vocabulary.
    pub(super) fn of(checkpoint: &Checkpoint, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let mergeable = || {
            vocab
                .iter()
                .filter(|(_, text, kind)| is_mergeable(text, *kind))
        };
        if let Some((_, text, _)) = mergeable().find(|(_, text, _)| text.len() > TOKEN_BYTES_MAX) {
            return Err(TokenizerError::TooLong {
                what: "a token",
                bytes: text.len(),
                limit: TOKEN_BYTES_MAX,
            });
        }
        let table = match checkpoint.get_str_array(MERGES_KEY)? {
            Some(merges) => by_merges(vocab, merges)?,
            None => by_scores(mergeable(), checkpoint, vocab)?,
        };
        let mut byte_ids = [None; 256];
        for (id, text, kind) in vocab.iter() {
            if let (Kind::Byte, Some(byte)) = (kind, byte_of(text))
                && let Some(slot @ None) = byte_ids.get_mut(usize::from(byte))
            {
                *slot = Some(id);
            }
        }
        Ok(Self {
            table,
            neighbours: neighbours(mergeable()),
            byte_ids,
            unknown: unknown(checkpoint, vocab)?,
            prefix: prefix(checkpoint)?,
        })
    }

    /// Tells whether the space at the beginning of a decoded text is one that encoding put there.
    pub(super) fn puts_space_first(&self) -> bool {
        self.prefix != SpacePrefix::Never
    }

    /// Tells whether no token holds the two as neighbours.
    fn parts(&self, before: char, c: char) -> bool {
        match &self.neighbours {
            Some(neighbours) => !neighbours.contains(&(before, c)),
            None => false,
        }
    }

    /// Tokens of a section; `first` if it begins the text.
    pub(super) fn encode(
        &self,
        section: &str,
        first: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if section.is_empty() {
            return Ok(());
        }
        let open = !section.starts_with([' ', SPACE]);
        let prefixed = match self.prefix {
            SpacePrefix::Never => false,
            SpacePrefix::Sections => true,
            SpacePrefix::OpenSections => open,
            SpacePrefix::OpenText => open && first,
        };
        let mut run = Run {
            pieces: self,
            work: Work::default(),
            bytes: 0,
            after_unknown: false,
            ids,
        };
        let mut last = None;
        let spelled = section.chars().map(|c| if c == ' ' { SPACE } else { c });
        if prefixed {
            run.work.push(SPACE);
            last = Some(SPACE);
        }
        for c in spelled {
            if last.is_some_and(|last| self.parts(last, c)) {
                run.flush();
            }
            run.push(c)?;
            last = Some(c);
        }
        run.flush();
        Ok(())
    }
}

/// Encoding of one section.
struct Run<'a> {
    pieces: &'a Pieces,
    work: Work,
    /// Length of the piece in the text, where a space is one byte.
    bytes: usize,
    /// The last token stands for characters that are none; more of them add nothing.
    after_unknown: bool,
    ids: &'a mut Vec<u32>,
}

impl Run<'_> {
    fn push(&mut self, c: char) -> Result<(), TokenizerError> {
        self.bytes += if c == SPACE { 1 } else { c.len_utf8() };
        if self.bytes > TOKENIZER_PIECE_BYTES_MAX {
            return Err(TokenizerError::TooLong {
                what: "a run of text without a break",
                bytes: self.bytes,
                limit: TOKENIZER_PIECE_BYTES_MAX,
            });
        }
        self.work.push(c);
        Ok(())
    }

    fn flush(&mut self) {
        self.bytes = 0;
        let (pieces, ids, after_unknown) = (self.pieces, &mut *self.ids, &mut self.after_unknown);
        self.work.merge(&pieces.table, |id, text| {
            if id != NO_TOKEN {
                ids.push(id);
                *after_unknown = false;
                return;
            }
            let before = ids.len();
            let of = |byte: u8| pieces.byte_ids.get(usize::from(byte)).copied().flatten();
            ids.extend(text.bytes().map_while(of));
            if ids.len() - before == text.len() {
                *after_unknown = false;
                return;
            }
            ids.truncate(before);
            if !std::mem::replace(after_unknown, true) {
                ids.extend(pieces.unknown);
            }
        });
    }
}

/// All pairs of neighbouring characters of tokens, if there are not too many.
fn neighbours<'a>(
    mergeable: impl Iterator<Item = (u32, &'a str, Kind)>,
) -> Option<AHashSet<(char, char)>> {
    let mut all = AHashSet::new();
    for (_, text, _) in mergeable {
        all.extend(text.chars().zip(text.chars().skip(1)));
        if all.len() > NEIGHBOURS_MAX {
            return None;
        }
    }
    Some(all)
}

/// The table of a file that lists its merges, as Hugging Face's do.
fn by_merges(vocab: &Vocab, merges: &StrArray) -> Result<Table, TokenizerError> {
    let merges = Merges::of(vocab, merges);
    let mut chars = AHashMap::new();
    for (text, id) in &merges.ids {
        let mut all = text.chars();
        if let (Some(only), None) = (all.next(), all.next()) {
            chars.insert(only, *id);
        }
    }
    let mut tokens = AHashMap::with_capacity(merges.len());
    merges.each(|rank, merge| {
        // A pair listed twice has its last rank, as in the crate that defines these files.
        tokens.insert((merge.left, merge.right), (rank, merge.whole));
    })?;
    Ok(Table::Pairs { tokens, chars })
}

/// The table of a file that has scores: the higher one merges first.
fn by_scores<'a>(
    mergeable: impl Iterator<Item = (u32, &'a str, Kind)>,
    checkpoint: &Checkpoint,
    vocab: &Vocab,
) -> Result<Table, TokenizerError> {
    let scores = checkpoint
        .get_f32_array(SCORES_KEY)?
        .ok_or(TokenizerError::Missing { key: SCORES_KEY })?;
    let wanted = usize::try_from(vocab.len()).unwrap_or(usize::MAX);
    if scores.len() != wanted {
        return Err(TokenizerError::Lengths {
            key: SCORES_KEY,
            found: scores.len(),
            wanted,
        });
    }
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(TokenizerError::Score { index });
    }
    let mut order: Vec<f32> = scores.clone();
    order.sort_by(|a, b| b.total_cmp(a));
    order.dedup();
    let mut tokens = AHashMap::new();
    let mut longest = 0;
    for ((id, text, _), score) in mergeable.filter_map(|token| {
        let score = scores.get(usize::try_from(token.0).ok()?)?;
        Some((token, *score))
    }) {
        // -0 and 0 are one score.
        let rank = order.partition_point(|other| *other > score);
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        longest = longest.max(text.len());
        tokens.entry(text.into()).or_insert((rank, id));
    }
    Ok(Table::Texts { tokens, longest })
}

/// The token of what is no token.
fn unknown(checkpoint: &Checkpoint, vocab: &Vocab) -> Result<Option<u32>, TokenizerError> {
    match super::ends::token_id(checkpoint, UNKNOWN_KEY, vocab)? {
        None => Ok(vocab
            .iter()
            .find(|(_, _, kind)| *kind == Kind::Unknown)
            .map(|(id, _, _)| id)),
        found => Ok(found),
    }
}

fn prefix(checkpoint: &Checkpoint) -> Result<SpacePrefix, TokenizerError> {
    match checkpoint.get_str(SPACE_PREFIX_KEY)? {
        None => match checkpoint.get_bool(ADD_SPACE_KEY)? {
            Some(false) => Ok(SpacePrefix::Never),
            _ => Ok(SpacePrefix::Sections),
        },
        Some("never") => Ok(SpacePrefix::Never),
        Some("sections") => Ok(SpacePrefix::Sections),
        Some("open-sections") => Ok(SpacePrefix::OpenSections),
        Some("open-text") => Ok(SpacePrefix::OpenText),
        Some(other) => Err(TokenizerError::Unsupported {
            key: SPACE_PREFIX_KEY,
            found: other.chars().take(80).collect(),
            supported: "never, sections, open-sections, open-text",
        }),
    }
}
