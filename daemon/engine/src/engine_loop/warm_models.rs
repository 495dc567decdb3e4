//! The models that are loaded, at work side by side: they take turns on the one GPU, a step each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::loading::{Origin, smaller};
use crate::allowance::Allowance;
use crate::engine::{LoadedModel, Shared};
use crate::error::EngineError;
use crate::event::{EventSink, FinishReason};
use crate::gpu::Gpu;
use crate::limits::REST_POLL;
use crate::queue::QueuePlace;
use crate::request::GenerateRequest;
use crate::running::{Remains, Running, Trace};
use crate::sequence::Sequence;

/// How often a reader that stalls is looked at while nothing else goes on.
const STALL_POLL: Duration = Duration::from_millis(20);
/// How often callers that went away are looked for while nothing may run.
const WAITING_POLL: Duration = Duration::from_secs(1);

/// One of them.
pub(super) struct WarmModel {
    pub(super) running: Running,
    pub(super) origin: Origin,
    /// Its last turn found nothing to do: readers have to take their events first.
    stuck: bool,
}

impl WarmModel {
    /// How long it needs no turn though it has sequences: it rests between steps, or readers have to take
    /// their events first, or nothing that waits may run now.
    fn pause(&self, now: Instant) -> Option<Duration> {
        match self.running.rest(now) {
            Some(rest) => Some(rest),
            None if !self.stuck => None,
            None if self.running.nobody_runs() => {
                Some(self.running.next_deadline(now).min(WAITING_POLL))
            }
            None => Some(STALL_POLL),
        }
    }
}

/// A request that was checked against its model.
pub(crate) struct Submission {
    pub(crate) request: GenerateRequest,
    pub(crate) model: Arc<LoadedModel>,
    /// Longest context that it may have, in tokens.
    pub(crate) context_len: u32,
    pub(crate) sink: Box<dyn EventSink>,
    pub(crate) place: QueuePlace,
}

impl Submission {
    /// Ends it before it began.
    pub(super) fn end(self, reason: FinishReason) {
        let mut sequence = Sequence::new(
            self.request,
            self.model,
            self.context_len,
            self.sink,
            self.place,
        );
        sequence.end(reason, None);
    }
}

/// See the module.
pub(super) struct WarmModels {
    /// Those loaded last come last.
    list: Vec<WarmModel>,
    shared: Arc<Shared>,
    allowance: Allowance,
    /// The device was lost often: steps are small.
    careful: bool,
}

