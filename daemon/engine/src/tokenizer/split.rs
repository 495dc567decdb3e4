//! Pre-tokenisation: cuts text into the pieces within which BPE merges. Knows the published
//! patterns by the names that GGUF gives them; knows no vocabulary.
//!
//! The patterns in use elsewhere end in `\s+(?!\S)|\s+`, which needs look-ahead and a backtracking
//! matcher. Here the pattern ends in `\s+` and the last character of such a run is given back when
//! text follows: the same pieces, in time linear in the text. Tests hold it against the
//! `tokenizers` crate's own pre-tokenizers.

use regex::Regex;

/// GPT-2's pattern, less its look-ahead.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// Llama 3's pattern, less its look-ahead.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// A pre-tokenizer.
pub(super) struct Splitter {
    pattern: Regex,
    /// Digits become pieces of their own before the pattern is applied.
    digits_alone: bool,
    /// Runs of white space that end in a line break are taken whole.
    breaks_apart: bool,
}

/// A named pre-tokenizer and what goes with the name.
pub(super) struct Named {
    /// How text is cut.
    pub(super) splitter: Splitter,
    /// A piece that is a token as it stands is taken without merging.
    pub(super) ignore_merges: bool,
    /// BOS is put first unless the file says otherwise.
    pub(super) add_bos: bool,
}

/// The pre-tokenizer of a name; `None` if it is not known.
pub(super) fn named(name: &str) -> Result<Option<Named>, regex::Error> {
    let (pattern, digits_alone, llama3) = match name {
        "smollm" | "starcoder" | "refact" => (GPT2, true, false),
        "llama-bpe" | "llama3" | "llama-v3" => (LLAMA3, false, true),
        "gpt-2" | "gpt2" | "default" => (GPT2, false, false),
        _ => return Ok(None),
    };
    let splitter = Splitter {
        pattern: Regex::new(pattern)?,
        digits_alone,
        breaks_apart: llama3,
    };
    Ok(Some(Named {
        splitter,
        ignore_merges: llama3,
        add_bos: llama3,
    }))
}

impl Splitter {
    /// Calls `take` with each piece in order; the pieces joined are `text`. Stops at the first
    /// error.
    pub(super) fn pieces<E>(
        &self,
        text: &str,
        take: &mut impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.digits_alone {
            return self.matches(text, take);
        }
        let mut begin = 0;
        for (at, digit) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
            let end = at + digit.len_utf8();
            self.matches(text.get(begin..at).unwrap_or_default(), take)?;
            take(text.get(at..end).unwrap_or_default())?;
            begin = end;
        }
        self.matches(text.get(begin..).unwrap_or_default(), take)
    }

    fn matches<E>(
        &self,
        text: &str,
        take: &mut impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < text.len() {
            // Every character begins a match, so the pieces leave no gaps; were one left, it would
            // become a piece of its own.
            let Some(found) = self
                .pattern
                .find_at(text, at)
                .filter(|found| !found.is_empty())
            else {
                return take(text.get(at..).unwrap_or_default());
            };
            if found.start() > at {
                take(text.get(at..found.start()).unwrap_or_default())?;
            }
            let end = found.end() - self.given_back(found.as_str(), found.end() < text.len());
            take(text.get(found.start()..end).unwrap_or_default())?;
            at = end;
        }
        Ok(())
    }

    /// Bytes of the last character of a run of white space that text follows; else 0.
    fn given_back(&self, piece: &str, text_follows: bool) -> usize {
        match piece.chars().next_back() {
            Some(last)
                if text_follows
                    && last.is_whitespace()
                    && piece.len() > last.len_utf8()
                    && !(self.breaks_apart && matches!(last, '\r' | '\n')) =>
            {
                last.len_utf8()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::test_runner::{Config as ProptestConfig, TestRunner};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::sequence::Sequence;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
        SplitDelimiterBehavior,
    };

    use super::{Splitter, named};

    fn ours(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut keep = |piece: &str| {
            pieces.push(piece.to_owned());
            Ok::<(), ()>(())
        };
        splitter.pieces(text, &mut keep).unwrap();
        pieces
    }

    fn splitter(name: &str) -> Splitter {
        named(name).unwrap().unwrap().splitter
    }

    fn theirs(pre: &PreTokenizerWrapper, text: &str) -> Vec<String> {
        let mut whole = PreTokenizedString::from(text);
        pre.pre_tokenize(&mut whole).unwrap();
        whole
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (begin, end), _)| text[begin..end].to_owned())
            .filter(|piece| !piece.is_empty())
            .collect()
    }

    fn published(name: &str) -> PreTokenizerWrapper {
        let byte_level = |regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, regex));
        match name {
            "smollm" => PreTokenizerWrapper::Sequence(Sequence::new(vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                byte_level(true),
            ])),
            "llama-bpe" => {
                let pattern = super::LLAMA3.replace(r"|\s+", r"|\s+(?!\S)|\s+");
                let split = Split::new(
                    SplitPattern::Regex(pattern),
                    SplitDelimiterBehavior::Isolated,
                    false,
                );
                PreTokenizerWrapper::Sequence(Sequence::new(vec![
                    PreTokenizerWrapper::Split(split.unwrap()),
                    byte_level(false),
                ]))
            }
            _ => byte_level(true),
        }
    }

    #[test]
    fn digits_stand_alone() {
        let pieces = ours(&splitter("smollm"), "in  1984, x²=4");
        assert_eq!(
            pieces,
            ["in", "  ", "1", "9", "8", "4", ",", " x", "²", "=", "4"]
        );
    }

    #[test]
    fn unknown_names_are_not_guessed() {
        assert!(named("made-up").unwrap().is_none());
    }

    #[test]
    fn equals_the_published_pre_tokenizers() {
        // Compiled once: the patterns take longer than the texts.
        let pairs =
            ["smollm", "llama-bpe", "gpt-2"].map(|name| (name, splitter(name), published(name)));
        let texts = "([a-cA-Z ]|[ \t\r\n\u{a0}\u{3000}]{1,5}|[0-9]{1,5}|['’](s|LL|re|ve|x|\u{17f})|[!-/]{1,3}|[é中ß\u{301}ा🙂²Ⅷ٣]|\\PC|.){0,30}";
        let check = |text: String| {
            for (name, ours_is, theirs_is) in &pairs {
                assert_eq!(ours(ours_is, &text), theirs(theirs_is, &text), "{name}");
            }
            Ok(())
        };
        let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
        runner.run(&texts, check).unwrap();
    }
}
