//! The tokenizer on a tiny vocabulary, and on the default model where its file is there.

use std::path::PathBuf;

use proptest::prelude::*;

use super::vocab::byte_chars;
use super::{EncodeOptions, Tokenizer, TokenizerError};
use crate::chat_template::{ChatMessage, ChatTemplate, Part};
use crate::format::gguf_writer::{GgufWriter, MetaValue};
use crate::format::{Checkpoint, ModelFiles};

const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};
const PARSED: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: true,
};

/// All 256 bytes, a few merges, two control tokens and two added ones.
fn tiny() -> GgufWriter {
    let mut tokens: Vec<String> = byte_chars().iter().map(char::to_string).collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ Ġ"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    for (text, kind) in [
        ("<|start|>", 3),
        ("<|im_end|>", 3),
        ("<tool>", 4),
        ("    ", 4),
    ] {
        tokens.push(text.to_owned());
        types.push(kind);
    }
    let mut writer = GgufWriter::new();
    writer
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.pre", "smollm")
        .metadata("tokenizer.ggml.tokens", MetaValue::StrArray(tokens))
        .metadata("tokenizer.ggml.token_type", MetaValue::I32Array(types))
        .metadata("tokenizer.ggml.merges", strings(&merges))
        .metadata("tokenizer.ggml.bos_token_id", 261_u32)
        .metadata("tokenizer.ggml.eos_token_id", 262_u32);
    writer
}

fn strings(texts: &[&str]) -> MetaValue {
    MetaValue::StrArray(texts.iter().map(|text| (*text).to_owned()).collect())
}

pub(super) fn open(writer: &GgufWriter) -> Checkpoint {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &writer.to_bytes()).unwrap();
    Checkpoint::from_gguf(file).unwrap()
}

fn build(writer: &GgufWriter) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::of(&open(writer))
}

/// The default model's file, where set-up puts it.
fn default_model_file() -> PathBuf {
    let path = std::env::var_os("HEARTH_MODEL_FILE").map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "no model file: run `make setup`, or set HEARTH_MODEL_FILE"
    );
    path
}

pub(super) fn default_model() -> Tokenizer {
    Tokenizer::of(&Checkpoint::open(&ModelFiles::at(&default_model_file()).unwrap()).unwrap())
        .unwrap()
}

#[test]
fn merges_in_order_of_rank() {
    let tokenizer = build(&tiny()).unwrap();
    assert_eq!(tokenizer.encode("hello", PLAIN).unwrap(), [259]);
    assert_eq!(tokenizer.encode("hell0", PLAIN).unwrap(), [258, 48]);
    assert_eq!(tokenizer.token_bytes(260), Some(b"  ".as_slice()));
    assert_eq!(tokenizer.token_text(260), Some("ĠĠ"));
    assert_eq!(tokenizer.token_bytes(265), None);
}

#[test]
fn control_tokens_come_only_of_trusted_text() {
    let tokenizer = build(&tiny()).unwrap();
    assert_eq!(
        tokenizer
            .encode("<|start|>hello<|im_end|>", PARSED)
            .unwrap(),
        [261, 259, 262]
    );
    let plain = tokenizer.encode("<|start|><tool>", PLAIN).unwrap();
    assert!(plain.iter().all(|id| *id < 256));
    assert_eq!(tokenizer.decode(&plain, false).unwrap(), "<|start|><tool>");
    assert_eq!(tokenizer.encode("<tool>", PARSED).unwrap(), [263]);
    assert_eq!(tokenizer.encode("h    e", PLAIN).unwrap(), [104, 264, 101]);
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(263) && !tokenizer.is_special(9999));
}

#[test]
fn parts_are_merged_across_their_borders() {
    let tokenizer = build(&tiny()).unwrap();
    let part = |text: &str, trusted| Part {
        text: text.to_owned(),
        trusted,
    };
    let parts = [
        part("<|start|>he", true),
        part("llo<|start|>", false),
        part("he", true),
    ];
    let ids = tokenizer.encode_parts(&parts).unwrap();
    let rest = tokenizer.encode("<|start|>he", PLAIN).unwrap();
    assert_eq!(ids, [&[261, 259], rest.as_slice()].concat());
    // A text that is a control token only across a border is none.
    let parts = [
        part("<|st", true),
        part("art|>", false),
        part("<|start|>", true),
    ];
    let ids = tokenizer.encode_parts(&parts).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 261).count(), 1);
    assert_eq!(ids.last(), Some(&261));
}

