//! `tokenizer.model` as it is published, and as it should not be.

use prost::Message as _;
use serde_json::{Value, json};

use super::HubFiles;
use super::sentencepiece::{File, Normalizer, Piece, Trainer};
use super::tests::{config, files, problem, tokenizer};
use crate::format::Checkpoint;
use crate::tokenizer::{EncodeOptions, Tokenizer};

fn piece(text: &str, score: f32, kind: i32) -> Piece {
    Piece {
        text: text.to_owned(),
        score,
        kind,
    }
}

/// The vocabulary of [`tokenizer`] as its own file has it, and a user's piece.
fn sound() -> File {
    File {
        pieces: vec![
            piece("<unk>", 0.0, 2),
            piece("<s>", 0.0, 3),
            piece("</s>", 0.0, 3),
            piece("<0x0A>", 0.0, 6),
            piece("▁", -2.0, 1),
            piece("a", -3.0, 1),
            piece("b", -4.0, 0),
            piece("▁a", -0.5, 1),
            piece("ab", -1.0, 1),
            piece("xx", 0.0, 4),
        ],
        trainer: Some(Trainer {
            model_type: Some(2),
            ..Trainer::default()
        }),
        normalizer: Some(Normalizer {
            name: Some("identity".to_owned()),
            remove_extra_whitespaces: Some(false),
            ..Normalizer::default()
        }),
    }
}

fn of_pieces(file: &File, tokenizer_config: Option<&Value>) -> HubFiles {
    let mut all = files(&config(), None);
    all.pieces = Some(file.encode_to_vec());
    all.tokenizer_config = tokenizer_config.map(|value| value.to_string().into_bytes());
    all
}

fn encode(files: HubFiles, text: &str) -> Vec<u32> {
    let model = Checkpoint::of_hub(files).unwrap();
    let options = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    let tokenizer = Tokenizer::of(&model).unwrap();
    tokenizer.encode(text, options).unwrap()
}

#[test]
fn pieces_are_said_in_ggufs_words() {
    let model = Checkpoint::of_hub(of_pieces(&sound(), None)).unwrap();
    let types = model.get_i32_array("tokenizer.ggml.token_type").unwrap();
    let wanted = [2, 3, 3, 6, 1, 1, 1, 1, 1, 4, 5, 5, 5, 5, 5, 5];
    assert_eq!(types.unwrap(), wanted);
    let scores = model
        .get_f32_array("tokenizer.ggml.scores")
        .unwrap()
        .unwrap();
    assert_eq!(scores[7..10], [-0.5, -1.0, 0.0]);
    assert_eq!(scores.len(), 16, "one for each row of the embedding");
    assert!(model.array_len("tokenizer.ggml.merges").is_none());
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert_eq!(model.get_u32(&key).unwrap(), Some(id), "{key}");
    }
    let ids = encode(of_pieces(&sound(), None), "ab\n</s> axx b?");
    // The prefix joins the first letter: it has the highest score.
    assert_eq!(ids, [1, 7, 6, 3, 2, 4, 7, 9, 4, 4, 6, 0]);
}

#[test]
fn tokenizer_json_goes_first() {
    let mut all = of_pieces(&sound(), None);
    all.tokenizer = Some(tokenizer().to_string().into_bytes());
    let model = Checkpoint::of_hub(all).unwrap();
    assert!(
        model.array_len("tokenizer.ggml.merges").is_some()
            && model.array_len("tokenizer.ggml.scores").is_none()
    );
}

#[test]
fn the_configuration_says_how_text_begins_and_ends() {
    let rows = [
        (json!({}), "sections", vec![1, 7]),
        (json!({"legacy": false}), "open-text", vec![1, 7]),
        (json!({"add_prefix_space": false}), "never", vec![1, 5]),
        (json!({"add_bos_token": false}), "sections", vec![7]),
        (json!({"add_eos_token": true}), "sections", vec![1, 7, 2]),
        (
            json!({"bos_token": {"content": "</s>"}, "eos_token": "<s>", "add_eos_token": true}),
            "sections",
            vec![2, 7, 1],
        ),
    ];
    for (said, prefix, ids) in rows {
        let model = Checkpoint::of_hub(of_pieces(&sound(), Some(&said))).unwrap();
        let found = model.get_str("hearth.tokenizer.space_prefix").unwrap();
        assert_eq!(found, Some(prefix), "{said}");
        assert_eq!(encode(of_pieces(&sound(), Some(&said)), "a"), ids, "{said}");
    }
    let mut bare = sound();
    bare.normalizer.as_mut().unwrap().add_dummy_prefix = Some(false);
    assert_eq!(encode(of_pieces(&bare, None), "a"), [1, 5]);
}

