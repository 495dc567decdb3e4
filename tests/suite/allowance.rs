//! What the engine may use can change at any time: fewer slots, fewer classes, less context, a slower
//! pace. What runs goes on, with the same replies.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hearth_engine::{
    Allowance, Class, Engine, EngineConfig, Event, FinishReason, GenerateRequest, SubmitError,
};
use hearth_test_support::{ChannelSink, replies, reply, request, started, submit, tiny_model};
use tempfile::TempDir;

fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 7);
    (folder, path)
}

fn of_class(n: u32, class: Class, max_tokens: u32) -> GenerateRequest {
    let prompt: Vec<u32> = (0..40).map(|i| 3 + (n * 31 + i * 7) % 200).collect();
    GenerateRequest {
        class,
        ..request(prompt, max_tokens)
    }
}

/// Waits until `wanted` holds of the engine.
fn until(engine: &Engine, what: &str, wanted: impl Fn(&Engine) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !wanted(engine) {
        assert!(Instant::now() < end, "{what}: {:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn running(engine: &Engine) -> usize {
    let usage = engine.usage();
    usage.sequences.iter().filter(|s| s.ahead.is_none()).count()
}

#[test]
fn what_runs_makes_way_and_goes_on_with_the_same_reply() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let requests: Vec<_> = (0..5)
        .map(|n| of_class(n, Class::ALL[n as usize % 3], 150))
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .flat_map(|r| replies(&engine, std::slice::from_ref(r)))
        .collect();
    let streams: Vec<Receiver<Event>> = requests.iter().map(|r| submit(&engine, r)).collect();
    until(&engine, "all run", |e| running(e) == 5);
    let tight = Allowance {
        slots: 1,
        least_class: Class::Interactive,
        prefill_chunk_max: 32,
        prefix_cache_share: 0.0,
        keep_waiting_kv: false,
        ..Allowance::default()
    };
    engine.allow(tight);
    until(&engine, "one runs", |e| running(e) == 1);
    until(&engine, "nothing is kept for later", |e| {
        e.stats().kv_blocks_cached_now == 0
    });
    let (mut replied, mut rest) = (Vec::new(), Vec::new());
    for (request, stream) in requests.iter().zip(streams) {
        match request.class {
            Class::Interactive => replied.push(reply(stream).0),
            _ => rest.push(stream),
        }
    }
    until(&engine, "the others wait", |e| running(e) == 0);
    let stats = engine.stats();
    assert_eq!(stats.kv_blocks_used_now, 0, "without KV: {stats:?}");
    assert_eq!(stats.queued_now, 3);
    engine.allow(Allowance::default());
    replied.extend(rest.into_iter().map(|stream| reply(stream).0));
    let order = [0, 3, 1, 2, 4];
    for (n, reply) in order.into_iter().zip(replied) {
        assert_eq!(reply, alone[n], "request {n}");
    }
}

#[test]
fn new_requests_get_the_context_that_is_allowed() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let model = engine.model().unwrap();
    let long = submit(&engine, &request([5], 100));
    engine.allow(Allowance {
        context_len_max: 64,
        ..Allowance::default()
    });
    assert_eq!(engine.context_len(&model), 64);
    let events = submit(&engine, &request(vec![5; 50], 100));
    let (short, _) = reply(events);
    assert_eq!(
        (short.generated, short.reason),
        (14, FinishReason::ContextFull)
    );
    let (sender, _events) = std::sync::mpsc::channel();
    let refused = engine.submit(request(vec![5; 70], 1), Box::new(ChannelSink(sender)));
    let Err(SubmitError::ContextOverflow {
        prompt_tokens,
        context_len,
        model_context_len,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((prompt_tokens, context_len), (70, 64));
    assert_eq!(model_context_len, model.context_len);
    assert_eq!(reply(long).0.generated, 100, "who runs keeps its context");
}

#[test]
fn the_pace_leaves_the_gpu_alone_between_steps() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let run = || {
        let before = engine.stats();
        let begun = Instant::now();
        let replied = replies(&engine, &[request([5, 6, 7], 60)]);
        let after = engine.stats();
        let worked = after.decode_us + after.prefill_us - before.decode_us - before.prefill_us;
        let share = Duration::from_micros(worked).as_secs_f64() / begun.elapsed().as_secs_f64();
        (replied, share)
    };
    let (full, _) = run();
    engine.allow(Allowance {
        pace: 0.25,
        ..Allowance::default()
    });
    let (slow, share) = run();
    // The last step's rest comes after the reply. A slow machine only makes the share smaller.
    assert!(share < 0.3, "the GPU worked {share} of the time");
    assert_eq!(slow, full);
}
