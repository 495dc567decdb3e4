//! Tokenizer files as they are published, and as they should not be.

use serde_json::{Value, json};

use super::HubFiles;
use super::tests::{added, config, files, open, problem, tokenizer};
use crate::format::Checkpoint;
use crate::tokenizer::{EncodeOptions, Tokenizer};

#[test]
fn a_tokenizer_is_said_in_ggufs_words() {
    let mut extended = tokenizer();
    extended["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({"id": 12, "content": "<|im_end|>", "special": false, "rstrip": true}));
    let model = open(&config(), Some(&extended));
    assert_eq!(
        model.get_str("tokenizer.ggml.model").unwrap(),
        Some("llama")
    );
    let types = model
        .get_i32_array("tokenizer.ggml.token_type")
        .unwrap()
        .unwrap();
    assert_eq!(types, [2, 3, 3, 6, 1, 1, 1, 1, 1, 5, 5, 5, 4, 5, 5, 5]);
    let tokens = model
        .get_str_array("tokenizer.ggml.tokens")
        .unwrap()
        .unwrap();
    let ends: Vec<_> = tokens.iter().skip(10).take(3).collect();
    assert_eq!(ends, ["[PAD10]", "[PAD11]", "<|im_end|>"]);
    let right = model
        .get_i32_array("hearth.tokenizer.rstrip_token_ids")
        .unwrap();
    assert_eq!(right, Some(vec![12]));
    assert_eq!(
        model.get_bool("tokenizer.ggml.add_bos_token").unwrap(),
        Some(true)
    );
    assert_eq!(
        model.get_bool("tokenizer.ggml.add_eos_token").unwrap(),
        Some(false)
    );
    let tokenizer = Tokenizer::of(&model).unwrap();
    let options = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    let ids = tokenizer.encode("ab\n<|im_end|> a", options).unwrap();
    assert_eq!(ids, [1, 7, 6, 3, 12, 7]);
    assert_eq!(tokenizer.end_tokens(), [2]);
}

#[test]
fn merges_are_read_as_texts_and_as_pairs() {
    let mut pairs = tokenizer();
    pairs["model"]["merges"] = json!([["▁", "a"], ["a", "b"]]);
    for value in [&tokenizer(), &pairs] {
        let model = open(&config(), Some(value));
        let merges = model
            .get_str_array("tokenizer.ggml.merges")
            .unwrap()
            .unwrap();
        assert_eq!(merges.iter().collect::<Vec<_>>(), ["▁ a", "a b"]);
    }
}

#[test]
fn space_prefixes_are_recognised() {
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let old = tokenizer()["normalizer"].clone();
    let rows = [
        (old.clone(), Value::Null, None, "sections"),
        (old.clone(), Value::Null, Some(true), "sections"),
        (old, Value::Null, Some(false), "open-text"),
        (Value::Null, metaspace("first"), None, "open-text"),
        (
            Value::Null,
            metaspace("always"),
            Some(true),
            "open-sections",
        ),
        (Value::Null, metaspace("never"), None, "never"),
        (replace, Value::Null, None, "never"),
    ];
    for (normalizer, pre_tokenizer, legacy, wanted) in rows {
        let mut changed = tokenizer();
        changed["normalizer"] = normalizer;
        changed["pre_tokenizer"] = pre_tokenizer;
        let mut all = files(&config(), Some(&changed));
        let said = json!({"legacy": legacy, "clean_up_tokenization_spaces": false});
        all.tokenizer_config = Some(said.to_string().into_bytes());
        let model = Checkpoint::of_hub(all).unwrap();
        let found = model.get_str("hearth.tokenizer.space_prefix").unwrap();
        assert_eq!(found, Some(wanted), "{changed}");
    }
}

#[test]
fn byte_level_pre_tokenizers_are_recognised() {
    let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |all: Vec<Value>| json!({"type": "Sequence", "pretokenizers": all});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen2 = llama3.replace("{1,3}", "");
    let mut spaced = byte_level(true);
    spaced["add_prefix_space"] = json!(true);
    let mut removed = split(llama3);
    removed["behavior"] = json!("Removed");
    let rows = [
        (byte_level(true), Ok("gpt-2")),
        (
            sequence(vec![digits.clone(), byte_level(true)]),
            Ok("smollm"),
        ),
        (
            sequence(vec![split(llama3), byte_level(false)]),
            Ok("llama-bpe"),
        ),
        (
            sequence(vec![split(&qwen2), byte_level(false)]),
            Ok("qwen2"),
        ),
        (
            sequence(vec![split(r"\p{N}{4}"), byte_level(false)]),
            Err(r"\\p{N}{4}"),
        ),
        (sequence(vec![removed, byte_level(false)]), Err("Removed")),
        (
            sequence(vec![split(llama3), byte_level(true)]),
            Err("Isolated"),
        ),
        (spaced, Err("add_prefix_space")),
        (json!({"type": "BertPreTokenizer"}), Err("BertPreTokenizer")),
        (digits, Err("Digits")),
        (Value::Null, Err("pre_tokenizer: null")),
    ];
    for (pre_tokenizer, wanted) in rows {
        let mut changed = tokenizer();
        changed["model"]["byte_fallback"] = json!(false);
        changed["normalizer"] = Value::Null;
        changed["pre_tokenizer"] = pre_tokenizer;
        let all = files(&config(), Some(&changed));
        match wanted {
            Ok(name) => {
                let model = Checkpoint::of_hub(all).unwrap();
                assert_eq!(model.get_str("tokenizer.ggml.pre").unwrap(), Some(name));
            }
            Err(excerpt) => {
                let problem = problem(all);
                assert!(
                    problem.contains(excerpt),
                    "wanted {excerpt:?} in {problem:?}"
                );
            }
        }
    }
}

/// A row: a place in `tokenizer.json`, what stands there, and the message.
#[test]
fn hostile_tokenizers_are_refused() {
    let vocab = |text: &str, id: Value| {
        let mut vocab = tokenizer()["model"]["vocab"].clone();
        vocab[text] = id;
        vocab
    };
    let many: Vec<Value> = (0..70_000).map(|id| added(id + 100, "x")).collect();
    let rows: [(&str, Value, &str); 26] = [
        ("/model/type", json!("Unigram"), "model.type: Unigram"),
        ("/model/dropout", json!(0.1), "model.dropout"),
        (
            "/model/continuing_subword_prefix",
            json!("##"),
            "model.continuing_subword_prefix: ##",
        ),
        ("/model/ignore_merges", json!(true), "model.ignore_merges"),
        ("/model/vocab", json!({}), "model.vocab is missing"),
        (
            "/model/vocab",
            json!([["a", -1.0]]),
            "model.vocab is missing",
        ),
        ("/model/vocab", json!("all"), "invalid type"),
        (
            "/model/vocab",
            vocab("x", json!(5)),
            "token id \"5\" appears twice",
        ),
        (
            "/model/vocab",
            vocab("x", json!(16)),
            "vocab_size is no higher",
        ),
        (
            "/model/vocab",
            vocab("x", json!(4_294_967_295_u32)),
            "ids below 1048576",
        ),
        ("/model/vocab", vocab("x", json!(-1)), "invalid value"),
        (
            "/model/vocab",
            vocab(&"x".repeat(5000), json!(9)),
            "a token of 5000 bytes",
        ),
        (
            "/model/merges",
            json!([["a", "b", "c"]]),
            "a merge joins two tokens",
        ),
        ("/model/merges", json!([["a"]]), "a merge joins two tokens"),
        (
            "/model/merges",
            json!([["a b", "c"]]),
            "merge 0 joins a token with a space",
        ),
        ("/model/merges", json!([7]), "a merge: "),
        (
            "/added_tokens/0/id",
            json!(1),
            "added token \"<unk>\" appears twice",
        ),
        (
            "/added_tokens/2/content",
            json!("<s>"),
            "added token \"<s>\" appears twice",
        ),
        (
            "/added_tokens/2/content",
            json!(""),
            "an added token's content",
        ),
        ("/added_tokens/2/single_word", json!(true), "single_word"),
        ("/added_tokens", json!(many), "more than 65536 added tokens"),
        (
            "/normalizer",
            json!({"type": "NFKC"}),
            "normalizer: {\"type\":\"NFKC\"}",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "content": "x".repeat(300_000)}),
            "size of normalizer",
        ),
        (
            "/post_processor",
            json!({"type": "BertProcessing"}),
            "post_processor",
        ),
        (
            "/post_processor/single/0/SpecialToken/id",
            json!("<bos>"),
            "bos_token: \"<bos>\"",
        ),
        (
            "/post_processor/single",
            json!([{"Sequence": {}}, {"Sequence": {}}]),
            "post_processor",
        ),
    ];
    for (pointer, value, wanted) in rows {
        let mut changed = tokenizer();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match changed.pointer_mut(parent).unwrap() {
            Value::Array(all) => all[key.parse::<usize>().unwrap()] = value,
            other => other[key] = value,
        }
        let problem = problem(files(&config(), Some(&changed)));
        assert!(problem.starts_with("tokenizer.json: "), "{problem}");
        assert!(problem.contains(wanted), "wanted {wanted:?} in {problem:?}");
        assert!(problem.len() < 600, "{problem}");
    }
    let text = tokenizer()
        .to_string()
        .replace("\"a\":5", "\"a\":5,\"a\":9");
    let mut all = files(&config(), None);
    all.tokenizer = Some(text.into_bytes());
    assert!(problem(all).contains("token \"a\" appears twice"));
}

