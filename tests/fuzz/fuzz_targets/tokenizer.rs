//! Feeds libFuzzer's inputs to `hearth_fuzz::tokenizer`: tokenizer.json and tokenizer_config.json.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_fuzz::tokenizer(data));
