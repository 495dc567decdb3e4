//! Requests that wait for their time: they hold nobody up, and start by themselves.

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, reason, text_of};

fn deferred(when: v1::StartWhen) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("later".into())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(8),
            ignore_eos: true,
            start_when: when.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn whole(clients: &mut Clients, request: v1::GenerateRequest) -> v1::End {
    let stream = clients
        .inference
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await;
    text.unwrap().end.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_quiet_starts_when_the_others_are_done() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let mut busy = clients.endless("now", 2000).await;
    busy.message().await.unwrap();
    let mut other = daemon.clients().await;
    let mut later = other
        .inference
        .generate(deferred(v1::StartWhen::Idle))
        .await
        .unwrap()
        .into_inner();
    let mut third = daemon.clients().await;
    let mut last = third
        .inference
        .generate(deferred(v1::StartWhen::Idle))
        .await
        .unwrap()
        .into_inner();
    // While somebody is at work, only who waits for nothing goes on.
    let now = whole(&mut clients, deferred(v1::StartWhen::Now)).await;
    assert_eq!(now.generated_tokens, 8);
    // Not at once: a stream's end is heard a moment before its sequence is gone from the count.
    let hold_no_place = |status: &v1::DaemonStatus| {
        let queue = status.queue.unwrap();
        let when = status.deferred.iter().map(|row| row.start_when());
        when.collect::<Vec<_>>() == [v1::StartWhen::Idle; 2]
            && (queue.active, queue.waiting) == (1, 0)
    };
    let status = clients
        .wait_for("seen to wait without a place", hold_no_place)
        .await;
    let waits = status.deferred;
    assert_eq!(waits[0].pid, std::process::id());
    drop(busy);
    for stream in [&mut later, &mut last] {
        let mut ended = false;
        while let Some(reply) = stream.message().await.unwrap() {
            let event = reply.event.and_then(|event| event.event);
            ended |= matches!(event, Some(v1::generation_event::Event::End(_)));
        }
        assert!(ended);
    }
    let mains = whole(&mut clients, deferred(v1::StartWhen::OnMains)).await;
    assert_eq!(mains.generated_tokens, 8, "this machine has no battery");
    assert!(clients.status().await.deferred.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_and_a_drain_end_the_wait() {
    let (mut daemon, mut clients) = Daemon::tiny().await;
    let mut busy = clients.endless("now", 100_000).await;
    busy.message().await.unwrap();
    let mut other = daemon.clients().await;
    let mut hurried = deferred(v1::StartWhen::Idle);
    if let Some(options) = &mut hurried.options {
        options.deadline = Some(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        });
    }
    let mut stream = other
        .inference
        .generate(hurried)
        .await
        .unwrap()
        .into_inner();
    let late = stream.message().await.unwrap_err();
    assert_eq!(reason(&late), "DEADLINE");
    let mut stream = other
        .inference
        .generate(deferred(v1::StartWhen::Idle))
        .await
        .unwrap()
        .into_inner();
    daemon.begin_stop();
    let drained = stream.message().await.unwrap_err();
    assert_eq!(reason(&drained), "DRAINING");
    drop((busy, stream));
    daemon.stop().await;
}
