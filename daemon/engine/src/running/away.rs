//! A model that leaves the GPU with its sequences alive, and comes back: they keep their tokens, and what
//! their KV held is computed again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::resident::Resident;
use super::steps::StepUnderWay;
use super::{Running, Told};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::event::FinishReason;
use crate::gpu::{Gpu, Readback};
use crate::kv_cache::KvCache;
use crate::model::{Canary, Forward};
use crate::scheduler::{Scheduler, SequenceId};

/// What a model leaves behind on a device.
pub(crate) struct Remains {
    _forward: Option<Forward>,
    _under_way: VecDeque<StepUnderWay>,
    _readbacks: Vec<Readback>,
}

impl Running {
    /// Takes the results of all steps under way.
    pub(crate) fn finish(&mut self, gpu: &Gpu, shared: &Shared) -> Result<(), EngineError> {
        while self.take_results(gpu, shared)? {}
        gpu.wait(None)
    }

    /// A turn without the GPU: ends what is over, abandoned or out of time.
    pub(crate) fn turn_away(&mut self, shared: &Shared) {
        self.sweep(shared);
        self.report(shared);
    }

    /// Takes what is on the device.
    pub(crate) fn remains(&mut self) -> Remains {
        Remains {
            _forward: self.forward.take(),
            _under_way: std::mem::take(&mut self.under_way),
            _readbacks: std::mem::take(&mut self.spare_readbacks),
        }
    }

    /// Leaves the GPU. Every sequence waits with its tokens; what the steps under way would have made is
    /// made again later.
    pub(crate) fn leave(&mut self, shared: &Shared) -> Remains {
        let remains = self.remains();
        self.kv = KvCache::new(0);
        let now = self.now();
        let mut lost = 0;
        for (id, sequence) in &mut self.sequences {
            lost += u64::from(sequence.lost_device());
            self.scheduler.pause(*id, now);
        }
        self.told.line_changed();
        shared.update(|stats| stats.replayed_tokens += lost);
        self.report(shared);
        remains
    }

    /// Is back on the GPU; `forward` has no KV yet.
    pub(crate) fn come_back(&mut self, forward: Forward, shared: &Shared) {
        self.kv = KvCache::new(forward.limits().kv_blocks);
        self.forward = Resident::new(forward);
        self.ring = 0;
        self.last_done = Instant::now();
        self.last_step = Duration::ZERO;
        self.rest_until = None;
        self.allow(self.allowance);
        self.report(shared);
    }

    /// Goes on after a panic in the middle of its work: of what it noted it believes the sequences'
    /// tokens alone, and of these only what is whole. Others end with `Fault`, and with `all` every one.
    pub(crate) fn mend(&mut self, all: bool) {
        self.scheduler = Scheduler::new(self.shares.clone());
        self.told = Told::default();
        self.allow(self.allowance);
        let now = self.now();
        let mut unsound = Vec::new();
        for (id, sequence) in &mut self.sequences {
            if all || !sequence.is_sound() {
                unsound.push(*id);
                continue;
            }
            let app = sequence.request.caller.app.clone();
            self.scheduler.submit(*id, app, sequence.request.class, now);
        }
        for id in unsound {
            self.end_unsound(id);
        }
    }

    fn end_unsound(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return;
        };
        let ended = catch_unwind(AssertUnwindSafe(move || {
            sequence.end(FinishReason::Fault, None);
        }));
        if ended.is_err() {
            tracing::error!("a bug: a sequence's end panicked");
        }
    }

    /// Computes the canary among the sequences that are at work; their slots and KV are as before.
    pub(crate) fn canary(&mut self, gpu: &Gpu, shared: &Shared) -> Result<Canary, EngineError> {
        self.finish(gpu, shared)?;
        // The canary writes to a slot and to a block; both are set up again before others use them.
        let now = self.now();
        for (id, sequence) in &mut self.sequences {
            self.scheduler.pause(*id, now);
            sequence.slot = None;
        }
        let ids: Vec<_> = self.sequences.keys().rev().copied().collect();
        let mut block = self.kv.allocate(1);
        for id in ids {
            if block.is_some() {
                break;
            }
            self.drop_kv(shared, id);
            block = self.kv.allocate(1);
        }
        let Some(block) = block else {
            unreachable!("without KV in use there is a free block");
        };
        self.clean(gpu);
        let canary = Canary::compute(gpu, &self.forward, &self.model.config, block[0]);
        self.kv.release(&block);
        self.clean(gpu);
        canary
    }
}
