//! Measures what the service adds to the engine's own time up to the first token, on a running
//! daemon with a warm model. A measurement, not a test: it asserts nothing about time.
//!
//! `HEARTH_SOCKET=... cargo run --release -p hearth-tests --example overhead [RUNS]`

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use hearth::v1::generate_request::Input;
use hearth::{Client, Event, v1};

/// Prompt tokens of a request.
const PROMPT_TOKENS: u32 = 16;

fn request() -> v1::GenerateRequest {
    let sampling = v1::SamplingParams {
        temperature: Some(0.0),
        ..Default::default()
    };
    v1::GenerateRequest {
        input: Some(Input::Tokens(v1::TokenIds {
            ids: (1000..1000 + PROMPT_TOKENS).collect(),
        })),
        options: Some(v1::GenerationOptions {
            sampling: Some(sampling),
            max_tokens: Some(2),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn time(value: Option<prost_types::Duration>) -> Duration {
    value
        .and_then(|d| Duration::try_from(d).ok())
        .unwrap_or_default()
}

/// Time to the first token as the client sees it, and the engine's own part of it.
async fn first_token(client: &Client) -> Result<(Duration, Duration), hearth::Error> {
    let started = Instant::now();
    let mut reply = client.generate(request()).await?;
    let mut seen = None;
    let mut engine = Duration::ZERO;
    while let Some(event) = reply.next().await? {
        match event {
            Event::Delta(_) => {
                seen.get_or_insert_with(|| started.elapsed());
            }
            Event::End(end) => engine = time(end.prefill_time),
            _ => {}
        }
    }
    Ok((seen.unwrap_or_default(), engine))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runs: usize = std::env::args().nth(1).map_or(Ok(30), |n| n.parse())?;
    let client = Client::connect().await?;
    first_token(&client).await?;
    let mut rows = Vec::new();
    for _ in 0..runs {
        let (seen, engine) = first_token(&client).await?;
        rows.push((seen.saturating_sub(engine), seen, engine));
    }
    rows.sort();
    let (over, seen, engine) = rows[rows.len() / 2];
    println!("first token of a {PROMPT_TOKENS}-token prompt, {runs} requests one after the other");
    println!(
        "the service's part: median {over:?}, largest {:?}",
        rows[rows.len() - 1].0
    );
    println!("in the median request: {seen:?} seen by the client, {engine:?} the engine's own");
    Ok(())
}
