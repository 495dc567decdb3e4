//! A generation's channel from the engine to its reader: bounded, and its sending end never blocks.
//!
//! The engine gives up a reader that takes nothing. One that takes an event now and then would
//! hold its slot for as long as it likes: here it has to take some number of tokens in the same time,
//! counted from when it let the channel fill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hearth_engine::limits::READER_STALL_MAX;
use hearth_engine::{Event, EventSink, SendOutcome};
use tokio::sync::mpsc;

use crate::limits::{EVENTS_WAITING_MAX, READER_TOKENS_MIN};
use crate::warmth::InFlight;

/// The engine's end.
pub(super) struct ChannelSink {
    sender: mpsc::Sender<Event>,
    known: Arc<Known>,
    patience: Patience,
    given_up: bool,
    /// As long as the engine has this end, the request is in flight.
    _in_flight: Option<InFlight>,
}

/// The reader's end.
pub(super) struct Events {
    receiver: mpsc::Receiver<Event>,
    known: Arc<Known>,
}

/// What both ends know.
#[derive(Default)]
struct Known {
    /// Tokens that the reader took; an event without any counts as one.
    taken: AtomicU64,
    /// Whether the last event found no room. An `End` may find none either: then this tells why the
    /// events end.
    stalled: AtomicBool,
}

/// A channel for the events of a generation, which is in flight until the engine is done with it.
pub(super) fn channel(in_flight: Option<InFlight>) -> (ChannelSink, Events) {
    channel_of(EVENTS_WAITING_MAX, in_flight)
}

fn channel_of(events: usize, in_flight: Option<InFlight>) -> (ChannelSink, Events) {
    let (sender, receiver) = mpsc::channel(events);
    let known = Arc::<Known>::default();
    let sink = ChannelSink {
        sender,
        known: Arc::clone(&known),
        patience: Patience::default(),
        given_up: false,
        _in_flight: in_flight,
    };
    (sink, Events { receiver, known })
}

impl EventSink for ChannelSink {
    fn try_send(&mut self, event: Event) -> SendOutcome {
        if self.given_up {
            return SendOutcome::Closed;
        }
        let (outcome, full) = match self.sender.try_send(event) {
            Ok(()) => (SendOutcome::Sent, false),
            Err(mpsc::error::TrySendError::Full(event)) => (SendOutcome::Full(event), true),
            Err(mpsc::error::TrySendError::Closed(_)) => return SendOutcome::Closed,
        };
        let taken = self.known.taken.load(Ordering::Relaxed);
        self.given_up = self.patience.ends(full, taken, Instant::now());
        let stalled = full || self.given_up;
        self.known.stalled.store(stalled, Ordering::Relaxed);
        if self.given_up {
            return SendOutcome::Closed;
        }
        outcome
    }

    fn is_closed(&self) -> bool {
        self.given_up || self.sender.is_closed()
    }
}

impl Events {
    /// The next event; `None` when there will be no more.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = ready!(self.receiver.poll_recv(cx));
        if let Some(event) = &event {
            let tokens = match event {
                Event::Echo { tokens, .. } | Event::Delta { tokens, .. } => tokens.len(),
                Event::Queued { .. } | Event::Prefill { .. } | Event::End(_) => 0,
            };
            let tokens = u64::try_from(tokens).unwrap_or(u64::MAX).max(1);
            self.known.taken.fetch_add(tokens, Ordering::Relaxed);
        }
        Poll::Ready(event)
    }

    /// Tells whether the events ended because the reader did not take them.
    pub(super) fn stalled(&self) -> bool {
        self.known.stalled.load(Ordering::Relaxed)
    }
}

/// How long a reader that lets its channel fill is waited for. Pure.
#[derive(Default)]
struct Patience {
    /// When the channel filled, and what had been taken by then.
    filled: Option<(Instant, u64)>,
}

