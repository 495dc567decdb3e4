//! The device is lost in the midst of work: replies go on as if nothing had happened. Where memory is short
//! a model takes less of it, or is refused with the numbers.
//!
//! A Vulkan layer of the tests' own makes the driver fail on cue; it works where the adapter is a Vulkan
//! one, such as lavapipe. With `HEARTH_LONG_TESTS` there are 100 losses and
//! 20 sizes; what was measured is printed.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    Condition, Engine, EngineConfig, Event, FinishReason, GenerateRequest, LoadError, Recovery,
    SamplingParams, TokenOutput,
};
use hearth_proto::v1;
use hearth_test_support::{
    Daemon, Layer, Setup, long_tests, reason, request, resident_bytes, started, submit, text_of,
    tiny_model,
};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

/// Losses after which memory counts.
const WARM_UP: u64 = 10;
/// Most that memory may grow over the losses after that.
const GROWTH_BYTES_MAX: u64 = 5 << 20;

/// Never gives up, and tries again at once.
fn stubborn() -> EngineConfig {
    EngineConfig {
        recovery: Recovery {
            delays: vec![Duration::ZERO],
            window: Duration::from_millis(1),
            careful_after: usize::MAX,
            give_up_after: usize::MAX,
        },
        ..EngineConfig::default()
    }
}

/// An engine with the tiny model, and the folder of its file.
fn tiny(config: EngineConfig) -> (Engine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 1);
    (started(&path, config), folder)
}

/// A token, its log-probability and the alternatives, to the last bit.
type Token = (u32, Option<u32>, Vec<(u32, u32)>);

fn plain(token: TokenOutput) -> Token {
    let top = token.top.iter().map(|t| (t.id, t.logprob.to_bits()));
    (token.id, token.logprob.map(f32::to_bits), top.collect())
}

/// All that a reader is told of a reply, in the order in which it was told.
#[derive(Debug, Default, PartialEq)]
struct Told {
    echo: Vec<Token>,
    echo_text: String,
    prefilled: u32,
    tokens: Vec<Token>,
    text: String,
    end: Option<(FinishReason, u32)>,
}

impl Told {
    fn hear(&mut self, event: Event) {
        assert!(self.end.is_none(), "an event after the end");
        match event {
            Event::Queued { .. } => {}
            Event::Prefill { done, .. } => {
                assert!(done > self.prefilled, "progress never goes back");
                self.prefilled = done;
            }
            Event::Echo { text, tokens } => {
                self.echo_text.push_str(&text);
                self.echo.extend(tokens.into_iter().map(plain));
            }
            Event::Delta { text, tokens } => {
                self.text.push_str(&text);
                self.tokens.extend(tokens.into_iter().map(plain));
            }
            Event::End(report) => self.end = Some((report.reason, report.generated_tokens)),
        }
    }
}

/// Replies that are under way, and what was told of each.
struct Streams(Vec<(Receiver<Event>, Told)>);

impl Streams {
    fn start(engine: &Engine, requests: &[GenerateRequest]) -> Self {
        let start = |request| (submit(engine, request), Told::default());
        Self(requests.iter().map(start).collect())
    }

    /// Hears what there is to hear; tells whether all are over.
    fn listen(&mut self) -> bool {
        for (events, told) in &mut self.0 {
            loop {
                match events.try_recv() {
                    Ok(event) => told.hear(event),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        assert!(told.end.is_some(), "a stream without an end");
                        break;
                    }
                }
            }
        }
        self.0.iter().all(|(_, told)| told.end.is_some())
    }

    /// Waits until all are over.
    fn finish(mut self) -> Vec<Told> {
        let begun = Instant::now();
        while !self.listen() {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "replies never end"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.into_iter().map(|(_, told)| told).collect()
    }
}

