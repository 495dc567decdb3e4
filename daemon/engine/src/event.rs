//! What the engine says while it works on a request, and the sink a caller hands it for that.

use std::time::Duration;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced an end token, or one of `stop_tokens`.
    Eos,
    /// One of the `stop` texts appeared.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The sequence fills its context.
    ContextFull,
    /// The deadline passed.
    Deadline,
    /// The engine shuts down or unloads the model; the caller may try again elsewhere or later.
    Shutdown,
    /// The reader of the events stalled for longer than the limit.
    Stalled,
    /// A fault of the device or a bug; details are in the log.
    Fault,
}

/// The log-probability of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability, before penalties, temperature and cuts.
    pub logprob: f32,
}

/// One token of output (or, with `echo`, of the prompt).
#[derive(Clone)]
pub struct TokenOutput {
    /// Token id.
    pub id: u32,
    /// Its log-probability, if asked for. `None` too for the first prompt token, which has no
    /// predecessor.
    pub logprob: Option<f32>,
    /// The most likely alternatives in falling order, if asked for.
    pub top: Vec<TokenLogprob>,
}

/// The account of a finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct EndReport {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop text or nothing.
    pub stop_index: Option<usize>,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u32,
    /// Generated tokens, the end token not counted.
    pub generated_tokens: u32,
    /// Longest context the sequence could have had, in tokens.
    pub context_len: u32,
    /// Time in the queue.
    pub queue_time: Duration,
    /// From leaving the queue to the end of prefill.
    pub prefill_time: Duration,
    /// From the end of prefill to the end.
    pub decode_time: Duration,
    /// Energy of its part of the steps, in microjoules; `None`: there is no meter,
    /// or it tells nothing now.
    pub energy_uj: Option<u64>,
}

/// Something that happened to a sequence.
#[derive(Clone)]
pub enum Event {
    /// It waits; so many requests are before it.
    Queued {
        /// Requests ahead of this one.
        ahead: u32,
    },
    /// So many of its prompt tokens are in the KV cache.
    Prefill {
        /// Tokens done.
        done: u32,
        /// Tokens in all.
        total: u32,
    },
    /// Prompt tokens, with `echo`. Always before the first `Delta`.
    Echo {
        /// Text of these tokens.
        text: String,
        /// The tokens.
        tokens: Vec<TokenOutput>,
    },
    /// New text. Text can lag behind tokens while a character or a stop text is incomplete.
    Delta {
        /// New text, perhaps empty.
        text: String,
        /// New tokens, perhaps none.
        tokens: Vec<TokenOutput>,
    },
    /// The sequence is over; nothing follows.
    End(EndReport),
}

/// What became of an event offered to a sink.
pub enum SendOutcome {
    /// Taken.
    Sent,
    /// No room now; here it is back. The engine pauses the sequence and tries again.
    Full(Event),
    /// Nobody listens any more: the engine ends the sequence within one step.
    Closed,
}

/// Where a sequence's events go. Called on the engine's thread: it must not block.
pub trait EventSink: Send {
    /// Offers one event.
    fn try_send(&mut self, event: Event) -> SendOutcome;
    /// Tells whether nobody listens any more.
    fn is_closed(&self) -> bool;
}
