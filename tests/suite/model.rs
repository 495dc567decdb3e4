//! The whole model against the oracle (tests/oracle/README.md): log-probabilities, greedy tokens,
//! perplexity; and that nothing else about a run changes its tokens.
//!
//! The everyday run takes what a software GPU does in a minute or two; `HEARTH_LONG_TESTS=1` takes
//! all texts and the perplexity of all 2,281 tokens.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    Activations, Engine, EngineConfig, EngineStats, Event, EventSink, FinishReason,
    GenerateRequest, SendOutcome, TokenOutput,
};
use hearth_test_support::{ChannelSink, default_model, long_tests, request};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Below this margin of the reference's two best logits, another order of sums may choose otherwise.
const MARGIN: f64 = 0.05;

#[derive(Deserialize)]
struct Logprobs {
    texts: Vec<ScoredText>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct ScoredText {
    name: String,
    ids: Vec<u32>,
    /// Of tokens 1..n.
    logprobs: Vec<f64>,
}

#[derive(Deserialize)]
struct Greedy {
    name: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    top2_margin: Vec<f64>,
}

#[derive(Deserialize)]
struct Hidden {
    ids: Vec<u32>,
    top5: Vec<Top>,
}

#[derive(Deserialize)]
struct Top {
    id: u32,
    logprob: f64,
}

#[derive(Deserialize)]
struct Perplexity {
    ids: Vec<u32>,
    logprobs: Vec<f64>,
}

fn oracle<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/oracle/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn engine(config: EngineConfig) -> Engine {
    let path = default_model().expect("no model file: run `make setup`, or set HEARTH_MODEL_FILE");
    let engine = Engine::start(config).unwrap();
    engine
        .load(&ModelFiles::at(&path).unwrap(), &mut |_| true)
        .unwrap();
    engine
}

fn with_activations(activations: Activations) -> Engine {
    let engine = engine(EngineConfig {
        activations,
        ..EngineConfig::default()
    });
    assert_eq!(engine.model().unwrap().activations, activations);
    engine
}

fn submit(engine: &Engine, request: GenerateRequest) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    engine
        .submit(request, Box::new(ChannelSink(sender)))
        .unwrap();
    events
}

/// (echoed, generated) tokens of a sequence that runs to its length.
fn collect(events: mpsc::Receiver<Event>) -> (Vec<TokenOutput>, Vec<TokenOutput>) {
    let (mut echoed, mut generated) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Echo { tokens, .. } => echoed.extend(tokens),
            Event::Delta { tokens, .. } => generated.extend(tokens),
            Event::End(report) => assert_eq!(report.reason, FinishReason::Length),
            Event::Queued { .. } | Event::Prefill { .. } => {}
        }
    }
    (echoed, generated)
}

fn generate(engine: &Engine, prompt: &[u32], max_tokens: u32) -> Vec<u32> {
    let (_, tokens) = collect(submit(engine, request(prompt, max_tokens)));
    tokens.iter().map(|t| t.id).collect()
}

/// Log-probabilities of tokens 1..n of a text.
fn score(engine: &Engine, ids: &[u32]) -> Vec<f64> {
    let scoring = GenerateRequest {
        logprobs: Some(0),
        echo: true,
        ..request(ids, 0)
    };
    let (echoed, generated) = collect(submit(engine, scoring));
    assert!(generated.is_empty());
    assert_eq!(echoed.iter().map(|t| t.id).collect::<Vec<_>>(), ids);
    assert!(echoed[0].logprob.is_none(), "token 0 has no predecessor");
    echoed[1..]
        .iter()
        .map(|t| f64::from(t.logprob.unwrap()))
        .collect()
}

/// Mean over all texts' tokens of the absolute difference from the reference, in nats.
fn mean_difference(engine: &Engine, texts: &[&ScoredText]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for text in texts {
        let found = score(engine, &text.ids);
        assert_eq!(found.len(), text.logprobs.len());
        let differences = found.iter().zip(&text.logprobs).map(|(a, b)| (a - b).abs());
        let tokens = f64::from(u32::try_from(found.len()).unwrap());
        let of_text: f64 = differences.sum();
        eprintln!(
            "{}: {:.5} nats over {tokens} tokens",
            text.name,
            of_text / tokens
        );
        sum += of_text;
        count += tokens;
    }
    eprintln!("all: {:.5} nats over {count} tokens", sum / count);
    sum / count
}

