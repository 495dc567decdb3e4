//! The one thread that owns the GPU: takes commands, runs the warm model, and sleeps when there is
//! nothing to do.

mod loading;
mod recovery;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use self::loading::Origin;
pub(crate) use self::loading::limits;
use self::recovery::Away;
use crate::allowance::Allowance;
use crate::engine::{LoadProgress, LoadedModel, Shared};
use crate::error::{EngineError, LoadError};
use crate::event::{EventSink, FinishReason};
use crate::format::ModelFiles;
use crate::gpu::{Drivers, Gpu, Identity};
use crate::limits::REST_POLL;
use crate::queue::QueuePlace;
use crate::request::{EngineConfig, GenerateRequest};
use crate::running::Running;
use crate::sequence::Sequence;
use crate::survival::Survival;
use crate::usage::Usage;

/// How often a reader that stalls is looked at while nothing else goes on.
const STALL_POLL: Duration = Duration::from_millis(20);
/// How often callers that went away are looked for while nothing may run.
const WAITING_POLL: Duration = Duration::from_secs(1);

/// What the engine's thread is told.
pub(crate) enum Command {
    /// Load a model in the place of the present one.
    Load {
        files: ModelFiles,
        progress: Sender<LoadProgress>,
        cancelled: Arc<AtomicBool>,
        reply: Sender<Result<Arc<LoadedModel>, LoadError>>,
    },
    /// Free the present model.
    Unload { reply: Sender<bool> },
    /// Take the present model off the GPU, and keep its sequences.
    Suspend { reply: Sender<bool> },
    /// Put it back.
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
    /// Run a request that was checked against `model` and `context_len`.
    Submit {
        request: Box<GenerateRequest>,
        model: Arc<LoadedModel>,
        context_len: u32,
        sink: Box<dyn EventSink>,
        place: QueuePlace,
    },
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
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    running: Option<Running>,
    /// Where the present model came from.
    origin: Option<Origin>,
    /// Why the present model is not on the GPU, if it is not.
    away: Option<Away>,
    /// Nothing is submitted to the GPU.
    quiet: bool,
    survival: Survival,
    /// The device was lost often: steps are small.
    careful: bool,
    /// When the thread's own work panicked last.
    panicked_at: Option<Instant>,
    allowance: Allowance,
    stopping: Option<(Instant, Sender<()>)>,
    /// The last turn found nothing to do: readers have to take their events first.
    stuck: bool,
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
            config,
            commands,
            shared,
            running: None,
            origin: None,
            away: None,
            quiet: false,
            careful: false,
            panicked_at: None,
            allowance: Allowance::default(),
            stopping: None,
            stuck: false,
        }
    }

    /// Runs until shutdown, or until every handle is gone.
    pub(crate) fn run(mut self) {
        while self.take_commands() && !self.is_drained() {
            self.guarded(Self::turn);
        }
        self.drop_model(FinishReason::Shutdown);
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
            tracing::error!("a bug: the engine cannot mend its model; it is unloaded");
            self.shared.set_model(None);
            crate::gpu::bury((self.running.take(), self.gpu.take()));
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
        let Some(running) = &mut self.running else {
            return;
        };
        match &self.gpu {
            Some(gpu) if self.away.is_none() && !self.quiet => {
                match running.turn(gpu, &self.shared) {
                    Ok(done) => self.stuck = !done,
                    Err(error) => self.lost(&error),
                }
            }
            _ => running.turn_away(&self.shared),
        }
    }

    fn is_drained(&self) -> bool {
        self.stopping.as_ref().is_some_and(|(until, _)| {
            self.running.as_ref().is_none_or(Running::is_idle) || Instant::now() >= *until
        })
    }

    /// How long to wait for a command before the next turn; `None`: for as long as it takes.
    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let from_now = |at: Instant| at.saturating_duration_since(now);
        let stop = self.stopping.as_ref().map(|(until, _)| from_now(*until));
        let live = self.running.as_ref().filter(|running| !running.is_idle());
        let waits = if self.away.is_some() || self.quiet {
            let look = live.map(|running| running.next_deadline(now).min(REST_POLL));
            let again = match self.away {
                Some(Away::Lost { next_try }) if !self.quiet => Some(from_now(next_try)),
                _ => None,
            };
            [look, again].into_iter().flatten().min()
        } else {
            live.map(|running| self.pause(running, now).unwrap_or_default())
        };
        [waits, stop].into_iter().flatten().min()
    }

    /// How long the thread may sleep though there are sequences: it rests between steps, or readers have
    /// to take their events first, or nothing that waits may run now.
    fn pause(&self, running: &Running, now: Instant) -> Option<Duration> {
        match running.rest(now) {
            Some(rest) => Some(rest),
            None if !self.stuck => None,
            None if running.nobody_runs() => Some(running.next_deadline(now).min(WAITING_POLL)),
            None => Some(STALL_POLL),
        }
    }

    /// Takes the commands that wait; sleeps for one if there is no work. False: no handle is left.
    fn take_commands(&mut self) -> bool {
        let mut patience = self.patience();
        if patience != Some(Duration::ZERO) {
            self.shared.set_busy_since(None);
        }
        loop {
            let command = match patience {
                None => self
                    .commands
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(time) => self.commands.recv_timeout(time),
            };
            match command {
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
            Command::Unload { reply } => {
                let loaded = self.running.is_some();
                self.drop_model(FinishReason::Shutdown);
                let _ = reply.send(loaded);
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
            Command::Submit {
                request,
                model,
                context_len,
                sink,
                place,
            } => self.submit(*request, &model, context_len, sink, place),
            Command::Allow(allowance) => {
                self.allowance = allowance;
                if let Some(running) = &mut self.running {
                    running.allow(allowance);
                }
            }
            Command::Shutdown { drain, reply } => self.begin_shutdown(drain, reply),
        }
    }

    fn begin_shutdown(&mut self, drain: Duration, reply: Sender<()>) {
        self.quiet = false;
        let suspended = matches!(self.away, Some(Away::Suspended));
        if suspended {
            // Nobody will bring it back.
            self.drop_model(FinishReason::Shutdown);
        } else if let Some(running) = &mut self.running {
            running.end_waiting(FinishReason::Shutdown);
            // What runs may finish, and soon: it would wait for better times otherwise.
            running.allow(Allowance::default());
        }
        self.stopping = Some((Instant::now() + drain, reply));
    }

    fn submit(
        &mut self,
        request: GenerateRequest,
        model: &Arc<LoadedModel>,
        context_len: u32,
        sink: Box<dyn EventSink>,
        place: QueuePlace,
    ) {
        match &mut self.running {
            Some(running) if Arc::ptr_eq(&running.model, model) && self.stopping.is_none() => {
                self.shared.update(|stats| stats.requests += 1);
                running.submit(request, context_len, sink, place, &self.shared);
                self.stuck = false;
            }
            // The model went away between the check and now.
            _ => {
                let model = Arc::clone(model);
                let mut sequence = Sequence::new(request, model, context_len, sink, place);
                sequence.end(FinishReason::Shutdown, None);
            }
        }
    }

    /// Ends all sequences and gives the model's memory back.
    fn drop_model(&mut self, reason: FinishReason) {
        self.shared.set_model(None);
        self.origin = None;
        self.away = None;
        if let Some(mut running) = self.running.take() {
            running.end_all(reason);
            let remains = running.leave(&self.shared);
            drop(running);
            self.close(remains);
            self.shared.update(|stats| {
                stats.active_now = 0;
                stats.paused_now = 0;
                stats.kv_blocks_used_now = 0;
                stats.kv_blocks_cached_now = 0;
                stats.kv_blocks_total = 0;
            });
            self.shared.set_usage(Usage {
                apps: self.shared.accounts(),
                sequences: Vec::new(),
            });
        }
    }

    /// The device, opened again if it is not open.
    fn open(&mut self) -> Result<&Gpu, EngineError> {
        let sound = self.gpu.take().filter(|gpu| gpu.check().is_ok());
        let gpu = match sound {
            Some(gpu) => gpu,
            None => Gpu::reopen(&self.adapter, self.drivers.take(), &self.config)?,
        };
        self.drivers = Some(gpu.drivers.clone());
        Ok(self.gpu.insert(gpu))
    }
}
