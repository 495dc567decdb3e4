//! A model leaves the GPU and comes back with its sequences; the engine rests for the machine's sleep; and
//! a panic in the engine's thread costs one reply at most.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    AdapterChoice, Condition, Engine, EngineConfig, Event, EventSink, FinishReason, LoadError,
    SendOutcome,
};
use hearth_test_support::{
    ChannelSink, default_model, reply, request, resident_bytes, started, submit, tiny_model,
};

fn tiny() -> (Engine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 1);
    (started(&path, EngineConfig::default()), folder)
}

fn prompt(step: u32) -> Vec<u32> {
    (0..100).map(|n| 3 + n * step % 250).collect()
}

/// Waits until the first token of a reply is there.
fn first_token(events: &mpsc::Receiver<Event>) -> Vec<u32> {
    for event in events {
        if let Event::Delta { tokens, .. } = event {
            return tokens.iter().map(|token| token.id).collect();
        }
    }
    panic!("no token came");
}

#[test]
fn a_model_leaves_the_gpu_and_its_replies_go_on_later() {
    let (engine, _folder) = tiny();
    let expected: Vec<_> = [7, 11]
        .map(|step| reply(submit(&engine, &request(prompt(step), 600))).0.tokens)
        .into();
    let running = submit(&engine, &request(prompt(7), 600));
    let mut tokens = first_token(&running);
    assert!(engine.stats().weights_resident);
    assert!(engine.suspend().unwrap());
    assert!(!engine.stats().weights_resident);
    assert_eq!(engine.condition(), Condition::Suspended);
    assert_eq!(engine.stats().kv_blocks_total, 0);

    // New requests wait; deadlines and readers that go away count as always.
    let waiting = submit(&engine, &request(prompt(11), 600));
    let mut late = request(prompt(5), 10);
    late.deadline = Some(Instant::now() + Duration::from_millis(50));
    let late = reply(submit(&engine, &late)).0;
    assert_eq!(late.reason, FinishReason::Deadline);
    assert!(late.tokens.is_empty());
    assert!(engine.stats().queued_now >= 2);

    let mut seen = 0;
    let resumed = engine.resume(&mut |progress| {
        seen = seen.max(progress.done_bytes);
        true
    });
    assert!(resumed.unwrap());
    assert!(seen > 0);
    assert_eq!(engine.condition(), Condition::Well);
    tokens.extend(reply(running).0.tokens);
    assert_eq!(tokens, expected[0]);
    assert_eq!(reply(waiting).0.tokens, expected[1]);
    assert!(engine.stats().replayed_tokens >= 100);
    assert_eq!(engine.stats().device_rebuilds, 0);
    assert!(!engine.resume(&mut |_| true).unwrap());
}

#[test]
fn a_model_that_leaves_gives_its_memory_back() {
    let Some(path) = default_model() else {
        return; // Not set up here; `make` sets it up.
    };
    let engine = Engine::start(EngineConfig {
        adapter: AdapterChoice::Software,
        ..EngineConfig::default()
    })
    .unwrap();
    let before = resident_bytes();
    engine
        .load(&ModelFiles::at(&path).unwrap(), &mut |_| true)
        .unwrap();
    let warm = resident_bytes();
    let weights = engine.model().unwrap().weights_bytes;
    let mut away = Vec::new();
    for _ in 0..5 {
        assert!(engine.suspend().unwrap());
        away.push(resident_bytes());
        assert!(engine.resume(&mut |_| true).unwrap());
    }
    let mib = |bytes: u64| bytes >> 20;
    let list: Vec<_> = away.iter().copied().map(mib).collect();
    println!(
        "MiB: {} before, {} warm ({} of weights), away {list:?}",
        mib(before),
        mib(warm),
        mib(weights)
    );
    // Tokenizer, drivers and what the allocator cannot give back stay; no KV cache and no weights do.
    assert!(warm > before + 4 * weights, "buffers are the process's own");
    for &away in &away {
        assert!(away < before + 2 * weights, "{list:?}");
    }
}

