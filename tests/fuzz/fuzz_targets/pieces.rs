//! Feeds libFuzzer's inputs to `hearth_fuzz::pieces`: tokenizer.model files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::pieces(data));
