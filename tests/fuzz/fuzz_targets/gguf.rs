//! Feeds libFuzzer's inputs to `hearth_fuzz::gguf`: GGUF files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::gguf(data));
