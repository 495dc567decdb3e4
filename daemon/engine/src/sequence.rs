//! One request's life: where its prefill and decode stand, its text, and the events its reader gets.
//!
//! It knows neither the GPU nor other sequences.

mod drafts;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::LoadedModel;
use crate::event::{EndReport, Event, EventSink, FinishReason, SendOutcome, TokenOutput};
use crate::limits::READER_STALL_MAX;
use crate::request::GenerateRequest;
use crate::scheduler::{Lease, SequenceId};
use crate::speculation::{Lookup, StepCosts};
use crate::tokenizer::TextStream;

/// The next step of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Prompt tokens `from .. to`; `last` if the prompt ends there.
    Prefill {
        /// First position.
        from: u32,
        /// One past the last position.
        to: u32,
        /// The prompt ends here.
        last: bool,
    },
    /// One token at `position`.
    Decode {
        /// Its position.
        position: u32,
        /// The token, where it is known; else it is the one that the slot sampled last.
        token: Option<u32>,
    },
    /// The last token at `position`, and a draft of the tokens after it.
    Verify {
        /// Position of the last token.
        position: u32,
        /// Tokens of the draft.
        drafted: u32,
    },
}

/// See the module.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) request: GenerateRequest,
    pub(crate) lease: Option<Lease>,
    model: Arc<LoadedModel>,
    sink: Box<dyn EventSink>,
    /// Prompt tokens submitted to the GPU.
    prefilled: u32,
    /// Tokens whose sampling was submitted to the GPU; of a verify step, the one that is certain.
    sampling: u32,
    /// Positions whose KV was submitted, those of drafts included.
    written: u32,
    /// Tokens of the draft in the verify step under way.
    verifying: Option<u32>,
    /// `None`: its tokens are not drafted.
    lookup: Option<Lookup>,
    /// Tokens accepted.
    generated: u32,
    /// Most tokens it may generate.
    generated_max: u32,
    text: TextStream,
    echo_text: TextStream,
    unsent: VecDeque<Event>,
    stalled_since: Option<Instant>,
    queued_at: Instant,
    started_at: Option<Instant>,
    decoding_since: Option<Instant>,
    ended: bool,
    end_delivered: bool,
}

impl Sequence {
    /// A sequence that waits for its lease. The request has been checked against the model.
    pub(crate) fn new(
        id: SequenceId,
        request: GenerateRequest,
        model: Arc<LoadedModel>,
        sink: Box<dyn EventSink>,
    ) -> Self {
        let generated_max = generated_max(&request, model.context_len);
        Self {
            id,
            lease: None,
            sink,
            prefilled: 0,
            sampling: 0,
            written: 0,
            verifying: None,
            lookup: None,
            generated: 0,
            generated_max,
            text: TextStream::new(&request.stop),
            echo_text: TextStream::new(&[]),
            unsent: VecDeque::new(),
            stalled_since: None,
            queued_at: Instant::now(),
            started_at: None,
            decoding_since: None,
            ended: false,
            end_delivered: false,
            model,
            request,
        }
    }

    /// Prompt tokens.
    pub(crate) fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.request.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Positions it can ever fill.
    pub(crate) fn positions_max(&self) -> u32 {
        (self.prompt_tokens() + self.generated_max).min(self.model.context_len)
    }

    /// Positions whose KV was submitted so far, those of drafts that failed included.
    pub(crate) fn positions(&self) -> u32 {
        self.written
    }

    /// Takes its slot and blocks.
    pub(crate) fn start(&mut self, lease: Lease) {
        self.lease = Some(lease);
        self.started_at = Some(Instant::now());
    }

    /// Tells whether it wants a token after the prompt.
    pub(crate) fn generates(&self) -> bool {
        self.generated_max > 0
    }

    /// The next step to submit, or `None` if there is none now. A verify step's draft
    /// has at most `drafted_max` tokens.
    pub(crate) fn next_step(
        &self,
        chunk: u32,
        drafted_max: u32,
        costs: &StepCosts,
    ) -> Option<NextStep> {
        let waits = self.ended || self.lease.is_none() || self.verifying.is_some();
        if waits || !self.unsent.is_empty() {
            return None;
        }
        let prompt = self.prompt_tokens();
        if self.prefilled < prompt {
            let to = prompt.min(self.prefilled + chunk);
            return Some(NextStep::Prefill {
                from: self.prefilled,
                to,
                last: to == prompt,
            });
        }
        if self.sampling == 0 || self.sampling >= self.generated_max {
            return None;
        }
        let position = prompt + self.sampling - 1;
        let under_way = self.sampling - self.generated;
        let Some(lookup) = &self.lookup else {
            return Some(NextStep::Decode {
                position,
                token: None,
            });
        };
        // The step makes one token more than its draft has.
        let most = drafted_max.min(self.generated_max - self.sampling - 1);
        match lookup.plan(under_way, most, costs) {
            0 => Some(NextStep::Decode {
                position,
                // After a verify step the slot's last token may be one that a failed draft led to.
                token: lookup.last().filter(|_| under_way == 0),
            }),
            drafted if under_way == 0 => Some(NextStep::Verify { position, drafted }),
            // A draft follows a known token: the steps under way come first.
            _ => None,
        }
    }

