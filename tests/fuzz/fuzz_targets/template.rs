//! Feeds libFuzzer's inputs to `hearth_fuzz::template`: chat templates.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::template(data));
