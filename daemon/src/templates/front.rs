//! The daemon's end of its renderer: starts it, asks it, and notices when it is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::RENDERER_COMMAND;
use super::frame::{self, Answer};
use crate::limits::{RENDER_ANSWER_DELAY_MAX, RENDER_TIME_MAX};

/// A renderer; ended when dropped.
#[derive(Debug)]
pub(super) struct Renderer {
    line: UnixStream,
    child: Child,
}

impl Renderer {
    /// Starts one: this same program, with nothing of the environment.
    pub(super) fn start() -> io::Result<Self> {
        let (line, its_end) = UnixStream::pair()?;
        let patience = Some(RENDER_TIME_MAX + RENDER_ANSWER_DELAY_MAX);
        line.set_read_timeout(patience)?;
        line.set_write_timeout(patience)?;
        // Not by its path: an upgrade may have put another program there.
        #[cfg(target_os = "linux")]
        let program = std::path::Path::new("/proc/self/exe");
        #[cfg(not(target_os = "linux"))]
        let program = std::env::current_exe()?;
        let child = Command::new(program)
            .arg0("hearthd")
            .arg(RENDERER_COMMAND)
            .env_clear()
            // One heap: each further one reserves address space, which a rendering has little of.
            .env("MALLOC_ARENA_MAX", "1")
            .current_dir("/")
            .stdin(OwnedFd::from(its_end))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { line, child })
    }

    fn ask(&mut self, ask: &[u8]) -> io::Result<Answer> {
        frame::send(&mut self.line, ask)?;
        let answer = frame::receive(&mut self.line)?;
        Ok(frame::read_answer(&answer))
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        // It may not listen any more, and holds nothing that matters.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The renderer's answer; `None` if there is no renderer. One that does not answer is given up for
/// good: what it would say next could be an answer to something else.
pub(super) fn answer(renderer: &mut Option<Renderer>, ask: &[u8]) -> Option<Answer> {
    match renderer.as_mut()?.ask(ask) {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::warn!(
                %error,
                "the process for chat templates is gone: they are rendered here, without its \
                 limits, until the daemon is started again"
            );
            *renderer = None;
            None
        }
    }
}
