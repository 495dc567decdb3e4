//! What a caller may ask of the engine: its configuration, and one generation request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::energy::EnergyMeter;
use crate::model::ChosenKernel;
use crate::survival::Recovery;

/// Which GPU adapter to take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AdapterChoice {
    /// Integrated first, then discrete, then virtual, then a software adapter (with a warning).
    #[default]
    Auto,
    /// Only an integrated GPU.
    Integrated,
    /// Only a discrete GPU.
    Discrete,
    /// Only a software adapter such as lavapipe.
    Software,
    /// The first adapter whose name contains this text, ignoring case.
    Named(String),
}

impl std::fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Integrated => f.write_str("integrated"),
            Self::Discrete => f.write_str("discrete"),
            Self::Software => f.write_str("software"),
            Self::Named(part) => f.write_str(part),
        }
    }
}

/// How activations enter matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// The engine chooses: int8 for quantised weights, but float on software adapters, where int8
    /// gains too little for its precision, and for hidden states below 1,024, which lose the most
    /// by it. f16 and f32 weights always take float.
    #[default]
    Auto,
    /// 32-bit floats everywhere: the reference path.
    Float,
    /// int8 in blocks of 32 wherever the weights are quantised.
    Int8,
}

/// Whether the engine drafts tokens from earlier text and verifies several in one step. Only greedy
/// requests without penalties and log-probabilities take part; their tokens stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// Where it is measured to pay.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Wherever there is a draft, whatever it costs (for tests).
    Always,
}

/// Whether the engine times its kernels on the loaded model and takes the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tuning {
    /// Once for each adapter and size of matrix; software adapters have nothing to choose.
    #[default]
    Auto,
    /// Never: the first guess is taken.
    Off,
}

/// Settings of an engine, fixed while it runs.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Which adapter to open.
    pub adapter: AdapterChoice,
    /// How activations enter matrix products.
    pub activations: Activations,
    /// Whether tokens are drafted from earlier text.
    pub speculation: Speculation,
    /// Longest context of one sequence, in tokens; capped by the model's own `context_len`.
    pub context_len_max: u32,
    /// Bytes of GPU memory for the KV cache. `None`: the most of eight sequences of full context in at
    /// most 256 MiB, two in at most 1 GiB, and one in at most 2 GiB.
    pub kv_bytes_max: Option<u64>,
    /// Most prompt tokens in one prefill step.
    pub prefill_chunk: u32,
    /// Most sequences alive at once; more wait in the queue.
    pub slots: u32,
    /// Most requests waiting; more are refused.
    pub queue_max: u32,
    /// Most requests of one app waiting; more are refused.
    pub app_queue_max: u32,
    /// Most sequences of one app alive at once; its others wait.
    pub app_slots_max: u32,
    /// Keep the KV of finished sequences for later prompts that begin the same way.
    pub prefix_cache: bool,
    /// Share of the GPU's time, above 0 and at most 1, that background requests may take while more
    /// urgent ones are at work.
    pub background_share: f32,
    /// Lowers the adapter's storage binding limit, in bytes: matrices are cut in row shards
    /// below it. `None`: the adapter's own limit.
    pub binding_bytes_max: Option<u64>,
    /// Never use subgroup operations, even where the adapter has them.
    pub no_subgroups: bool,
    /// Multiply prompts by cooperative matrices where the adapter has them and they pass their check.
    pub cooperative_matrix: bool,
    /// Whether kernels are timed and chosen.
    pub tuning: Tuning,
    /// What choosing kernels may take at a load, about.
    pub tuning_budget: Duration,
    /// The directory where chosen kernels are remembered, in a file of a few KiB; it is made if it is
    /// not there. `None`: they are chosen at each load.
    pub cache_dir: Option<PathBuf>,
    /// Choose kernels at the next load whatever is remembered, and remember them instead.
    pub retune: bool,
    /// What tells this machine's energy; `None`: no energy is told.
    pub meter: Option<Arc<dyn EnergyMeter>>,
    /// Keep every shader bounds check (slower; for tests).
    pub checked_shaders: bool,
    /// Take a software adapter for a GPU, with a GPU's kernels and its tuning (slower; for tests).
    pub software_as_gpu: bool,
    /// Refuse kernels whose description starts with one of these, as a driver would (for tests). A
    /// description is a kernel's name, its reduction, its sizes and its override constants, such as
    /// `gemv.q4_1.int8.qkv subgroup WG=256 TPR=32 ...`.
    pub refused_kernels: Vec<String>,
    /// How products are cut, if that is settled: nothing is measured then.
    pub settled_kernels: Option<Vec<ChosenKernel>>,
    /// How lost devices are dealt with.
    pub recovery: Recovery,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            adapter: AdapterChoice::Auto,
            activations: Activations::Auto,
            speculation: Speculation::Auto,
            context_len_max: 8192,
            kv_bytes_max: None,
            prefill_chunk: 512,
            slots: 8,
            queue_max: 512,
            app_queue_max: 256,
            app_slots_max: u32::MAX,
            prefix_cache: true,
            background_share: 0.2,
            binding_bytes_max: None,
            no_subgroups: false,
            cooperative_matrix: true,
            tuning: Tuning::Auto,
            tuning_budget: Duration::from_secs(4),
            cache_dir: None,
            retune: false,
            meter: None,
            checked_shaders: false,
            software_as_gpu: false,
            refused_kernels: Vec::new(),
            settled_kernels: None,
            recovery: Recovery::default(),
        }
    }
}