#[test]
fn float_activations_score_as_the_reference() {
    let engine = with_activations(Activations::Float);
    let logprobs: Logprobs = oracle("logprobs");
    let everyday = ["prose", "c", "german", "chinese", "numbers", "chat_turns"];
    let texts: Vec<&ScoredText> = logprobs
        .texts
        .iter()
        .filter(|t| long_tests() || everyday.contains(&t.name.as_str()))
        .collect();
    assert!(texts.len() >= everyday.len());
    let mean = mean_difference(&engine, &texts);
    assert!(mean <= 0.005, "{mean} nats");

    let hidden: Hidden = oracle("hidden");
    let first = GenerateRequest {
        logprobs: Some(5),
        ..request(hidden.ids.as_slice(), 1)
    };
    let (_, tokens) = collect(submit(&engine, first));
    assert_eq!(tokens[0].id, hidden.top5[0].id);
    for (found, wanted) in tokens[0].top.iter().zip(&hidden.top5) {
        assert_eq!(found.id, wanted.id);
        let difference = (f64::from(found.logprob) - wanted.logprob).abs();
        assert!(difference < 0.005, "token {}: {difference} nats", wanted.id);
    }
}

#[test]
fn float_activations_continue_as_the_reference() {
    let engine = with_activations(Activations::Float);
    let logprobs: Logprobs = oracle("logprobs");
    let (prompts, tokens) = if long_tests() { (4, 64) } else { (2, 24) };
    for greedy in &logprobs.greedy[..prompts] {
        let found = generate(&engine, &greedy.prompt_ids, tokens);
        assert_eq!(found.len(), tokens as usize, "{}", greedy.name);
        let parting = (0..found.len()).find(|&i| found[i] != greedy.ids[i]);
        if let Some(at) = parting {
            let margin = greedy.top2_margin[at];
            assert!(
                margin <= MARGIN,
                "{}: token {at} differs at margin {margin}",
                greedy.name
            );
        }
    }
}

#[test]
fn int8_activations_score_near_the_reference() {
    let engine = with_activations(Activations::Int8);
    let logprobs: Logprobs = oracle("logprobs");
    let texts: Vec<&ScoredText> = logprobs.texts.iter().collect();
    assert_eq!(texts.len(), 15);
    let mean = mean_difference(&engine, &texts);
    assert!(mean <= 0.09, "{mean} nats");
    assert!(
        mean > 0.005,
        "{mean} nats: these can hardly be int8 activations"
    );
}

/// The everyday run takes the text's beginning, on which chance moves the figure more.
#[test]
fn int8_activations_keep_the_perplexity() {
    let engine = with_activations(Activations::Int8);
    let wanted: Perplexity = oracle("perplexity");
    let (tokens, limit) = if long_tests() {
        (wanted.ids.len(), 0.01)
    } else {
        (512, 0.03)
    };
    let found = score(&engine, &wanted.ids[..tokens]);
    let mean = |logprobs: &[f64]| {
        -logprobs.iter().sum::<f64>() / f64::from(u32::try_from(logprobs.len()).unwrap())
    };
    let reference = mean(&wanted.logprobs[..tokens - 1]);
    let change = (mean(&found) - reference).exp() - 1.0;
    eprintln!(
        "perplexity {:.3} over {tokens} tokens, {:+.2} per cent",
        mean(&found).exp(),
        100.0 * change
    );
    assert!(change.abs() <= limit, "perplexity changes by {change}");
}

