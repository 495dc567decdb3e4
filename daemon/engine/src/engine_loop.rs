//! The one thread that owns the GPU: takes commands, runs the warm models, and sleeps when there is
//! nothing to do.

mod inbox;
mod loading;
mod recovery;
mod warm_models;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use self::inbox::Inbox;
pub(crate) use self::loading::limits;
use self::recovery::Away;
pub(crate) use self::warm_models::Submission;
use self::warm_models::WarmModels;
use crate::allowance::Allowance;
use crate::condition::Condition;
use crate::energy::SharedEnergy;
use crate::engine::{LoadProgress, LoadedModel, Shared};
use crate::error::{EngineError, LoadError};
use crate::event::FinishReason;
use crate::format::ModelFiles;
use crate::gpu::{Drivers, Gpu, Identity};
use crate::request::EngineConfig;
use crate::survival::Survival;

/// What the engine's thread is told.
pub(crate) enum Command {
    /// Load a model beside the others.
    Load {
        files: ModelFiles,
        progress: Sender<LoadProgress>,
        cancelled: Arc<AtomicBool>,
        reply: Sender<Result<Arc<LoadedModel>, LoadError>>,
    },
    /// Free the model of this number; `None`: all.
    Unload {
        model: Option<u64>,
        reply: Sender<bool>,
    },
    /// Take all models off the GPU, and keep their sequences.
    Suspend { reply: Sender<bool> },
    /// Put them back.
    Resume {
        progress: Sender<LoadProgress>,
        cancelled: Arc<AtomicBool>,
        reply: Sender<Result<bool, LoadError>>,
    },
    /// Finish what is submitted, and submit nothing more until `Wake`.
    Quiesce { reply: Sender<()> },
    /// Go on.
    Wake,
    /// Compute the canary.
    CheckCanary { reply: Sender<bool> },
    /// Run a request.
    Submit(Box<Submission>),
    /// Use no more than this.
    Allow(Allowance),
    /// Finish within `drain`, then stop.
    Shutdown { drain: Duration, reply: Sender<()> },
}

/// See the module.
pub(crate) struct EngineLoop {
    /// The device; `None` while nothing needs it, or when it was lost.
    gpu: Option<Gpu>,
    /// The adapter that is opened again.
    adapter: Identity,
    /// The drivers, loaded once: loading them anew costs memory that some do not give back.
    drivers: Option<Drivers>,
    config: EngineConfig,
    inbox: Inbox,
    shared: Arc<Shared>,
    models: WarmModels,
    /// Models so far.
    loaded: u64,
    energy: SharedEnergy,
    /// Why the models are not on the GPU, if they are not.
    away: Option<Away>,
    /// Nothing is submitted to the GPU.
    quiet: bool,
    survival: Survival,
    /// The device was lost often: steps are small.
    careful: bool,
    /// When the thread's own work panicked last.
    panicked_at: Option<Instant>,
    stopping: Option<(Instant, Sender<()>)>,
}

