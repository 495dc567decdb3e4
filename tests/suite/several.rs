//! Several models side by side: each answers as it does alone, they take turns, and the one that was not
//! asked for longest makes way where there is no room.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    Engine, EngineConfig, Event, FinishReason, GenerateRequest, LoadError, LoadedModel, Recovery,
};
use hearth_proto::v1;
use hearth_test_support::{
    ChannelSink, Clients, Daemon, Layer, Reply, Setup, default_model, reason, reply, request,
    text_of, tiny_model,
};
use tonic::{Code, Status};

use crate::models::{import, load, names};

/// An engine with two tiny models, and the folder of their files.
fn two(config: EngineConfig) -> (Engine, [Arc<LoadedModel>; 2], tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(config).unwrap();
    let models = [1, 2].map(|seed| {
        let path = folder.path().join(format!("{seed}.gguf"));
        tiny_model::write(&path, seed);
        load_file(&engine, &path).unwrap()
    });
    (engine, models, folder)
}

fn load_file(engine: &Engine, path: &std::path::Path) -> Result<Arc<LoadedModel>, LoadError> {
    engine.load(&ModelFiles::at(path).unwrap(), &mut |_| true)
}

fn submit(engine: &Engine, model: &Arc<LoadedModel>, request: GenerateRequest) -> Receiver<Event> {
    let (sender, events) = channel();
    let sink = Box::new(ChannelSink(sender));
    engine.submit_to(model, request, sink).unwrap();
    events
}

fn requests() -> Vec<GenerateRequest> {
    let one = |n: u32| {
        request(
            (0..20 + 30 * n).map(|i| 5 + i % 200).collect::<Vec<_>>(),
            60,
        )
    };
    (0..3).map(one).collect()
}

fn all(engine: &Engine, model: &Arc<LoadedModel>) -> Vec<Receiver<Event>> {
    let requests = requests().into_iter();
    requests.map(|r| submit(engine, model, r)).collect()
}

fn told(streams: Vec<Receiver<Event>>) -> Vec<Reply> {
    streams.into_iter().map(|events| reply(events).0).collect()
}

#[test]
fn each_answers_as_it_does_alone() {
    let (engine, [a, b], _folder) = two(EngineConfig::default());
    let alone = [&a, &b].map(|model| told(all(&engine, model)));
    assert_ne!(alone[0][0].tokens, alone[1][0].tokens, "they differ");
    for _ in 0..3 {
        let together = [&a, &b].map(|model| all(&engine, model));
        assert_eq!(together.map(told), alone);
    }
    assert_eq!(engine.stats().requests, 3 * (2 + 3 * 2));

    // One leaves in the midst of its reply; the other's goes on.
    let leaves = submit(&engine, &a, request([5; 9], 1500));
    let stays = all(&engine, &b);
    let Event::Delta { .. } = skip_to_text(&leaves) else {
        unreachable!("text comes before the end");
    };
    assert!(engine.unload_model(&a));
    assert_eq!(reply(leaves).0.reason, FinishReason::Shutdown);
    assert_eq!(told(stays), alone[1]);
    assert!(!engine.unload_model(&a), "it is gone");
    assert_eq!(engine.models().len(), 1);
    let (sender, _events) = channel();
    let refused = engine.submit_to(&a, request([5; 9], 1), Box::new(ChannelSink(sender)));
    assert!(refused.is_err());
    assert!(engine.unload() && !engine.unload());
}

fn skip_to_text(events: &Receiver<Event>) -> Event {
    loop {
        let event = events.recv().unwrap();
        if matches!(event, Event::Delta { .. } | Event::End(_)) {
            return event;
        }
    }
}

#[test]
fn all_come_back_when_the_device_is_lost() {
    let Some(layer) = Layer::here("several::all_come_back_when_the_device_is_lost") else {
        return;
    };
    let (engine, [a, b], _folder) = two(EngineConfig {
        recovery: Recovery {
            delays: vec![Duration::ZERO],
            window: Duration::from_millis(1),
            careful_after: usize::MAX,
            give_up_after: usize::MAX,
        },
        ..EngineConfig::default()
    });
    let expected = [&a, &b].map(|model| told(all(&engine, model)));
    for rebuilds in 1..=6 {
        let streams = [&a, &b].map(|model| all(&engine, model));
        layer.lose_at_submit(3 + 7 * rebuilds);
        assert_eq!(streams.map(told), expected);
        assert_eq!(engine.stats().device_rebuilds, rebuilds);
    }
    // They leave and come back together when somebody asks for it, too.
    let streams = [&a, &b].map(|model| all(&engine, model));
    assert!(engine.suspend().unwrap());
    assert!(!engine.stats().weights_resident);
    assert!(engine.resume(&mut |_| true).unwrap());
    assert_eq!(streams.map(told), expected);
    assert!(engine.check_canary().unwrap());
}

