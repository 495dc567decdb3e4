//! What a model at work tells of itself: counters, who runs what, places in the line.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Running;
use crate::engine::{ModelStats, Shared};
use crate::sequence::Sequence;
use crate::usage::SequenceUsage;

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
    pub(crate) fn report(&mut self, shared: &Shared) {
        let now = Instant::now();
        let running = u32::try_from(self.scheduler.running().count()).unwrap_or(u32::MAX);
        let paused = |s: &&Sequence| s.slot.is_none() && s.has_started();
        let paused = self.sequences.values().filter(paused).count();
        let stats = ModelStats {
            active: running,
            paused: u32::try_from(paused).unwrap_or(u32::MAX),
            kv_blocks_used: self.kv.used(),
            kv_blocks_cached: self.kv.cached(),
            kv_blocks_total: self.kv.total(),
        };
        if self.told.line_changed && is_due(self.told.line_at, now) {
            self.told.line_changed = false;
            self.told.line_at = Some(now);
            for (id, ahead) in self.scheduler.line(self.now()).into_iter().zip(0..) {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.queued(ahead);
                }
            }
        }
        let all = self.sequences.len() <= FEW || is_due(self.told.usage_at, now);
        let told = all.then(|| (self.sequences_now(), self.kept_now(shared)));
        if all {
            self.told.usage_at = Some(now);
        }
        shared.report(self.model.id, |report| {
            report.stats = stats;
            if let Some((sequences, kept)) = told {
                report.sequences = sequences;
                report.kept = kept;
            }
        });
    }

    /// KV blocks kept for each app's later prompts.
    fn kept_now(&self, shared: &Shared) -> Vec<(Arc<str>, u32)> {
        if self.kv.cached() == 0 {
            return Vec::new();
        }
        let kept = |(app, scope)| (app, self.kv.cached_of(&scope));
        let apps = shared.scopes().into_iter().map(kept);
        apps.filter(|(_, kept)| *kept > 0).collect()
    }

    fn sequences_now(&self) -> Vec<SequenceUsage> {
        let line = self.scheduler.line(self.now());
        let line: HashMap<_, u32> = line.into_iter().zip(0..).collect();
        let sequences = self.sequences.iter();
        let row = sequences.map(|(id, sequence)| SequenceUsage {
            id: id.0,
            model: self.model.id,
            app: Arc::clone(&sequence.request.caller.app),
            pid: sequence.request.caller.pid,
            class: sequence.request.class,
            prompt_tokens: sequence.prompt_tokens(),
            cached_tokens: sequence.cached_tokens,
            generated_tokens: sequence.generated(),
            kv_blocks: sequence.table.held(),
            ahead: line.get(id).copied(),
            replays: sequence.computes_again(),
            gpu_time: sequence.gpu_time,
        });
        row.collect()
    }
}
