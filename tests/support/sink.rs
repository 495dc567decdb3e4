//! A reader of engine events: a channel without a bound.

use std::sync::mpsc;

use hearth_engine::{Event, EventSink, SendOutcome};

/// Sends every event to its channel.
pub struct ChannelSink(pub mpsc::Sender<Event>);

impl EventSink for ChannelSink {
    fn try_send(&mut self, event: Event) -> SendOutcome {
        match self.0.send(event) {
            Ok(()) => SendOutcome::Sent,
            Err(_) => SendOutcome::Closed,
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}
