//! A plain request to the engine, and a reader of its events: a channel without a bound.

use std::sync::mpsc;

use hearth_engine::{
    CacheScope, Caller, Class, Event, EventSink, GenerateRequest, SamplingParams, SendOutcome,
};

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

/// Greedy, to its length, without extras.
pub fn request(prompt: impl Into<Vec<u32>>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        max_tokens: Some(max_tokens),
        sampling: SamplingParams::default(),
        stop: Vec::new(),
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        echo: false,
        deadline: None,
        caller: Caller::default(),
        class: Class::Interactive,
        cache_scope: CacheScope::App,
    }
}
