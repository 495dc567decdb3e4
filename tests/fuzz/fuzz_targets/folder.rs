//! Feeds libFuzzer's inputs to `hearth_fuzz::folder`: folders: config.json, safetensors headers, the index.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::folder(data));
