//! SentencePiece-style vocabularies: a small one by hand, published ones against the oracle.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::merging::{Table, Work};
use super::tests::{default_model, ids_of, open, oracle};
use super::{EncodeOptions, Tokenizer};
use crate::chat_template::Part;
use crate::format::gguf_writer::{GgufWriter, MetaValue};
use crate::format::{Checkpoint, HubFiles};

const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};
const PARSED: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: true,
};

/// `<unk>`, `<s>`, `</s>`, all bytes, and tokens of these scores from 259 on.
fn small(tokens: &[(&str, f32)]) -> GgufWriter {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    for byte in 0..256 {
        texts.push(format!("<0x{byte:02X}>"));
        types.push(6);
        scores.push(0.0);
    }
    for (text, score) in tokens {
        texts.push((*text).to_owned());
        types.push(1);
        scores.push(*score);
    }
    let mut writer = GgufWriter::new();
    writer
        .metadata("tokenizer.ggml.model", "llama")
        .metadata("tokenizer.ggml.tokens", MetaValue::StrArray(texts))
        .metadata("tokenizer.ggml.token_type", MetaValue::I32Array(types))
        .metadata("tokenizer.ggml.scores", MetaValue::F32Array(scores));
    writer
}

const WORDS: [(&str, f32); 8] = [
    ("▁", -1.0),
    ("a", -2.0),
    ("b", -3.0),
    ("c", -4.0),
    ("ab", -0.5),
    ("bc", -0.4),
    ("▁a", -0.6),
    ("▁ab", -0.7),
];