#[test]
fn tokens_are_added_by_other_files() {
    let newer = json!({"added_tokens_decoder": {
        "1": {"content": "<s>", "lstrip": false, "rstrip": true, "special": true},
        "10": {"content": "<|im_end|>", "special": true},
        "11": {"content": "pp", "normalized": true},
    }});
    let mut all = of_pieces(&sound(), Some(&newer));
    all.added_tokens = Some(br#"{"qq": 12}"#.to_vec());
    let types = Checkpoint::of_hub(all)
        .unwrap()
        .get_i32_array("tokenizer.ggml.token_type")
        .unwrap()
        .unwrap();
    assert_eq!(types[9..13], [4, 3, 4, 5], "the older file does not count");
    let text = "a<s> a<|im_end|>pp";
    assert_eq!(
        encode(of_pieces(&sound(), Some(&newer)), text),
        [1, 7, 1, 7, 10, 11]
    );
    let mut older = of_pieces(&sound(), None);
    older.added_tokens = Some(br#"{"qq": 12, "<|im_end|>": 10}"#.to_vec());
    assert_eq!(encode(older, "aqq<|im_end|>"), [1, 7, 12, 10]);
}

#[test]
fn bad_files_are_refused_by_name() {
    type Spoil = fn(&mut File);
    fn trainer(file: &mut File) -> &mut Trainer {
        file.trainer.as_mut().unwrap()
    }
    fn normalizer(file: &mut File) -> &mut Normalizer {
        file.normalizer.as_mut().unwrap()
    }
    let rows: [(Spoil, &str); 17] = [
        (|file| file.pieces.clear(), "pieces is missing"),
        (|file| file.trainer = None, "model_type: UNIGRAM; BPE"),
        (|file| trainer(file).model_type = Some(4), "CHAR; BPE"),
        (|file| trainer(file).model_type = Some(-1), "model_type: -1"),
        (
            |file| trainer(file).whitespace_as_suffix = Some(true),
            "treat_whitespace_as_suffix: true",
        ),
        (
            |file| {
                normalizer(file).name = Some("nmt_nfkc".to_owned());
                normalizer(file).charsmap = Some(vec![1]);
            },
            "normalizer_spec.name: nmt_nfkc",
        ),
        (
            |file| file.normalizer = None,
            "remove_extra_whitespaces: true",
        ),
        (
            |file| normalizer(file).escape_whitespaces = Some(false),
            "escape_whitespaces: false",
        ),
        (|file| file.pieces[5].text.clear(), "piece 5: empty"),
        (
            |file| file.pieces[5].text = "x".repeat(5000),
            "bytes of piece 5: 5000 is over the limit",
        ),
        (|file| file.pieces[5].score = f32::NAN, "piece 5: its score"),
        (|file| file.pieces[5].kind = 5, "piece 5: type 5"),
        (|file| file.pieces[5].kind = -7, "piece 5: type -7"),
        (|file| file.pieces[5].kind = 6, "piece 5: a; a byte is"),
        (
            |file| file.pieces[5].text = "b".to_owned(),
            "\"b\" appears twice",
        ),
        (
            |file| {
                file.pieces
                    .extend((0..7).map(|n| piece(&format!("p{n}"), 0.0, 1)));
            },
            "config.json's vocab_size",
        ),
        (
            |file| file.pieces.resize((1 << 20) + 1, piece("x", 0.0, 1)),
            "number of pieces: 1048577 is over the limit",
        ),
    ];
    for (spoil, wanted) in rows {
        let mut file = sound();
        spoil(&mut file);
        let problem = problem(of_pieces(&file, None));
        let named = problem.starts_with("tokenizer.model: ") && problem.contains(wanted);
        assert!(named, "wanted {wanted:?} in {problem:?}");
    }
}

#[test]
fn what_is_no_such_file_is_refused() {
    let mut cut = sound().encode_to_vec();
    cut.pop();
    let not_text = [b"\x0a\x03\x0a\x01\xff".to_vec(), sound().encode_to_vec()].concat();
    for bytes in [
        cut,
        not_text,
        b"{}".to_vec(),
        vec![0xFF; 64],
        vec![b'\x0b'; 4096],
    ] {
        let mut all = of_pieces(&sound(), None);
        all.pieces = Some(bytes);
        let problem = problem(all);
        assert!(
            problem.starts_with("tokenizer.model: not valid: "),
            "{problem}"
        );
    }
    let mut all = of_pieces(&sound(), None);
    all.pieces = Some(vec![0; (8 << 20) + 1]);
    assert!(problem(all).contains("tokenizer.model: size in bytes: 8388609"));
    for (said, wanted) in [
        (
            json!({"added_tokens_decoder": 5}),
            "added_tokens_decoder: 5",
        ),
        (
            json!({"added_tokens_decoder": {"x": {"content": "p"}}}),
            "decoder.x",
        ),
        (json!({"added_tokens_decoder": {"10": {}}}), "content"),
        (
            json!({"added_tokens_decoder": {"10": {"content": "p", "single_word": true}}}),
            "single_word",
        ),
        (
            json!({"added_tokens_decoder": {"10": {"content": "a"}}}),
            "\"a\" appears twice",
        ),
    ] {
        let problem = problem(of_pieces(&sound(), Some(&said)));
        assert!(problem.contains(wanted), "wanted {wanted:?} in {problem:?}");
    }
    let mut older = of_pieces(&sound(), None);
    older.added_tokens = Some(br#"{"p": "x"}"#.to_vec());
    assert!(problem(older).contains("added_tokens.json: p: "));
}
