//! The renderer process: one thread, no model, no files. It forks a child for each rendering, with
//! limits that the system holds, and says what came of it.
//!
//! The child alone reads what was asked, compiles and renders, so that nothing of one rendering is
//! left for the next.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use hearth_engine::chat_template::TemplateError;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, setrlimit};

use super::frame;
use crate::limits::{RENDER_CPU_SECONDS_MAX, RENDER_FRAME_BYTES_MAX, RENDER_TIME_MAX};
use crate::{forbid_core_files, give_back_what_is_freed, hardening};

/// Renders what the parent asks for on stdin, until that ends. The process must have one thread.
///
/// # Errors
/// Stdin is no socket, or broke.
pub fn render_for_parent() -> io::Result<()> {
    outlive_signals_of_groups();
    end_with_parent();
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"hearth-render");
    give_back_what_is_freed();
    forbid_core_files();
    hardening::confine_renderer();
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    loop {
        let ask = match frame::receive(&mut line) {
            Ok(ask) => ask,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let answer = match render_apart(&ask) {
            Ok(answer) => answer,
            Err(error) => frame::answer(&Err(error)),
        };
        frame::send(&mut line, &answer)?;
    }
}

/// Ctrl-C, and a service manager that ends the whole group, mean the daemon: it may need the renderer
/// until it ends itself.
fn outlive_signals_of_groups() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        #[expect(unsafe_code, reason = "no crate here wraps it")]
        // SAFETY: ignoring a signal installs no handler, and no other thread exists.
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// Has the system end this process when its parent dies, however that happens.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Renders in a child; the words of its answer.
fn render_apart(ask: &[u8]) -> Result<Vec<u8>, TemplateError> {
    let failed = |_: io::Error| TemplateError::Failed;
    let (mut line, childs_end) = UnixStream::pair().map_err(failed)?;
    #[expect(unsafe_code, reason = "no safe wrapper of fork exists")]
    // SAFETY: this process has one thread, so the child's copy of memory and locks is whole.
    let forked = unsafe { libc::fork() };
    match forked {
        0 => {
            drop(line);
            answer_and_exit(childs_end, ask)
        }
        1.. => {
            drop(childs_end);
            let read = read_until(Instant::now() + RENDER_TIME_MAX, &mut line);
            let child = Pid::from_raw(forked).ok_or(TemplateError::Failed)?;
            if read.is_none() {
                let _ = rustix::process::kill_process(child, Signal::KILL);
            }
            verdict(read, child)
        }
        _ => Err(TemplateError::Failed),
    }
}

/// The child's whole life from here on.
fn answer_and_exit(mut to: UnixStream, ask: &[u8]) -> ! {
    // A panic must not lead back into the parent's loop.
    let done = catch_unwind(AssertUnwindSafe(|| {
        end_with_parent();
        limit_itself()?;
        let answer = frame::answer(&frame::render(ask));
        to.write_all(&answer)
    }));
    let code = match done {
        Ok(Ok(())) => 0,
        Ok(Err(_)) | Err(_) => 1,
    };
    #[expect(unsafe_code, reason = "std's exit runs what the parent registered")]
    // SAFETY: `_exit` ends the process and touches no memory.
    unsafe {
        libc::_exit(code)
    }
}

/// Bounds this process's memory and CPU time. Apple's systems hold only the second.
fn limit_itself() -> io::Result<()> {
    let limit = |resource, soft: u64, hard: u64| {
        let limit = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        setrlimit(resource, limit)
    };
    // The signal can say what it is; what ignores it is killed.
    let seconds = RENDER_CPU_SECONDS_MAX;
    limit(Resource::Cpu, seconds, seconds + 1)?;
    #[cfg(target_os = "linux")]
    {
        use crate::limits::RENDER_HEAP_BYTES_MAX;
        use hearth_engine::chat_template::COMPILER_STACK_BYTES;
        let own = own_address_space().ok_or(ErrorKind::NotFound)?;
        let room = u64::try_from(RENDER_HEAP_BYTES_MAX + COMPILER_STACK_BYTES);
        let bytes = own + room.map_err(|_| ErrorKind::InvalidInput)?;
        limit(Resource::As, bytes, bytes)?;
    }
    Ok(())
}

/// Bytes of address space that this process has.
#[cfg(target_os = "linux")]
fn own_address_space() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_ascii_whitespace().next()?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

/// What there is to read until the other end closes; `None` if it does not in time, or sends too much.
fn read_until(deadline: Instant, line: &mut UnixStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || all.len() > RENDER_FRAME_BYTES_MAX {
            return None;
        }
        line.set_read_timeout(Some(left)).ok()?;
        match line.read(&mut chunk) {
            Ok(0) => return Some(all),
            Ok(count) => all.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Reaps the child and says how it ended.
fn verdict(read: Option<Vec<u8>>, child: Pid) -> Result<Vec<u8>, TemplateError> {
    let ended = loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended,
        }
    };
    let read = read.ok_or(TemplateError::TooSlow)?;
    let Ok(Some((_, status))) = ended else {
        return Err(TemplateError::Failed);
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(read),
        (_, Some(libc::SIGXCPU)) => Err(TemplateError::TooSlow),
        // Rust's way to say that memory is not there, or a stack is full; and that of a system that has
        // no memory left.
        (_, Some(libc::SIGABRT | libc::SIGKILL)) => Err(TemplateError::TooMuchMemory),
        _ => Err(TemplateError::Failed),
    }
}
