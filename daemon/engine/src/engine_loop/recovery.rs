//! What becomes of the models when their device is lost, when memory runs out, when our own code panics,
//! and when somebody asks them to leave the GPU for a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use super::EngineLoop;
use super::loading::{Watcher, open_files};
use crate::condition::Condition;
use crate::engine::LoadProgress;
use crate::error::{EngineError, LoadError};
use crate::event::FinishReason;
use crate::gpu::{Gpu, bury};
use crate::model::{Canary, Forward};
use crate::request::EngineConfig;
use crate::survival::Verdict;

/// Why the models are not on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Away {
    /// They were asked to leave.
    Suspended,
    /// Their device was lost.
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

    /// The device failed. If it was for want of memory, there will be less KV.
    pub(super) fn lost(&mut self, error: &EngineError) {
        let short = self.gpu.as_ref().is_some_and(Gpu::is_out_of_memory);
        self.leave_device(error, short);
    }

    /// Gives the device up, and notes when it is opened again; `shrink`: with less KV.
    pub(super) fn leave_device(&mut self, error: &EngineError, shrink: bool) {
        let reason = match self.gpu.as_ref().and_then(Gpu::fault) {
            Some(fault) => fault,
            None => error.to_string(),
        };
        tracing::error!(reason, "the GPU failed");
        let remains = self.models.leave();
        self.close(remains);
        if self.models.is_empty() {
            return;
        }
        if shrink {
            self.models.shrink();
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
                tracing::warn!(ms, "what was on it will be brought back after this time");
                self.away = Some(Away::Lost {
                    next_try: now + delay,
                });
                self.shared.set_condition(Condition::Rebuilding { reason });
            }
            Verdict::GiveUp => self.give_up(reason),
        }
    }

    fn give_up(&mut self, reason: String) {
        tracing::error!(
            reason,
            "the GPU does not come back; nothing is loaded any more"
        );
        // First, so that nobody whose reply ends finds the condition of before.
        self.shared.set_condition(Condition::Failed { reason });
        self.drop_models(FinishReason::Fault);
    }

    /// Opens the device again, and brings the models back onto it.
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
                tracing::info!(ms, "the GPU is back, and what was on it");
                self.shared.update(|stats| stats.device_rebuilds += 1);
            }
            Err(error) => {
                let reason = reason_of(&error);
                tracing::error!(reason, "what was on the GPU cannot be brought back");
                match error {
                    LoadError::Engine(_) | LoadError::OutOfMemory { .. } => self.failed(reason),
                    // The file is what is wrong: another try finds it the same.
                    _ => self.give_up(reason),
                }
            }
        }
    }

    /// The same files on the same adapter; each canary must come out the same. If memory is short, the
    /// largest KV cache is halved, as long as one can be.
    pub(super) fn bring_back(&mut self, watcher: &Watcher<'_>) -> Result<(), LoadError> {
        let forwards = loop {
            let brought = self.bring_all(watcher);
            let Err(error) = brought else { break brought? };
            self.close(());
            let short = matches!(error, LoadError::OutOfMemory { .. });
            if !short || !self.models.shrink() {
                return Err(error);
            }
        };
        for (warm, forward) in self.models.iter_mut().zip(forwards) {
            warm.running.come_back(forward, &self.shared);
        }
        self.away = None;
        self.models.go_on();
        self.shared.set_condition(self.well());
        Ok(())
    }

    /// A pass for each model, in their order.
    fn bring_all(&mut self, watcher: &Watcher<'_>) -> Result<Vec<Forward>, LoadError> {
        let wanted: Vec<_> = self
            .models
            .iter()
            .map(|warm| (warm.running.model.clone(), warm.origin.clone()))
            .collect();
        let mut forwards = Vec::with_capacity(wanted.len());
        for (model, origin) in wanted {
            let (checkpoint, marks) = open_files(&origin.files)?;
            if marks != origin.marks {
                return Err(LoadError::FileChanged);
            }
            let engine = EngineConfig {
                settled_kernels: Some(model.chosen_kernels.clone()),
                ..self.config.clone()
            };
            let forward =
                self.try_up(&checkpoint, &model.config, origin.limits, &engine, watcher)?;
            let gpu = self.open()?;
            let found = sound(|| Canary::compute(gpu, &forward, &model.config, 0))??;
            forward.clear_blocks(gpu, &model.config, &[0]);
            gpu.wait(None)?;
            if found != origin.canary {
                return Err(wrong_canary().into());
            }
            forwards.push(forward);
        }
        Ok(forwards)
    }

    /// The condition of a model that answers.
    pub(super) fn well(&self) -> Condition {
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
        self.models.set_careful(careful);
        if self.is_at_work() {
            self.shared.set_condition(self.well());
        }
    }

    /// Takes the models off the GPU. False: there are none.
    pub(super) fn suspend(&mut self) -> bool {
        if self.models.is_empty() {
            return false;
        }
        if let (Some(gpu), None) = (&self.gpu, self.away)
            && let Err(error) = self.models.finish(gpu)
        {
            tracing::warn!(%error, "the last steps before the models leave are lost");
        }
        let remains = self.models.leave();
        self.close(remains);
        self.away = Some(Away::Suspended);
        self.shared.set_condition(Condition::Suspended);
        tracing::info!("all models have left the GPU");
        true
    }

    /// Puts them back. False: there are none, or they are on the GPU.
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
        tracing::info!("all models are back on the GPU");
        Ok(true)
    }

    /// Leaves the GPU idle until `Wake`.
    pub(super) fn quiesce(&mut self) {
        self.quiet = true;
        if let (Some(gpu), None) = (&self.gpu, self.away)
            && let Err(error) = self.models.finish(gpu)
        {
            self.lost(&error);
        }
    }

    /// Computes the canaries again. False: one came out wrong, and the models are brought back anew.
    pub(super) fn check_canary(&mut self) -> bool {
        let Some(gpu) = &self.gpu else {
            return true;
        };
        let shared = &self.shared;
        let wrong =
            self.models
                .iter_mut()
                .find_map(|warm| match warm.running.canary(gpu, shared) {
                    Ok(found) if found == warm.origin.canary => None,
                    Ok(_) => Some(wrong_canary()),
                    Err(error) => Some(error),
                });
        if let Some(error) = &wrong {
            self.lost(error);
        }
        wrong.is_none()
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
        for warm in self.models.iter_mut() {
            // What panics twice may be one of the sequences, nobody knows which.
            warm.running.mend(bug && again);
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
