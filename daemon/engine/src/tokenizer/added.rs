//! Added tokens: texts that are found whole before text is cut into pieces, and the white space
//! that some of them take with them.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::TokenizerError;
use super::vocab::{Kind, Vocab};
use crate::format::Checkpoint;
use crate::limits::ADDED_TOKENS_BYTES_MAX;

/// Ids of the tokens that take white space before them,
const LEFT_KEY: &str = "hearth.tokenizer.lstrip_token_ids";
/// and after them.
const RIGHT_KEY: &str = "hearth.tokenizer.rstrip_token_ids";

/// Token texts that are found whole before text is cut.
pub(super) struct Added {
    matcher: AhoCorasick,
    tokens: Vec<AddedToken>,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    /// It takes the white space before it,
    pub(super) strips_before: bool,
    /// and after it.
    pub(super) strips_after: bool,
}

/// A text cut at added tokens.
pub(super) enum Cut<'a> {
    /// Text between them, perhaps empty.
    Text(&'a str),
    /// One of them. What white space it takes within the same text is left out of that already.
    Token(AddedToken),
}

/// The tokens that take white space with them.
pub(super) struct Stripping {
    left: Vec<u32>,
    right: Vec<u32>,
}

impl Stripping {
    /// Reads which tokens do.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let ids = |key| -> Result<Vec<u32>, TokenizerError> {
            let mut ids: Vec<u32> = checkpoint
                .get_i32_array(key)?
                .unwrap_or_default()
                .into_iter()
                .filter_map(|id| u32::try_from(id).ok())
                .collect();
            ids.sort_unstable();
            Ok(ids)
        };
        Ok(Self {
            left: ids(LEFT_KEY)?,
            right: ids(RIGHT_KEY)?,
        })
    }
}

impl Added {
    /// The tokens that `wanted` chooses; of several that begin at one place the longest is found.
    pub(super) fn of(
        vocab: &Vocab,
        stripping: &Stripping,
        wanted: impl Fn(&str, Kind) -> bool,
    ) -> Result<Self, TokenizerError> {
        let chosen = || {
            vocab
                .iter()
                .filter(|(_, text, kind)| !text.is_empty() && wanted(text, *kind))
        };
        let bytes = chosen().map(|(_, text, _)| text.len()).sum();
        if bytes > ADDED_TOKENS_BYTES_MAX {
            return Err(TokenizerError::TooLong {
                what: "all added tokens together",
                bytes,
                limit: ADDED_TOKENS_BYTES_MAX,
            });
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The faster kind takes a kilobyte for each byte of a token.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(chosen().map(|(_, text, _)| text))
            .map_err(|error| TokenizerError::Build(error.to_string()))?;
        let token = |id: u32| AddedToken {
            id,
            strips_before: stripping.left.binary_search(&id).is_ok(),
            strips_after: stripping.right.binary_search(&id).is_ok(),
        };
        Ok(Self {
            matcher,
            tokens: chosen().map(|(id, _, _)| token(id)).collect(),
        })
    }

    /// Cuts text at these tokens: text and tokens in turn, text first and last. Stops at the first
    /// error.
    pub(super) fn cut<E>(
        &self,
        text: &str,
        take: &mut impl FnMut(Cut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut begin = 0;
        for found in self.matcher.find_iter(text) {
            let Some(token) = self.tokens.get(found.pattern().as_usize()) else {
                continue;
            };
            let mut before = text.get(begin..found.start()).unwrap_or_default();
            if token.strips_before {
                before = before.trim_end();
            }
            take(Cut::Text(before))?;
            take(Cut::Token(*token))?;
            begin = found.end();
            if token.strips_after {
                let rest = text.get(begin..).unwrap_or_default();
                begin += rest.len() - rest.trim_start().len();
            }
        }
        take(Cut::Text(text.get(begin..).unwrap_or_default()))
    }
}
