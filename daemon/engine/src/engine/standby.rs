//! The engine's facade for what happens around a model at work: it leaves the GPU and comes back, rests
//! while the machine sleeps, and tells how it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use super::shared::lock;
use super::{Engine, LoadProgress};
use crate::condition::{Condition, OnCondition};
use crate::engine_loop::Command;
use crate::error::{EngineError, LoadError};
use crate::limits::QUIESCE_MAX;

impl Engine {
    /// Takes all models off the GPU, and gives the device and its memory back. The step under way is
    /// finished first. Sequences stay, those that run too, and go on after [`Engine::resume`] as if nothing
    /// had happened; until then, new requests wait, and deadlines and cancels hold. Blocks. False: there is
    /// no model.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn suspend(&self) -> Result<bool, EngineError> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Suspend { reply })?;
        answer.recv().map_err(|_| EngineError::Stopped)
    }

    /// Brings them back from the files that they were loaded from. Blocks; `progress` as in
    /// [`Engine::load`]. False: there is none that is away.
    ///
    /// # Errors
    /// See [`LoadError`]; they stay away, and it may be tried again.
    pub fn resume(
        &self,
        progress: &mut dyn FnMut(LoadProgress) -> bool,
    ) -> Result<bool, LoadError> {
        self.watched(progress, |progress, cancelled, reply| Command::Resume {
            progress,
            cancelled,
            reply,
        })
    }

    /// Sends a command that loads something, hands on its progress, and waits for its reply.
    pub(super) fn watched<T>(
        &self,
        progress: &mut dyn FnMut(LoadProgress) -> bool,
        command: impl FnOnce(
            Sender<LoadProgress>,
            Arc<AtomicBool>,
            Sender<Result<T, LoadError>>,
        ) -> Command,
    ) -> Result<T, LoadError> {
        let (reports, inbox) = mpsc::channel();
        let (reply, answer) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        self.send(command(reports, Arc::clone(&cancelled), reply))?;
        // Ends when the thread drops its sender, that is, when the load is over.
        for report in inbox {
            if !progress(report) {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
        answer.recv().map_err(|_| EngineError::Stopped)?
    }

    /// Finishes what was submitted to the GPU, and submits nothing more until [`Engine::wake`]: the
    /// machine is about to sleep. Requests are accepted and wait. Blocks for at most
    /// [`QUIESCE_MAX`](crate::limits::QUIESCE_MAX). False: the GPU was not idle by then.
    pub fn quiesce(&self) -> bool {
        let (reply, answer): (_, Receiver<()>) = mpsc::channel();
        self.send(Command::Quiesce { reply }).is_ok() && answer.recv_timeout(QUIESCE_MAX).is_ok()
    }

    /// Goes on after [`Engine::quiesce`].
    pub fn wake(&self) {
        // A stopped engine has nothing to go on with.
        let _ = self.send(Command::Wake);
    }

    /// Computes something small on the loaded weights and compares it with what came out when they were
    /// loaded; among sequences at work too. Blocks. False: it came out wrong or not at all. The engine then
    /// treats the device as lost: it opens it again and brings the model and its sequences back.
    /// True as well if no model is on the GPU.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn check_canary(&self) -> Result<bool, EngineError> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::CheckCanary { reply })?;
        answer.recv().map_err(|_| EngineError::Stopped)
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        self.shared.condition()
    }

    /// Has every change of the condition told to `listener`, in the place of the one before.
    pub fn on_condition(&self, listener: OnCondition) {
        *lock(&self.shared.on_condition) = Some(listener);
    }
}
