//! A sequence's events on their way to its reader, who may be slow, or gone.

use std::collections::VecDeque;
use std::time::Instant;

use crate::event::{Event, EventSink, SendOutcome};
use crate::limits::READER_STALL_MAX;

/// See the module.
pub(super) struct Delivery {
    sink: Box<dyn EventSink>,
    unsent: VecDeque<Event>,
    stalled_since: Option<Instant>,
    closed: bool,
    /// The end was delivered.
    ended: bool,
}

impl Delivery {
    pub(super) fn new(sink: Box<dyn EventSink>) -> Self {
        Self {
            sink,
            unsent: VecDeque::new(),
            stalled_since: None,
            closed: false,
            ended: false,
        }
    }

    /// Sends an event after those that wait.
    pub(super) fn send(&mut self, event: Event) {
        if !self.closed {
            self.unsent.push_back(event);
            self.flush();
        }
    }

    /// Delivers what waits, as far as there is room.
    pub(super) fn flush(&mut self) {
        while let Some(event) = self.unsent.pop_front() {
            let is_end = matches!(event, Event::End(_));
            match self.sink.try_send(event) {
                SendOutcome::Sent => {
                    self.stalled_since = None;
                    self.ended |= is_end;
                }
                SendOutcome::Full(event) => {
                    self.unsent.push_front(event);
                    self.stalled_since.get_or_insert_with(Instant::now);
                    return;
                }
                SendOutcome::Closed => {
                    self.unsent.clear();
                    self.closed = true;
                }
            }
        }
    }

    /// Forgets what waits.
    pub(super) fn drop_backlog(&mut self) {
        self.unsent.clear();
    }

    /// Tells whether events wait for the reader.
    pub(super) fn is_stalled(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Tells whether the reader has taken nothing for longer than a reader may.
    pub(super) fn stalls_too_long(&self, now: Instant) -> bool {
        self.stalled_since
            .is_some_and(|since| now.saturating_duration_since(since) >= READER_STALL_MAX)
    }

    /// Tells whether nobody listens any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed || self.sink.is_closed()
    }

    /// Tells whether the end was delivered.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }
}