    /// Notes that `step` was submitted.
    pub(crate) fn submitted(&mut self, step: NextStep) {
        match step {
            NextStep::Prefill { to, last, .. } => {
                self.prefilled = to;
                self.written = to;
                if last && self.generates() {
                    self.sampling = 1;
                }
            }
            NextStep::Decode { position, .. } => {
                self.sampling += 1;
                self.written = self.written.max(position + 1);
            }
            NextStep::Verify { position, drafted } => {
                self.sampling += 1;
                self.written = self.written.max(position + 1 + drafted);
                self.verifying = Some(drafted);
            }
        }
    }

    /// Prompt tokens `.. done` are in the KV cache.
    pub(crate) fn prefill_done(&mut self, done: u32) {
        let total = self.prompt_tokens();
        self.send(Event::Prefill { done, total });
        if done == total {
            self.decoding_since = Some(Instant::now());
            if !self.generates() {
                self.end(FinishReason::Length, None);
            }
        }
    }

    /// Reports prompt tokens.
    pub(crate) fn echo(&mut self, tokens: Vec<TokenOutput>, last: bool) {
        let mut text = String::new();
        for token in &tokens {
            if let Some(bytes) = self.model.tokenizer.token_bytes(token.id) {
                text.push_str(&self.echo_text.push(bytes).text);
            }
        }
        if last {
            text.push_str(&self.echo_text.finish());
        }
        self.send(Event::Echo { text, tokens });
    }

    /// Accepts the next token.
    fn accept(&mut self, token: TokenOutput) {
        if self.ended {
            return;
        }
        let tokenizer = &self.model.tokenizer;
        let eos = !self.request.ignore_eos && tokenizer.end_tokens().contains(&token.id);
        if eos || self.request.stop_tokens.contains(&token.id) {
            self.end(FinishReason::Eos, None);
            return;
        }
        self.generated += 1;
        if let Some(lookup) = &mut self.lookup {
            lookup.push(token.id);
        }
        // A control token has no text of its own.
        let bytes = match tokenizer.token_bytes(token.id) {
            Some(bytes) if !tokenizer.is_special(token.id) => bytes,
            _ => &[],
        };
        let pushed = self.text.push(bytes);
        if !pushed.text.is_empty() || self.request.logprobs.is_some() || pushed.stop.is_none() {
            self.send(Event::Delta {
                text: pushed.text,
                tokens: vec![token],
            });
        }
        if let Some(stop) = pushed.stop {
            self.end(FinishReason::Stop, Some(stop));
        } else if self.generated >= self.generated_max {
            let asked = self
                .request
                .max_tokens
                .is_some_and(|max| self.generated >= max);
            self.end(
                if asked {
                    FinishReason::Length
                } else {
                    FinishReason::ContextFull
                },
                None,
            );
        }
    }

    /// Ends it: delivers the text held back, then the account.
    pub(crate) fn end(&mut self, reason: FinishReason, stop_index: Option<usize>) {
        if self.ended {
            return;
        }
        self.ended = true;
        let rest = if stop_index.is_none() {
            self.text.finish()
        } else {
            String::new()
        };
        if !rest.is_empty() {
            self.send(Event::Delta {
                text: rest,
                tokens: Vec::new(),
            });
        }
        let now = Instant::now();
        let started = self.started_at.unwrap_or(now);
        let decoding = self.decoding_since.unwrap_or(now);
        self.send(Event::End(EndReport {
            reason,
            stop_index,
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: 0,
            generated_tokens: self.generated,
            context_len: self.model.context_len,
            queue_time: started - self.queued_at,
            prefill_time: decoding - started,
            decode_time: now - decoding,
        }));
    }

    /// It waits behind `ahead` others.
    pub(crate) fn queued(&mut self, ahead: u32) {
        self.send(Event::Queued { ahead });
    }

    fn send(&mut self, event: Event) {
        self.unsent.push_back(event);
        self.flush();
    }

    /// Delivers what the reader had no room for. Returns true if nothing is left.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(event) = self.unsent.pop_front() {
            let is_end = matches!(event, Event::End(_));
            match self.sink.try_send(event) {
                SendOutcome::Sent => {
                    self.stalled_since = None;
                    self.end_delivered |= is_end;
                }
                SendOutcome::Full(event) => {
                    self.unsent.push_front(event);
                    self.stalled_since.get_or_insert_with(Instant::now);
                    return false;
                }
                SendOutcome::Closed => {
                    self.unsent.clear();
                    self.ended = true;
                    return true;
                }
            }
        }
        true
    }

    /// Tells whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sink.is_closed()
    }

    /// Tells whether its reader went away, or was given up, before the end was delivered.
    pub(crate) fn is_cancelled(&self) -> bool {
        !self.end_delivered
    }

    /// Tells whether it is over and all its events are delivered.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.unsent.is_empty()
    }

    /// Tells whether its reader has to take events before it can go on.
    pub(crate) fn is_stalled(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Ends it if its deadline passed, and gives up a reader that stalls too long.
    pub(crate) fn check_time(&mut self, now: Instant) {
        if self
            .request
            .deadline
            .is_some_and(|deadline| now >= deadline)
        {
            self.end(FinishReason::Deadline, None);
        }
        if self
            .stalled_since
            .is_some_and(|since| now - since >= READER_STALL_MAX)
        {
            // One last try in place of the backlog: the reader may yet learn why.
            self.unsent.clear();
            self.ended = false;
            self.end(FinishReason::Stalled, None);
            self.unsent.clear();
        }
    }
}

/// Tokens that `request` may generate within the context.
pub(crate) fn generated_max(request: &GenerateRequest, context_len: u32) -> u32 {
    let prompt = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
    request
        .max_tokens
        .unwrap_or(u32::MAX)
        .min(context_len.saturating_sub(prompt))
}
