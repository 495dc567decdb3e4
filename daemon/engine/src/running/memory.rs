//! KV blocks for sequences: found again, taken as they grow, dropped when others need them more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Running;
use crate::engine::Shared;
use crate::gpu::Gpu;
use crate::kv_cache::KvCache;
use crate::prefix_cache::Scope;
use crate::request::{CacheScope, GenerateRequest};
use crate::scheduler::{Scheduler, SequenceId};
use crate::sequence::{NextStep, Sequence};

/// Tells whether the waiting sequence `id` could go on if it got a slot: whether its blocks are to be
/// had without taking room that those which run will need soon.
pub(super) fn fits(
    scheduler: &Scheduler,
    sequences: &BTreeMap<SequenceId, Sequence>,
    kv: &KvCache,
    id: SequenceId,
    now: Duration,
) -> bool {
    let held = |s: &Sequence| s.table.held();
    let missing = |s: &Sequence| s.blocks_wanted().saturating_sub(held(s));
    let Some(sequence) = sequences.get(&id) else {
        return false;
    };
    if sequence.steps_under_way > 0 {
        // Its last tokens are not known yet.
        return false;
    }
    let give_way = scheduler.giving_way_to(id, now);
    let freed: u32 = give_way
        .iter()
        .filter_map(|other| sequences.get(other))
        .map(held)
        .sum();
    let soon: u32 = scheduler
        .running()
        .filter(|other| !give_way.contains(other))
        .filter_map(|other| sequences.get(&other))
        .map(missing)
        .sum();
    missing(sequence).saturating_add(soon) <= kv.available().saturating_add(freed)
}

/// Who may find the KV of a request; `None`: nobody.
fn scope_of(request: &GenerateRequest) -> Option<Scope> {
    match request.cache_scope {
        CacheScope::App => Some(Scope::App(request.caller.app.clone())),
        CacheScope::Shared => Some(Scope::Shared),
        CacheScope::Nobody => None,
    }
}

impl Running {
    /// Looks up the KV that is there for a sequence that has none.
    pub(super) fn find_kv(&mut self, gpu: &Gpu, shared: &Shared, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        // An echo wants every column of the prompt.
        if !self.prefix_cache || !sequence.table.blocks.is_empty() || sequence.request.echo {
            return;
        }
        let Some(scope) = scope_of(&sequence.request) else {
            return;
        };
        // The last token is always computed: what comes next follows from it.
        let known = sequence.tokens().len() - 1;
        let mut found = self.kv.find(&scope, &sequence.tokens()[..known]);
        if let Some((from, _)) = found.tail {
            // The rest of that block will be the sequence's own.
            match self.kv.allocate(1) {
                Some(own) => {
                    let unclean = self.kv.take_unclean();
                    if !unclean.is_empty() {
                        self.forward.clear_blocks(gpu, &self.model.config, &unclean);
                    }
                    self.forward
                        .copy_block(gpu, &self.model.config, from, own[0]);
                    sequence.table.blocks = own;
                }
                None => found.tail = None,
            }
            self.kv.release(&[from]);
        }
        let positions = found.positions();
        found.blocks.append(&mut sequence.table.blocks);
        sequence.table.blocks = found.blocks;
        sequence.table.chain = Some(found.chain);
        let first = !sequence.has_started();
        sequence.found(positions);
        if first {
            shared.update(|stats| stats.cached_tokens += u64::from(positions));
            shared.account(&sequence.request.caller.app, |account| {
                account.cached_tokens += u64::from(positions);
            });
        }
    }

