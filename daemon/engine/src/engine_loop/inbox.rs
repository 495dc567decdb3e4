//! The commands that wait for the engine's thread. During a load, which takes long, the thread takes what
//! concerns the models at work and puts the rest off.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::{Command, WarmModels};

/// See the module.
pub(super) struct Inbox {
    commands: Receiver<Command>,
    put_off: VecDeque<Command>,
}

impl Inbox {
    pub(super) fn new(commands: Receiver<Command>) -> Self {
        Self {
            commands,
            put_off: VecDeque::new(),
        }
    }

    /// The next command; waits for one for so long (`None`: for as long as it takes).
    ///
    /// # Errors
    /// None came, or none can come any more.
    pub(super) fn next(&mut self, patience: Option<Duration>) -> Result<Command, RecvTimeoutError> {
        if let Some(command) = self.put_off.pop_front() {
            return Ok(command);
        }
        match patience {
            None => self
                .commands
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(time) => self.commands.recv_timeout(time),
        }
    }

    /// Hands the models at work what is for them.
    pub(super) fn serve(&mut self, models: &mut WarmModels) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Submit(submission) => models.submit(*submission),
                Command::Allow(allowance) => models.allow(allowance),
                other => self.put_off.push_back(other),
            }
        }
    }
}
