//! Many streams on one model: each has the reply that it has alone, whoever joins, leaves, pauses or
//! takes its memory; what was computed once is found again, by those who may find it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_engine::{
    CacheScope, Caller, Class, Engine, EngineConfig, GenerateRequest, SubmitError,
};
use hearth_test_support::{ChannelSink, replies, reply, request, started, submit, tiny_model};
use tempfile::TempDir;

fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 7);
    (folder, path)
}

/// A prompt that no other begins like.
fn prompt(n: u32, len: u32) -> Vec<u32> {
    let size = tiny_model::vocab_size();
    (0..len)
        .map(|i| 3 + (n * 31 + i * (7 + n % 5) + i * i / 3) % (size - 3))
        .collect()
}

fn of_app(request: GenerateRequest, app: &str) -> GenerateRequest {
    GenerateRequest {
        caller: Caller {
            app: app.into(),
            pid: None,
        },
        ..request
    }
}

/// Requests of several apps and classes, of many lengths, plain and sampled.
fn mixed(count: u32) -> Vec<GenerateRequest> {
    (0..count)
        .map(|n| {
            let mut request = request(prompt(n, 1 + n * 37 % 200), 20 + n * 29 % 90);
            request.class = Class::ALL[n as usize % 3];
            match n % 5 {
                1 => request.sampling.temperature = 0.9,
                2 => request.sampling.repeat_penalty = 1.4,
                3 => {
                    request.sampling.frequency_penalty = 0.7;
                    request.sampling.presence_penalty = 0.4;
                }
                4 => request.logprobs = Some(3),
                _ => {}
            }
            request.sampling.seed = u64::from(n);
            of_app(request, &format!("app{}", n % 4))
        })
        .collect()
}

fn alone(path: &Path, requests: &[GenerateRequest]) -> Vec<hearth_test_support::Reply> {
    let engine = started(
        path,
        EngineConfig {
            prefix_cache: false,
            ..EngineConfig::default()
        },
    );
    let one = |r: &GenerateRequest| replies(&engine, std::slice::from_ref(r));
    requests.iter().flat_map(one).collect()
}

