//! How long a model stays warm: unloaded when nobody asks, loaded again by the next request, kept by a
//! pin.

use std::time::Duration;

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Text, reason, text_of};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;

/// Loads the warm model, or again, to stay for so long without requests.
async fn keep_alive(clients: &mut Clients, time: Duration) -> Result<(), tonic::Status> {
    let request = v1::LoadRequest {
        model: String::new(),
        keep_alive: Some(time.try_into().unwrap()),
    };
    let mut stream = clients.models.load(request).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

fn question() -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello there".into())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(12),
            ignore_eos: true,
            sampling: Some(v1::SamplingParams {
                temperature: Some(0.0),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn ask(clients: &mut Clients) -> Result<Text, tonic::Status> {
    let stream = clients.inference.generate(question()).await?.into_inner();
    text_of(stream, |reply: v1::GenerateResponse| reply.event).await
}

async fn asleep(clients: &mut Clients) -> v1::DaemonStatus {
    clients
        .wait_for("asleep", |status| {
            status.model.is_none() && status.reason.is_some()
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_and_the_next_request_loads_again() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let before = ask(&mut clients).await.unwrap();
    assert_eq!(before.loadings, 0);
    let idle = |status: &v1::DaemonStatus| {
        status
            .model
            .as_ref()
            .is_some_and(|model| model.unloads_in.is_some())
    };
    clients.wait_for("idle, as the default", idle).await;
    keep_alive(&mut clients, Duration::from_millis(50))
        .await
        .unwrap();
    let status = asleep(&mut clients).await;
    let why = status.reason.unwrap();
    assert!(why.contains("the next request loads it"), "{why}");
    assert!(status.adapter.is_some(), "the GPU stays open");
    let health = tonic_health::pb::HealthCheckRequest {
        service: "hearth.v1.Inference".into(),
    };
    let health = HealthClient::new(clients.channel.clone())
        .check(health)
        .await;
    assert_eq!(
        health.unwrap().into_inner().status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving,
        "it answers"
    );

    let after = ask(&mut clients).await.unwrap();
    assert_eq!(after.text, before.text);
    assert!(after.loadings > 0, "it says that it loads");
    assert!(after.end.unwrap().load_time.is_some());
    asleep(&mut clients).await;
    // Two at once wake it once, and both are answered.
    let mut other = daemon.clients().await;
    let (one, two) = tokio::join!(ask(&mut clients), ask(&mut other));
    assert_eq!(one.unwrap().text, before.text);
    assert_eq!(two.unwrap().text, before.text);
    // A request for another model finds out whose turn it is.
    asleep(&mut clients).await;
    let wrong = v1::GenerateRequest {
        model: "another".into(),
        ..question()
    };
    let status = clients.inference.generate(wrong).await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_NOT_WARM");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_keeps_the_model() {
    let (daemon, mut clients) = Daemon::tiny().await;
    keep_alive(&mut clients, Duration::ZERO).await.ok();
    let mut stream = clients.endless("hello", 400).await;
    let mut other = daemon.clients().await;
    other
        .wait_for("running", |s| {
            s.queue.is_some_and(|queue| queue.active == 1)
        })
        .await;
    assert!(other.status().await.model.is_some());
    let mut ended = false;
    while let Some(reply) = stream.message().await.unwrap() {
        let event = reply.event.and_then(|event| event.event);
        ended |= matches!(event, Some(v1::generation_event::Event::End(_)));
    }
    assert!(ended);
    asleep(&mut other).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_holds_and_an_unloading_by_hand_is_meant() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let pin = v1::PinRequest::default();
    clients.models.pin(pin.clone()).await.unwrap();
    keep_alive(&mut clients, Duration::from_millis(20))
        .await
        .unwrap();
    let warm = clients.status().await.model.unwrap();
    assert!(warm.pinned && warm.unloads_in.is_none());
    ask(&mut clients).await.unwrap();
    assert!(clients.status().await.model.is_some());
    clients
        .models
        .unpin(v1::UnpinRequest::default())
        .await
        .unwrap();
    asleep(&mut clients).await;

    let refused = clients.models.pin(pin).await.unwrap_err();
    assert_eq!(reason(&refused), "NO_MODEL", "what is not warm");
    let unload = v1::UnloadRequest::default();
    clients.models.unload(unload.clone()).await.unwrap();
    assert_eq!(clients.status().await.reason, None);
    let refused = ask(&mut clients).await.err().unwrap();
    assert_eq!(reason(&refused), "NO_MODEL");
    let refused = clients.models.unload(unload).await.unwrap_err();
    assert_eq!(reason(&refused), "NO_MODEL");

    let refused = keep_alive(&mut clients, Duration::from_secs(400 * 86_400)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("366 days"), "{refused}");
    keep_alive(&mut clients, Duration::from_secs(600))
        .await
        .unwrap();
    let left = clients.status().await.model.unwrap().unloads_in.unwrap();
    assert!((500..=600).contains(&left.seconds), "{left:?}");
    ask(&mut clients).await.unwrap();
    daemon.stop().await;
}
