//! Checkpoints in every format against what public tools say of them (tests/oracle/formats):
//! log-probabilities of a text and greedy tokens, from the dequantised weights.

use std::path::{Path, PathBuf};

use hearth_engine::format::{Checkpoint, ModelFiles};
use hearth_engine::model::ModelConfig;
use hearth_engine::tokenizer::{EncodeOptions, Tokenizer};
use hearth_engine::{
    Activations, Engine, EngineConfig, Event, GenerateRequest, Quantization, TokenOutput,
};
use hearth_test_support::{long_tests, request, submit};
use hearthd::store::{Store, StoreError};
use serde::Deserialize;

/// Below this margin of the reference's two best logits, another order of sums may choose otherwise.
const MARGIN: f64 = 0.05;

/// What a checkpoint's maker says of it.
#[derive(Deserialize)]
struct Expected {
    /// What lies beside it: a file or a folder.
    model: String,
    text: String,
    ids: Vec<u32>,
    /// Of tokens 1..n.
    logprobs: Vec<f64>,
    greedy: Prompts,
}

/// The tiny models have one prompt each, the default model several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(Greedy),
    Several(Vec<Greedy>),
}

impl Prompts {
    fn all(&self) -> &[Greedy] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(list) => list,
        }
    }
}

#[derive(Deserialize)]
struct Greedy {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    top2_margin: Vec<f64>,
}

/// The folder of tiny models, or the one that HEARTH_FORMATS names: the default model itself in
/// other formats, say, as oracle/formats/full_models.py writes it.
fn fixtures() -> PathBuf {
    other_fixtures()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/formats/fixtures"))
}

fn other_fixtures() -> Option<PathBuf> {
    std::env::var_os("HEARTH_FORMATS").map(PathBuf::from)
}

/// (echoed, generated) tokens.
fn run(engine: &Engine, request: &GenerateRequest) -> (Vec<TokenOutput>, Vec<u32>) {
    let (mut echoed, mut generated) = (Vec::new(), Vec::new());
    for event in submit(engine, request) {
        match event {
            Event::Echo { tokens, .. } => echoed.extend(tokens),
            Event::Delta { tokens, .. } => generated.extend(tokens.iter().map(|t| t.id)),
            _ => {}
        }
    }
    (echoed, generated)
}

/// Loads a fixture and compares; returns the difference of perplexity in per cent, the mean one
/// of log-probabilities in nats, and how many greedy tokens went astray before a narrow margin.
fn compare(engine: &Engine, expected: &Expected, files: &ModelFiles) -> (f64, f64, usize) {
    let name = &expected.model;
    // One at a time.
    engine.unload();
    engine
        .load(files, &mut |_| true)
        .unwrap_or_else(|error| panic!("{name}: {error}: {:?}", std::error::Error::source(&error)));
    let scoring = GenerateRequest {
        logprobs: Some(0),
        echo: true,
        ..request(expected.ids.as_slice(), 0)
    };
    let (echoed, _) = run(engine, &scoring);
    let found: Vec<f64> = echoed[1..]
        .iter()
        .map(|t| f64::from(t.logprob.unwrap()))
        .collect();
    assert_eq!(found.len(), expected.logprobs.len(), "{name}");
    let count = f64::from(u32::try_from(found.len()).unwrap());
    let pairs = || found.iter().zip(&expected.logprobs);
    let mean = pairs().map(|(a, b)| (a - b).abs()).sum::<f64>() / count;
    let bias = pairs().map(|(a, b)| a - b).sum::<f64>() / count;

    let outcomes: Vec<(usize, String)> = expected
        .greedy
        .all()
        .iter()
        .map(|wanted| greedily(engine, name, wanted))
        .collect();
    let wrong = outcomes.iter().map(|(wrong, _)| wrong).sum();
    let same: Vec<&str> = outcomes.iter().map(|(_, same)| same.as_str()).collect();
    let perplexity = 100.0 * (-bias).exp_m1();
    let reference = (-expected.logprobs.iter().sum::<f64>() / count).exp();
    eprintln!(
        "{name}: {count} tokens, perplexity {reference:.4} {perplexity:+.4} %, {mean:.6} nats a token, \
         greedy {} the same",
        same.join(", ")
    );
    (perplexity, mean, wrong)
}