/// Waits until nothing runs, and checks that nothing is held.
fn assert_at_rest(engine: &Engine) {
    let until = Instant::now() + Duration::from_secs(20);
    let busy = || {
        let stats = engine.stats();
        stats.active_now + stats.queued_now > 0 || !engine.usage().sequences.is_empty()
    };
    while busy() {
        assert!(Instant::now() < until, "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
    let stats = engine.stats();
    assert_eq!(stats.kv_blocks_used_now, 0, "{stats:?}");
}

#[test]
fn together_each_reply_is_as_alone() {
    let (_folder, path) = model();
    let requests = mixed(24);
    let wanted = alone(&path, &requests);
    let engine = started(&path, EngineConfig::default());
    // Some join while others are under way.
    let (first, later) = requests.split_at(9);
    let streams: Vec<_> = first.iter().map(|r| submit(&engine, r)).collect();
    let begun: Vec<_> = streams.iter().map(|events| events.recv().is_ok()).collect();
    assert!(begun.iter().all(|begun| *begun));
    let rest: Vec<_> = later.iter().map(|r| submit(&engine, r)).collect();
    for (n, events) in streams.into_iter().chain(rest).enumerate() {
        assert_eq!(reply(events).0, wanted[n], "request {n}");
    }
    let stats = engine.stats();
    let most: u64 = wanted.iter().map(|r| u64::from(r.generated)).sum();
    assert!(stats.steps < most, "steps are shared: {stats:?}");
    assert_at_rest(&engine);
    let usage = engine.usage();
    assert_eq!(usage.apps.len(), 4);
    for account in &usage.apps {
        assert_eq!(account.requests, 6);
        assert!(account.gpu_time > Duration::ZERO);
    }
}

/// GPU memory of a block of the tiny model.
fn block_bytes() -> u64 {
    u64::from(tiny_model::LAYERS * tiny_model::KV_HEADS * tiny_model::HEAD_DIM) * 2 * 2 * 16
}

#[test]
fn what_lies_behind_a_window_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let (windowed, plain) = (folder.path().join("windowed"), folder.path().join("plain"));
    tiny_model::write_windowed(&windowed, 7, 64);
    tiny_model::write(&plain, 7);
    // Three of 380 positions are 72 blocks; of their windows, with what kernels read beside them, they are
    // 27.
    let requests: Vec<_> = (0..3)
        .map(|n| of_app(request(prompt(n, 250), 130), &format!("app{n}")))
        .collect();
    let wanted = alone(&windowed, &requests);
    assert_ne!(wanted, alone(&plain, &requests), "the window counts");
    let found = |path: &Path| {
        let config = EngineConfig {
            slots: 4,
            kv_bytes_max: Some(48 * block_bytes()),
            prefill_chunk: 32,
            ..EngineConfig::default()
        };
        let engine = started(path, config);
        let streams: Vec<_> = requests.iter().map(|r| submit(&engine, r)).collect();
        let begun: Vec<_> = streams.iter().map(|events| events.recv().is_ok()).collect();
        assert_eq!(begun, [true; 3]);
        let mut most = 0;
        while engine.stats().active_now + engine.stats().queued_now > 0 {
            most = engine.stats().active_now.max(most);
            std::thread::sleep(Duration::from_millis(1));
        }
        let found: Vec<_> = streams.into_iter().map(|events| reply(events).0).collect();
        let stats = engine.stats();
        assert_eq!(
            (stats.replayed_tokens, stats.preempted),
            (0, 0),
            "{stats:?}"
        );
        // What was kept of them is found again, and what was given back is not.
        assert_eq!(replies(&engine, &requests), found);
        assert_at_rest(&engine);
        (found, most)
    };
    assert_eq!(found(&windowed), (wanted, 3));
    assert!(found(&plain).1 < 3, "without a window two have room");
}

#[test]
fn short_memory_costs_time_and_no_reply() {
    let (_folder, path) = model();
    let mut requests = mixed(14);
    for (n, request) in (0..).zip(&mut requests) {
        // Long enough that not all can be held.
        request.prompt = prompt(n, 40 + n * 53 % 300);
        request.max_tokens = Some(60 + n * 17 % 100);
    }
    let wanted = alone(&path, &requests);
    for slots in [4, 8] {
        let engine = started(
            &path,
            EngineConfig {
                slots,
                kv_bytes_max: Some(40 * block_bytes()),
                ..EngineConfig::default()
            },
        );
        for (n, found) in replies(&engine, &requests).into_iter().enumerate() {
            assert_eq!(found, wanted[n], "request {n} with {slots} slots");
        }
        let stats = engine.stats();
        assert_eq!(stats.kv_blocks_total, 40);
        assert!(stats.replayed_tokens > 0, "{stats:?}");
        assert!(stats.preempted > 0, "{stats:?}");
        assert_at_rest(&engine);
    }
}

#[test]
fn a_prompt_seen_before_is_found_by_its_app_alone() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let base = of_app(request(prompt(1, 100), 8), "a");
    let (cold, cached) = reply(submit(&engine, &base));
    assert_eq!(cached, 0);
    let (warm, cached) = reply(submit(&engine, &base));
    assert_eq!(cached, 99, "all but the last token");
    assert_eq!(warm, cold);
    let ask = |request: &GenerateRequest| {
        let (found, cached) = reply(submit(&engine, request));
        assert_eq!(found, cold);
        cached
    };
    assert_eq!(ask(&of_app(base.clone(), "b")), 0, "another app's");
    let scoped = |app: &str, cache_scope| GenerateRequest {
        cache_scope,
        ..of_app(base.clone(), app)
    };
    assert_eq!(ask(&scoped("c", CacheScope::Nobody)), 0);
    assert_eq!(ask(&scoped("c", CacheScope::App)), 0, "nothing was kept");
    assert_eq!(
        ask(&scoped("a", CacheScope::Shared)),
        0,
        "shares start anew"
    );
    assert_eq!(ask(&scoped("d", CacheScope::Shared)), 99);
    let stats = engine.stats();
    assert_eq!(stats.cached_tokens, 99 * 2);
    assert_at_rest(&engine);
    let usage = engine.usage();
    let of = |app: &str| usage.apps.iter().find(|a| *a.app == *app).unwrap();
    assert_eq!((of("a").cached_tokens, of("b").cached_tokens), (99, 0));
    assert!(of("a").kv_blocks_cached_now >= 6);
    // A forked prompt has the common part, to the token.
    let mut forked = base.clone();
    forked.prompt[70] = 3 + (forked.prompt[70] + 1) % 200;
    let wanted = alone(&path, std::slice::from_ref(&forked));
    let (found, cached) = reply(submit(&engine, &forked));
    assert_eq!((found, cached), (wanted[0].clone(), 70));
}

