//! Every kind of bad request: its code, its reason, the field it names; and the daemon lives on.

use hearth_proto::v1;
use hearth_proto::v1::generate_request::Input;
use hearth_test_support::{Clients, Daemon, reason, text_of, tiny_model};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn field(status: &Status) -> String {
    let request = status
        .get_details_bad_request()
        .expect("a BadRequest detail");
    request.field_violations[0].field.clone()
}

#[allow(clippy::err_expect, reason = "a stream has no Debug")]
async fn generate(clients: &mut Clients, options: v1::GenerationOptions) -> Status {
    let request = v1::GenerateRequest {
        input: Some(Input::Prompt("hello".to_owned())),
        options: Some(options),
        ..Default::default()
    };
    clients
        .inference
        .generate(request)
        .await
        .err()
        .expect("it must be refused")
}

async fn still_serves(clients: &mut Clients) {
    let stream = clients.endless("hello", 2).await;
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .unwrap();
    assert_eq!(text.end.unwrap().generated_tokens, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_refused_by_name() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let nothing = v1::GenerationOptions::default;
    let sampled = |sampling| v1::GenerationOptions {
        sampling: Some(sampling),
        ..nothing()
    };
    let plain = v1::SamplingParams::default;
    let some = |value| Some(value);
    let cases = [
        (
            "options.sampling.temperature",
            sampled(v1::SamplingParams {
                temperature: some(f32::NAN),
                ..plain()
            }),
        ),
        (
            "options.sampling.temperature",
            sampled(v1::SamplingParams {
                temperature: some(-0.1),
                ..plain()
            }),
        ),
        (
            "options.sampling.top_p",
            sampled(v1::SamplingParams {
                top_p: some(0.0),
                ..plain()
            }),
        ),
        (
            "options.sampling.top_p",
            sampled(v1::SamplingParams {
                top_p: some(1.1),
                ..plain()
            }),
        ),
        (
            "options.sampling.min_p",
            sampled(v1::SamplingParams {
                min_p: some(-1.0),
                ..plain()
            }),
        ),
        (
            "options.sampling.repeat_penalty",
            sampled(v1::SamplingParams {
                repeat_penalty: some(0.0),
                ..plain()
            }),
        ),
        (
            "options.sampling.frequency_penalty",
            sampled(v1::SamplingParams {
                frequency_penalty: some(3.0),
                ..plain()
            }),
        ),
        (
            "options.sampling.presence_penalty",
            sampled(v1::SamplingParams {
                presence_penalty: some(f32::INFINITY),
                ..plain()
            }),
        ),
        (
            "options.logprobs",
            v1::GenerationOptions {
                logprobs: Some(21),
                ..nothing()
            },
        ),
        (
            "options.stop",
            v1::GenerationOptions {
                stop: vec!["a".into(); 17],
                ..nothing()
            },
        ),
        (
            "options.stop[0]",
            v1::GenerationOptions {
                stop: vec![String::new()],
                ..nothing()
            },
        ),
        (
            "options.stop_token_ids[1]",
            v1::GenerationOptions {
                stop_token_ids: vec![0, u32::MAX],
                ..nothing()
            },
        ),
        (
            "options.deadline",
            v1::GenerationOptions {
                deadline: Some(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                }),
                ..nothing()
            },
        ),
        (
            "options.class",
            v1::GenerationOptions {
                class: 77,
                ..nothing()
            },
        ),
    ];
    for (name, options) in cases {
        let status = generate(&mut clients, options).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
        assert_eq!(reason(&status), "BAD_FIELD", "{name}");
        assert_eq!(field(&status), name);
    }
    still_serves(&mut clients).await;
    assert_eq!(clients.status().await.counters.unwrap().refused, 14);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_inputs_are_refused_by_name() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let tokens = |ids| Some(Input::Tokens(v1::TokenIds { ids }));
    let cases = [
        ("input", None),
        ("prompt", Some(Input::Prompt(String::new()))),
        ("tokens.ids", tokens(Vec::new())),
        (
            "tokens.ids[2]",
            tokens(vec![1, 2, tiny_model::vocab_size()]),
        ),
    ];
    for (name, input) in cases {
        let request = v1::GenerateRequest {
            input,
            ..Default::default()
        };
        let status = clients.inference.generate(request).await.unwrap_err();
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, name)
        );
    }
    let message = |role| v1::ChatMessage {
        role,
        content: "x".to_owned(),
    };
    for (name, messages) in [
        ("messages", Vec::new()),
        ("messages", vec![message(2); 4097]),
        ("messages[1].role", vec![message(2), message(0)]),
        ("messages[0].role", vec![message(99)]),
    ] {
        let request = v1::ChatRequest {
            messages,
            ..Default::default()
        };
        let status = clients.inference.chat(request).await.unwrap_err();
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, name)
        );
    }
    let request = v1::TokenizeRequest {
        text: "a".repeat((1 << 20) + 1),
        ..Default::default()
    };
    let status = clients.inference.tokenize(request).await.unwrap_err();
    assert_eq!(field(&status), "text");
    let request = v1::DetokenizeRequest {
        ids: vec![0, u32::MAX],
        ..Default::default()
    };
    let status = clients.inference.detokenize(request).await.unwrap_err();
    assert_eq!(field(&status), "ids[1]");
    still_serves(&mut clients).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_is_not_found_and_both_are_named() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let request = v1::ChatRequest {
        model: "other".to_owned(),
        messages: vec![v1::ChatMessage {
            role: 2,
            content: "x".to_owned(),
        }],
        ..Default::default()
    };
    let status = clients.inference.chat(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "MODEL_NOT_WARM")
    );
    let facts = status.get_details_error_info().unwrap().metadata;
    assert_eq!(
        (facts["asked"].as_str(), facts["warm"].as_str()),
        ("other", "tiny")
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_come_says_so() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let statuses = [
        clients
            .inference
            .embed(v1::EmbedRequest::default())
            .await
            .unwrap_err(),
        clients
            .models
            .pull(v1::PullRequest::default())
            .await
            .err()
            .unwrap(),
        generate(
            &mut clients,
            v1::GenerationOptions {
                output_format: Some(v1::OutputFormat {
                    format: Some(v1::output_format::Format::JsonSchema("{}".to_owned())),
                }),
                ..Default::default()
            },
        )
        .await,
    ];
    for status in statuses {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(
            status.message().ends_with("is not part of this version"),
            "{status}"
        );
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_and_one_below_is_not() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let request = |bytes: usize| v1::GenerateRequest {
        input: Some(Input::Prompt("x".repeat(bytes))),
        ..Default::default()
    };
    let status = clients
        .inference
        .generate(request(4 << 20))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let status = clients
        .inference
        .generate(request((4 << 20) - 4096))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    still_serves(&mut clients).await;
    daemon.stop().await;
}
