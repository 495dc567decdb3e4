//! What the engine's thread and its handles share: counters, accounts, the models that are loaded.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::LoadedModel;
use crate::condition::{Condition, OnCondition};
use crate::prefix_cache::Scope;
use crate::queue::Queue;
use crate::usage::{AppUsage, Ledger, SequenceUsage, Usage};

/// The engine's counters; all since its start unless they say `now`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences alive now.
    pub active_now: u32,
    /// Requests waiting now, those that ran before and had to make room included.
    pub queued_now: u32,
    /// Those of them that ran before.
    pub paused_now: u32,
    /// Requests accepted.
    pub requests: u64,
    /// Sequences whose reader went away.
    pub cancelled: u64,
    /// Prompt tokens processed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens drafted from earlier text and verified.
    pub drafted_tokens: u64,
    /// Those of them that held.
    pub accepted_tokens: u64,
    /// Steps submitted to the GPU.
    pub steps: u64,
    /// Time of prefill steps, in microseconds.
    pub prefill_us: u64,
    /// Time of decode steps, in microseconds.
    pub decode_us: u64,
    /// KV blocks in use now.
    pub kv_blocks_used_now: u32,
    /// KV blocks kept for later prompts now, not in use.
    pub kv_blocks_cached_now: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u64,
    /// Times a running sequence had to wait for others, with its KV or without.
    pub preempted: u64,
    /// Tokens computed again because their KV had been dropped.
    pub replayed_tokens: u64,
    /// Whether a model is in GPU memory now.
    pub weights_resident: bool,
    /// Times that a lost device was opened again and the model brought back.
    pub device_rebuilds: u64,
    /// Energy of all steps, in microjoules; 0 without a meter.
    pub energy_uj: u64,
}

/// One model's part of what is so now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// Sequences alive.
    pub active: u32,
    /// Requests that ran before and had to make room.
    pub paused: u32,
    /// KV blocks in use.
    pub kv_blocks_used: u32,
    /// KV blocks kept for later prompts, not in use.
    pub kv_blocks_cached: u32,
    /// KV blocks in all; 0 while the model is not in GPU memory.
    pub kv_blocks_total: u32,
}

/// What a model at work tells of itself.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) stats: ModelStats,
    /// Its sequences, in order.
    pub(crate) sequences: Vec<SequenceUsage>,
    /// KV blocks kept for each app's later prompts.
    pub(crate) kept: Vec<(Arc<str>, u32)>,
}

/// See the module.
pub(crate) struct Shared {
    /// Without what is so only now.
    counters: Mutex<EngineStats>,
    /// Those loaded last come last.
    models: Mutex<Vec<Arc<LoadedModel>>>,
    /// By the model's number.
    reports: Mutex<Vec<(u64, Report)>>,
    condition: Mutex<Condition>,
    pub(super) on_condition: Mutex<Option<OnCondition>>,
    ledger: Mutex<Ledger>,
    busy_since: Mutex<Option<Instant>>,
    /// Sequences so far.
    pub(crate) sequences: AtomicU64,
    /// [`Allowance::context_len_max`](crate::Allowance::context_len_max).
    pub(super) context_len_max: AtomicU32,
    /// Requests that wait, those on their way to the thread included.
    pub(crate) queue: Arc<Queue>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            counters: Mutex::default(),
            models: Mutex::default(),
            reports: Mutex::default(),
            condition: Mutex::default(),
            on_condition: Mutex::default(),
            ledger: Mutex::default(),
            busy_since: Mutex::default(),
            sequences: AtomicU64::new(0),
            context_len_max: AtomicU32::new(u32::MAX),
            queue: Arc::default(),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Changes counters; what is so only now is not among them.
    pub(crate) fn update(&self, change: impl FnOnce(&mut EngineStats)) {
        change(&mut lock(&self.counters));
    }

    pub(super) fn stats(&self) -> EngineStats {
        let mut all = *lock(&self.counters);
        for (_, report) in lock(&self.reports).iter() {
            let model = &report.stats;
            all.active_now += model.active;
            all.paused_now += model.paused;
            all.kv_blocks_used_now += model.kv_blocks_used;
            all.kv_blocks_cached_now += model.kv_blocks_cached;
            all.kv_blocks_total += model.kv_blocks_total;
        }
        all.queued_now = self.queue.waiting() + all.paused_now;
        all.weights_resident = all.kv_blocks_total > 0;
        all
    }

    pub(super) fn stats_of(&self, model: u64) -> ModelStats {
        let reports = lock(&self.reports);
        let found = reports.iter().find(|(id, _)| *id == model);
        found.map(|(_, report)| report.stats).unwrap_or_default()
    }

    /// Says which models are loaded, and forgets what others told.
    pub(crate) fn set_models(&self, models: Vec<Arc<LoadedModel>>) {
        lock(&self.reports).retain(|(id, _)| models.iter().any(|model| model.id == *id));
        *lock(&self.models) = models;
    }

    pub(super) fn models(&self) -> Vec<Arc<LoadedModel>> {
        lock(&self.models).clone()
    }

    /// Changes what a model told.
    pub(crate) fn report(&self, model: u64, change: impl FnOnce(&mut Report)) {
        let mut reports = lock(&self.reports);
        match reports.iter_mut().find(|(id, _)| *id == model) {
            Some((_, report)) => change(report),
            None => {
                let mut report = Report::default();
                change(&mut report);
                reports.push((model, report));
            }
        }
    }

    /// Who runs what now, and who has used how much.
    pub(super) fn usage(&self) -> Usage {
        let mut apps = lock(&self.ledger).accounts();
        let mut sequences = Vec::new();
        for (_, report) in lock(&self.reports).iter() {
            for (app, kept) in &report.kept {
                if let Ok(at) = apps.binary_search_by(|account| account.app.cmp(app)) {
                    apps[at].kv_blocks_cached_now += kept;
                }
            }
            for sequence in &report.sequences {
                if let Ok(at) = apps.binary_search_by(|account| account.app.cmp(&sequence.app)) {
                    let account = &mut apps[at];
                    account.kv_blocks_now += sequence.kv_blocks;
                    match sequence.ahead {
                        Some(_) => account.waiting_now += 1,
                        None => account.active_now += 1,
                    }
                }
                sequences.push(sequence.clone());
            }
        }
        sequences.sort_by_key(|sequence| sequence.id);
        Usage { apps, sequences }
    }

    /// The apps that have an account, as scopes of kept KV.
    pub(crate) fn scopes(&self) -> Vec<(Arc<str>, Scope)> {
        let apps = lock(&self.ledger).names();
        let scope = |app: Arc<str>| (Arc::clone(&app), Scope::App(app));
        apps.into_iter().map(scope).collect()
    }

    /// Notes how the engine is, and tells who wants to know.
    pub(crate) fn set_condition(&self, condition: Condition) {
        let mut present = lock(&self.condition);
        if *present == condition {
            return;
        }
        present.clone_from(&condition);
        drop(present);
        if let Some(tell) = &*lock(&self.on_condition) {
            tell(&condition);
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        lock(&self.condition).clone()
    }

    /// Notes that the thread begins a turn, or that it sleeps (`None`).
    pub(crate) fn set_busy_since(&self, since: Option<Instant>) {
        *lock(&self.busy_since) = since;
    }

    pub(super) fn busy_since(&self) -> Option<Instant> {
        *lock(&self.busy_since)
    }

    /// Changes an app's account.
    pub(crate) fn account(&self, app: &Arc<str>, change: impl FnOnce(&mut AppUsage)) {
        lock(&self.ledger).change(app, change);
    }
}
