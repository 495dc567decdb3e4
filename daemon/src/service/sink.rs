//! The engine's end of a generation's channel: it never blocks, and gives up a reader that takes
//! too little.
//!
//! The engine gives up a reader that takes nothing. One that takes an event now and then would
//! hold its slot for as long as it likes: here it has to take some number of them in the same time,
//! counted from when it let the channel fill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hearth_engine::limits::READER_STALL_MAX;
use hearth_engine::{Event, EventSink, SendOutcome};
use tokio::sync::mpsc;

use crate::limits::{EVENTS_WAITING_MAX, READER_EVENTS_MIN};

/// See the module.
pub(super) struct ChannelSink {
    sender: mpsc::Sender<Event>,
    stalled: Stalled,
    patience: Patience,
    given_up: bool,
}

/// Whether the last event found no room. An `End` may find none either: then this tells why the
/// events end.
#[derive(Clone, Default)]
pub(super) struct Stalled(Arc<AtomicBool>);

impl Stalled {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A channel for a generation's events.
pub(super) fn channel() -> (ChannelSink, mpsc::Receiver<Event>, Stalled) {
    channel_of(EVENTS_WAITING_MAX)
}

fn channel_of(events: usize) -> (ChannelSink, mpsc::Receiver<Event>, Stalled) {
    let (sender, receiver) = mpsc::channel(events);
    let stalled = Stalled::default();
    let sink = ChannelSink {
        sender,
        stalled: stalled.clone(),
        patience: Patience::default(),
        given_up: false,
    };
    (sink, receiver, stalled)
}

impl EventSink for ChannelSink {
    fn try_send(&mut self, event: Event) -> SendOutcome {
        if self.given_up {
            return SendOutcome::Closed;
        }
        let outcome = match self.sender.try_send(event) {
            Ok(()) => SendOutcome::Sent,
            Err(mpsc::error::TrySendError::Full(event)) => SendOutcome::Full(event),
            Err(mpsc::error::TrySendError::Closed(_)) => SendOutcome::Closed,
        };
        let full = match outcome {
            SendOutcome::Sent => false,
            SendOutcome::Full(_) => true,
            SendOutcome::Closed => return SendOutcome::Closed,
        };
        self.stalled.0.store(full, Ordering::Relaxed);
        let room = self.sender.capacity();
        if self.patience.ends(full, room, Instant::now()) {
            self.given_up = true;
            self.stalled.0.store(true, Ordering::Relaxed);
            return SendOutcome::Closed;
        }
        outcome
    }

    fn is_closed(&self) -> bool {
        self.given_up || self.sender.is_closed()
    }
}

/// How long a reader that lets its channel fill is waited for. Pure.
#[derive(Default)]
struct Patience {
    /// When the channel filled, and the events that found room since.
    filled: Option<(Instant, usize)>,
}

impl Patience {
    /// Counts an event that found the channel full, or found room and left `room` places. True:
    /// the reader is given up.
    fn ends(&mut self, full: bool, room: usize, now: Instant) -> bool {
        let (since, mut taken) = match self.filled {
            Some(filled) => filled,
            None if full => (now, 0),
            None => return false,
        };
        taken += usize::from(!full);
        let keeps_up = taken + room >= READER_EVENTS_MIN;
        self.filled = (!keeps_up).then_some((since, taken));
        !keeps_up && now.saturating_duration_since(since) >= READER_STALL_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_sink_gives_the_event_back_and_a_closed_one_says_so() {
        let (mut sink, mut receiver, stalled) = channel_of(1);
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 1 }),
            SendOutcome::Sent
        ));
        match sink.try_send(Event::Queued { ahead: 2 }) {
            SendOutcome::Full(Event::Queued { ahead }) => assert_eq!(ahead, 2),
            _ => panic!("the event is lost"),
        }
        assert!(stalled.get());
        assert!(receiver.try_recv().is_ok());
        drop(receiver);
        assert!(sink.is_closed());
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 3 }),
            SendOutcome::Closed
        ));
    }

    #[test]
    fn a_reader_is_given_up_for_good() {
        let (mut sink, mut receiver, stalled) = channel_of(1);
        let long_ago = Instant::now().checked_sub(READER_STALL_MAX);
        sink.patience.filled = Some((long_ago.expect("the clock runs since longer"), 0));
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 1 }),
            SendOutcome::Closed
        ));
        assert!(sink.is_closed() && stalled.get());
        assert!(receiver.try_recv().is_ok());
        assert!(matches!(
            sink.try_send(Event::Queued { ahead: 2 }),
            SendOutcome::Closed
        ));
        assert!(stalled.get(), "why it ended stays known");
    }

    /// What becomes of a reader that takes an event each `pause`, of a channel of `places`.
    fn given_up_after(places: usize, pause: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let mut patience = Patience::default();
        let (mut waiting, mut taken) = (0, Duration::ZERO);
        for tick in 0..120_000 {
            let time = Duration::from_millis(tick);
            if time >= taken + pause && waiting > 0 {
                taken = time;
                waiting -= 1;
            }
            // An event each millisecond, of which the full channel takes none.
            let full = waiting == places;
            waiting += usize::from(!full);
            if patience.ends(full, places - waiting, begun + time) {
                return Some(time);
            }
        }
        None
    }

    #[test]
    fn a_reader_that_takes_too_few_is_given_up_and_one_that_takes_enough_never() {
        let few = READER_STALL_MAX / u32::try_from(READER_EVENTS_MIN).unwrap();
        for pause in [few * 2, Duration::from_secs(1), Duration::from_secs(9)] {
            let after = given_up_after(EVENTS_WAITING_MAX, pause).expect("it is too slow");
            assert!(after >= READER_STALL_MAX, "{pause:?}: {after:?}");
            assert!(after < READER_STALL_MAX + Duration::from_secs(1));
        }
        for pause in [Duration::from_millis(1), few / 2, few * 9 / 10] {
            assert_eq!(given_up_after(EVENTS_WAITING_MAX, pause), None, "{pause:?}");
        }
    }

    #[test]
    fn a_reader_that_catches_up_has_all_its_time_again() {
        let mut patience = Patience::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(!patience.ends(true, 0, at(0)));
        assert!(!patience.ends(false, 0, at(9)));
        assert!(!patience.ends(false, READER_EVENTS_MIN, at(9)));
        assert!(!patience.ends(true, 0, at(30)));
        assert!(!patience.ends(true, 0, at(39)));
        assert!(patience.ends(true, 0, at(40)));
    }
}
