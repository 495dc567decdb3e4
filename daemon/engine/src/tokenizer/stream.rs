//! Bytes of tokens to text that is safe to deliver, one push at a time: whole characters only, and
//! nothing that may yet become a stop text. Knows no tokens and no model.

/// What a push brought.
#[derive(Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Text that may be delivered now.
    pub text: String,
    /// Which stop text appeared; the text ends before it and nothing may follow.
    pub stop: Option<usize>,
}

/// Turns a stream of bytes into text and looks for stop texts. Holds a user's text: no `Debug`.
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    /// Valid text not yet delivered, as it may begin a stop text.
    held: String,
    /// The incomplete character at the end, at most 3 bytes.
    partial: Vec<u8>,
    stopped: bool,
    /// A space is left out if it is the first that comes.
    drops_space: bool,
}

impl TextStream {
    /// A stream that ends at the first of `stops` to appear. Empty stop texts are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().map(|stop| stop.as_bytes().to_vec()).collect(),
            held: String::new(),
            partial: Vec::new(),
            stopped: false,
            drops_space: false,
        }
    }

    /// The same, without a space at the beginning: some vocabularies put one before a text that has
    /// none.
    #[must_use]
    pub fn without_first_space(self) -> Self {
        Self {
            drops_space: true,
            ..self
        }
    }

    /// Adds bytes and gives the text that became certain.
    ///
    /// Of several stop texts the one that is complete first counts, then the longest.
    /// After a stop nothing more is delivered.
    pub fn push(&mut self, bytes: &[u8]) -> Pushed {
        if self.stopped {
            return Pushed {
                text: String::new(),
                stop: None,
            };
        }
        self.decode(bytes);
        self.release()
    }

    /// Ends the stream: held text is delivered, an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        self.stopped = true;
        if !self.partial.is_empty() {
            self.partial.clear();
            self.held.push('\u{FFFD}');
            if let Some((at, _)) = self.first_stop(self.held.as_bytes()) {
                self.held.truncate(at);
            }
        }
        std::mem::take(&mut self.held)
    }

    /// Appends whole characters to `held`, invalid sequences as U+FFFD, and keeps the rest.
    fn decode(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let dropped = std::mem::take(&mut self.drops_space);
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if dropped => rest,
            _ => bytes,
        };
        self.partial.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.partial);
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(length) => {
                            self.held.push('\u{FFFD}');
                            rest = after.get(length..).unwrap_or_default();
                        }
                        None => {
                            self.partial = after.to_vec();
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Takes from `held` what no stop text can claim any more.
    fn release(&mut self) -> Pushed {
        let held = self.held.as_bytes();
        if let Some((at, stop)) = self.first_stop(held) {
            self.stopped = true;
            self.held.truncate(at);
            return Pushed {
                text: std::mem::take(&mut self.held),
                stop: Some(stop),
            };
        }
        // The earliest place from which the rest is a proper prefix of a stop text.
        let keep_from = self.first_possible_stop(held);
        let kept = self.held.split_off(keep_from);
        Pushed {
            text: std::mem::replace(&mut self.held, kept),
            stop: None,
        }
    }
}

impl TextStream {
    /// The stop text that is complete first: where it begins and which it is. Of two that end at
    /// one place the longer counts. The first end decides so that the cut does not depend on how
    /// the bytes were split into pushes.
    fn first_stop(&self, held: &[u8]) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize, usize)> = None;
        for (index, stop) in self.stops.iter().enumerate() {
            if stop.is_empty() {
                continue;
            }
            let Some(begin) = find(held, stop) else {
                continue;
            };
            let end = begin + stop.len();
            if best.is_none_or(|(best_end, best_begin, _)| (end, begin) < (best_end, best_begin)) {
                best = Some((end, begin, index));
            }
        }
        best.map(|(_, begin, index)| (begin, index))
    }

    /// Where the longest end of `held` that begins a stop text starts; `held.len()` if none does.
    fn first_possible_stop(&self, held: &[u8]) -> usize {
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let from = held.len().saturating_sub(longest.saturating_sub(1));
        (from..held.len())
            .find(|&at| {
                let rest = held.get(at..).unwrap_or_default();
                self.stops.iter().any(|stop| stop.starts_with(rest))
            })
            .unwrap_or(held.len())
    }
}

