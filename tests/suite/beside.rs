//! What stands beside the contract: health, reflection, unknown services; and the default model
//! over the socket.

use std::time::Duration;

use hearth_proto::v1;
use hearth_test_support::{Daemon, Setup, default_model, text_of};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn check(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_warm_model() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let mut health = HealthClient::new(clients.channel.clone());
    let inference = "hearth.v1.Inference";
    for name in ["", inference, "hearth.v1.Models", "hearth.v1.Daemon"] {
        let reply = health.check(check(name)).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving, "{name:?}");
    }
    let unknown = health.check(check("hearth.v1.Nothing")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = health.watch(check(inference)).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    clients
        .models
        .unload(v1::UnloadRequest::default())
        .await
        .unwrap();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    // Who watches hears of changes, not of every look.
    let again = tokio::time::timeout(Duration::from_millis(300), watch.message());
    assert!(again.await.is_err());
    let models = health
        .check(check("hearth.v1.Models"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(models.status(), ServingStatus::Serving);
    // A watch must not hold up the daemon's end.
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_answers_over_the_socket() {
    let Some(model) = default_model() else {
        return; // Not set up here; `make` sets it up.
    };
    // int8 activations would turn the first token: the reference's top two are 0.08 apart there.
    let (daemon, mut clients) = Daemon::ready(
        Setup::file(&model)
            .set("context_len", 512)
            .set("activations", "float"),
    )
    .await;
    let request = v1::ChatRequest {
        messages: vec![v1::ChatMessage {
            role: v1::Role::User.into(),
            content: "What is the capital of France?".to_owned(),
        }],
        options: Some(v1::GenerationOptions {
            max_tokens: Some(24),
            sampling: Some(v1::SamplingParams {
                temperature: Some(0.0),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let stream = clients.inference.chat(request).await.unwrap().into_inner();
    let text = text_of(stream, |reply: v1::ChatResponse| reply.event)
        .await
        .unwrap();
    assert!(text.text.contains("Paris"), "{}", text.text);
    daemon.stop().await;
}
