//! A plain engine, plain requests to it, and a reader of its events: a channel without a bound.

use std::path::Path;
use std::sync::mpsc;

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    CacheScope, Caller, Class, Engine, EngineConfig, Event, EventSink, FinishReason,
    GenerateRequest, SamplingParams, SendOutcome,
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
        new_text: false,
        echo: false,
        deadline: None,
        caller: Caller::default(),
        class: Class::Interactive,
        cache_scope: CacheScope::App,
    }
}

/// All that a reader learns of a reply, but the times and what was cached.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub tokens: Vec<u32>,
    pub text: String,
    pub reason: FinishReason,
    pub stop_index: Option<usize>,
    pub generated: u32,
}

/// An engine with the model at `path`.
pub fn started(path: &Path, config: EngineConfig) -> Engine {
    let engine = Engine::start(config).unwrap();
    engine
        .load(&ModelFiles::at(path).unwrap(), &mut |_| true)
        .unwrap();
    engine
}

/// Submits a request.
pub fn submit(engine: &Engine, request: &GenerateRequest) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    engine
        .submit(request.clone(), Box::new(ChannelSink(sender)))
        .unwrap();
    events
}

/// Replies to requests that run together.
pub fn replies(engine: &Engine, requests: &[GenerateRequest]) -> Vec<Reply> {
    let streams: Vec<_> = requests.iter().map(|r| submit(engine, r)).collect();
    streams.into_iter().map(|events| reply(events).0).collect()
}

/// A reply, and how many tokens of its prompt were cached.
pub fn reply(events: mpsc::Receiver<Event>) -> (Reply, u32) {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    for event in events {
        match event {
            Event::Delta {
                text: more,
                tokens: new,
            } => {
                text.push_str(&more);
                tokens.extend(new.iter().map(|t| t.id));
            }
            Event::End(report) => {
                let reply = Reply {
                    tokens,
                    text,
                    reason: report.reason,
                    stop_index: report.stop_index,
                    generated: report.generated_tokens,
                };
                return (reply, report.cached_tokens);
            }
            _ => {}
        }
    }
    panic!("the stream has no end");
}
