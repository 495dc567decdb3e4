//! Tells a template's own text from that of messages: the template is rendered once with each
//! message's text replaced by a mark, and both renderings are walked side by side. Knows no
//! template language.
//!
//! Trusted parts are cut out of the rendering with marks, which holds no user's text at all; so
//! whatever a message says, it cannot become trusted.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use serde::{Deserialize, Serialize};

use super::ChatMessage;

/// First of the 4096 private-use code points that spell a mark's random number.
const DIGITS_FROM: u32 = 0xE000;
const MARK_BEGIN: char = '\u{F8F0}';
const MARK_END: char = '\u{F8F1}';

/// A piece of a rendered prompt. Holds a user's text, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The text; not empty.
    pub text: String,
    /// True: the template's own text, in which texts of special tokens are those tokens.
    /// False: a message's text, in which they are plain text.
    pub trusted: bool,
}

/// A rendering as one trusted part.
pub(super) fn trusted(text: String) -> Vec<Part> {
    if text.is_empty() {
        Vec::new()
    } else {
        vec![Part {
            text,
            trusted: true,
        }]
    }
}

/// Stand-ins for the texts of messages: private-use characters, random in each rendering, without
/// white space or letters so that trimming or changing case leaves them alone.
pub(super) struct Marks {
    texts: Vec<String>,
}

impl Marks {
    /// Marks for `count` messages.
    pub(super) fn new(count: usize) -> Self {
        let random = RandomState::new();
        let texts = (0..count)
            .map(|index| {
                let number = random.hash_one(index);
                let digits = (0..64).step_by(12).filter_map(|shift| {
                    let digit = u32::try_from((number >> shift) & 0xFFF).ok()?;
                    char::from_u32(DIGITS_FROM + digit)
                });
                let mut text = String::from(MARK_BEGIN);
                // The index keeps marks of one rendering apart whatever the hash gives.
                text.push_str(&index.to_string());
                text.extend(digits);
                text.push(MARK_END);
                text
            })
            .collect();
        Self { texts }
    }

    /// The marks in the order of the messages.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    /// Cuts `whole`, rendered from `messages`, where `skeleton`, rendered from the marks, has
    /// marks. `None` if the two differ in more than messages printed as they are or trimmed.
    pub(super) fn split(
        &self,
        skeleton: &str,
        whole: &str,
        messages: &[ChatMessage<'_>],
    ) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        let mut skeleton = skeleton;
        let mut whole = whole;
        loop {
            let (own, mark) = self.next_mark(skeleton);
            whole = whole.strip_prefix(own)?;
            push(&mut parts, own, true);
            let Some((after, index)) = mark else {
                return whole.is_empty().then_some(parts);
            };
            skeleton = after;
            let (following, _) = self.next_mark(skeleton);
            let content = messages.get(index)?.content;
            let printed = [
                content,
                content.trim_end(),
                content.trim_start(),
                content.trim(),
            ]
            .into_iter()
            .find(|form| {
                whole
                    .strip_prefix(form)
                    .is_some_and(|rest| rest.starts_with(following))
            })?;
            push(&mut parts, printed, false);
            whole = whole.get(printed.len()..)?;
        }
    }

    /// The text before the first mark; then the text after that mark, and whose it is.
    fn next_mark<'a>(&self, skeleton: &'a str) -> (&'a str, Option<(&'a str, usize)>) {
        let mut from = 0;
        while let Some(found) = skeleton.get(from..).and_then(|rest| rest.find(MARK_BEGIN)) {
            let at = from + found;
            let (before, rest) = skeleton.split_at(at);
            for (index, mark) in self.texts.iter().enumerate() {
                if let Some(after) = rest.strip_prefix(mark.as_str()) {
                    return (before, Some((after, index)));
                }
            }
            from = at + MARK_BEGIN.len_utf8();
        }
        (skeleton, None)
    }
}

fn push(parts: &mut Vec<Part>, text: &str, trusted: bool) {
    if text.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(last) if last.trusted == trusted => last.text.push_str(text),
        _ => parts.push(Part {
            text: text.to_owned(),
            trusted,
        }),
    }
}