fn texts_of(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<String> {
    let ids = tokenizer.encode(text, options).unwrap();
    ids.iter()
        .map(|id| tokenizer.token_text(*id).unwrap().to_owned())
        .collect()
}

fn build(writer: &GgufWriter) -> Tokenizer {
    Tokenizer::of(&open(writer)).unwrap()
}

#[test]
fn the_highest_score_merges_first_and_the_leftmost_of_equals() {
    let tokenizer = build(&small(&WORDS));
    assert_eq!(texts_of(&tokenizer, "abc", PLAIN), ["▁a", "bc"]);
    assert_eq!(texts_of(&tokenizer, "ab", PLAIN), ["▁ab"]);
    let same = build(&small(&[("a", -1.0), ("▁", -1.0), ("aa", -0.5)]));
    assert_eq!(texts_of(&same, "aaa", PLAIN), ["▁", "aa", "a"]);
}

#[test]
fn characters_without_a_token_become_bytes_or_one_unknown() {
    let mut writer = small(&WORDS);
    let tokenizer = build(&writer);
    assert_eq!(
        texts_of(&tokenizer, "a\né", PLAIN),
        ["▁a", "<0x0A>", "<0xC3>", "<0xA9>"]
    );
    let ids = tokenizer.encode("a\né", PLAIN).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a\né");
    // Without a token for one of its bytes a character is unknown, and several are one.
    let mut types = vec![1; 3 + 256 + WORDS.len()];
    types[..3].copy_from_slice(&[2, 3, 3]);
    writer.metadata("tokenizer.ggml.token_type", MetaValue::I32Array(types));
    let bare = build(&writer);
    assert_eq!(
        texts_of(&bare, "a\né\nb\n", PLAIN),
        ["▁a", "<unk>", "b", "<unk>"]
    );
    assert!(bare.is_special(0));
}

#[test]
fn a_space_is_put_where_the_file_says() {
    let mut writer = small(&WORDS);
    let chat = "ab</s>ab</s> ab";
    let rows = [
        (None, "▁ab </s> ▁ab </s> ▁ ▁ab", "▁ ▁ab"),
        (Some("sections"), "▁ab </s> ▁ab </s> ▁ ▁ab", "▁ ▁ab"),
        (Some("open-sections"), "▁ab </s> ▁ab </s> ▁ab", "▁ab"),
        (Some("open-text"), "▁ab </s> ab </s> ▁ab", "▁ab"),
        (Some("never"), "ab </s> ab </s> ▁ab", "▁ab"),
    ];
    for (prefix, whole, spaced) in rows {
        if let Some(prefix) = prefix {
            writer.metadata("hearth.tokenizer.space_prefix", prefix);
        }
        let tokenizer = build(&writer);
        assert_eq!(
            texts_of(&tokenizer, chat, PARSED).join(" "),
            whole,
            "{prefix:?}"
        );
        assert_eq!(
            texts_of(&tokenizer, " ab", PLAIN).join(" "),
            spaced,
            "{prefix:?}"
        );
        let part = |text: &str, trusted| Part {
            text: text.to_owned(),
            trusted,
        };
        let parts = [
            part("ab</s>", true),
            part("ab", false),
            part("</s> ab", true),
        ];
        let ids = tokenizer.encode_parts(&parts).unwrap();
        assert_eq!(
            ids,
            tokenizer.encode(chat, PARSED).unwrap(),
            "{prefix:?}: in parts"
        );
        let ids = tokenizer.encode("ab ab", PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "ab ab");
        assert_eq!(tokenizer.puts_space_first(), prefix != Some("never"));
    }
    writer.remove_metadata("hearth.tokenizer.space_prefix");
    writer.metadata("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(texts_of(&build(&writer), "ab", PLAIN), ["ab"]);
}

#[test]
fn a_replys_first_space_is_left_out_unless_it_goes_on_with_the_prompt() {
    let mut writer = small(&WORDS);
    let rows = [
        (vec![1], false, "ab"),
        (vec![1, 265], false, " ab"),
        (vec![1, 265], true, "ab"),
        (vec![265, 2], false, "ab"),
    ];
    let reply = |tokenizer: &Tokenizer, prompt: &[u32], new_text| {
        let mut stream = tokenizer.reply_stream(&[], prompt, new_text);
        let space_ab = tokenizer.encode("ab", PLAIN).unwrap();
        let bytes = tokenizer.token_bytes(space_ab[0]).unwrap();
        let text = stream.push(bytes).text;
        (text, stream.finish())
    };
    let tokenizer = build(&writer);
    for (prompt, new_text, wanted) in rows {
        let (text, rest) = reply(&tokenizer, &prompt, new_text);
        assert_eq!((text.as_str(), rest.as_str()), (wanted, ""), "{prompt:?}");
    }
    assert_eq!(tokenizer.text_stream(&[]).push(b" a").text, "a");
    writer.metadata("hearth.tokenizer.space_prefix", "never");
    assert_eq!(build(&writer).text_stream(&[]).push(b" a").text, " a");
}

#[test]
fn control_tokens_come_only_of_trusted_text() {
    // Merging could make `</s>`, were it let.
    let tokenizer = build(&small(&[
        ("<", -1.0),
        ("/", -1.0),
        ("s", -1.0),
        (">", -1.0),
        ("</", -0.5),
        ("s>", -0.5),
    ]));
    assert_eq!(
        texts_of(&tokenizer, "</s>", PLAIN),
        ["<0xE2>", "<0x96>", "<0x81>", "</", "s>"]
    );
    assert_eq!(texts_of(&tokenizer, "</s>", PARSED), ["</s>"]);
    let bytes = texts_of(&tokenizer, "<0x0A>", PARSED);
    assert!(!bytes.contains(&"<0x0A>".to_owned()), "{bytes:?}");
    assert_eq!(
        (tokenizer.bos(), tokenizer.end_tokens()),
        (Some(1), [2].as_slice())
    );
}

#[test]
fn tokens_take_white_space_with_them_where_the_file_says() {
    let mut writer = small(&WORDS);
    writer
        .metadata(
            "hearth.tokenizer.lstrip_token_ids",
            MetaValue::I32Array(vec![1]),
        )
        .metadata(
            "hearth.tokenizer.rstrip_token_ids",
            MetaValue::I32Array(vec![2]),
        )
        .metadata("hearth.tokenizer.space_prefix", "never");
    let tokenizer = build(&writer);
    let wanted = ["a", "<s>", "▁", "b", "▁", "</s>", "c"];
    assert_eq!(texts_of(&tokenizer, "a  <s> b </s> \nc", PARSED), wanted);
    let part = |text: &str, trusted| Part {
        text: text.to_owned(),
        trusted,
    };
    let parts = [
        part("a  ", false),
        part("<s> ", true),
        part("b ", false),
        part("</s>", true),
        part(" \nc", false),
    ];
    let ids = tokenizer.encode_parts(&parts).unwrap();
    assert_eq!(ids, tokenizer.encode("a  <s> b </s> \nc", PARSED).unwrap());
}

#[test]
fn endless_added_tokens_are_refused() {
    let mut writer = small(&[]);
    let texts: Vec<String> = (0..3).map(|_| "y".repeat(400_000)).collect();
    writer
        .metadata("tokenizer.ggml.tokens", MetaValue::StrArray(texts))
        .metadata("tokenizer.ggml.token_type", MetaValue::I32Array(vec![4; 3]))
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.merges", MetaValue::StrArray(Vec::new()));
    let error = Tokenizer::of(&open(&writer)).err().unwrap().to_string();
    assert!(error.contains("together has 1200000 bytes"), "{error}");
}

#[test]
fn unsound_scores_are_refused() {
    let mut writer = small(&WORDS);
    writer.metadata(
        "tokenizer.ggml.scores",
        MetaValue::F32Array(vec![f32::NAN; 3 + 256 + WORDS.len()]),
    );
    let error = Tokenizer::of(&open(&writer)).err().unwrap().to_string();
    assert!(error.contains("element 0 is not a number"), "{error}");
    writer.metadata("tokenizer.ggml.scores", MetaValue::F32Array(vec![0.0]));
    let error = Tokenizer::of(&open(&writer)).err().unwrap().to_string();
    assert!(error.contains("has 1 elements"), "{error}");
    writer.remove_metadata("tokenizer.ggml.scores");
    let error = Tokenizer::of(&open(&writer)).err().unwrap().to_string();
    assert!(error.contains("scores\" is missing"), "{error}");
}

/// The plain meaning of merging: the best pair of the whole text, again and again.
fn slow(tokens: &[(&str, u32)], text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let rank = |pair: &[String]| {
            let joined = pair.concat();
            tokens.iter().find(|(t, _)| *t == joined).map(|(_, r)| *r)
        };
        let best = pieces
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| Some((rank(pair)?, at)))
            .min();
        let Some((_, at)) = best else {
            return pieces;
        };
        let right = pieces.remove(at + 1);
        pieces[at].push_str(&right);
    }
}