#[test]
fn ends_of_texts_come_of_all_files() {
    let mut all = files(&config(), Some(&tokenizer()));
    all.generation_config = Some(br#"{"eos_token_id": [2, 8], "temperature": 0.6}"#.to_vec());
    all.tokenizer_config = Some(
        br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
            "add_bos_token": false, "add_eos_token": true, "added_tokens_decoder": {"0": {}}}"#
            .to_vec(),
    );
    let model = Checkpoint::of_hub(all).unwrap();
    let tokenizer = Tokenizer::of(&model).unwrap();
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.end_tokens(), [2, 8]);
    let options = EncodeOptions {
        add_special: true,
        parse_special: false,
    };
    assert_eq!(tokenizer.encode("a", options).unwrap(), [7, 2]);
}

/// A row: the contents of a file beside the others, and the message.
#[test]
fn hostile_companions_are_refused() {
    type Put = fn(&mut HubFiles, Vec<u8>);
    let tokenizer_config: Put = |all, bytes| all.tokenizer_config = Some(bytes);
    let generation: Put = |all, bytes| all.generation_config = Some(bytes);
    let jinja: Put = |all, bytes| all.chat_template = Some(bytes);
    let rows: [(Put, &str, &str); 13] = [
        (tokenizer_config, "[", "tokenizer_config.json: not valid"),
        (
            tokenizer_config,
            "{\"bos_token\": 5}",
            "tokenizer_config.json: bos_token",
        ),
        (
            tokenizer_config,
            "{\"bos_token\": \"<x>\"}",
            "tokenizer.json: bos_token: \"<x>\"",
        ),
        (
            tokenizer_config,
            "{\"bos_token\": \"</s>\"}",
            "the post_processor puts \"<s>\"",
        ),
        (
            tokenizer_config,
            "{\"eos_token\": \"<x>\"}",
            "tokenizer.json: eos_token: \"<x>\"",
        ),
        (
            tokenizer_config,
            "{\"legacy\": 1}",
            "tokenizer_config.json: not valid",
        ),
        (
            tokenizer_config,
            "{\"legacy\": true, \"legacy\": false}",
            "duplicate field",
        ),
        (tokenizer_config, "{\"chat_template\": 5}", "chat_template"),
        (
            tokenizer_config,
            "{\"chat_template\": [{\"name\": \"default\"}]}",
            "chat_template",
        ),
        (
            generation,
            "{\"eos_token_id\": \"x\"}",
            "generation_config.json: eos_token_id",
        ),
        (generation, "{\"eos_token_id\": 99}", "eos_token_id: 99"),
        (generation, "[]", "generation_config.json: not valid"),
        (
            jinja,
            &"x".repeat(300_000),
            "chat_template.jinja: size in bytes",
        ),
    ];
    for (put, text, wanted) in rows {
        let mut all = files(&config(), Some(&tokenizer()));
        put(&mut all, text.as_bytes().to_vec());
        let problem = problem(all);
        assert!(problem.contains(wanted), "wanted {wanted:?} in {problem:?}");
    }
    let mut all = files(&config(), None);
    all.chat_template = Some(vec![b'a', 0xFF]);
    assert!(problem(all).contains("not valid UTF-8 at byte 1"));
}

#[test]
fn the_chat_template_is_found() {
    let rows = [
        (None, r#"{"chat_template": "one"}"#, Some("one")),
        (
            None,
            r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]}"#,
            Some("two"),
        ),
        (
            None,
            r#"{"chat_template": [{"name": "tool_use", "template": "tools"}]}"#,
            None,
        ),
        (None, r#"{"chat_template": null}"#, None),
        (Some("file"), r#"{"chat_template": "one"}"#, Some("file")),
    ];
    for (jinja, said, wanted) in rows {
        let mut all = files(&config(), None);
        all.tokenizer_config = Some(said.as_bytes().to_vec());
        all.chat_template = jinja.map(|text| text.as_bytes().to_vec());
        let model = Checkpoint::of_hub(all).unwrap();
        assert_eq!(model.get_str("tokenizer.chat_template").unwrap(), wanted);
    }
}