impl EngineLoop {
    /// A loop without a model.
    pub(crate) fn new(
        gpu: Gpu,
        config: EngineConfig,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            adapter: gpu.identity.clone(),
            drivers: Some(gpu.drivers.clone()),
            gpu: Some(gpu),
            survival: Survival::new(config.recovery.clone()),
            energy: SharedEnergy::new(config.meter.clone()),
            config,
            inbox: Inbox::new(commands),
            models: WarmModels::new(Arc::clone(&shared)),
            shared,
            loaded: 0,
            away: None,
            quiet: false,
            careful: false,
            panicked_at: None,
            stopping: None,
        }
    }

    /// Runs until shutdown, or until every handle is gone.
    pub(crate) fn run(mut self) {
        while self.take_commands() && !self.is_drained() {
            self.guarded(Self::turn);
        }
        self.drop_models(FinishReason::Shutdown);
        if let Some((_, reply)) = self.stopping.take() {
            // The caller may have stopped waiting.
            let _ = reply.send(());
        }
    }

    /// Does `work`. A panic in it, which is a bug of ours or of what we build on, costs what the device
    /// holds and not the thread.
    fn guarded(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| self.panicked())).is_err() {
            // Not even the bookkeeping can be put in order: what is left of the model goes.
            tracing::error!("a bug: the engine cannot mend its models; they are unloaded");
            crate::gpu::bury((self.models.take_all(), self.gpu.take()));
        }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        self.shared.set_busy_since(Some(now));
        self.set_careful(self.survival.is_careful(now));
        if let Some(Away::Lost { next_try }) = self.away
            && now >= next_try
            && !self.quiet
        {
            self.rebuild();
            return;
        }
        match &self.gpu {
            Some(gpu) if self.away.is_none() && !self.quiet => {
                if let Err(error) = self.models.turn(gpu) {
                    self.lost(&error);
                }
            }
            _ => self.models.turn_away(),
        }
    }

    fn is_drained(&self) -> bool {
        let over = |until: Instant| self.models.is_idle() || Instant::now() >= until;
        self.stopping
            .as_ref()
            .is_some_and(|(until, _)| over(*until))
    }

    /// How long to wait for a command before the next turn; `None`: for as long as it takes.
    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let from_now = |at: Instant| at.saturating_duration_since(now);
        let stop = self.stopping.as_ref().map(|(until, _)| from_now(*until));
        let waits = if self.away.is_some() || self.quiet {
            let again = match self.away {
                Some(Away::Lost { next_try }) if !self.quiet => Some(from_now(next_try)),
                _ => None,
            };
            let look = self.models.pause_away(now);
            [look, again].into_iter().flatten().min()
        } else {
            self.models.pause(now)
        };
        [waits, stop].into_iter().flatten().min()
    }

    /// Takes the commands that wait; sleeps for one if there is no work. False: no handle is left.
    fn take_commands(&mut self) -> bool {
        let mut patience = self.patience();
        if patience != Some(Duration::ZERO) {
            self.shared.set_busy_since(None);
        }
        loop {
            match self.inbox.next(patience) {
                Ok(command) => self.guarded(|engine| engine.obey(command)),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            // Whatever else is there is taken at once.
            patience = Some(Duration::ZERO);
        }
    }

    fn obey(&mut self, command: Command) {
        self.shared.set_busy_since(Some(Instant::now()));
        // Where a caller waits for a reply, it may have stopped waiting.
        match command {
            Command::Load {
                files,
                progress,
                cancelled,
                reply,
            } => {
                let _ = reply.send(self.load(&files, &progress, &cancelled));
            }
            Command::Unload { model, reply } => {
                let _ = reply.send(self.unload(model));
            }
            Command::Suspend { reply } => {
                let _ = reply.send(self.suspend());
            }
            Command::Resume {
                progress,
                cancelled,
                reply,
            } => {
                let _ = reply.send(self.resume(&progress, &cancelled));
            }
            Command::Quiesce { reply } => {
                self.quiesce();
                let _ = reply.send(());
            }
            Command::Wake => self.quiet = false,
            Command::CheckCanary { reply } => {
                let _ = reply.send(self.check_canary());
            }
            Command::Submit(submission) if self.stopping.is_some() => {
                submission.end(FinishReason::Shutdown);
            }
            Command::Submit(submission) => self.models.submit(*submission),
            Command::Allow(allowance) => self.models.allow(allowance),
            Command::Shutdown { drain, reply } => self.begin_shutdown(drain, reply),
        }
    }

    fn begin_shutdown(&mut self, drain: Duration, reply: Sender<()>) {
        self.quiet = false;
        let suspended = matches!(self.away, Some(Away::Suspended));
        if suspended {
            // Nobody will bring them back.
            self.drop_models(FinishReason::Shutdown);
        } else {
            self.models.end_waiting();
        }
        self.stopping = Some((Instant::now() + drain, reply));
    }

    /// Frees a model, or all. False: there is none such.
    fn unload(&mut self, model: Option<u64>) -> bool {
        let meant = |id: u64| model.is_none_or(|meant| meant == id);
        let (gone, stay): (Vec<_>, Vec<_>) = self
            .models
            .iter()
            .map(|warm| warm.running.model.id)
            .partition(|id| meant(*id));
        if gone.is_empty() {
            return false;
        }
        if stay.is_empty() {
            self.drop_models(FinishReason::Shutdown);
            return true;
        }
        drop(self.models.remove(model, FinishReason::Shutdown));
        if let (Some(gpu), None) = (&self.gpu, self.away)
            // What it had is freed when nothing that was submitted uses it any more.
            && let Err(error) = gpu.wait(None)
        {
            self.lost(&error);
        }
        crate::memory::give_back();
        true
    }

    /// Ends all sequences and gives the models' memory back.
    fn drop_models(&mut self, reason: FinishReason) {
        let failed = matches!(self.shared.condition(), Condition::Failed { .. });
        if self.away.take().is_some() && !failed {
            // Nothing waits to be brought back any more.
            self.shared.set_condition(self.well());
        }
        if !self.models.is_empty() {
            let remains = self.models.remove(None, reason);
            self.close(remains);
        }
    }

    /// The device, opened again if it is not open.
    fn open(&mut self) -> Result<&Gpu, EngineError> {
        if let Some(Err(error)) = self.gpu.as_ref().map(Gpu::check) {
            if self.is_at_work() {
                // The models that are on it come back by themselves.
                self.lost(&error);
                return Err(error);
            }
            self.gpu = None;
        }
        let gpu = match self.gpu.take() {
            Some(gpu) => gpu,
            None => Gpu::reopen(&self.adapter, self.drivers.take(), &self.config)?,
        };
        self.drivers = Some(gpu.drivers.clone());
        Ok(self.gpu.insert(gpu))
    }

    /// Whether there are models on the GPU.
    fn is_at_work(&self) -> bool {
        !self.models.is_empty() && self.away.is_none()
    }
}
