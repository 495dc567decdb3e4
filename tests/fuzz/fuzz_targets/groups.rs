//! Feeds libFuzzer's inputs to `hearth_fuzz::groups`: sizes of grouped weights.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::groups(data));
