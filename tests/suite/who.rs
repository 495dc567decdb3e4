//! Who runs what, seen from outside: sequences, the apps' accounts, the queue; and what the daemon
//! says to those for whom it has no room.

use std::time::Duration;

use hearth_proto::v1;
use hearth_test_support::{Daemon, Setup, reason};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

/// Reads a watch until the state is as wanted.
async fn seen(
    watch: &mut Streaming<v1::WatchStatusResponse>,
    what: &str,
    wanted: impl Fn(&v1::DaemonStatus) -> bool,
) -> v1::DaemonStatus {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), watch.message()).await;
        let next = next.unwrap_or_else(|_| panic!("never {what}"));
        let status = next.unwrap().unwrap().status.unwrap();
        if wanted(&status) {
            return status;
        }
    }
}

fn generate(prompt: &str, class: v1::Class) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt(prompt.to_owned())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(1900),
            ignore_eos: true,
            class: class.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_who_runs_who_waits_and_who_has_used_what() {
    let (daemon, mut clients) = Daemon::ready(Setup::tiny().set("slots", 1)).await;
    let interval = prost_types::Duration {
        seconds: 0,
        nanos: 100_000_000,
    };
    let request = v1::WatchStatusRequest {
        min_interval: Some(interval),
    };
    let mut watch = clients
        .daemon
        .watch_status(request)
        .await
        .unwrap()
        .into_inner();
    let first = seen(&mut watch, "anything", |_| true).await;
    assert!(first.sequences.is_empty());
    assert_eq!(first.apps.len(), 1, "this process is connected");
    assert_eq!((first.apps[0].connections, first.apps[0].requests), (1, 0));

    let mut others = daemon.clients().await;
    seen(&mut watch, "a second connection", |s| s.connections == 2).await;
    let mut running = clients.endless("hello", 1900).await;
    running.message().await.unwrap().unwrap();
    let waiting = others
        .inference
        .generate(generate("world", v1::Class::Utility))
        .await
        .unwrap();
    let both = seen(&mut watch, "one at work, one waiting", |status| {
        let queue = status.queue.unwrap();
        (queue.active, queue.waiting) == (1, 1) && status.sequences.len() == 2
    })
    .await;
    let [first, second] = &both.sequences[..] else {
        panic!("two sequences")
    };
    assert_eq!((first.ahead, second.ahead), (None, Some(0)));
    assert_eq!(first.class(), v1::Class::Interactive);
    assert_eq!(second.class(), v1::Class::Utility);
    assert!(first.id < second.id, "the oldest first");
    for sequence in [first, second] {
        assert_eq!(sequence.pid, std::process::id());
        assert_eq!(sequence.app, both.apps[0].app);
        assert!(sequence.prompt_tokens > 0);
    }
    assert!(first.kv_blocks > 0);
    let account = &both.apps[0];
    assert_eq!((account.active, account.waiting), (1, 1));
    assert_eq!((account.connections, account.requests), (2, 2));

    drop((running, waiting));
    let after = seen(&mut watch, "idle", |status| {
        let queue = status.queue.unwrap();
        queue.active + queue.waiting == 0 && status.sequences.is_empty()
    })
    .await;
    let account = &after.apps[0];
    assert_eq!((account.active, account.waiting), (0, 0));
    assert!(account.generated_tokens > 0 && account.prompt_tokens > 0);
    let time = Duration::try_from(account.gpu_time.unwrap()).unwrap();
    assert!(!time.is_zero(), "work takes time");
    drop(others);
    let last = seen(&mut watch, "one connection", |s| s.connections == 1).await;
    assert_eq!(last.apps[0].requests, 2, "the account outlives connections");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_is_told_when_there_will_be() {
    for (setting, why, fact) in [
        ("queue_max", "QUEUE_FULL", "waiting"),
        ("app_queue_max", "APP_QUEUE_FULL", "waiting_max"),
    ] {
        let setup = Setup::tiny().set("slots", 1).set(setting, 1);
        let (daemon, mut clients) = Daemon::ready(setup).await;
        let mut running = clients.endless("hello", 1900).await;
        running.message().await.unwrap().unwrap();
        let waiting = clients.endless("hello", 1900).await;
        let refused = clients
            .inference
            .generate(generate("hello", v1::Class::Interactive))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(reason(&refused), why);
        let facts = refused.get_details_error_info().unwrap().metadata;
        assert_eq!(facts[fact], "1");
        let retry = refused.get_details_retry_info().unwrap().retry_delay;
        assert!(retry.is_some_and(|delay| !delay.is_zero()), "{retry:?}");
        assert_eq!(clients.status().await.counters.unwrap().refused, 1);
        drop((running, waiting));
        daemon.stop().await;
    }
}