/// A greedy reply, and beside it one that has everything that a replay could get wrong.
fn pair() -> [GenerateRequest; 2] {
    let greedy = request((0..150).map(|n| 3 + n * 7 % 250).collect::<Vec<u32>>(), 400);
    let mut picky = request((0..90).map(|n| 3 + n * 11 % 250).collect::<Vec<u32>>(), 150);
    picky.sampling = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        repeat_penalty: 1.2,
        frequency_penalty: 0.3,
        seed: 7,
        ..SamplingParams::default()
    };
    picky.logprobs = Some(3);
    picky.echo = true;
    picky.caller.app = "other".into();
    [greedy, picky]
}

/// Waits until the device was lost and is back so many times.
fn wait_rebuilds(engine: &Engine, streams: &mut Streams, count: u64) -> bool {
    let begun = Instant::now();
    while engine.stats().device_rebuilds < count {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "never rebuilt: {:?}",
            engine.condition()
        );
        if streams.listen() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

#[test]
fn losses_change_no_reply() {
    let Some(layer) = Layer::here("lost_device::losses_change_no_reply") else {
        return;
    };
    let losses = if long_tests() { 100 } else { 15 };
    let (engine, _folder) = tiny(stubborn());
    let expected = Streams::start(&engine, &pair()).finish();
    let mut random = 1u64;
    let (mut done, mut pairs, mut warm) = (0, 0, 0);
    let begun = Instant::now();
    while done < losses {
        let mut streams = Streams::start(&engine, &pair());
        loop {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = 1 + (random >> 33) % 60;
            match random >> 61 {
                0 => layer.lose_at_wait(at),
                1 => layer.hang_at_wait(at),
                _ => layer.lose_at_submit(at),
            }
            if done >= losses || !wait_rebuilds(&engine, &mut streams, done + 1) {
                break;
            }
            done = engine.stats().device_rebuilds;
            if done <= WARM_UP {
                warm = resident_bytes();
            }
            if long_tests() && done % 10 == 0 {
                println!("{done} losses: {} KiB", resident_bytes() >> 10);
            }
        }
        layer.rest();
        assert_eq!(streams.finish(), expected, "after {done} losses");
        done = engine.stats().device_rebuilds;
        pairs += 1;
    }
    let grown = resident_bytes().saturating_sub(warm);
    println!(
        "{done} losses in {pairs} pairs of replies, {} ms each, {} KiB more memory, {} tokens replayed",
        begun.elapsed().as_millis() / u128::from(done),
        grown >> 10,
        engine.stats().replayed_tokens,
    );
    assert!(engine.stats().replayed_tokens > 0, "a loss costs the KV");
    assert!(grown <= GROWTH_BYTES_MAX, "{grown} bytes more");
    engine.shutdown(Duration::ZERO);
}

#[test]
fn a_device_that_is_lost_again_and_again_is_given_up() {
    let Some(layer) = Layer::here("lost_device::a_device_that_is_lost_again_and_again_is_given_up")
    else {
        return;
    };
    let config = EngineConfig {
        recovery: Recovery {
            delays: vec![Duration::ZERO],
            ..Recovery::default()
        },
        ..EngineConfig::default()
    };
    let (engine, folder) = tiny(config);
    let mut streams = Streams::start(&engine, &pair());
    for loss in 1..=5 {
        layer.lose_at_submit(10);
        assert!(wait_rebuilds(&engine, &mut streams, loss));
        let careful = engine.condition() == Condition::Careful;
        assert_eq!(careful, loss >= 3, "after {loss} losses");
    }
    layer.lose_at_submit(10);
    for told in streams.finish() {
        assert_eq!(
            told.end.map(|(reason, _)| reason),
            Some(FinishReason::Fault)
        );
    }
    assert!(matches!(engine.condition(), Condition::Failed { .. }));
    assert!(engine.model().is_none());
    assert!(!engine.stats().weights_resident);
    // Somebody tries it anew.
    layer.rest();
    engine
        .load(
            &ModelFiles::at(&folder.path().join("tiny.gguf")).unwrap(),
            &mut |_| true,
        )
        .unwrap();
    assert_eq!(engine.condition(), Condition::Well);
    let ends: Vec<_> = Streams::start(&engine, &pair())
        .finish()
        .into_iter()
        .map(|told| told.end)
        .collect();
    assert_eq!(
        ends,
        [(FinishReason::Length, 400), (FinishReason::Length, 150)].map(Some)
    );
}

#[test]
fn memory_that_runs_out_at_work_costs_blocks_and_no_reply() {
    let Some(layer) =
        Layer::here("lost_device::memory_that_runs_out_at_work_costs_blocks_and_no_reply")
    else {
        return;
    };
    let (engine, _folder) = tiny(EngineConfig {
        kv_bytes_max: Some(16 << 20),
        ..stubborn()
    });
    let expected = Streams::start(&engine, &pair()).finish();
    let mut blocks = engine.stats().kv_blocks_total;
    let context_blocks = tiny_model::CONTEXT / 16;
    for rebuilds in 1..=5 {
        layer.no_memory_at_submit(20);
        assert_eq!(Streams::start(&engine, &pair()).finish(), expected);
        assert_eq!(engine.stats().device_rebuilds, rebuilds);
        // Half of them each time, but never fewer than one context needs.
        blocks = (blocks / 2).max(context_blocks);
        assert_eq!(engine.stats().kv_blocks_total, blocks);
    }
    assert_eq!(blocks, context_blocks);
}

#[test]
fn no_other_adapter_takes_the_place_of_one_that_is_gone() {
    let Some(layer) =
        Layer::here("lost_device::no_other_adapter_takes_the_place_of_one_that_is_gone")
    else {
        return;
    };
    let (engine, _folder) = tiny(EngineConfig {
        recovery: Recovery {
            delays: vec![Duration::from_millis(5)],
            ..stubborn().recovery
        },
        ..EngineConfig::default()
    });
    let expected = Streams::start(&engine, &pair()).finish();
    let mut streams = Streams::start(&engine, &pair());
    layer.gone_at_submit(9);
    let begun = Instant::now();
    let gone = |condition| match condition {
        Condition::Rebuilding { reason } => reason.contains("is gone"),
        _ => false,
    };
    while !gone(engine.condition()) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(!streams.listen(), "replies go on without an adapter");
    }
    layer.rest();
    assert_eq!(streams.finish(), expected);
    assert_eq!(engine.stats().device_rebuilds, 1);
}

