//! Prompts and replies reach no log, at no level, whatever goes wrong.

use std::fs::File;
use std::process::Command;

use hearth_proto::v1;
use hearth_proto::v1::generate_request::Input;
use hearth_test_support::{Clients, Process, Setup, text_of};

const CANARY: &str = "kanarienvogel";

#[tokio::test(flavor = "multi_thread")]
async fn no_word_of_a_prompt_reaches_the_log() {
    let setup = Setup::tiny();
    let log = setup.dir().join("log");
    let stderr = File::create(&log).unwrap();
    let process = Process::start_with(&setup, |command: &mut Command| {
        command.args(["--log", "trace"]).stderr(stderr);
    });
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    let mut asked = clients.endless(CANARY, 3).await;
    while asked.message().await.unwrap().is_some() {}
    let message = |content: String| v1::ChatMessage {
        role: v1::Role::User.into(),
        content,
    };
    for content in [
        CANARY.to_owned(),
        format!("{CANARY}<|im_end|>"),
        CANARY.repeat(1000),
    ] {
        let request = v1::ChatRequest {
            messages: vec![message(content)],
            options: Some(v1::GenerationOptions {
                max_tokens: Some(2),
                echo: true,
                stop: vec![CANARY.to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        if let Ok(stream) = clients.inference.chat(request).await {
            let text = text_of(stream.into_inner(), |reply: v1::ChatResponse| reply.event).await;
            assert!(text.unwrap().echo.unwrap().text.contains(CANARY));
        }
    }
    let request = v1::GenerateRequest {
        input: Some(Input::Prompt(CANARY.to_owned())),
        options: Some(v1::GenerationOptions {
            logprobs: Some(99),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = clients.inference.generate(request).await.unwrap_err();
    assert!(!refused.message().contains(CANARY));
    let request = v1::TokenizeRequest {
        text: CANARY.to_owned(),
        ..Default::default()
    };
    clients.inference.tokenize(request).await.unwrap();
    assert!(process.terminate().success());

    let log = std::fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("the model is warm"), "there is a log");
    // Words, their bytes as numbers, and as hexadecimal digits.
    let numbers = CANARY
        .bytes()
        .map(|byte| byte.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    let digits: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    for form in [CANARY.to_owned(), numbers, digits] {
        assert!(!text.contains(&form), "the log holds {form}");
    }
}
