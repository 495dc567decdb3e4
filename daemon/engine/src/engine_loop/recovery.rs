//! What becomes of the model when its device is lost, when memory runs out, when our own code panics, and
//! when somebody asks it to leave the GPU for a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use super::EngineLoop;
use super::loading::{Watcher, open_files, smaller};
use crate::condition::Condition;
use crate::engine::LoadProgress;
use crate::error::{EngineError, LoadError};
use crate::event::FinishReason;
use crate::gpu::{Gpu, bury};
use crate::model::Canary;
use crate::request::EngineConfig;
use crate::survival::Verdict;

/// Why a model is not on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Away {
    /// It was asked to leave.
    Suspended,
    /// Its device was lost.
    Lost {
        /// When to open it again.
        next_try: Instant,
    },
}

/// Does `work`; a panic in it counts as a failure of the device. Libraries below us panic on some of them.
pub(super) fn sound<T>(work: impl FnOnce() -> T) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| EngineError::Device("a panic while the GPU was at work".to_owned()))
}

impl EngineLoop {
    /// Gives up the device, and `more` of what is on it.
    pub(super) fn close<T: Send + 'static>(&mut self, more: T) {
        bury((more, self.gpu.take()));
        crate::memory::give_back();
    }

    /// The device failed.
    pub(super) fn lost(&mut self, error: &EngineError) {
        let reason = match self.gpu.as_ref().and_then(Gpu::fault) {
            Some(fault) => fault,
            None => error.to_string(),
        };
        let out_of_memory = self.gpu.as_ref().is_some_and(Gpu::is_out_of_memory);
        tracing::error!(reason, "the GPU failed");
        let Some(running) = &mut self.running else {
            self.close(());
            return;
        };
        let remains = running.leave(&self.shared);
        let context_len = running.model.context_len;
        self.close(remains);
        if out_of_memory
            && let Some(origin) = &mut self.origin
            && let Some(limits) = smaller(&origin.limits, context_len)
        {
            tracing::warn!(blocks = limits.kv_blocks, "the KV cache will be smaller");
            origin.limits = limits;
        }
        self.failed(reason);
    }

    /// Notes a failure, and when the next try is, if there is one.
    fn failed(&mut self, reason: String) {
        let now = Instant::now();
        match self.survival.failed(now) {
            Verdict::Again(delay) => {
                if !delay.is_zero() {
                    // It may be the driver as it is loaded that does not get over something.
                    self.drivers = None;
                }
                let ms = delay.as_millis();
                tracing::warn!(ms, "the model will be brought back after this time");
                self.away = Some(Away::Lost {
                    next_try: now + delay,
                });
                self.shared.set_condition(Condition::Rebuilding { reason });
            }
            Verdict::GiveUp => self.give_up(reason),
        }
    }

    fn give_up(&mut self, reason: String) {
        tracing::error!(reason, "the GPU does not come back; the model is unloaded");
        // First, so that nobody whose reply ends finds the condition of before.
        self.shared.set_condition(Condition::Failed { reason });
        self.drop_model(FinishReason::Fault);
    }

    /// Opens the device again, and brings the model back onto it.
    pub(super) fn rebuild(&mut self) {
        let begun = Instant::now();
        let (progress, _unheard) = mpsc::channel();
        let cancelled = AtomicBool::new(false);
        let watcher = Watcher {
            progress: &progress,
            cancelled: &cancelled,
        };
        match self.bring_back(&watcher) {
            Ok(()) => {
                let ms = begun.elapsed().as_millis();
                tracing::info!(ms, "the GPU is back, and the model on it");
                self.shared.update(|stats| stats.device_rebuilds += 1);
            }
            Err(error) => {
                let reason = reason_of(&error);
                tracing::error!(reason, "the model cannot be brought back");
                match error {
                    LoadError::Engine(_) | LoadError::OutOfMemory { .. } => self.failed(reason),
                    // The file is what is wrong: another try finds it the same.
                    _ => self.give_up(reason),
                }
            }
        }
    }

    /// The same file on the same adapter; the canary must come out the same.
    fn bring_back(&mut self, watcher: &Watcher<'_>) -> Result<(), LoadError> {
        let (Some(origin), Some(running)) = (&self.origin, &self.running) else {
            return Ok(());
        };
        let model = running.model.clone();
        let (expected, limits) = (origin.canary, origin.limits.clone());
        let (checkpoint, marks) = open_files(&origin.files)?;
        if marks != origin.marks {
            return Err(LoadError::FileChanged);
        }
        let engine = EngineConfig {
            settled_kernels: Some(model.chosen_kernels.clone()),
            ..self.config.clone()
        };
        let brought = self
            .bring_up(
                &checkpoint,
                &model.config,
                (limits, model.context_len),
                &engine,
                watcher,
            )
            .and_then(|forward| {
                let gpu = self.open()?;
                let found = sound(|| Canary::compute(gpu, &forward, &model.config, 0))??;
                forward.clear_blocks(gpu, &model.config, &[0]);
                gpu.wait(None)?;
                if found != expected {
                    return Err(wrong_canary().into());
                }
                Ok(forward)
            });
        let forward = match brought {
            Ok(forward) => forward,
            Err(error) => {
                self.close(());
                return Err(error);
            }
        };
        if let Some(origin) = &mut self.origin {
            origin.limits = forward.limits().clone();
        }
        if let Some(running) = &mut self.running {
            running.come_back(forward, &self.shared);
        }
        self.away = None;
        self.stuck = false;
        self.shared.set_condition(self.well());
        Ok(())
    }

    /// The condition of a model that answers.
    fn well(&self) -> Condition {
        match self.careful {
            true => Condition::Careful,
            false => Condition::Well,
        }
    }

    /// Small steps from now on, or not.
    pub(super) fn set_careful(&mut self, careful: bool) {
        if self.careful == careful {
            return;
        }
        self.careful = careful;
        tracing::warn!(careful, "steps are small while the GPU is lost often");
        if let Some(running) = &mut self.running {
            running.set_careful(careful);
            if self.away.is_none() {
                self.shared.set_condition(self.well());
            }
        }
    }

    /// Takes the model off the GPU. False: there is none.
    pub(super) fn suspend(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        if let (Some(gpu), None) = (&self.gpu, self.away)
            && let Err(error) = running.finish(gpu, &self.shared)
        {
            tracing::warn!(%error, "the last steps before the model leaves are lost");
        }
        let remains = running.leave(&self.shared);
        self.close(remains);
        self.away = Some(Away::Suspended);
        self.shared.set_condition(Condition::Suspended);
        tracing::info!("the model has left the GPU");
        true
    }

    /// Puts a suspended model back. False: there is none, or it is on the GPU.
    pub(super) fn resume(
        &mut self,
        progress: &Sender<LoadProgress>,
        cancelled: &AtomicBool,
    ) -> Result<bool, LoadError> {
        if self.away.is_none() {
            return Ok(false);
        }
        self.bring_back(&Watcher {
            progress,
            cancelled,
        })?;
        tracing::info!("the model is back on the GPU");
        Ok(true)
    }

    /// Leaves the GPU idle until `Wake`.
    pub(super) fn quiesce(&mut self) {
        self.quiet = true;
        if let (Some(gpu), Some(running), None) = (&self.gpu, &mut self.running, self.away)
            && let Err(error) = running.finish(gpu, &self.shared)
        {
            self.lost(&error);
        }
    }

    /// Computes the canary again. False: it came out wrong, and the model is brought back anew.
    pub(super) fn check_canary(&mut self) -> bool {
        let (Some(gpu), Some(running), Some(origin)) = (&self.gpu, &mut self.running, &self.origin)
        else {
            return true;
        };
        let error = match running.canary(gpu, &self.shared) {
            Ok(found) if found == origin.canary => return true,
            Ok(_) => wrong_canary(),
            Err(error) => error,
        };
        self.lost(&error);
        false
    }

    /// The thread's own work panicked: a bug of ours, or a library's way to report a lost device.
    pub(super) fn panicked(&mut self) {
        let now = Instant::now();
        let fault = self.gpu.as_ref().and_then(Gpu::fault);
        let bug = fault.is_none();
        if bug {
            tracing::error!("a bug: the engine's thread panicked");
        }
        let window = self.config.recovery.window;
        let again = self
            .panicked_at
            .is_some_and(|at| now.saturating_duration_since(at) < window);
        if bug {
            self.panicked_at = Some(now);
        }
        if let Some(running) = &mut self.running {
            // What panics twice may be one of the sequences, nobody knows which.
            running.mend(&self.shared, bug && again);
        }
        if self.away.is_none() {
            let what = "a bug: the engine's thread panicked".to_owned();
            self.lost(&EngineError::Device(what));
        }
    }
}

fn wrong_canary() -> EngineError {
    EngineError::Device("a computation with a known result came out wrong".to_owned())
}

fn reason_of(error: &LoadError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
