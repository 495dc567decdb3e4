//! Speculation leaves replies the same: the engine with drafts forced on everywhere against the
//! engine without, on a tiny model (stops, lengths, company) and on the real one.

use hearth_engine::tokenizer::EncodeOptions;
use hearth_engine::{
    Engine, EngineConfig, EngineStats, FinishReason, GenerateRequest, Speculation,
};
use hearth_test_support::{Reply, default_model, replies, request, started, tiny_model};

fn engine(path: &std::path::Path, speculation: Speculation) -> Engine {
    started(
        path,
        EngineConfig {
            speculation,
            ..EngineConfig::default()
        },
    )
}

/// Replies one after the other without drafts, and together with them.
fn compare(path: &std::path::Path, requests: &[GenerateRequest]) -> (Vec<Reply>, EngineStats) {
    let plain = engine(path, Speculation::Off);
    let wanted: Vec<Reply> = requests
        .iter()
        .flat_map(|r| replies(&plain, std::slice::from_ref(r)))
        .collect();
    assert_eq!(plain.stats().drafted_tokens, 0);
    drop(plain);
    let drafting = engine(path, Speculation::Always);
    for (i, found) in replies(&drafting, requests).into_iter().enumerate() {
        assert_eq!(found, wanted[i], "request {i}");
    }
    let stats = drafting.stats();
    assert!(stats.accepted_tokens <= stats.drafted_tokens, "{stats:?}");
    (wanted, stats)
}

/// Prompts that repeat themselves, so that there is always something to draft.
fn prompts() -> Vec<Vec<u32>> {
    let size = tiny_model::vocab_size();
    (1..5_u32)
        .map(|k| {
            (0..60)
                .map(|i| 3 + (i % (7 * k)) * 11 * k % (size - 3))
                .collect()
        })
        .collect()
}

#[test]
fn drafts_leave_replies_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 11);
    let mut requests: Vec<GenerateRequest> = prompts()
        .into_iter()
        .zip([150, 1, 2, 97])
        .map(|(prompt, tokens)| request(prompt, tokens))
        .collect();
    // Beside ones that take no part.
    let mut drawn = request(prompts()[0].clone(), 60);
    drawn.sampling.temperature = 0.8;
    let mut penalised = request(prompts()[1].clone(), 60);
    penalised.sampling.repeat_penalty = 1.3;
    requests.extend([drawn, penalised]);
    let (wanted, stats) = compare(&path, &requests);
    assert_eq!(wanted[0].generated, 150);
    assert!(stats.accepted_tokens > 0, "{stats:?}");
}

#[test]
fn narrow_steps_have_short_drafts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 11);
    let requests = [request(prompts()[0].clone(), 80)];
    let wanted = replies(&engine(&path, Speculation::Off), &requests);
    let narrow = EngineConfig {
        speculation: Speculation::Always,
        prefill_chunk: 1,
        ..EngineConfig::default()
    };
    assert_eq!(replies(&started(&path, narrow), &requests), wanted);
}

#[test]
fn an_end_within_a_draft_ends_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 11);
    let plain = engine(&path, Speculation::Off);
    let mut requests = Vec::new();
    for prompt in prompts().split_off(2) {
        let whole = &replies(&plain, &[request(prompt.clone(), 120)])[0];
        for at in [40, 41, 43] {
            // Each length, ...
            requests.push(request(prompt.clone(), at));
            // ... a stop token that comes late, where there is one, ...
            let token = whole.tokens[usize::try_from(at).unwrap()];
            requests.push(GenerateRequest {
                stop_tokens: vec![token],
                ..request(prompt.clone(), 120)
            });
        }
        // ... and a stop text from the middle.
        let middle: String = whole.text.chars().skip(30).take(5).collect();
        if !middle.is_empty() {
            requests.push(GenerateRequest {
                stop: vec![middle],
                ..request(prompt.clone(), 120)
            });
        }
        // To the end of the context.
        requests.push(GenerateRequest {
            max_tokens: None,
            prompt: prompt.iter().copied().cycle().take(1990).collect(),
            ..request(Vec::new(), 0)
        });
    }
    drop(plain);
    let (wanted, _) = compare(&path, &requests);
    for reason in [
        FinishReason::Length,
        FinishReason::Eos,
        FinishReason::Stop,
        FinishReason::ContextFull,
    ] {
        assert!(wanted.iter().any(|r| r.reason == reason), "{reason:?}");
    }
}

#[test]
fn the_real_model_copies_the_same_in_fewer_steps() {
    let path = default_model().expect("no model file: run `make setup`, or set HEARTH_MODEL_FILE");
    let plain = engine(&path, Speculation::Off);
    let tokenizer = &plain.model().unwrap().tokenizer;
    let text = "Alpha: red, seven, north.\nBeta: green, four, south.\nGamma: blue, nine, east.\n\
                Alpha: red, seven, north.\nBeta:";
    let options = EncodeOptions {
        add_special: false,
        parse_special: false,
    };
    let prompt = tokenizer.encode(text, options).unwrap();
    let requests = [request(prompt, 32)];
    let wanted = replies(&plain, &requests);
    let before = plain.stats();
    drop(plain);
    let drafting = engine(&path, Speculation::Always);
    assert_eq!(replies(&drafting, &requests), wanted);
    let stats = drafting.stats();
    assert!(stats.accepted_tokens > 8, "{stats:?}");
    assert!(stats.steps < before.steps, "{stats:?} after {before:?}");
}
