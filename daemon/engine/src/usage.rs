//! Who runs what, and who has used how much: the engine's accounts as others see them.

use std::sync::Arc;
use std::time::Duration;

use crate::request::Class;

/// One app's account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppUsage {
    /// The app.
    pub app: Arc<str>,
    /// Its sequences that run now.
    pub active_now: u32,
    /// Its requests that wait now, paused sequences included.
    pub waiting_now: u32,
    /// KV blocks that its sequences hold now; one shared by two counts for both.
    pub kv_blocks_now: u32,
    /// KV blocks kept for its later prompts, which it alone can use.
    pub kv_blocks_cached_now: u32,
    /// Requests accepted.
    pub requests: u64,
    /// Prompt tokens, those whose KV was reused included.
    pub prompt_tokens: u64,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Its share of the GPU's time.
    pub gpu_time: Duration,
}

/// One sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceUsage {
    /// Its number, unlike any other's since the engine's start.
    pub id: u64,
    /// Whose it is.
    pub app: Arc<str>,
    /// The caller's process, where it is known.
    pub pid: Option<u32>,
    /// How urgent it is.
    pub class: Class,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// KV blocks it holds.
    pub kv_blocks: u32,
    /// Requests ahead of it; `None`: it runs.
    pub ahead: Option<u32>,
    /// Its share of the GPU's time.
    pub gpu_time: Duration,
}

/// All accounts at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// By app, in order of names. Accounts of apps long gone may be merged in one named `(others)`.
    pub apps: Vec<AppUsage>,
    /// Sequences that run or wait, oldest first.
    pub sequences: Vec<SequenceUsage>,
}
