//! Has the C library give freed memory back to the system: a model that is unloaded must not leave its
//! buffers behind in the heap.

/// Gives large blocks back as soon as they are freed, from now on and for the whole process, GPU drivers
/// included.
///
/// glibc learns: once a block of 32 MiB was freed it takes blocks of up to that size from its heaps,
/// and keeps up to 64 MiB of free memory in the heap of each thread. A load frees many such blocks.
pub fn give_back_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::give_back_what_is_freed();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use crate::limits::HEAP_KEPT_BYTES_MAX;

    pub(super) fn give_back_what_is_freed() {
        for threshold in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            #[expect(unsafe_code, reason = "no crate wraps mallopt")]
            // SAFETY: mallopt takes two integers and may be called at any time.
            let obeyed = unsafe { libc::mallopt(threshold, HEAP_KEPT_BYTES_MAX) };
            if obeyed == 0 {
                tracing::debug!(threshold, "the C library keeps its own threshold");
            }
        }
    }

    #[cfg(test)]
    mod tests {
        fn resident() -> usize {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let mut lines = text.lines();
            let rest = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            let kib: usize = rest.trim().trim_end_matches(" kB").parse().unwrap();
            kib << 10
        }

        #[test]
        fn a_large_block_is_given_back_though_one_like_it_was_freed_before() {
            const BYTES: usize = 24 << 20;
            super::give_back_what_is_freed();
            // On a thread, whose heap the library never gives back by other means.
            let kept = std::thread::spawn(|| {
                let touch = || std::hint::black_box(vec![1_u8; BYTES]);
                drop(touch());
                let before = resident();
                let block = touch();
                assert!(resident() > before + BYTES / 2, "it is in memory");
                drop(block);
                resident().saturating_sub(before)
            });
            let kept = kept.join().unwrap();
            assert!(kept < BYTES / 2, "{kept} bytes are kept");
        }
    }
}