#[test]
fn a_model_does_not_come_back_from_another_file() {
    let (engine, folder) = tiny();
    let path = folder.path().join("tiny.gguf");
    let running = submit(&engine, &request(prompt(7), 50));
    assert!(engine.suspend().unwrap());
    let kept = folder.path().join("kept");
    std::fs::rename(&path, &kept).unwrap();
    assert!(matches!(
        engine.resume(&mut |_| true),
        Err(LoadError::Format(_))
    ));
    tiny_model::write(&path, 2);
    assert!(matches!(
        engine.resume(&mut |_| true),
        Err(LoadError::FileChanged)
    ));
    assert_eq!(engine.condition(), Condition::Suspended);
    std::fs::rename(&kept, &path).unwrap();
    assert!(engine.resume(&mut |_| true).unwrap());
    assert_eq!(reply(running).0.generated, 50);
}

#[test]
fn what_is_unloaded_while_it_is_away_leaves_an_engine_that_loads() {
    let (engine, folder) = tiny();
    let running = submit(&engine, &request(prompt(7), 600));
    first_token(&running);
    assert!(engine.suspend().unwrap());
    assert!(engine.unload());
    assert_eq!(reply(running).0.reason, FinishReason::Shutdown);
    assert_eq!(engine.condition(), Condition::Well);
    assert!(!engine.resume(&mut |_| true).unwrap(), "nothing is away");
    let files = ModelFiles::at(&folder.path().join("tiny.gguf")).unwrap();
    engine.load(&files, &mut |_| true).unwrap();
    let request = request(prompt(7), 50);
    assert_eq!(reply(submit(&engine, &request)).0.generated, 50);
}

#[test]
fn the_engine_rests_and_goes_on() {
    let (engine, _folder) = tiny();
    let expected = reply(submit(&engine, &request(prompt(7), 300))).0.tokens;
    let running = submit(&engine, &request(prompt(7), 300));
    let mut tokens = first_token(&running);
    assert!(engine.quiesce());
    let steps = engine.stats().steps;
    let waiting = submit(&engine, &request(prompt(7), 300));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.stats().steps, steps, "nothing is submitted");
    assert!(engine.check_canary().unwrap());
    engine.wake();
    tokens.extend(reply(running).0.tokens);
    assert_eq!(tokens, expected);
    assert_eq!(reply(waiting).0.tokens, expected);
    assert_eq!(engine.stats().device_rebuilds, 0);
}

#[test]
fn the_canary_disturbs_nobody() {
    let (engine, _folder) = tiny();
    let mut picky = request(prompt(11), 200);
    picky.sampling.temperature = 0.8;
    picky.sampling.repeat_penalty = 1.3;
    let requests = [request(prompt(7), 200), picky];
    let expected: Vec<_> = requests
        .iter()
        .map(|request| reply(submit(&engine, request)).0.tokens)
        .collect();
    let streams: Vec<_> = requests.iter().map(|r| submit(&engine, r)).collect();
    for _ in 0..10 {
        assert!(engine.check_canary().unwrap());
    }
    for (events, expected) in streams.into_iter().zip(expected) {
        assert_eq!(reply(events).0.tokens, expected);
    }
    assert_eq!(engine.stats().device_rebuilds, 0);
}

/// Panics at the n-th event, once.
struct Bomb {
    sink: ChannelSink,
    fuse: u32,
}

impl EventSink for Bomb {
    fn try_send(&mut self, event: Event) -> SendOutcome {
        self.fuse = self.fuse.wrapping_sub(1);
        assert_ne!(self.fuse, 0, "on purpose");
        self.sink.try_send(event)
    }

    fn is_closed(&self) -> bool {
        false
    }
}

fn with_bomb(engine: &Engine, fuse: u32) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    let sink = ChannelSink(sender);
    engine
        .submit(request(prompt(5), 300), Box::new(Bomb { sink, fuse }))
        .unwrap();
    events
}

#[test]
fn a_panic_costs_one_reply_at_most() {
    let (engine, _folder) = tiny();
    let expected = reply(submit(&engine, &request(prompt(7), 300))).0.tokens;
    let bystander = submit(&engine, &request(prompt(7), 300));
    let victim = with_bomb(&engine, 10);
    assert_eq!(reply(bystander).0.tokens, expected);
    assert_eq!(reply(victim).0.reason, FinishReason::Fault);
    assert_eq!(engine.stats().device_rebuilds, 1);

    // After a second panic nobody is trusted; the engine is there for the next.
    let bystander = submit(&engine, &request(prompt(7), 1500));
    let victim = with_bomb(&engine, 10);
    assert_eq!(reply(victim).0.reason, FinishReason::Fault);
    assert_eq!(reply(bystander).0.reason, FinishReason::Fault);
    assert_eq!(
        reply(submit(&engine, &request(prompt(7), 300))).0.tokens,
        expected
    );
}