proptest! {
    #[test]
    fn merging_equals_its_plain_meaning(
        text in "[ab▁]{0,24}",
        tokens in prop::collection::hash_map("[ab▁]{2,5}", 0_u32..6, 0..14),
    ) {
        let list: Vec<(&str, u32)> = tokens.iter().map(|(t, r)| (t.as_str(), *r)).collect();
        let table = Table::Texts {
            tokens: list.iter().map(|(t, r)| ((*t).into(), (*r, 7))).collect(),
            longest: 16,
        };
        let mut work = Work::default();
        text.chars().for_each(|c| work.push(c));
        let mut pieces = Vec::new();
        work.merge(&table, |_, piece| pieces.push(piece.to_owned()));
        prop_assert_eq!(pieces, slow(&list, &text));
    }
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}"#;

/// A published `tokenizer.json` and what lies beside it, where set-up puts them.
fn published(name: &str) -> Checkpoint {
    let folder = std::env::var_os("HEARTH_TOKENIZERS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/tokenizers"),
        PathBuf::from,
    );
    let read = |file: &str| {
        let path = folder.join(name).join(file);
        std::fs::read(&path).unwrap_or_else(|error| {
            panic!("{}: {error}: run `make setup`", path.display());
        })
    };
    Checkpoint::of_hub(HubFiles {
        config: CONFIG.as_bytes().to_vec(),
        tokenizer: Some(read("tokenizer.json")),
        tokenizer_config: Some(read("tokenizer_config.json")),
        ..HubFiles::default()
    })
    .unwrap()
}

/// Holds a tokenizer against the oracle's ids of all strings.
fn equals_the_oracle(name: &str, tokenizer: &Tokenizer) {
    equals(&oracle("tokenizer_ids.json")[name], name, tokenizer);
}

