//! The merges that a file lists: each is two tokens that make a third.

use ahash::{AHashMap, AHashSet};

use super::TokenizerError;
use super::vocab::{Vocab, is_mergeable};
use crate::format::StrArray;
use crate::limits::MERGES_MAX;

/// A file's list, and the tokens that may be merged.
pub(super) struct Merges<'a> {
    list: &'a StrArray,
    /// Tokens that text can be merged into; of equal texts the first.
    pub(super) ids: AHashMap<&'a str, u32>,
    /// Tokens that it cannot: control tokens, and those that look like them.
    guarded: AHashSet<&'a str>,
}

/// One merge.
pub(super) struct Merge<'a> {
    pub(super) texts: (&'a str, &'a str),
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) whole: u32,
}

impl<'a> Merges<'a> {
    /// The list of a vocabulary.
    pub(super) fn of(vocab: &'a Vocab, list: &'a StrArray) -> Self {
        let mut ids = AHashMap::new();
        let mut guarded = AHashSet::new();
        for (id, text, kind) in vocab.iter() {
            if is_mergeable(text, kind) {
                ids.entry(text).or_insert(id);
            } else {
                guarded.insert(text);
            }
        }
        Self { list, ids, guarded }
    }

    /// How many there may be.
    pub(super) fn len(&self) -> usize {
        self.list.len().min(MERGES_MAX)
    }

    /// Calls `take` with the rank and tokens of each merge. Some files list merges that make or join
    /// control tokens; they are left out, so that no text becomes one.
    pub(super) fn each(&self, mut take: impl FnMut(u32, &Merge<'a>)) -> Result<(), TokenizerError> {
        let mut joined = String::new();
        for (index, merge) in self.list.iter().enumerate() {
            let bad = |problem| TokenizerError::Merge { index, problem };
            if index >= MERGES_MAX {
                return Err(bad("is more than there may be"));
            }
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| bad("has no space between two tokens"))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let is_guarded =
                |text: &str| self.guarded.contains(text) && !self.ids.contains_key(text);
            if [left, right, &joined].into_iter().any(is_guarded) {
                continue;
            }
            let of = |text: &str| self.ids.get(text).copied();
            let (Some(first), Some(second)) = (of(left), of(right)) else {
                return Err(bad("joins something that is not a token"));
            };
            let whole = of(&joined).ok_or_else(|| bad("makes something that is not a token"))?;
            let merge = Merge {
                texts: (left, right),
                left: first,
                right: second,
                whole,
            };
            take(u32::try_from(index).unwrap_or(u32::MAX), &merge);
        }
        Ok(())
    }
}
