//! Tries an input in a child first, where the product itself would work in a child.

#![expect(unsafe_code, reason = "no safe wrapper of fork exists")]

use crate::memory;

/// Runs `f` in a copy of this process and tells whether the copy lived. It may die of a full stack or for
/// want of memory, as the daemon's renderer may; whatever else it dies of is this process's end too.
pub(super) fn survives(f: impl FnOnce()) -> bool {
    // SAFETY: the only other thread here is libFuzzer's, which keeps time; the child does not need it.
    let child = match unsafe { libc::fork() } {
        0 => {
            memory::end_quietly();
            f();
            // SAFETY: it ends the process and runs nothing that libFuzzer registered.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    assert!(child > 0, "no fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call. libFuzzer's alarm interrupts it.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if ended == child {
            break;
        }
        let error = std::io::Error::last_os_error();
        let again = error.kind() == std::io::ErrorKind::Interrupted;
        assert!(ended == -1 && again, "no word of the child: {error}");
    }
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    match (signal, code) {
        (None, Some(0)) => true,
        // A handler that finds no stack to run on cannot say more than the signal.
        (Some(libc::SIGSEGV), None) | (None, Some(memory::EXIT_TOO_MUCH)) => false,
        _ => panic!("the child died: {status:#x}"),
    }
}