fn equals(wanted: &Value, name: &str, tokenizer: &Tokenizer) {
    let fixture = oracle("tokenizer_ids.json");
    let texts = fixture["strings"].as_array().unwrap();
    assert!(texts.len() >= 500);
    assert_eq!(wanted["plain"].as_array().unwrap().len(), texts.len());
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_str().unwrap();
        let key = index.to_string();
        let plain = ids_of(&wanted["plain"][index]);
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(ids, plain, "{name}: {text:?}");
        let parsed = match &wanted["parsed"][&key] {
            Value::Null => plain,
            other => ids_of(other),
        };
        assert_eq!(
            tokenizer.encode(text, PARSED).unwrap(),
            parsed,
            "{name}, parsed: {text:?}"
        );
        let spaced = text.replace('▁', " ");
        let decoded = match &wanted["decoded"][&key] {
            Value::Null if tokenizer.puts_space_first() => &spaced,
            Value::Null => text,
            other => other.as_str().unwrap(),
        };
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{name}");
    }
    for (text, ids) in ["", "Hello there"]
        .iter()
        .zip(wanted["with_special"].as_array().unwrap())
    {
        let options = EncodeOptions {
            add_special: true,
            parse_special: false,
        };
        assert_eq!(tokenizer.encode(text, options).unwrap(), ids_of(ids));
    }
}

#[test]
fn a_sentencepiece_vocabulary_equals_the_oracle() {
    let checkpoint = published("llama2");
    equals_the_oracle("llama2", &Tokenizer::of(&checkpoint).unwrap());
    // The same vocabulary as GGUF files have it: a score for each token, no merges.
    let tokens: Vec<String> = checkpoint
        .get_str_array("tokenizer.ggml.tokens")
        .unwrap()
        .unwrap()
        .iter()
        .map(str::to_owned)
        .collect();
    let merges = checkpoint
        .get_str_array("tokenizer.ggml.merges")
        .unwrap()
        .unwrap();
    let mut score_of = std::collections::HashMap::new();
    for (rank, merge) in (0_u16..).map(f32::from).zip(merges.iter()) {
        score_of.entry(merge.replace(' ', "")).or_insert(-rank);
    }
    let least = -1e6_f32;
    let scores = tokens
        .iter()
        .map(|token| score_of.get(token).copied().unwrap_or(least));
    let types = checkpoint
        .get_i32_array("tokenizer.ggml.token_type")
        .unwrap()
        .unwrap();
    let mut writer = GgufWriter::new();
    writer
        .metadata("tokenizer.ggml.model", "llama")
        .metadata(
            "tokenizer.ggml.scores",
            MetaValue::F32Array(scores.collect()),
        )
        .metadata("tokenizer.ggml.tokens", MetaValue::StrArray(tokens))
        .metadata("tokenizer.ggml.token_type", MetaValue::I32Array(types));
    equals_the_oracle("llama2", &build(&writer));
}

#[test]
fn a_tokenizer_model_equals_sentencepiece() {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/pieces.model");
    let checkpoint = Checkpoint::of_hub(HubFiles {
        config: CONFIG.as_bytes().to_vec(),
        pieces: Some(std::fs::read(model).unwrap()),
        ..HubFiles::default()
    });
    let tokenizer = Tokenizer::of(&checkpoint.unwrap()).unwrap();
    equals(&oracle("pieces.json")["pieces"], "pieces", &tokenizer);
    assert_eq!(tokenizer.end_tokens(), [2]);
}

#[test]
fn llama_3s_vocabulary_equals_the_oracle() {
    equals_the_oracle("llama3", &Tokenizer::of(&published("llama3")).unwrap());
}

#[test]
fn the_default_models_vocabulary_equals_the_oracle() {
    equals_the_oracle("smollm", &default_model());
}

/// Work that grows with the square of a run would take hours here, and the runner ends it.
#[test]
fn long_runs_of_a_sentencepiece_vocabulary_are_encoded() {
    let tokenizer = Tokenizer::of(&published("llama2")).unwrap();
    for text in [
        " ".repeat(1 << 20),
        "a".repeat(1 << 20),
        "\n".repeat(1 << 20),
        "中文".repeat(1 << 18),
        "all work and no play ".repeat((4 << 20) / 21),
    ] {
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    let too_long = "a".repeat((1 << 20) + 1);
    let error = tokenizer.encode(&too_long, PLAIN).unwrap_err().to_string();
    assert!(error.contains("a run of text without a break"), "{error}");
}
