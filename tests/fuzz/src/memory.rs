//! Counts memory, and ends the process when an input takes more than it may: an abort is what the
//! fuzzer keeps inputs of.

#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static ENDS_QUIETLY: AtomicBool = AtomicBool::new(false);

/// How a process exits that wanted too much, and ends quietly.
pub(super) const EXIT_TOO_MUCH: i32 = 86;

/// The system's allocator, counted.
pub(super) struct Counting;

/// Runs `f`; live memory may grow by `most` bytes at any moment of it.
pub(super) fn within(most: usize, f: impl FnOnce()) {
    LIMIT.store(LIVE.load(Relaxed).saturating_add(most), Relaxed);
    f();
    LIMIT.store(usize::MAX, Relaxed);
}

/// From now on too much memory is this process's exit, and no failure of its input.
pub(super) fn end_quietly() {
    ENDS_QUIETLY.store(true, Relaxed);
}

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if live > LIMIT.load(Relaxed) {
        if ENDS_QUIETLY.load(Relaxed) {
            // SAFETY: it ends the process and runs nothing.
            unsafe { libc::_exit(EXIT_TOO_MUCH) }
        }
        LIMIT.store(usize::MAX, Relaxed);
        eprintln!("{live} bytes are live: more than an input may take");
        std::process::abort();
    }
}

// SAFETY: every call is handed to the system's allocator unchanged; only its size is noted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