#[test]
fn special_tokens_are_added_and_skipped_as_asked() {
    let mut writer = tiny();
    writer
        .metadata("tokenizer.ggml.add_bos_token", true)
        .metadata("tokenizer.ggml.add_eos_token", true);
    let tokenizer = build(&writer).unwrap();
    let ids = tokenizer
        .encode(
            "hello",
            EncodeOptions {
                add_special: true,
                parse_special: false,
            },
        )
        .unwrap();
    assert_eq!(ids, [261, 259, 262]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        "<|start|>hello<|im_end|>"
    );
    assert_eq!(
        (tokenizer.bos(), tokenizer.end_tokens()),
        (Some(261), [262].as_slice())
    );
}

#[test]
fn broken_characters_decode_to_replacement_characters() {
    let tokenizer = build(&tiny()).unwrap();
    assert_eq!(
        tokenizer.decode(&[0xE2, 0x98, 104], false).unwrap(),
        "\u{FFFD}h"
    );
    let error = tokenizer.decode(&[104, 265], false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ids: token id 265 is not below the vocabulary size 265"
    );
}

#[test]
fn whole_pieces_are_taken_unmerged_where_the_model_says_so() {
    let mut writer = tiny();
    writer.metadata("tokenizer.ggml.pre", "llama-bpe");
    writer.metadata("tokenizer.ggml.merges", strings(&["h e", "l l"]));
    let tokenizer = build(&writer).unwrap();
    assert_eq!(tokenizer.encode("hello", PLAIN).unwrap(), [259]);
    let with_bos = EncodeOptions {
        add_special: true,
        parse_special: false,
    };
    assert_eq!(tokenizer.encode("hello", with_bos).unwrap(), [261, 259]);
}

#[test]
fn unsound_vocabularies_are_refused() {
    type Break = fn(&mut GgufWriter);
    let table: [(&str, Break); 10] = [
        ("\"tokenizer.ggml.model\": \"t5\" is not supported", |w| {
            w.metadata("tokenizer.ggml.model", "t5");
        }),
        ("\"tokenizer.ggml.model\" is missing", |w| {
            w.remove_metadata("tokenizer.ggml.model");
        }),
        ("\"tokenizer.ggml.pre\": \"odd\" is not supported", |w| {
            w.metadata("tokenizer.ggml.pre", "odd");
        }),
        ("\"tokenizer.ggml.tokens\" is missing", |w| {
            w.remove_metadata("tokenizer.ggml.tokens");
        }),
        ("\"tokenizer.ggml.tokens\": 0 tokens", |w| {
            w.metadata("tokenizer.ggml.tokens", strings(&[]));
        }),
        ("\"tokenizer.ggml.token_type\" has 1 elements", |w| {
            w.metadata("tokenizer.ggml.token_type", MetaValue::I32Array(vec![1]));
        }),
        ("\"tokenizer.ggml.merges\": element 1 has no space", |w| {
            w.metadata("tokenizer.ggml.merges", strings(&["h e", "he"]));
        }),
        ("element 0 joins something that is not a token", |w| {
            w.metadata("tokenizer.ggml.merges", strings(&["h nothere"]));
        }),
        ("element 0 makes something that is not a token", |w| {
            w.metadata("tokenizer.ggml.merges", strings(&["hello hello"]));
        }),
        (
            "tokenizer.ggml.eos_token_id: token id 265 is not below",
            |w| {
                w.metadata("tokenizer.ggml.eos_token_id", 265_u32);
            },
        ),
    ];
    for (wanted, break_it) in table {
        let mut writer = tiny();
        break_it(&mut writer);
        let error = build(&writer).err().unwrap().to_string();
        assert!(error.contains(wanted), "wanted {wanted:?} in {error:?}");
    }
}