    /// Sees to it that a running sequence has the blocks that `step` needs, if need be by dropping the KV
    /// of others. False: it has to wait.
    pub(super) fn make_room(
        &mut self,
        gpu: &Gpu,
        shared: &Shared,
        id: SequenceId,
        step: NextStep,
        now: Duration,
    ) -> bool {
        let Some(sequence) = self.sequences.get(&id) else {
            return false;
        };
        let missing = sequence.blocks_missing(step);
        if missing == 0 {
            return true;
        }
        let mut blocks = self.kv.allocate(missing);
        if blocks.is_none() && self.shed_behind_windows() {
            blocks = self.kv.allocate(missing);
        }
        if blocks.is_none() {
            for other in self.scheduler.giving_way_to(id, now) {
                self.drop_kv(shared, other);
                blocks = self.kv.allocate(missing);
                if blocks.is_some() {
                    break;
                }
            }
        }
        let Some(blocks) = blocks else {
            self.scheduler.pause(id, now);
            self.paused(shared, id);
            return false;
        };
        self.clean(gpu);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.table.blocks.extend(blocks);
        }
        true
    }

    /// Takes back the blocks that lie behind the window of a model that has one. They are held until room
    /// is wanted: a later prompt that begins the same way may find them. True: there are more free blocks.
    pub(super) fn shed_behind_windows(&mut self) -> bool {
        let before = self.kv.available();
        for sequence in self.sequences.values_mut() {
            let end = sequence.behind_window();
            let table = &mut sequence.table;
            if end <= table.shed.end {
                continue;
            }
            if let Some(chain) = table.chain.take() {
                // What others share with it stays.
                let shared = self.kv.leave(&chain, &table.blocks);
                table.shed = shared..shared;
            }
            let from = table.shed.end;
            if from < end {
                self.kv.release(&table.blocks[from..end]);
                table.shed.end = end;
            }
        }
        self.kv.available() > before
    }

    /// Takes the KV of a sequence, and its slot: it waits, and its KV is computed again later.
    pub(super) fn drop_kv(&mut self, shared: &Shared, id: SequenceId) {
        let now = self.now();
        let holds = |s: &Sequence| !s.table.blocks.is_empty();
        if !self.sequences.get(&id).is_some_and(holds) {
            return;
        }
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return;
        };
        self.release_kv(&mut sequence);
        let lost = sequence.lost_kv();
        shared.update(|stats| stats.replayed_tokens += u64::from(lost));
        let ran = sequence.slot.is_some();
        self.sequences.insert(id, sequence);
        if ran {
            self.scheduler.pause(id, now);
            self.paused(shared, id);
        }
    }

    /// Takes the KV of all sequences that wait.
    pub(super) fn drop_waiting_kv(&mut self, shared: &Shared) {
        let waits = |s: &Sequence| s.slot.is_none() && s.steps_under_way == 0;
        let waiting = self.sequences.iter().filter(|(_, s)| waits(s));
        let waiting: Vec<SequenceId> = waiting.map(|(id, _)| *id).collect();
        for id in waiting {
            self.drop_kv(shared, id);
        }
    }

    /// Keeps the whole blocks of a sequence's KV for prompts that begin the same way.
    pub(super) fn keep_kv(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && let Some(mut chain) = sequence.table.chain
        {
            let mut blocks = std::mem::take(&mut sequence.table.blocks);
            let tokens = sequence.computed_tokens();
            self.kv.keep(&mut chain, tokens, &mut blocks, false);
            sequence.table.blocks = blocks;
            sequence.table.chain = Some(chain);
        }
    }

    /// Takes a sequence's blocks: those that later prompts may find stay in the cache.
    pub(super) fn release_kv(&mut self, sequence: &mut Sequence) {
        let mut table = std::mem::take(&mut sequence.table);
        if let Some(mut chain) = table.chain {
            let tokens = sequence.computed_tokens();
            self.kv.keep(&mut chain, tokens, &mut table.blocks, true);
        }
        self.kv.release(&table.blocks[table.shed.end..]);
        self.kv.release(&table.blocks[..table.shed.start]);
    }

    /// Zeroes the blocks that were freed.
    pub(super) fn clean(&mut self, gpu: &Gpu) {
        let unclean = self.kv.take_unclean();
        if !unclean.is_empty() {
            self.forward.clear_blocks(gpu, &self.model.config, &unclean);
        }
    }
}