impl WarmModels {
    /// None yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            list: Vec::new(),
            shared,
            allowance: Allowance::default(),
            careful: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut WarmModel> {
        self.list.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &WarmModel> {
        self.list.iter()
    }

    /// One that is on the GPU from now on.
    pub(super) fn add(&mut self, mut running: Running, origin: Origin) {
        running.allow(self.allowance);
        running.set_careful(self.careful);
        self.list.push(WarmModel {
            running,
            origin,
            stuck: false,
        });
        self.publish();
        if let Some(added) = self.list.last_mut() {
            added.running.report(&self.shared);
        }
    }

    /// Ends the sequences of one, or of all (`None`), and takes it out; what it left is on the GPU still.
    pub(super) fn remove(&mut self, model: Option<u64>, reason: FinishReason) -> Vec<Remains> {
        let is_meant = |warm: &WarmModel| model.is_none_or(|id| warm.running.model.id == id);
        let (gone, stay) = std::mem::take(&mut self.list)
            .into_iter()
            .partition(is_meant);
        self.list = stay;
        let remains = gone.into_iter().map(|mut warm: WarmModel| {
            warm.running.end_all(reason);
            warm.running.leave(&self.shared)
        });
        let remains = remains.collect();
        self.publish();
        remains
    }

    /// Takes all out without a look at them.
    pub(super) fn take_all(&mut self) -> Vec<WarmModel> {
        let all = std::mem::take(&mut self.list);
        self.publish();
        all
    }

    /// Says which there are.
    fn publish(&self) {
        let models = self.list.iter().map(|warm| Arc::clone(&warm.running.model));
        self.shared.set_models(models.collect());
    }

    /// A turn of each that has work.
    pub(super) fn turn(&mut self, gpu: &Gpu) -> Result<(), EngineError> {
        let busy = self.list.iter().filter(|warm| !warm.running.is_idle());
        let shares_gpu = busy.count() > 1;
        for at in 0..self.list.len() {
            if shares_gpu {
                let traces = self.list.iter().map(|warm| warm.running.trace());
                if let Some(trace) = traces.reduce(Trace::after) {
                    self.list[at].running.follow(trace);
                }
            } else {
                self.list[at].running.alone();
            }
            let warm = &mut self.list[at];
            if warm.stuck && warm.running.is_idle() {
                continue;
            }
            warm.stuck = !warm.running.turn(gpu, &self.shared)?;
        }
        Ok(())
    }

    /// A turn without the GPU.
    pub(super) fn turn_away(&mut self) {
        for warm in &mut self.list {
            warm.running.turn_away(&self.shared);
        }
    }

    /// Takes a request; ends it if its model has gone since it was checked.
    pub(super) fn submit(&mut self, submission: Submission) {
        let model = submission.model.id;
        let found = self.list.iter_mut().find(|w| w.running.model.id == model);
        let Some(warm) = found else {
            return submission.end(FinishReason::Shutdown);
        };
        self.shared.update(|stats| stats.requests += 1);
        warm.running.submit(submission, &self.shared);
        warm.stuck = false;
    }

    /// None uses more than this from now on.
    pub(super) fn allow(&mut self, allowance: Allowance) {
        self.allowance = allowance;
        for warm in &mut self.list {
            warm.running.allow(allowance);
            warm.stuck = false;
        }
    }

    /// Small steps from now on, or not.
    pub(super) fn set_careful(&mut self, careful: bool) {
        self.careful = careful;
        for warm in &mut self.list {
            warm.running.set_careful(careful);
        }
    }

    /// They are back on the GPU.
    pub(super) fn go_on(&mut self) {
        for warm in &mut self.list {
            warm.stuck = false;
        }
    }

    /// Ends what never ran; what runs may finish, and soon: it would wait for better times otherwise.
    pub(super) fn end_waiting(&mut self) {
        for warm in &mut self.list {
            warm.running.end_waiting(FinishReason::Shutdown);
        }
        self.allow(Allowance::default());
    }

    pub(super) fn is_idle(&self) -> bool {
        self.list.iter().all(|warm| warm.running.is_idle())
    }

    /// How long no turn is needed; `None`: for as long as it takes.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let live = self.list.iter().filter(|warm| !warm.running.is_idle());
        live.map(|warm| warm.pause(now).unwrap_or_default()).min()
    }

    /// The same while they are away from the GPU.
    pub(super) fn pause_away(&self, now: Instant) -> Option<Duration> {
        let live = self.list.iter().filter(|warm| !warm.running.is_idle());
        let look = |warm: &WarmModel| warm.running.next_deadline(now).min(REST_POLL);
        live.map(look).min()
    }

    /// Takes the results of all steps under way.
    pub(super) fn finish(&mut self, gpu: &Gpu) -> Result<(), EngineError> {
        for warm in &mut self.list {
            warm.running.finish(gpu, &self.shared)?;
        }
        Ok(())
    }

    /// All leave the GPU, with their sequences alive.
    pub(super) fn leave(&mut self) -> Vec<Remains> {
        let leave = |warm: &mut WarmModel| warm.running.leave(&self.shared);
        self.list.iter_mut().map(leave).collect()
    }

    /// The largest KV cache will be half as large, but no smaller than a full context. False: none can.
    pub(super) fn shrink(&mut self) -> bool {
        let halves = self.list.iter_mut().filter_map(|warm| {
            let model = &warm.running.model;
            let limits = smaller(&warm.origin.limits, model.context_len)?;
            Some((limits.kv_bytes(&model.config), limits, &mut warm.origin))
        });
        let Some((_, limits, origin)) = halves.max_by_key(|(bytes, ..)| *bytes) else {
            return false;
        };
        tracing::warn!(blocks = limits.kv_blocks, "the KV cache will be smaller");
        origin.limits = limits;
        true
    }
}