/// Work that grows with the square of a run would take hours here, and the runner ends it.
#[test]
fn long_runs_are_encoded() {
    let tokenizer = default_model();
    for text in [
        " ".repeat(1 << 20),
        "a".repeat(1 << 20),
        "\n".repeat(1 << 20),
    ] {
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    let words = "all work and no play ".repeat((4 << 20) / 21);
    tokenizer.encode(&words, PLAIN).unwrap();
    let too_long = "a".repeat((1 << 20) + 1);
    assert!(matches!(
        tokenizer.encode(&too_long, PLAIN),
        Err(TokenizerError::TooLong { .. })
    ));
    let too_long = "a ".repeat((2 << 20) + 1);
    assert!(matches!(
        tokenizer.encode(&too_long, PLAIN),
        Err(TokenizerError::TooLong { .. })
    ));
}

#[test]
fn the_default_model_tokenizes_as_published() {
    let tokenizer = default_model();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.end_tokens(), [0, 2]);
    let ids = tokenizer
        .encode("<|im_start|>user\nHi<|im_end|>", PARSED)
        .unwrap();
    assert_eq!(ids.first().zip(ids.last()), Some((&1, &2)));
    assert!(
        !tokenizer
            .encode("<|im_start|>", PLAIN)
            .unwrap()
            .contains(&1)
    );
    let text = "The year 1984, naïve 中文 🙂\r\n\tend";
    assert_eq!(
        tokenizer
            .decode(&tokenizer.encode(text, PLAIN).unwrap(), false)
            .unwrap(),
        text
    );
}

/// A fixture of the oracle.
pub(super) fn oracle(name: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/oracle")
        .join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(super) fn ids_of(value: &serde_json::Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

#[test]
fn tokens_equal_the_reference() {
    let tokenizer = default_model();
    let fixture = oracle("tokens.json");
    let cases = fixture["encode"].as_array().unwrap();
    assert!(cases.len() >= 200);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let parse_special = case["parse_special"].as_bool().unwrap();
        let options = EncodeOptions {
            add_special: false,
            parse_special,
        };
        assert_eq!(
            tokenizer.encode(text, options).unwrap(),
            ids_of(&case["ids"]),
            "{text:?}"
        );
    }
    for case in fixture["decode"].as_array().unwrap() {
        let ids = ids_of(&case["ids"]);
        let skip_special = case["skip_special"].as_bool().unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.decode(&ids, skip_special).unwrap(),
            text,
            "{ids:?}"
        );
    }
}

#[test]
fn chats_equal_the_reference() {
    let path = default_model_file();
    let gguf = Checkpoint::open(&ModelFiles::at(&path).unwrap()).unwrap();
    let tokenizer = Tokenizer::of(&gguf).unwrap();
    let template = ChatTemplate::of(&gguf).unwrap().unwrap();
    for case in oracle("chat.json").as_array().unwrap() {
        let messages: Vec<ChatMessage<'_>> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| ChatMessage {
                role: message["role"].as_str().unwrap(),
                content: message["content"].as_str().unwrap(),
            })
            .collect();
        let opened = case["add_generation_prompt"].as_bool().unwrap();
        assert_eq!(
            template.render(&messages, opened).unwrap(),
            case["text"].as_str().unwrap()
        );
        let ids = tokenizer
            .encode_parts(&template.render_parts(&messages, opened).unwrap())
            .unwrap();
        assert_eq!(ids, ids_of(&case["ids"]), "{}", case["text"]);
    }
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "(\\PC|[ \t\r\n]|hello|<\\|start\\|>|<tool>){0,40}") {
        let tokenizer = build(&tiny()).unwrap();
        for options in [PLAIN, PARSED] {
            let ids = tokenizer.encode(&text, options).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        }
    }
}

/// The crate's whole pipeline over the same vocabulary: what is kept out of the daemon for its
/// memory, but defines the right answer.
#[test]
fn equals_the_whole_pipeline_of_the_crate() {
    use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
    use tokenizers::{PreTokenizerWrapper, TokenizerImpl};
    let tokenizer = default_model();
    let pre = PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ]));
    let mut pipeline: TokenizerImpl<
        tokenizers::models::bpe::BPE,
        tokenizers::NormalizerWrapper,
        PreTokenizerWrapper,
        tokenizers::PostProcessorWrapper,
        tokenizers::DecoderWrapper,
    > = {
        let super::Model::ByteLevel(model) = &tokenizer.model else {
            panic!("not byte-level")
        };
        TokenizerImpl::new(model.bpe.clone())
    };
    pipeline.with_pre_tokenizer(Some(pre));
    let mut runner = proptest::test_runner::TestRunner::default();
    let texts =
        "([a-zA-Z]{1,8}|[ \t\r\n\u{a0}]{1,4}|[0-9]{1,4}|'s|[!-/]{1,3}|[é中ß🙂²]|\\PC|.){0,30}";
    let check = |text: String| {
        let wanted = pipeline.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(
            tokenizer.encode(&text, PLAIN).unwrap(),
            wanted.get_ids(),
            "{text:?}"
        );
        Ok(())
    };
    runner.run(&texts, check).unwrap();
}