/// How many tokens went astray before a narrow margin, and how many were the same at first.
fn greedily(engine: &Engine, name: &str, wanted: &Greedy) -> (usize, String) {
    let most = u32::try_from(wanted.ids.len()).unwrap();
    let (_, greedy) = run(engine, &request(wanted.prompt_ids.as_slice(), most));
    assert_eq!(greedy.len(), wanted.ids.len(), "{name}");
    let parting = (0..greedy.len()).find(|&i| greedy[i] != wanted.ids[i]);
    let sure = wanted
        .top2_margin
        .iter()
        .position(|margin| *margin <= MARGIN);
    let sure = sure.unwrap_or(greedy.len());
    let wrong = parting.filter(|at| *at < sure).map_or(0, |at| sure - at);
    let same = parting.map_or("all".to_owned(), |at| format!("{at} (sure: {sure})"));
    (wrong, same)
}

fn files(expected: &Expected) -> ModelFiles {
    ModelFiles::at(&fixtures().join(&expected.model)).unwrap()
}

fn all_fixtures() -> Vec<Expected> {
    let mut list: Vec<Expected> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        .collect();
    list.sort_by(|a, b| a.model.cmp(&b.model));
    let fewest = if other_fixtures().is_some() { 1 } else { 11 };
    assert!(list.len() >= fewest, "{} fixtures", list.len());
    list
}

#[test]
fn float_activations_score_every_format_as_its_maker() {
    let engine = Engine::start(EngineConfig {
        activations: Activations::Float,
        ..EngineConfig::default()
    })
    .unwrap();
    for expected in all_fixtures() {
        let (perplexity, mean, wrong) = compare(&engine, &expected, &files(&expected));
        let name = &expected.model;
        assert!(perplexity.abs() <= 0.1, "{name}: {perplexity} %");
        assert!(mean <= 0.005, "{name}: {mean} nats");
        assert_eq!(wrong, 0, "{name}: greedy tokens differ at a wide margin");
    }
}

#[test]
fn texts_become_the_tokens_of_every_makers_tokenizer() {
    for expected in all_fixtures() {
        let checkpoint = Checkpoint::open(&files(&expected)).unwrap();
        let config = ModelConfig::of(&checkpoint)
            .unwrap_or_else(|error| panic!("{}: {error}", expected.model));
        assert_eq!(checkpoint.format(), config.format);
        let tokenizer = Tokenizer::of(&checkpoint).unwrap();
        let options = EncodeOptions {
            add_special: true,
            parse_special: false,
        };
        let ids = tokenizer.encode(&expected.text, options).unwrap();
        // The ids are the first of a longer text, whose cut may fall into a word.
        let sure = ids.len().min(expected.ids.len()) - 4;
        assert_eq!(ids[..sure], expected.ids[..sure], "{}", expected.model);
    }
}

#[test]
fn int8_activations_score_every_format_nearly_so() {
    let engine = Engine::start(EngineConfig {
        activations: Activations::Int8,
        ..EngineConfig::default()
    })
    .unwrap();
    let everyday = [
        "gguf_q3_k_m",
        "gguf_q5_k_m",
        "gguf_q6_k",
        "gguf_q5_1",
        "gguf_q4_k_m",
    ];
    for expected in all_fixtures() {
        let is_everyday = everyday.iter().any(|name| expected.model.starts_with(name))
            || expected.model.contains("gptq")
            || expected.model.contains("awq");
        if !is_everyday && !long_tests() && other_fixtures().is_none() {
            continue;
        }
        let (perplexity, _, _) = compare(&engine, &expected, &files(&expected));
        let name = &expected.model;
        assert!(perplexity.abs() <= 1.0, "{name}: {perplexity} %");
    }
}

#[test]
fn imports_in_fewer_bits_answer_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let engine = Engine::start(EngineConfig {
        activations: Activations::Float,
        ..EngineConfig::default()
    })
    .unwrap();
    let expected = all_fixtures();
    let expected = expected.iter().find(|e| e.model == "hub_f16").unwrap();
    let source = fixtures().join("hub_f16");
    // The weights are random: four bits leave less of them than of a trained model's.
    for (to, name, most) in [
        (Quantization::Q8, "hub_f16-q8", 2.0),
        (Quantization::Q4, "hub_f16-q4", 12.0),
    ] {
        let model = store
            .import_quantized(&source, None, to, &mut |_, _| true)
            .unwrap();
        assert_eq!((model.name.as_str(), model.files.len()), (name, 1));
        assert_eq!(model.facts.format, "gguf");
        let (perplexity, ..) = compare(&engine, expected, &store.files(&model).unwrap());
        assert!(perplexity.abs() <= most, "{name}: {perplexity} %");
        // Once more would lose more.
        let again = store.files(&model).unwrap();
        let (_, place) = again.iter().next().unwrap();
        let refused = store.import_quantized(place, Some("again"), to, &mut |_, _| true);
        assert!(matches!(refused, Err(StoreError::Quantize(_))));
    }
    assert_eq!(store.list().unwrap().len(), 2);
}