/// A load over the contract; tells how it went.
async fn load(clients: &mut hearth_test_support::Clients) -> Result<v1::WarmModel, tonic::Status> {
    let stream = clients.models.load(v1::LoadRequest::default()).await;
    let mut stream = stream?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(clients.status().await.model.expect("a warm model"))
}

async fn answers(clients: &mut hearth_test_support::Clients) {
    let stream = clients.endless("hello", 20).await;
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .unwrap();
    assert_eq!(text.ids.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_takes_less_memory_or_is_refused_with_numbers() {
    let Some(layer) =
        Layer::here("lost_device::a_load_takes_less_memory_or_is_refused_with_numbers")
    else {
        return;
    };
    let (daemon, mut clients) = Daemon::ready(
        Setup::tiny()
            .set("kv_bytes_max", 100 << 20)
            .engine(|engine| engine.recovery = stubborn().recovery),
    )
    .await;
    let whole = clients.status().await.model.unwrap().kv_bytes;
    let (mut smaller, mut refused) = (0, 0);
    let sizes = (0..20u32).step_by(if long_tests() { 1 } else { 3 });
    let tried = sizes.len();
    for n in sizes {
        clients
            .models
            .unload(v1::UnloadRequest::default())
            .await
            .unwrap();
        match n {
            // From 4 KiB to 128 MiB, half as much again each time or so.
            0..16 => layer.refuse_above(4096_u64 << n),
            _ => layer.refuse_after(u64::from(3 * (n - 16))),
        }
        let loaded = load(&mut clients).await;
        layer.rest();
        match loaded {
            Ok(model) => {
                assert!(model.kv_bytes <= whole);
                assert!(model.context_len >= tiny_model::CONTEXT.min(2048));
                smaller += u32::from(model.kv_bytes < whole);
            }
            Err(status) => {
                refused += 1;
                if status.code() == Code::ResourceExhausted {
                    assert_eq!(reason(&status), "OUT_OF_GPU_MEMORY");
                    let facts = status.get_details_error_info().unwrap().metadata;
                    let needed: u64 = facts["needed_bytes"].parse().unwrap();
                    assert!(needed > 0 && needed < whole, "{status:?}");
                } else {
                    // Where not even a device is to be had.
                    assert_eq!(code_of(&status), (Code::Unavailable, true), "{status:?}");
                }
                load(&mut clients).await.unwrap();
            }
        }
        answers(&mut clients).await;
    }
    println!("{smaller} with a smaller KV cache, {refused} refused, of {tried}");
    assert!(smaller > 0 && refused > 0);
    daemon.stop().await;
}

fn code_of(status: &tonic::Status) -> (Code, bool) {
    (status.code(), status.get_details_retry_info().is_some())
}

async fn health(clients: &hearth_test_support::Clients) -> ServingStatus {
    let mut health = HealthClient::new(clients.channel.clone());
    let check = HealthCheckRequest {
        service: "hearth.v1.Inference".to_owned(),
    };
    health.check(check).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_says_what_became_of_its_gpu() {
    let Some(layer) = Layer::here("lost_device::the_daemon_says_what_became_of_its_gpu") else {
        return;
    };
    let (daemon, mut clients) = Daemon::ready(Setup::tiny().engine(|engine| {
        engine.recovery = Recovery {
            delays: vec![Duration::from_millis(300)],
            give_up_after: 3,
            ..Recovery::default()
        };
    }))
    .await;
    let mut watcher = daemon.clients().await;
    let stream = clients.endless("hello", 1500).await;
    layer.lose_at_submit(5);
    watcher
        .wait_for("rebuilding", |status| {
            status.warnings.iter().any(|w| w.contains("GPU was lost"))
        })
        .await;
    let status = watcher
        .wait_for("rebuilt", |status| {
            status.counters.unwrap().device_rebuilds == 1
        })
        .await;
    assert!(status.model.is_some());
    for again in [2, 3] {
        layer.lose_at_submit(5);
        watcher
            .wait_for("lost again", |status| {
                status.counters.unwrap().device_rebuilds == again || status.model.is_none()
            })
            .await;
    }
    let error = text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .err()
        .expect("the reply could not go on");
    assert_eq!(code_of(&error), (Code::Unavailable, true));
    assert_eq!(reason(&error), "GPU_LOST");
    let status = watcher
        .wait_for("given up", |status| status.model.is_none())
        .await;
    assert!(status.reason.unwrap().contains("GPU"));
    assert_eq!(health(&watcher).await, ServingStatus::NotServing);
    // A person tries it anew.
    layer.rest();
    load(&mut clients).await.unwrap();
    answers(&mut clients).await;
    assert_eq!(health(&watcher).await, ServingStatus::Serving);
    daemon.stop().await;
}

#[test]
fn a_wrong_model_file_is_not_brought_back() {
    let Some(layer) = Layer::here("lost_device::a_wrong_model_file_is_not_brought_back") else {
        return;
    };
    let (engine, folder) = tiny(stubborn());
    let path = folder.path().join("tiny.gguf");
    let streams = Streams::start(&engine, &pair());
    std::fs::remove_file(&path).unwrap();
    tiny_model::write(&path, 2);
    layer.lose_at_submit(3);
    for told in streams.finish() {
        assert_eq!(
            told.end.map(|(reason, _)| reason),
            Some(FinishReason::Fault)
        );
    }
    assert!(
        matches!(engine.condition(), Condition::Failed { reason } if reason.contains("changed")),
    );
    layer.refuse_after(0);
    let refused = engine
        .load(&ModelFiles::at(&path).unwrap(), &mut |_| true)
        .err()
        .unwrap();
    assert!(
        matches!(
            refused,
            LoadError::OutOfMemory { .. } | LoadError::Engine(_)
        ),
        "{refused:?}"
    );
}