#[test]
fn a_conversation_reuses_its_history() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let mut history = prompt(3, 50);
    for turn in 0..4 {
        let known = u32::try_from(history.len()).unwrap();
        let (found, cached) = reply(submit(&engine, &request(history.clone(), 30)));
        if turn > 0 {
            // The last token of a reply is never computed, and the question after it is new.
            assert_eq!(cached, known - 12 - 1, "turn {turn}");
        }
        history.extend(found.tokens);
        history.extend(prompt(40 + turn, 12));
    }
}

#[test]
fn an_echo_is_whole_though_the_prompt_is_known() {
    let (_folder, path) = model();
    let engine = started(&path, EngineConfig::default());
    let mut scored = request(prompt(5, 120), 4);
    reply(submit(&engine, &scored));
    scored.echo = true;
    scored.logprobs = Some(2);
    let count = |events: std::sync::mpsc::Receiver<hearth_engine::Event>| {
        let mut tokens = Vec::new();
        for event in events {
            if let hearth_engine::Event::Echo { tokens: more, .. } = event {
                tokens.extend(more.into_iter().map(|t| (t.id, t.logprob)));
            }
        }
        tokens
    };
    let first = count(submit(&engine, &scored));
    let again = count(submit(&engine, &scored));
    assert_eq!(first.len(), 120);
    assert!(first[1..].iter().all(|(_, logprob)| logprob.is_some()));
    assert_eq!(first, again);
}

#[test]
fn queues_have_bounds_and_places() {
    let (_folder, path) = model();
    let config = EngineConfig {
        slots: 1,
        queue_max: 6,
        app_queue_max: 4,
        ..EngineConfig::default()
    };
    let engine = started(&path, config);
    let long = |app: &str| of_app(request(prompt(1, 30), 1500), app);
    let running = submit(&engine, &long("greedy"));
    while engine.stats().active_now == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waiting: Vec<_> = (0..4).map(|_| submit(&engine, &long("greedy"))).collect();
    let refused = |app: &str| {
        let (sender, _events) = std::sync::mpsc::channel();
        engine
            .submit(long(app), Box::new(ChannelSink(sender)))
            .unwrap_err()
    };
    let SubmitError::AppQueueFull { waiting: n, .. } = refused("greedy") else {
        panic!("the app's share is full");
    };
    assert_eq!(n, 4);
    let others: Vec<_> = ["x", "y"].map(|app| submit(&engine, &long(app))).into();
    let SubmitError::QueueFull {
        waiting: n,
        retry_after,
    } = refused("z")
    else {
        panic!("the queue is full");
    };
    assert!(n >= 6 && retry_after > Duration::ZERO);
    // One of another app goes before the greedy one's.
    let first = others[0].recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(
        matches!(first, hearth_engine::Event::Queued { ahead } if ahead <= 1)
            || matches!(first, hearth_engine::Event::Prefill { .. })
    );
    drop((running, waiting, others));
    engine.unload();
}