impl Patience {
    /// Looks at the reader as an event is sent to it, or finds its channel full. True: the reader is
    /// given up.
    fn ends(&mut self, full: bool, taken: u64, now: Instant) -> bool {
        let Some((since, before)) = self.filled else {
            self.filled = full.then_some((now, taken));
            return false;
        };
        if taken - before >= READER_TOKENS_MIN {
            self.filled = full.then_some((now, taken));
            return false;
        }
        now.saturating_duration_since(since) >= READER_STALL_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;

    fn take(events: &mut Events) -> Option<Event> {
        let mut cx = Context::from_waker(Waker::noop());
        match events.poll_next(&mut cx) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_full_sink_gives_the_event_back_and_a_closed_one_says_so() {
        let (mut sink, mut events) = channel_of(1, None);
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 1 }),
            SendOutcome::Sent
        ));
        match sink.try_send(Event::Queued { ahead: 2 }) {
            SendOutcome::Full(Event::Queued { ahead }) => assert_eq!(ahead, 2),
            _ => panic!("the event is lost"),
        }
        assert!(events.stalled());
        assert!(take(&mut events).is_some());
        drop(events);
        assert!(sink.is_closed());
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 3 }),
            SendOutcome::Closed
        ));
    }

    #[test]
    fn a_reader_is_given_up_for_good() {
        let (mut sink, mut events) = channel_of(1, None);
        let long_ago = Instant::now().checked_sub(READER_STALL_MAX);
        sink.patience.filled = Some((long_ago.expect("the clock runs since longer"), 0));
        let event = || Event::Queued { ahead: 1 };
        assert!(matches!(sink.try_send(event()), SendOutcome::Closed));
        assert!(sink.is_closed() && events.stalled());
        assert!(take(&mut events).is_some(), "what was sent is still there");
        assert!(matches!(sink.try_send(event()), SendOutcome::Closed));
        assert!(events.stalled(), "why it ended stays known");
    }

    #[test]
    fn taking_counts_tokens() {
        use hearth_engine::TokenOutput;
        let (mut sink, mut events) = channel_of(4, None);
        let tokens = |n| {
            let token = |id| TokenOutput {
                id,
                logprob: None,
                top: Vec::new(),
            };
            Event::Delta {
                text: String::new(),
                tokens: (0..n).map(token).collect(),
            }
        };
        for n in [0, 1, 70] {
            assert!(matches!(sink.try_send(tokens(n)), SendOutcome::Sent));
        }
        let taken = |events: &Events| events.known.taken.load(Ordering::Relaxed);
        for wanted in [1, 2, 72, 72] {
            let _ = take(&mut events);
            assert_eq!(taken(&events), wanted);
        }
    }

    /// What becomes of a reader that takes a token each `pause`, while there is always one more.
    fn given_up_after(pause: Duration) -> Option<Duration> {
        let (begun, mut patience) = (Instant::now(), Patience::default());
        let mut taken = 0;
        for tick in 0..12_000 {
            let time = Duration::from_millis(10 * tick);
            let takes = u64::try_from(time.as_nanos() / pause.as_nanos()).unwrap();
            let full = takes == taken;
            taken = takes;
            if patience.ends(full, taken, begun + time) {
                return Some(time);
            }
        }
        None
    }

    #[test]
    fn a_reader_that_takes_too_few_is_given_up_and_one_that_takes_enough_never() {
        let few = READER_STALL_MAX / u32::try_from(READER_TOKENS_MIN).unwrap();
        for pause in [few * 2, Duration::from_secs(1), Duration::from_secs(9)] {
            let after = given_up_after(pause).expect("it is too slow");
            assert!(after >= READER_STALL_MAX, "{pause:?}: {after:?}");
            assert!(after < READER_STALL_MAX + Duration::from_secs(1));
        }
        for pause in [Duration::from_millis(1), few / 2, few * 9 / 10] {
            assert_eq!(given_up_after(pause), None, "{pause:?}");
        }
    }

    #[test]
    fn a_reader_that_catches_up_has_all_its_time_again() {
        let mut patience = Patience::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(!patience.ends(false, 0, at(0)));
        assert!(!patience.ends(true, 5, at(1)));
        assert!(!patience.ends(true, 6, at(10)));
        assert!(!patience.ends(false, 5 + READER_TOKENS_MIN, at(12)));
        assert!(!patience.ends(true, 80, at(30)));
        assert!(!patience.ends(true, 80, at(39)));
        assert!(patience.ends(true, 80, at(40)));
    }
}
