//! What the engine may use now. Somebody outside decides, from battery and memory; the engine obeys at
//! its next turn.

use crate::request::Class;

/// What the engine may use now. Figures above what the engine was configured with have no effect; the
/// default allows everything.
///
/// A sequence that runs keeps its context. It may lose its slot, and goes on later where it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// Most sequences at once; at least one runs.
    pub slots: u32,
    /// Longest context of a request that is submitted from now on, in tokens.
    pub context_len_max: u32,
    /// Most prompt tokens in a step.
    pub prefill_chunk_max: u32,
    /// Requests of this class and of more urgent ones run; others wait.
    pub least_class: Class,
    /// Share of the time in which the GPU may work, above 0 and at most 1: after each step the engine
    /// rests for as long as it takes.
    pub pace: f32,
    /// The same for steps of background requests alone, where it is less than `pace`.
    pub background_pace: f32,
    /// Share of the KV blocks that may be kept for later prompts, from 0 to 1.
    pub prefix_cache_share: f32,
    /// Whether sequences that wait keep their KV. Without it, it is computed again later.
    pub keep_waiting_kv: bool,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            slots: u32::MAX,
            context_len_max: u32::MAX,
            prefill_chunk_max: u32::MAX,
            least_class: Class::Background,
            pace: 1.0,
            background_pace: 1.0,
            prefix_cache_share: 1.0,
            keep_waiting_kv: true,
        }
    }
}