/// First place of `needle` in `hay`.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TextStream;

    /// The plain meaning: decode all, then cut at the stop that is complete first.
    fn reference(bytes: &[u8], stops: &[String]) -> (String, Option<usize>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        for end in 0..=text.len() {
            let mut hits: Vec<(usize, usize)> = Vec::new();
            for (index, stop) in stops.iter().enumerate() {
                if !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                    hits.push((end - stop.len(), index));
                }
            }
            if let Some(&(begin, index)) = hits.iter().min() {
                return (text[..begin].to_owned(), Some(index));
            }
        }
        (text, None)
    }

    fn run(pieces: &[&[u8]], stops: &[String]) -> (String, Option<usize>) {
        let mut stream = TextStream::new(stops);
        let mut text = String::new();
        for piece in pieces {
            let pushed = stream.push(piece);
            text.push_str(&pushed.text);
            if pushed.stop.is_some() {
                assert_eq!(stream.push(b"more").text, "");
                assert_eq!(stream.finish(), "");
                return (text, pushed.stop);
            }
        }
        text.push_str(&stream.finish());
        (text, None)
    }

    fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        places
            .windows(2)
            .map(|pair| &bytes[pair[0]..pair[1]])
            .collect()
    }

    #[test]
    fn holds_back_the_beginning_of_a_stop_text() {
        let mut stream = TextStream::new(&["END".to_owned()]);
        assert_eq!(stream.push(b"the E").text, "the ");
        assert_eq!(stream.push(b"N").text, "");
        assert_eq!(stream.push(b"x").text, "ENx");
        let last = stream.push(b" END and more");
        assert_eq!((last.text.as_str(), last.stop), (" ", Some(0)));
    }

    #[test]
    fn holds_back_half_a_character() {
        let mut stream = TextStream::new(&[]);
        let snowman = "☃".as_bytes();
        assert_eq!(stream.push(&snowman[..2]).text, "");
        assert_eq!(stream.push(&snowman[2..]).text, "☃");
        assert_eq!(stream.push(&snowman[..1]).text, "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn one_space_at_the_beginning_is_left_out_where_asked() {
        for (pieces, wanted) in [
            (vec![" a", " b"], "a b"),
            (vec!["", " ", " a"], " a"),
            (vec!["a", " b"], "a b"),
            (vec![" "], ""),
        ] {
            let mut stream = TextStream::new(&[" x".to_owned()]).without_first_space();
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&stream.push(piece.as_bytes()).text);
            }
            text.push_str(&stream.finish());
            assert_eq!(text, wanted, "{pieces:?}");
        }
    }

    #[test]
    fn empty_stop_texts_do_nothing() {
        assert_eq!(run(&[b"abc"], &[String::new()]), ("abc".to_owned(), None));
    }

    #[test]
    fn the_stop_that_is_complete_first_counts() {
        let stops = ["abcd".to_owned(), "bc".to_owned(), "c".to_owned()];
        assert_eq!(run(&[b"xab", b"cd"], &stops), ("xa".to_owned(), Some(1)));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_text_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(run(&split(&bytes, &cuts), &[]), (expected, None));
        }

        #[test]
        fn any_split_cuts_at_the_same_stop(
            bytes in prop::collection::vec(prop::sample::select(
                vec![b'a', b'b', b'c', 0xC3, 0xA9, 0xE2, 0x98, 0x83, 0xFF]), 0..60),
            stops in prop::collection::vec("[abcé☃\u{FFFD}]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let (text, stop) = reference(&bytes, &stops);
            let (got, got_stop) = run(&split(&bytes, &cuts), &stops);
            prop_assert_eq!(got, text);
            // `finish` has no stop to report: one made of a broken last character only cuts.
            if got_stop.is_some() {
                prop_assert_eq!(got_stop, stop);
            }
        }
    }
}
