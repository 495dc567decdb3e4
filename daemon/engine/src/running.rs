//! A warm model at work: takes requests, hands out slots and KV, submits steps, takes their results.
//!
//! Steps are submitted ahead of their results: a decode step takes its tokens from the GPU, so the GPU
//! never waits for the CPU between tokens. At most [`STEPS_AHEAD`] steps are under way.

mod away;
mod memory;
mod report;
mod resident;
mod results;
mod steps;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(crate) use self::away::Remains;
use self::report::Told;
use self::resident::Resident;
use self::steps::StepUnderWay;
use crate::allowance::Allowance;
use crate::energy::SharedEnergy;
use crate::engine::{LoadedModel, Shared};
use crate::engine_loop::Submission;
use crate::error::EngineError;
use crate::event::FinishReason;
use crate::gpu::{Gpu, Readback};
use crate::kv_cache::KvCache;
use crate::model::Forward;
use crate::prefill_pace::PrefillPace;
use crate::request::{EngineConfig, Speculation};
use crate::scheduler::{Move, Scheduler, SequenceId, Shares};
use crate::sequence::Sequence;
use crate::speculation::StepCosts;

/// Steps under way at most.
const STEPS_AHEAD: usize = 2;
/// With company, steps that take longer are not submitted ahead: who comes next would wait for them.
const AHEAD_STEP_MAX: Duration = Duration::from_millis(20);
/// The same without company, which may come.
const AHEAD_STEP_ALONE_MAX: Duration = Duration::from_millis(80);

/// Free blocks are few below this part of all.
const LOW_SHARE: u32 = 8;

/// See the module.
pub(crate) struct Running {
    pub(crate) model: Arc<LoadedModel>,
    forward: Resident,
    kv: KvCache,
    scheduler: Scheduler,
    shares: Shares,
    sequences: BTreeMap<SequenceId, Sequence>,
    under_way: VecDeque<StepUnderWay>,
    spare_readbacks: Vec<Readback>,
    ring: u32,
    pace: PrefillPace,
    prefix_cache: bool,
    speculation: Speculation,
    costs: StepCosts,
    started: Instant,
    last_done: Instant,
    /// What the last step took.
    last_step: Duration,
    told: Told,
    energy: SharedEnergy,
    allowance: Allowance,
    /// The pace that was allowed for the last step.
    pace_now: f32,
    /// The end of the rest that the allowed pace asks for.
    rest_until: Option<Instant>,
    /// The device was lost often: steps are small and go one at a time.
    careful: bool,
    /// Another model steps on the same GPU.
    shares_gpu: bool,
}

/// What steps of one model leave for the others on the same GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace {
    /// When its last step was done.
    last_done: Instant,
    /// The end of the rest that the allowed pace asks for.
    rest_until: Option<Instant>,
}

impl Trace {
    /// The later of two.
    pub(crate) fn after(self, other: Self) -> Self {
        Self {
            last_done: self.last_done.max(other.last_done),
            rest_until: self.rest_until.max(other.rest_until),
        }
    }
}

impl Running {
    /// Starts with no sequences.
    pub(crate) fn new(
        model: Arc<LoadedModel>,
        forward: Forward,
        config: &EngineConfig,
        energy: SharedEnergy,
    ) -> Self {
        let limits = forward.limits();
        let shares = Shares {
            slots: limits.slots,
            app_slots_max: config.app_slots_max.max(1),
            background_share: config.background_share,
        };
        let now = Instant::now();
        Self {
            scheduler: Scheduler::new(shares.clone()),
            shares,
            kv: KvCache::new(limits.kv_blocks),
            pace: PrefillPace::new(model.prefill_chunk),
            model,
            forward: Resident::new(forward),
            sequences: BTreeMap::new(),
            under_way: VecDeque::new(),
            spare_readbacks: Vec::new(),
            ring: 0,
            prefix_cache: config.prefix_cache,
            speculation: config.speculation,
            costs: StepCosts::default(),
            started: now,
            last_done: now,
            last_step: Duration::ZERO,
            told: Told::default(),
            energy,
            allowance: Allowance::default(),
            pace_now: 1.0,
            rest_until: None,
            careful: false,
            shares_gpu: false,
        }
    }