#[test]
fn no_forced_mode_changes_the_tokens() {
    let logprobs: Logprobs = oracle("logprobs");
    let prompt = &logprobs.greedy[0].prompt_ids;
    let plain = EngineConfig::default();
    let wanted = generate(&engine(plain.clone()), prompt, 8);
    assert_eq!(wanted.len(), 8);
    let sharded = engine(EngineConfig {
        binding_bytes_max: Some(3 << 20),
        ..plain.clone()
    });
    assert_eq!(sharded.adapter().binding_bytes_max, 3 << 20);
    assert_eq!(generate(&sharded, prompt, 8), wanted, "row shards");
    drop(sharded);
    let shared = engine(EngineConfig {
        no_subgroups: true,
        ..plain.clone()
    });
    assert_eq!(shared.adapter().subgroup_size, 0);
    assert_eq!(generate(&shared, prompt, 8), wanted, "no subgroups");
    drop(shared);
    let checked = engine(EngineConfig {
        checked_shaders: true,
        ..plain
    });
    assert_eq!(generate(&checked, prompt, 8), wanted, "checked shaders");
}

#[test]
fn company_does_not_change_the_tokens() {
    let engine = engine(EngineConfig::default());
    let logprobs: Logprobs = oracle("logprobs");
    let prompts: Vec<&[u32]> = logprobs.greedy[..3]
        .iter()
        .map(|g| g.prompt_ids.as_slice())
        .collect();
    let alone: Vec<Vec<u32>> = prompts.iter().map(|p| generate(&engine, p, 16)).collect();
    let streams: Vec<_> = prompts
        .iter()
        .map(|p| submit(&engine, request(*p, 16)))
        .collect();
    for (stream, wanted) in streams.into_iter().zip(&alone) {
        let (_, tokens) = collect(stream);
        let found: Vec<u32> = tokens.iter().map(|t| t.id).collect();
        assert_eq!(&found, wanted);
    }
    wait_until(&engine, |s| s.active_now == 0);
    assert_eq!(engine.stats().kv_blocks_used_now, 0, "all blocks are back");
}

/// Closes itself after a few tokens, as a client that hangs up.
struct Leaver {
    tokens: Arc<AtomicU32>,
    stay: u32,
    gone: Arc<AtomicBool>,
}

impl EventSink for Leaver {
    fn try_send(&mut self, event: Event) -> SendOutcome {
        if self.is_closed() {
            return SendOutcome::Closed;
        }
        if let Event::Delta { tokens, .. } = event {
            let new = u32::try_from(tokens.len()).unwrap();
            if self.tokens.fetch_add(new, Ordering::SeqCst) + new >= self.stay {
                self.gone.store(true, Ordering::SeqCst);
            }
        }
        SendOutcome::Sent
    }

    fn is_closed(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

fn wait_until(engine: &Engine, done: impl Fn(EngineStats) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done(engine.stats()) {
        assert!(Instant::now() < deadline, "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_reader_that_leaves_stops_its_sequence() {
    let engine = engine(EngineConfig::default());
    let logprobs: Logprobs = oracle("logprobs");
    let prompt = &logprobs.greedy[0].prompt_ids;
    let tokens = Arc::new(AtomicU32::new(0));
    let leaver = Leaver {
        tokens: Arc::clone(&tokens),
        stay: 3,
        gone: Arc::default(),
    };
    engine
        .submit(request(prompt.as_slice(), 400), Box::new(leaver))
        .unwrap();
    wait_until(&engine, |s| s.cancelled == 1 && s.active_now == 0);
    let after = engine.stats();
    let seen = u64::from(tokens.load(Ordering::SeqCst));
    assert!(seen >= 3);
    assert!(
        after.generated_tokens <= seen + 4,
        "{seen} tokens were read, {} generated",
        after.generated_tokens
    );
    std::thread::sleep(Duration::from_millis(300));
    let later = engine.stats();
    assert_eq!(later.generated_tokens, after.generated_tokens);
    assert_eq!(later.steps, after.steps, "no step runs for nobody");
    assert_eq!(later.kv_blocks_used_now, 0);
    // What it left behind does not reach the next one.
    let next = generate(&engine, prompt, 6);
    assert_eq!(next, generate(&engine, prompt, 6));
}
