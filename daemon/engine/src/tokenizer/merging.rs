//! The merge loop of SentencePiece-style BPE: of all neighbours that make a token the best pair is
//! merged first, the leftmost of equals, until none is left. Knows tokens by number only.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;

/// A character that is no token.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// No neighbour.
const NONE: u32 = u32::MAX;

/// Which pairs merge: the lowest rank first.
pub(super) enum Table {
    /// Any neighbours whose joined text is a token. Rank and token of each text, and the longest
    /// text in bytes.
    Texts {
        tokens: AHashMap<Box<str>, (u32, u32)>,
        longest: usize,
    },
    /// Only the pairs of tokens that are listed. Rank and token of each, and the token of each
    /// character.
    Pairs {
        tokens: AHashMap<(u32, u32), (u32, u32)>,
        chars: AHashMap<char, u32>,
    },
}

impl Table {
    /// The token of a character; [`NO_TOKEN`] if there is none.
    fn of_char(&self, c: char) -> u32 {
        match self {
            Self::Texts { tokens, .. } => {
                let mut bytes = [0; 4];
                tokens
                    .get(&*c.encode_utf8(&mut bytes))
                    .map_or(NO_TOKEN, |(_, id)| *id)
            }
            Self::Pairs { chars, .. } => chars.get(&c).copied().unwrap_or(NO_TOKEN),
        }
    }
}

/// One run of characters that has not been merged further, in a list that both ways can be walked.
struct Symbol {
    begin: u32,
    /// Equal to `begin` once the symbol was merged into the one before it.
    end: u32,
    before: u32,
    after: u32,
    id: u32,
}

/// A pair that may merge. Ordered by rank, then by place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    /// Where the pair ended when it was found: it has changed since if it ends elsewhere.
    end: u32,
    id: u32,
}

/// A piece of text being merged. Used again for the next piece: no allocation for each.
#[derive(Default)]
pub(super) struct Work {
    text: String,
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Work {
    /// Adds a character to the piece.
    pub(super) fn push(&mut self, c: char) {
        self.text.push(c);
    }

    /// Merges the piece, gives each token with its text in order, and forgets it. A piece's length
    /// fits 32 bits.
    pub(super) fn merge(&mut self, table: &Table, mut take: impl FnMut(u32, &str)) {
        let mut chars = self.text.chars();
        if let (Some(only), None) = (chars.next(), chars.next()) {
            take(table.of_char(only), &self.text);
            self.text.clear();
            return;
        }
        self.fill(table);
        for left in 0..index(self.symbols.len()).saturating_sub(1) {
            self.add(table, left, left + 1);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            self.join(table, &best);
        }
        for symbol in &self.symbols {
            if symbol.begin != symbol.end {
                take(symbol.id, self.text_of(symbol.begin, symbol.end));
            }
        }
        self.symbols.clear();
        self.text.clear();
    }

    /// Makes each character a symbol.
    fn fill(&mut self, table: &Table) {
        for (at, c) in self.text.char_indices() {
            let number = index(self.symbols.len());
            let begin = index(at);
            self.symbols.push(Symbol {
                begin,
                end: begin.saturating_add(index(c.len_utf8())),
                before: number.checked_sub(1).unwrap_or(NONE),
                after: number.saturating_add(1),
                id: table.of_char(c),
            });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.after = NONE;
        }
    }

    /// Merges a pair, unless one of the two has changed since it was found.
    fn join(&mut self, table: &Table, best: &Candidate) {
        let (Some(left), Some(right)) = (self.symbol(best.left), self.symbol(best.right)) else {
            return;
        };
        let whole = left.begin != left.end && right.begin != right.end;
        if !whole || left.after != best.right || right.end != best.end {
            return;
        }
        let (before, after) = (left.before, right.after);
        if let Some(left) = self.symbols.get_mut(place(best.left)) {
            left.end = best.end;
            left.after = after;
            left.id = best.id;
        }
        if let Some(right) = self.symbols.get_mut(place(best.right)) {
            right.end = right.begin;
        }
        if let Some(next) = self.symbols.get_mut(place(after)) {
            next.before = best.left;
        }
        self.add(table, before, best.left);
        self.add(table, best.left, after);
    }

    /// Notes a pair if it makes a token.
    fn add(&mut self, table: &Table, left: u32, right: u32) {
        let (Some(first), Some(second)) = (self.symbol(left), self.symbol(right)) else {
            return;
        };
        let found = match table {
            Table::Texts { tokens, longest } => {
                let text = self.text_of(first.begin, second.end);
                if text.len() > *longest {
                    return;
                }
                tokens.get(text)
            }
            Table::Pairs { tokens, .. } => tokens.get(&(first.id, second.id)),
        };
        if let Some(&(rank, id)) = found {
            let end = second.end;
            self.heap.push(Reverse(Candidate {
                rank,
                left,
                right,
                end,
                id,
            }));
        }
    }

    fn symbol(&self, number: u32) -> Option<&Symbol> {
        self.symbols.get(place(number))
    }

    fn text_of(&self, begin: u32, end: u32) -> &str {
        self.text.get(place(begin)..place(end)).unwrap_or_default()
    }
}

/// Pieces are far shorter than 4 GiB.
fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn place(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