/// How the next token is chosen from the logits.
///
/// Order: penalties, temperature, top-k, top-p, min-p, then one draw from a counter-based random
/// number keyed by `seed` and position. Ranges are checked by [`SamplingParams::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token; otherwise logits are divided by it. 0..=10.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all. 0<..=1.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one; 0 keeps all. 0..=1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already in the sequence; 1 is
    /// none. 0<..=10.
    pub repeat_penalty: f32,
    /// Subtracted once per earlier occurrence among the generated tokens. -2..=2.
    pub frequency_penalty: f32,
    /// Subtracted if the token was generated before. -2..=2.
    pub presence_penalty: f32,
    /// Key of the random numbers: the same seed, request and model give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

/// A sampling parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} must be {allowed}, not {value}")]
pub struct ParamError {
    /// Name of the field, as in the API.
    pub field: &'static str,
    /// The allowed range, in words.
    pub allowed: &'static str,
    /// What was given.
    pub value: f32,
}

impl SamplingParams {
    /// Tells whether any penalty is in force.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repeat_penalty.to_bits() != 1.0f32.to_bits()
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Checks every field against its range; NaN is never within one.
    ///
    /// # Errors
    /// The first field out of range.
    pub fn check(&self) -> Result<(), ParamError> {
        let rules: [(&'static str, f32, bool, &'static str); 6] = [
            (
                "temperature",
                self.temperature,
                (0.0..=10.0).contains(&self.temperature),
                "from 0 to 10",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "from 0 to 1",
            ),
            (
                "repeat_penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0 && self.repeat_penalty <= 10.0,
                "above 0 and at most 10",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                (-2.0..=2.0).contains(&self.frequency_penalty),
                "from -2 to 2",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                (-2.0..=2.0).contains(&self.presence_penalty),
                "from -2 to 2",
            ),
        ];
        for (field, value, ok, allowed) in rules {
            if !ok {
                return Err(ParamError {
                    field,
                    allowed,
                    value,
                });
            }
        }
        Ok(())
    }
}

/// One request to generate. Holds a user's text as tokens, so it has no `Debug`.
#[derive(Clone)]
pub struct GenerateRequest {
    /// The prompt; at least one token, every id within the vocabulary.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; 0 only scores the prompt (with `echo`). `None`: up to the context.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end generation; the text before the first is delivered. At most 16 of at most
    /// 256 bytes, none empty.
    pub stop: Vec<String>,
    /// Tokens that end generation, besides the model's own end tokens.
    pub stop_tokens: Vec<u32>,
    /// Do not stop at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report log-probabilities, with this many alternatives (0..=20) beside the chosen token.
    pub logprobs: Option<u32>,
    /// What is generated is a text of its own, as the assistant's turn of a chat is, and does not go on
    /// with the prompt's: where the vocabulary puts a space before a text, it is left out.
    pub new_text: bool,
    /// Report the prompt's tokens (and, with `logprobs`, their log-probabilities) before generating.
    pub echo: bool,
    /// When the request must be over; it then ends with [`crate::FinishReason::Deadline`].
    pub deadline: Option<Instant>,
    /// Who asked.
    pub caller: Caller,
    /// How urgent it is.
    pub class: Class,
    /// Who may reuse the KV of its prompt and of what it generates.
    pub cache_scope: CacheScope,
}

/// Who asks, for fairness and accounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// The app, as one word.
    pub app: Arc<str>,
    /// Its process, where it is known.
    pub pid: Option<u32>,
}

/// How urgent a request is; the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    /// A person waits for the answer.
    #[default]
    Interactive,
    /// A person will want the answer soon.
    Utility,
    /// Nobody waits.
    Background,
}

impl Class {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Utility, Self::Background];
}

/// Who may reuse a prompt's KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheScope {
    /// The calling app alone.
    #[default]
    App,
    /// Every app: another can then tell by timing that the prompt was seen before.
    Shared,
    /// Nobody: nothing is looked up and nothing is kept.
    Nobody,
}