    /// What its steps leave for others.
    pub(crate) fn trace(&self) -> Trace {
        Trace {
            last_done: self.last_done,
            rest_until: self.rest_until,
        }
    }

    /// Goes on after steps of others: their time is not its own, and their rest is.
    pub(crate) fn follow(&mut self, trace: Trace) {
        self.last_done = self.last_done.max(trace.last_done);
        self.rest_until = self.rest_until.max(trace.rest_until);
        self.shares_gpu = true;
    }

    /// Has the GPU to itself.
    pub(crate) fn alone(&mut self) {
        self.shares_gpu = false;
    }

    /// Uses no more than this from the next turn on.
    pub(crate) fn allow(&mut self, allowance: Allowance) {
        self.allowance = allowance;
        self.scheduler.allow(
            allowance.slots,
            allowance.least_class,
            allowance.keep_waiting_kv,
        );
        let kept = f64::from(self.kv.total()) * f64::from(allowance.prefix_cache_share);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to the number of blocks"
        )]
        let kept = kept.clamp(0.0, f64::from(self.kv.total())) as u32;
        self.kv.keep_at_most(kept);
        self.told.line_changed();
    }

    /// Time left to rest after the last step; `None`: it may go on.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        let busy = self.under_way.is_empty() && !self.sequences.is_empty();
        let until = self.rest_until.filter(|_| busy)?;
        until
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// Tells whether no sequence has a slot and nobody's events wait.
    pub(crate) fn nobody_runs(&self) -> bool {
        self.under_way.is_empty()
            && self
                .sequences
                .values()
                .all(|s| s.slot.is_none() && !s.is_stalled())
    }

    /// Time until the first deadline of a sequence.
    pub(crate) fn next_deadline(&self, now: Instant) -> Duration {
        let deadlines = self.sequences.values().filter_map(|s| s.request.deadline);
        deadlines
            .min()
            .map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }

    /// Takes small steps, one at a time, or not.
    pub(crate) fn set_careful(&mut self, careful: bool) {
        self.careful = careful;
    }

    /// Tells whether there is any sequence.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.under_way.is_empty()
    }

    /// The time as the scheduler counts it.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes a request for this model.
    pub(crate) fn submit(&mut self, submission: Submission, shared: &Shared) {
        let Submission {
            request,
            model,
            context_len,
            sink,
            place,
        } = submission;
        let id = SequenceId(shared.sequences.fetch_add(1, Ordering::Relaxed));
        let app = Arc::clone(&request.caller.app);
        let prompt_tokens = u64::try_from(request.prompt.len()).unwrap_or(0);
        shared.account(&app, |account| {
            account.requests += 1;
            account.prompt_tokens += prompt_tokens;
        });
        let class = request.class;
        let sequence = Sequence::new(request, model, context_len, sink, place);
        self.scheduler.submit(id, app, class, self.now());
        self.sequences.insert(id, sequence);
        self.told.line_changed();
    }

    /// One turn: delivers, ends, hands out slots, submits at most one step, and takes results when
    /// enough steps are under way. Returns false if there was nothing to do.
    pub(crate) fn turn(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        self.sweep(shared);
        self.arrange(gpu, shared);
        self.report(shared);
        // Blocks leave their owner zeroed. The GPU does this after the steps already submitted. After the
        // report: a submission can wait for the step under way.
        self.clean(gpu);
        if self.rest(Instant::now()).is_some() {
            return Ok(true);
        }
        // A rest begins when nothing is under way: steps submitted at a faster pace come to their end.
        let ends_first = self.is_slowed() && !self.under_way.is_empty();
        let submitted = !ends_first && self.submit_step(gpu, shared)?;
        let full = self.under_way.len() >= self.steps_ahead();
        let took = (full || !submitted) && self.take_results(gpu, shared)?;
        Ok(submitted || took)
    }

    /// Whether rests are asked for between steps.
    fn is_slowed(&self) -> bool {
        self.pace_now.min(self.allowance.pace) < 1.0
    }

    fn steps_ahead(&self) -> usize {
        // The other model's step keeps the GPU busy meanwhile, and results are taken in the order of
        // submission, so that each step's time is told from the other's.
        if self.is_slowed() || self.shares_gpu {
            return 1;
        }
        let most = if self.sequences.len() > 1 {
            AHEAD_STEP_MAX
        } else {
            AHEAD_STEP_ALONE_MAX
        };
        if self.last_step > most || self.careful {
            1
        } else {
            STEPS_AHEAD
        }
    }

    /// Ends what is over, abandoned or out of time, and gives back what it held.
    fn sweep(&mut self, shared: &Shared) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (id, sequence) in &mut self.sequences {
            sequence.flush();
            sequence.check_time(now);
            self.scheduler.set_stalled(*id, sequence.is_stalled());
            if sequence.is_over() || sequence.is_abandoned() {
                over.push(*id);
            }
        }
        for id in over {
            self.give_back(shared, id);
        }
    }

    /// Forgets a sequence, and takes back what it held.
    fn give_back(&mut self, shared: &Shared, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return;
        };
        self.scheduler.remove(id);
        self.release_kv(&mut sequence);
        if sequence.is_cancelled() {
            shared.update(|stats| stats.cancelled += 1);
        }
        if sequence.has_started() {
            shared.queue.ended(Instant::now());
        }
        self.told.line_changed();
    }

    /// Hands out slots.
    fn arrange(&mut self, gpu: &Gpu, shared: &Shared) {
        let now = self.now();
        if self.kv.available() < self.kv.total() / LOW_SHARE {
            self.shed_behind_windows();
        }
        let (sequences, kv) = (&self.sequences, &self.kv);
        let moves = self.scheduler.arrange(now, |scheduler, id| {
            memory::fits(scheduler, sequences, kv, id, now)
        });
        for step in moves {
            self.told.line_changed();
            match step {
                Move::Pause(id) => self.paused(shared, id),
                Move::Run(id, slot) => self.run(gpu, shared, id, slot),
            }
        }
        if !self.allowance.keep_waiting_kv {
            self.drop_waiting_kv(shared);
        }
    }

    /// A sequence gets its slot, and the KV that is there for it.
    fn run(&mut self, gpu: &Gpu, shared: &Shared, id: SequenceId, slot: u32) {
        self.find_kv(gpu, shared, id);
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let sampling = steps::gpu_sampling(&sequence.request.sampling);
        self.forward.reset_slot(gpu, slot, &sampling);
        if sequence.request.sampling.has_penalties() {
            // Tokens that this slot will not see go by.
            let history = sequence.history(self.model.config.vocab_size);
            self.forward.write_history(gpu, slot, &history);
        }
        let first = !sequence.has_started();
        sequence.run(slot);
        if first && self.speculation != Speculation::Off {
            sequence.speculate(self.speculation == Speculation::Always);
        }
    }

    /// A sequence has lost its slot.
    fn paused(&mut self, shared: &Shared, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.slot = None;
            shared.update(|stats| stats.preempted += 1);
            self.told.line_changed();
        }
    }

    /// Ends every sequence with `reason`; those with room in their channel learn it.
    pub(crate) fn end_all(&mut self, reason: FinishReason) {
        for sequence in self.sequences.values_mut() {
            sequence.end(reason, None);
        }
        self.sequences.clear();
        self.under_way.clear();
    }

    /// Ends the sequences that never ran.
    pub(crate) fn end_waiting(&mut self, reason: FinishReason) {
        for sequence in self.sequences.values_mut().filter(|s| !s.has_started()) {
            sequence.end(reason, None);
        }
    }
}
