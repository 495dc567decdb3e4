//! Gives memory that the process holds but does not use back to the system.

/// Gives back what the allocator keeps for later, where it has to be asked. Software adapters take
/// buffers from it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no safe interface for it")]
pub(crate) fn give_back() {
    // SAFETY: the call takes no pointer and may be made from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Elsewhere allocators do it by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
