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

/// As Llama 3's, but digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Mistral's Tekken: words end where small letters are followed by a capital.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
/// What GGUF's `default` cuts before and after GPT-2's pattern.
const PUNCTUATION: &str = r"[\p{P}$+<=>^~|]+";
const NUMBERS: &str = r"\p{N}+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const DIGIT: &str = r"\p{N}";

/// The names that [`named`] knows, for messages.
pub(super) const NAMES: &str = "smollm, starcoder, refact, command-r, codeshell, exaone, llama-bpe, \
     llama3, llama-v3, dbrx, smaug-bpe, qwen2, stablelm2, tekken, gpt-2, olmo, default";

/// A pre-tokenizer: each stage cuts the pieces of the one before.
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

/// A pattern whose matches, and the text between them, are pieces.
struct Stage {
    pattern: Regex,
    /// The pattern ends in `\s+`, of which the last character is given back.
    gives_back: bool,
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
    let patterns: &[&str] = match name {
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => &[DIGIT, GPT2],
        "llama-bpe" | "llama3" | "llama-v3" | "dbrx" | "smaug-bpe" => &[LLAMA3],
        "qwen2" | "stablelm2" => &[QWEN2],
        "tekken" => &[TEKKEN],
        "gpt-2" | "gpt2" | "olmo" => &[GPT2],
        "default" => &[PUNCTUATION, GPT2, NUMBERS, THREE_DIGITS],
        _ => return Ok(None),
    };
    let llama3 = matches!(name, "llama-bpe" | "llama3" | "llama-v3");
    let stages = patterns
        .iter()
        .map(|pattern| {
            Ok(Stage {
                pattern: Regex::new(pattern)?,
                gives_back: pattern.ends_with(r"|\s+"),
                breaks_apart: pattern.contains(r"|\s*[\r\n]+|"),
            })
        })
        .collect::<Result<Vec<_>, regex::Error>>()?;
    Ok(Some(Named {
        splitter: Splitter { stages },
        ignore_merges: llama3 || name == "tekken",
        add_bos: llama3 || name == "tekken",
    }))
}

impl Splitter {
    /// Calls `take` with each piece in order; the pieces joined are `text`. Stops at the first
    /// error.
    pub(super) fn pieces<E>(
        &self,
        text: &str,
        take: &mut dyn FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        pieces(&self.stages, text, take)
    }
}

fn pieces<E>(
    stages: &[Stage],
    text: &str,
    take: &mut dyn FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    match stages.split_first() {
        None if text.is_empty() => Ok(()),
        None => take(text),
        Some((stage, rest)) => stage.cut(text, &mut |piece| pieces(rest, piece, take)),
    }
}

impl Stage {
    fn cut<E>(&self, text: &str, take: &mut dyn FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut at = 0;
        while at < text.len() {
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
                if self.gives_back
                    && text_follows
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

    fn split(pattern: &str) -> PreTokenizerWrapper {
        let split = Split::new(
            SplitPattern::Regex(pattern.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        );
        PreTokenizerWrapper::Split(split.unwrap())
    }

    fn published(name: &str) -> PreTokenizerWrapper {
        let byte_level = |regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, regex));
        let whole = |pattern: &str| split(&pattern.replace(r"|\s+", r"|\s+(?!\S)|\s+"));
        let all = match name {
            "smollm" => vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                byte_level(true),
            ],
            "llama-bpe" => vec![whole(super::LLAMA3), byte_level(false)],
            "qwen2" => vec![whole(super::QWEN2), byte_level(false)],
            "tekken" => vec![whole(super::TEKKEN), byte_level(false)],
            "default" => vec![
                split(super::PUNCTUATION),
                split(&super::GPT2.replace(r"|\s+", r"|\s+(?!\S)")),
                split(super::NUMBERS),
                split(super::THREE_DIGITS),
                byte_level(false),
            ],
            _ => vec![byte_level(true)],
        };
        PreTokenizerWrapper::Sequence(Sequence::new(all))
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
        let pairs = ["smollm", "llama-bpe", "gpt-2", "qwen2", "tekken", "default"]
            .map(|name| (name, splitter(name), published(name)));
        let texts = "([a-cA-Z ]|[ \t\r\n\u{a0}\u{3000}]{1,5}|[0-9]{1,5}|['’](s|LL|re|ve|x|\u{17f})|[!-/]{1,3}|[é中ßÇǅʰ\u{301}ा🙂²Ⅷ٣]|\\PC|.){0,30}";
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