#[test]
fn a_model_that_finds_no_memory_costs_the_others_nothing() {
    let Some(layer) = Layer::here("several::a_model_that_finds_no_memory_costs_the_others_nothing")
    else {
        return;
    };
    let (engine, [a, b], folder) = two(EngineConfig {
        kv_bytes_max: Some(32 << 20),
        recovery: Recovery {
            delays: vec![Duration::ZERO],
            ..Recovery::default()
        },
        ..EngineConfig::default()
    });
    let expected = [&a, &b].map(|model| told(all(&engine, model)));
    let third = folder.path().join("3.gguf");
    tiny_model::write(&third, 3);
    for _ in 0..2 {
        let streams = [&a, &b].map(|model| all(&engine, model));
        layer.refuse_above(1 << 20);
        let refused = load_file(&engine, &third).err().unwrap();
        layer.rest();
        assert!(
            matches!(refused, LoadError::OutOfMemory { .. }),
            "{refused:?}"
        );
        assert_eq!(streams.map(told), expected);
        assert_eq!(engine.models().len(), 2);
    }
    let c = load_file(&engine, &third).unwrap();
    assert_eq!(told(all(&engine, &b)), expected[1]);
    assert_eq!(told(all(&engine, &c)).len(), 3);
}

#[test]
fn replies_go_on_and_requests_are_taken_while_another_model_loads() {
    let Some(large) = default_model() else {
        eprintln!("HEARTH_MODEL_FILE is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny_model::write(&path, 1);
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let tiny = load_file(&engine, &path).unwrap();
    let expected = reply(submit(&engine, &tiny, request([5; 9], 8))).0;

    let under_way = submit(&engine, &tiny, request([5; 9], 1500));
    let mut asked = None;
    let loaded = engine.load(&ModelFiles::at(&large).unwrap(), &mut |progress| {
        if asked.is_none() && progress.done_bytes > 0 {
            while under_way.try_recv().is_ok() {}
            asked = Some(submit(&engine, &tiny, request([5; 9], 8)));
        }
        true
    });
    let loaded = loaded.unwrap();
    // Nobody waits here: what came, came during the load.
    let mut ended = None;
    let asked = asked.unwrap();
    while let Ok(event) = asked.try_recv() {
        if let Event::End(report) = event {
            ended = Some(report.generated_tokens);
        }
    }
    assert_eq!(ended, Some(expected.generated), "asked during the load");
    let more = std::iter::from_fn(|| under_way.try_recv().ok()).count();
    assert!(more > 20, "{more} events during the load");
    assert_eq!(under_way.try_recv().err(), Some(TryRecvError::Empty));
    assert_eq!(engine.model().unwrap().id, loaded.id);
    let paris = engine.submit(
        request(vec![504, 3575, 282, 4649, 314], 1),
        Box::new(ChannelSink(channel().0)),
    );
    assert!(paris.is_ok(), "the last one answers whoever names none");
}

/// A daemon with the models `a`, `b` and `c` in its store; none is warm.
async fn three_models(setup: Setup) -> (Daemon, Clients) {
    let (daemon, mut clients) = Daemon::ready(setup).await;
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let file = daemon.setup.dir().join(format!("{name}.gguf"));
        tiny_model::write(&file, seed);
        import(&mut clients, &file, name).await.unwrap();
    }
    (daemon, clients)
}

fn ask(model: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.to_owned(),
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The name of the model that answered.
async fn answer(clients: &mut Clients, model: &str) -> Result<String, Status> {
    let stream = clients.inference.generate(ask(model, 3)).await?;
    let text = text_of(stream.into_inner(), |r: v1::GenerateResponse| r.event).await?;
    Ok(text.end.unwrap().model)
}

/// The warm models, the one chosen last first.
async fn warm(clients: &mut Clients) -> Vec<String> {
    let status = clients.status().await;
    let name = |warm: v1::WarmModel| warm.info.unwrap().name;
    let names: Vec<_> = status.models.into_iter().map(name).collect();
    assert_eq!(status.model.map(name), names.first().cloned());
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_model_they_name_or_to_the_last_loaded() {
    let (daemon, mut clients) = three_models(Setup::empty()).await;
    load(&mut clients, "a").await.unwrap();
    load(&mut clients, "b").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["b", "a"]);
    for (asked, answers) in [("a", "a"), ("b", "b"), ("", "b")] {
        assert_eq!(answer(&mut clients, asked).await.unwrap(), answers);
    }
    let status = answer(&mut clients, "c").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "MODEL_NOT_WARM")
    );
    // Streams of both at once, each with its model in the status.
    let mut first = clients
        .inference
        .generate(ask("a", 100_000))
        .await
        .unwrap()
        .into_inner();
    let mut second = clients
        .inference
        .generate(ask("b", 100_000))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..20 {
        first.message().await.unwrap().unwrap();
        second.message().await.unwrap().unwrap();
    }
    let status = clients.status().await;
    let mut on: Vec<_> = status.sequences.iter().map(|s| s.model.as_str()).collect();
    on.sort_unstable();
    assert_eq!(on, ["a", "b"]);
    assert!(status.models.iter().all(|warm| warm.kv_blocks_used > 0));
    // A load of a warm model is a choice.
    load(&mut clients, "a").await.unwrap();
    assert_eq!(answer(&mut clients, "").await.unwrap(), "a");
    let states = names(&mut clients).await;
    let is_warm = states
        .iter()
        .map(|(_, state)| *state == v1::ModelState::Warm);
    assert_eq!(is_warm.collect::<Vec<_>>(), [true, true, false]);

    let unload = |model: &str| v1::UnloadRequest {
        model: model.to_owned(),
    };
    clients.models.unload(unload("a")).await.unwrap();
    let ended = loop {
        match first.message().await {
            Ok(reply) => assert!(reply.is_some(), "no end"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "MODEL_GONE");
    assert!(second.message().await.unwrap().is_some(), "it goes on");
    assert_eq!(answer(&mut clients, "").await.unwrap(), "b");
    let status = clients.models.unload(unload("a")).await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_NOT_WARM");
    load(&mut clients, "c").await.unwrap();
    clients.models.unload(unload("")).await.unwrap();
    assert!(warm(&mut clients).await.is_empty(), "all of them");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_not_asked_for_longest_goes_and_a_pinned_one_never() {
    let (daemon, mut clients) = three_models(Setup::empty().set("models_max", 2)).await;
    load(&mut clients, "a").await.unwrap();
    load(&mut clients, "b").await.unwrap();
    answer(&mut clients, "a").await.unwrap();
    load(&mut clients, "c").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["c", "a"]);

    let pin = |model: &str| v1::PinRequest {
        model: model.to_owned(),
    };
    clients.models.pin(pin("a")).await.unwrap();
    answer(&mut clients, "c").await.unwrap();
    load(&mut clients, "b").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["b", "a"], "`a` is pinned");
    clients.models.pin(pin("")).await.unwrap();
    let status = load(&mut clients, "c").await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_PINNED");
    assert_eq!(warm(&mut clients).await, ["b", "a"]);

    // One that answers just now goes after those that do not, whatever was asked last.
    for model in ["a", "b"] {
        let model = model.to_owned();
        clients
            .models
            .unpin(v1::UnpinRequest { model })
            .await
            .unwrap();
    }
    let socket = daemon.setup.config().socket;
    let apps: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut clients = Clients::connect(&socket).await;
                loop {
                    let stream = clients.inference.generate(ask("a", 1500)).await.unwrap();
                    let mut stream = stream.into_inner();
                    while stream.message().await.unwrap().is_some() {}
                }
            })
        })
        .collect();
    let on_a = |status: &v1::DaemonStatus| !status.sequences.is_empty();
    clients.wait_for("`a` at work", on_a).await;
    answer(&mut clients, "b").await.unwrap();
    // A request may end a moment after its answer.
    let idle = |status: &v1::DaemonStatus| {
        let models = status.models.iter();
        let is_b = |warm: &&v1::WarmModel| warm.info.as_ref().unwrap().name == "b";
        models.filter(is_b).any(|b| b.unloads_in.is_some())
    };
    clients.wait_for("`b` idle", idle).await;
    load(&mut clients, "c").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["c", "a"]);
    assert!(apps.iter().all(|app| !app.is_finished()), "nobody noticed");
    for app in apps {
        app.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_makes_none_go() {
    let (daemon, mut clients) = three_models(Setup::empty().set("models_max", 1)).await;
    load(&mut clients, "a").await.unwrap();
    let manifest = daemon.setup.dir().join("models/manifests/b.json");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let hash = manifest["files"][0]["sha256"].as_str().unwrap();
    let blob = daemon
        .setup
        .dir()
        .join(format!("models/blobs/sha256-{hash}"));
    let bytes = std::fs::metadata(&blob).unwrap().len();
    std::fs::write(&blob, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
    let status = load(&mut clients, "b").await.unwrap_err();
    assert_eq!(reason(&status), "BAD_MODEL_FILE");
    assert_eq!(warm(&mut clients).await, ["a"]);
    assert_eq!(answer(&mut clients, "").await.unwrap(), "a");
}

/// The kernel's account of memory: of 100 GB so much can be had.
fn meminfo(path: &std::path::Path, available_bytes: u64) {
    let text = format!(
        "MemTotal: {} kB\nMemAvailable: {} kB\n",
        100_000_000,
        available_bytes / 1024
    );
    std::fs::write(path, text).unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn where_memory_is_short_one_takes_the_place_of_another() {
    let setup = Setup::empty();
    let file = setup.dir().join("meminfo");
    // Memory's first level begins at 15 %. A tiny model takes some MB.
    let level = 15 * 1_024_000_000;
    meminfo(&file, level + (1 << 30));
    let setup = setup
        .set("memory_watch", true)
        .set("meminfo_file", file.display())
        .set("pressure_file", "/nonexistent");
    let (_daemon, mut clients) = three_models(setup).await;
    load(&mut clients, "a").await.unwrap();
    load(&mut clients, "b").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["b", "a"]);
    meminfo(&file, level + (1 << 20));
    load(&mut clients, "c").await.unwrap();
    assert_eq!(warm(&mut clients).await, ["c"], "nothing else helped");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_sleep_and_wake_one_by_one() {
    let (_daemon, mut clients) = three_models(Setup::empty()).await;
    for (model, seconds) in [("a", 0), ("b", 3600)] {
        let request = v1::LoadRequest {
            model: model.to_owned(),
            keep_alive: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let mut stream = clients.models.load(request).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
    }
    let only_b = |status: &v1::DaemonStatus| status.models.len() == 1;
    clients.wait_for("`a` asleep", only_b).await;
    assert_eq!(warm(&mut clients).await, ["b"]);
    assert_eq!(answer(&mut clients, "").await.unwrap(), "b");
    // By its name, and it sleeps again at once.
    assert_eq!(answer(&mut clients, "a").await.unwrap(), "a");
    clients.wait_for("`a` asleep", only_b).await;
    // The last one that was chosen answers whoever names none, also if it has to be woken for that.
    let request = v1::LoadRequest {
        model: "a".to_owned(),
        keep_alive: Some(prost_types::Duration::default()),
    };
    let mut stream = clients.models.load(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    clients.wait_for("`a` asleep", only_b).await;
    assert_eq!(answer(&mut clients, "").await.unwrap(), "a");
    // Unloading forgets what sleeps, too.
    clients.wait_for("`a` asleep", only_b).await;
    let unload = |model: &str| v1::UnloadRequest {
        model: model.to_owned(),
    };
    clients.models.unload(unload("a")).await.unwrap();
    assert_eq!(answer(&mut clients, "").await.unwrap(), "b");
    let status = answer(&mut clients, "a").await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_NOT_WARM");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_a_request_wakes_only_borrows_the_place() {
    let (_daemon, mut clients) = three_models(Setup::empty().set("models_max", 1)).await;
    let request = v1::LoadRequest {
        model: "a".to_owned(),
        keep_alive: Some(prost_types::Duration::default()),
    };
    let mut stream = clients.models.load(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let none = |status: &v1::DaemonStatus| status.models.is_empty();
    clients.wait_for("`a` asleep", none).await;
    load(&mut clients, "b").await.unwrap();
    // `a` sleeps since before: its next request wakes it, and `b` sleeps meanwhile.
    assert_eq!(answer(&mut clients, "a").await.unwrap(), "a");
    assert_eq!(answer(&mut clients, "b").await.unwrap(), "b");
    assert_eq!(answer(&mut clients, "").await.unwrap(), "b");
}
