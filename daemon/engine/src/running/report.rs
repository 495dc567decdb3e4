//! What the engine tells of itself while it works: counters, who runs what, places in the line.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Running;
use crate::engine::Shared;
use crate::prefix_cache::Scope;
use crate::sequence::Sequence;
use crate::usage::{SequenceUsage, Usage};

/// Least time between two looks at the line, and between two reports of many sequences.
const INTERVAL: Duration = Duration::from_millis(100);
/// So many sequences are reported after every step.
const FEW: usize = 32;

/// What was told, and what may have changed since.
#[derive(Debug, Default)]
pub(super) struct Told {
    line_changed: bool,
    line_at: Option<Instant>,
    usage_at: Option<Instant>,
}

impl Told {
    /// The line of those who wait has changed.
    pub(super) fn line_changed(&mut self) {
        self.line_changed = true;
    }
}

fn is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL)
}

impl Running {
    /// Brings the numbers that others see up to date, and tells those who wait where they stand.
    pub(super) fn report(&mut self, shared: &Shared) {
        let now = Instant::now();
        let running = u32::try_from(self.scheduler.running().count()).unwrap_or(u32::MAX);
        let paused = |s: &&Sequence| s.slot.is_none() && s.has_started();
        let paused = self.sequences.values().filter(paused).count();
        let paused = u32::try_from(paused).unwrap_or(u32::MAX);
        shared.update(|stats| {
            stats.active_now = running;
            stats.paused_now = paused;
            stats.kv_blocks_used_now = self.kv.used();
            stats.kv_blocks_cached_now = self.kv.cached();
            stats.kv_blocks_total = self.kv.total();
        });
        if self.told.line_changed && is_due(self.told.line_at, now) {
            self.told.line_changed = false;
            self.told.line_at = Some(now);
            for (id, ahead) in self.scheduler.line(self.now()).into_iter().zip(0..) {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.queued(ahead);
                }
            }
        }
        if self.sequences.len() <= FEW || is_due(self.told.usage_at, now) {
            self.told.usage_at = Some(now);
            shared.set_usage(self.usage(shared));
        }
    }

    fn usage(&self, shared: &Shared) -> Usage {
        let line: HashMap<_, u32> = self
            .scheduler
            .line(self.now())
            .into_iter()
            .zip(0..)
            .collect();
        let mut usage = Usage {
            apps: shared.accounts(),
            sequences: Vec::with_capacity(self.sequences.len()),
        };
        let at: HashMap<Arc<str>, usize> = usage
            .apps
            .iter()
            .enumerate()
            .map(|(at, account)| (Arc::clone(&account.app), at))
            .collect();
        for (id, sequence) in &self.sequences {
            let kv_blocks = sequence.table.held();
            let caller = &sequence.request.caller;
            let ahead = line.get(id).copied();
            if let Some(&at) = at.get(&caller.app) {
                let account = &mut usage.apps[at];
                account.kv_blocks_now += kv_blocks;
                match ahead {
                    Some(_) => account.waiting_now += 1,
                    None => account.active_now += 1,
                }
            }
            usage.sequences.push(SequenceUsage {
                id: id.0,
                app: Arc::clone(&caller.app),
                pid: caller.pid,
                class: sequence.request.class,
                prompt_tokens: sequence.prompt_tokens(),
                cached_tokens: sequence.cached_tokens,
                generated_tokens: sequence.generated(),
                kv_blocks,
                ahead,
                replays: sequence.computes_again(),
                gpu_time: sequence.gpu_time,
            });
        }
        for account in &mut usage.apps {
            let scope = Scope::App(Arc::clone(&account.app));
            account.kv_blocks_cached_now = self.kv.cached_of(&scope);
        }
        usage
    }
}
