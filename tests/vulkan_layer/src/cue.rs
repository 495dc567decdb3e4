//! Cues: what the test wants to happen, and when.

use std::path::PathBuf;

/// Something that the driver is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Submit,
    Wait,
    Allocate(u64),
}

/// What a cue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Submit,
    Wait,
    Hang,
    Memory,
    Gone,
    Refuse,
    RefuseAfter,
}

struct Cue {
    number: u64,
    kind: Kind,
    amount: u64,
    done: bool,
}

/// The cue in force.
pub(crate) struct Cues {
    file: Option<PathBuf>,
    cue: Option<Cue>,
}

impl Default for Cues {
    fn default() -> Self {
        Self {
            file: std::env::var_os("HEARTH_TEST_LAYER_CUE").map(PathBuf::from),
            cue: None,
        }
    }
}

impl Cues {
    /// Counts `deed`; tells what is to happen with it, if anything is.
    pub(crate) fn due(&mut self, deed: Deed) -> Option<Kind> {
        self.read();
        let cue = self.cue.as_mut().filter(|cue| !cue.done)?;
        match (cue.kind, deed) {
            (Kind::Submit | Kind::Memory | Kind::Gone, Deed::Submit)
            | (Kind::Wait | Kind::Hang, Deed::Wait) => {
                cue.amount = cue.amount.saturating_sub(1);
                cue.done = cue.amount == 0;
                cue.done.then_some(cue.kind)
            }
            (Kind::Refuse, Deed::Allocate(bytes)) => (bytes > cue.amount).then_some(cue.kind),
            (Kind::RefuseAfter, Deed::Allocate(_)) => {
                let refuse = cue.amount == 0;
                cue.amount = cue.amount.saturating_sub(1);
                refuse.then_some(cue.kind)
            }
            _ => None,
        }
    }

    /// Tells whether no adapter may be seen.
    pub(crate) fn adapters_are_gone(&mut self) -> bool {
        self.read();
        let gone = |cue: &Cue| cue.kind == Kind::Gone && cue.done;
        self.cue.as_ref().is_some_and(gone)
    }

    /// Looks whether there is a new cue.
    fn read(&mut self) {
        let Some(text) = self
            .file
            .as_ref()
            .and_then(|p| std::fs::read_to_string(p).ok())
        else {
            return;
        };
        let mut words = text.split_whitespace();
        let (Some(number), Some(kind), Some(amount)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let (Ok(number), Ok(amount)) = (number.parse(), amount.parse()) else {
            return;
        };
        if self.cue.as_ref().is_some_and(|cue| cue.number == number) {
            return;
        }
        let kind = match kind {
            "submit" => Kind::Submit,
            "wait" => Kind::Wait,
            "hang" => Kind::Hang,
            "memory" => Kind::Memory,
            "gone" => Kind::Gone,
            "refuse" => Kind::Refuse,
            "refuse-after" => Kind::RefuseAfter,
            _ => {
                self.cue = None;
                return;
            }
        };
        self.cue = Some(Cue {
            number,
            kind,
            amount,
            done: false,
        });
    }
}
