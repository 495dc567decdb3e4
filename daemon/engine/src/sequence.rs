//! One request's life: where its prefill and decode stand, its text, and the events its reader gets.
//!
//! It knows neither the GPU nor other sequences.

mod delivery;
mod drafts;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::delivery::Delivery;
use self::table::Table;
use crate::engine::LoadedModel;
use crate::event::{EndReport, Event, EventSink, FinishReason, TokenOutput};
use crate::kv_cache::KvCache;
use crate::model::plan::DECODE_COLUMNS_MAX;
use crate::queue::QueuePlace;
use crate::request::GenerateRequest;
use crate::scheduler::Work;
use crate::speculation::{Lookup, StepCosts};
use crate::tokenizer::TextStream;

/// Tokens that a sequence should have room for before it starts or goes on.
const ROOM_AHEAD: u32 = 64;

/// Marks a token of the prompt in a slot's history.
const HISTORY_IN_PROMPT: u32 = 1 << 31;

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
    /// Generated tokens at positions `from .. to`, whose KV was dropped: as they were computed
    /// first, so that what follows stays the same to the last bit.
    Replay {
        /// First position.
        from: u32,
        /// One past the last position.
        to: u32,
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

impl NextStep {
    /// One past the last position that it writes KV to.
    fn end(self) -> u32 {
        match self {
            Self::Prefill { to, .. } | Self::Replay { to, .. } => to,
            Self::Decode { position, .. } => position + 1,
            Self::Verify { position, drafted } => position + 1 + drafted,
        }
    }

    /// Columns it has.
    pub(crate) fn columns(self) -> u32 {
        match self {
            Self::Prefill { from, to, .. } | Self::Replay { from, to } => to - from,
            Self::Decode { .. } => 1,
            Self::Verify { drafted, .. } => drafted + 1,
        }
    }
}

/// See the module.
pub(crate) struct Sequence {
    pub(crate) request: GenerateRequest,
    /// Its slot, while it runs.
    pub(crate) slot: Option<u32>,
    pub(crate) table: Table,
    /// Steps submitted whose results are not taken.
    pub(crate) steps_under_way: u32,
    /// Prompt tokens whose KV it found.
    pub(crate) cached_tokens: u32,
    /// Its share of the GPU's time.
    pub(crate) gpu_time: Duration,
    /// Energy that the meter counted for it, in microjoules.
    pub(crate) energy_settled_uj: u64,
    /// That, and what is still to be counted; `None`: there is no meter.
    pub(crate) energy_uj: Option<u64>,
    model: Arc<LoadedModel>,
    delivery: Delivery,
    /// Its place in the queue, until it runs first.
    place: Option<QueuePlace>,
    /// The prompt, and after it the tokens accepted.
    tokens: Vec<u32>,
    prompt_tokens: u32,
    /// Positions whose KV is there, or will be when the steps under way are done.
    computed: u32,
    /// Tokens whose sampling was submitted to the GPU; of a verify step, the one that is certain.
    sampling: u32,
    /// Tokens of the draft in the verify step under way.
    verifying: Option<u32>,
    /// `None`: its tokens are not drafted.
    lookup: Option<Lookup>,
    /// Tokens accepted.
    generated: u32,
    /// Most tokens it may generate.
    generated_max: u32,
    /// Longest it may get, in tokens: what was allowed when it was submitted.
    context_len: u32,
    text: TextStream,
    echo_text: TextStream,
    /// Prompt tokens that were echoed.
    echoed: usize,
    /// Prompt tokens that its reader was told of.
    told: u32,
    /// Tokens or events are on their way from one place to the other: a panic would lose some.
    changing: bool,
    queued_at: Instant,
    started_at: Option<Instant>,
    decoding_since: Option<Instant>,
    ended: bool,
}

impl Sequence {
    /// A sequence that waits for its slot. The request has been checked against the model and
    /// `context_len`.
    pub(crate) fn new(
        mut request: GenerateRequest,
        model: Arc<LoadedModel>,
        context_len: u32,
        sink: Box<dyn EventSink>,
        place: QueuePlace,
    ) -> Self {
        let generated_max = generated_max(&request, context_len);
        let tokens = std::mem::take(&mut request.prompt);
        let text = model
            .tokenizer
            .reply_stream(&request.stop, &tokens, request.new_text);
        let echo_text = model.tokenizer.text_stream(&[]);
        Self {
            slot: None,
            table: Table::default(),
            steps_under_way: 0,
            cached_tokens: 0,
            gpu_time: Duration::ZERO,
            energy_settled_uj: 0,
            energy_uj: None,
            delivery: Delivery::new(sink),
            place: Some(place),
            prompt_tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            tokens,
            computed: 0,
            sampling: 0,
            verifying: None,
            lookup: None,
            generated: 0,
            generated_max,
            context_len,
            text,
            echo_text,
            echoed: 0,
            told: 0,
            changing: false,
            queued_at: Instant::now(),
            started_at: None,
            decoding_since: None,
            ended: false,
            model,
            request,
        }
    }

    /// Prompt tokens.
    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Tokens accepted.
    pub(crate) fn generated(&self) -> u32 {
        self.generated
    }

    /// The prompt, and after it the tokens accepted.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions it can ever fill.
    fn positions_max(&self) -> u32 {
        (self.prompt_tokens + self.generated_max).min(self.context_len)
    }

    /// Blocks it should have before it starts or goes on: room for what it has and for some tokens
    /// more.
    pub(crate) fn blocks_wanted(&self) -> u32 {
        let known = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let ahead = known.saturating_add(ROOM_AHEAD);
        let wanted = KvCache::blocks_for(ahead.min(self.positions_max()));
        self.blocks_at_once()
            .map_or(wanted, |most| wanted.min(most))
    }

    /// Blocks that `step` needs and that it does not have.
    pub(crate) fn blocks_missing(&self, step: NextStep) -> u32 {
        let held = u32::try_from(self.table.blocks.len()).unwrap_or(u32::MAX);
        KvCache::blocks_for(step.end()).saturating_sub(held)
    }

    /// The tokens at the positions whose KV is there, for certain.
    pub(crate) fn computed_tokens(&self) -> &[u32] {
        let count = (self.computed as usize).min(self.tokens.len());
        &self.tokens[..count]
    }

    /// The KV of its first `positions` positions is there.
    pub(crate) fn found(&mut self, positions: u32) {
        self.computed = positions;
        if self.started_at.is_none() {
            self.cached_tokens = positions.min(self.prompt_tokens);
        }
    }

    /// Its KV is gone. Returns the tokens that have to be computed again.
    pub(crate) fn lost_kv(&mut self) -> u32 {
        std::mem::take(&mut self.computed)
    }

    /// The device is gone, and with it its slot, its KV and the steps under way: what those sampled is not
    /// known and is sampled again. Returns the tokens that have to be computed again.
    pub(crate) fn lost_device(&mut self) -> u32 {
        self.slot = None;
        self.table = Table::default();
        self.steps_under_way = 0;
        self.verifying = None;
        self.sampling = self.generated;
        self.lost_kv()
    }

    /// Tells whether its tokens and events are whole, even if a panic came in between.
    pub(crate) fn is_sound(&self) -> bool {
        let tokens = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        !self.changing && tokens == self.prompt_tokens + self.generated
    }

    /// What it has seen of each token (kernels/embed.wgsl), for penalties.
    pub(crate) fn history(&self, vocab_size: u32) -> Vec<u32> {
        let mut history = vec![0; vocab_size as usize];
        let (prompt, generated) = self.tokens.split_at(self.prompt_tokens as usize);
        for &token in prompt {
            history[token as usize] |= HISTORY_IN_PROMPT;
        }
        for &token in generated {
            history[token as usize] += 1;
        }
        history
    }

    /// Takes its slot.
    pub(crate) fn run(&mut self, slot: u32) {
        self.slot = Some(slot);
        self.place = None;
        self.started_at.get_or_insert_with(Instant::now);
    }

    /// Tells whether it ever ran.
    pub(crate) fn has_started(&self) -> bool {
        self.started_at.is_some()
    }

    /// Tells whether it wants a token after the prompt.
    pub(crate) fn generates(&self) -> bool {
        self.generated_max > 0
    }

    /// What it can do next, if it has a slot.
    pub(crate) fn work(&self) -> Work {
        let waits = self.ended || self.slot.is_none() || self.verifying.is_some();
        if waits || self.delivery.is_stalled() {
            return Work::Nothing;
        }
        if self.computed < self.prompt_tokens || self.replays() {
            return Work::Prefill;
        }
        if self.sampling == 0 || self.sampling >= self.generated_max {
            return Work::Nothing;
        }
        Work::Decode
    }

    /// Tells whether tokens it made have to be computed again.
    fn replays(&self) -> bool {
        self.computed + 1 < self.prompt_tokens + self.generated
    }

    /// Tells whether KV that it had is being computed again, prompt or reply.
    pub(crate) fn computes_again(&self) -> bool {
        self.generated > 0 && self.replays()
    }

    /// Its next piece of `Work::Prefill`, of at most `chunk` prompt tokens.
    pub(crate) fn next_prefill(&self, chunk: u32) -> NextStep {
        let from = self.computed;
        if from < self.prompt_tokens {
            let to = self.prompt_tokens.min(from + chunk.max(1));
            return NextStep::Prefill {
                from,
                to,
                last: to == self.prompt_tokens,
            };
        }
        let end = self.prompt_tokens + self.generated - 1;
        NextStep::Replay {
            from,
            to: end.min(from + DECODE_COLUMNS_MAX),
        }
    }

    /// Its next token, or `None` if it must wait for the steps under way. A verify step's draft has at
    /// most `drafted_max` tokens.
    pub(crate) fn next_decode(&self, drafted_max: u32, costs: &StepCosts) -> Option<NextStep> {
        let position = self.prompt_tokens + self.sampling - 1;
        let under_way = self.sampling - self.generated;
        // The slot's last token may be one that a failed draft led to, or another sequence's.
        let known = self.tokens.last().copied().filter(|_| under_way == 0);
        let plain = NextStep::Decode {
            position,
            token: known,
        };
        let Some(lookup) = &self.lookup else {
            return Some(plain);
        };
        // The step makes one token more than its draft has.
        let most = drafted_max.min(self.generated_max - self.sampling - 1);
        match lookup.plan(under_way, most, costs) {
            0 => Some(plain),
            drafted if under_way == 0 => Some(NextStep::Verify { position, drafted }),
            // A draft follows a known token: the steps under way come first.
            _ => None,
        }
    }

    /// Tokens that `step` samples.
    pub(crate) fn outputs(&self, step: NextStep) -> u32 {
        match step {
            // What follows the prompt is known already if the prompt is computed again.
            NextStep::Prefill { last, .. } => {
                u32::from(last && self.generates() && self.sampling == 0)
            }
            NextStep::Replay { .. } => 0,
            NextStep::Decode { .. } => 1,
            NextStep::Verify { drafted, .. } => drafted + 1,
        }
    }

    /// Notes that `step` was submitted.
    pub(crate) fn submitted(&mut self, step: NextStep) {
        let outputs = self.outputs(step);
        self.steps_under_way += 1;
        match step {
            NextStep::Prefill { to, .. } | NextStep::Replay { to, .. } => {
                self.computed = to;
                self.sampling += outputs;
            }
            NextStep::Decode { position, .. } => {
                self.sampling += 1;
                self.computed = position + 1;
            }
            NextStep::Verify { position, drafted } => {
                self.sampling += 1;
                self.computed = position + 1;
                self.verifying = Some(drafted);
            }
        }
    }

    /// Prompt tokens `.. done` are in the KV cache.
    pub(crate) fn prefill_done(&mut self, done: u32) {
        let total = self.prompt_tokens;
        if self.decoding_since.is_some() {
            // The prompt is computed again: its reader was told before.
            return;
        }
        if done > self.told {
            self.told = done;
            self.send(Event::Prefill { done, total });
        }
        if done == total {
            self.decoding_since = Some(Instant::now());
            if !self.generates() {
                self.end(FinishReason::Length, None);
            }
        }
    }

    /// Prompt tokens that were echoed.
    pub(crate) fn echoed(&self) -> usize {
        self.echoed
    }

    /// Reports the next prompt tokens.
    pub(crate) fn echo(&mut self, tokens: Vec<TokenOutput>) {
        self.changing = true;
        self.echoed += tokens.len();
        let mut text = String::new();
        for token in &tokens {
            if let Some(bytes) = self.model.tokenizer.token_bytes(token.id) {
                text.push_str(&self.echo_text.push(bytes).text);
            }
        }
        if self.echoed == self.prompt_tokens as usize {
            text.push_str(&self.echo_text.finish());
        }
        self.send(Event::Echo { text, tokens });
        self.changing = false;
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
        self.tokens.push(token.id);
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
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: self.generated,
            context_len: self.context_len,
            queue_time: started - self.queued_at,
            prefill_time: decoding - started,
            decode_time: now - decoding,
            energy_uj: self.energy_uj,
        }));
    }

    /// It waits behind `ahead` others, before its prompt is read.
    pub(crate) fn queued(&mut self, ahead: u32) {
        if self.started_at.is_none() {
            self.send(Event::Queued { ahead });
        }
    }

    fn send(&mut self, event: Event) {
        let before = std::mem::replace(&mut self.changing, true);
        self.delivery.send(event);
        self.ended |= self.delivery.is_closed();
        self.changing = before;
    }

    /// Delivers what the reader had no room for.
    pub(crate) fn flush(&mut self) {
        self.changing = true;
        self.delivery.flush();
        self.ended |= self.delivery.is_closed();
        self.changing = false;
    }

    /// Tells whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.delivery.is_closed()
    }

    /// Tells whether its reader went away, or was given up, before the end was delivered.
    pub(crate) fn is_cancelled(&self) -> bool {
        !self.delivery.has_ended()
    }

    /// Tells whether it is over and all its events are delivered.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && !self.delivery.is_stalled()
    }

    /// Tells whether its reader has to take events before it can go on.
    pub(crate) fn is_stalled(&self) -> bool {
        self.delivery.is_stalled()
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
        if self.delivery.stalls_too_long(now) {
            // One last try in place of the backlog: the reader may yet learn why.
            self.delivery.drop_backlog();
            self.ended = false;
            self.end(FinishReason::Stalled, None);
            self.delivery.drop_backlog();
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
