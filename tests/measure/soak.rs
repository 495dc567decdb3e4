//! Measures a long run: mixed load on a running daemon for some minutes, with its power mode switched
//! meanwhile, and what its memory and descriptors did. A measurement, not a test.
//!
//! `HEARTH_SOCKET=... cargo run --release -p hearth-tests --example soak [MINUTES] [SCRIPT]`
//!
//! SCRIPT, if given, is run by `sh` every 20 s with the number of the turn: it may squeeze memory or
//! change what the daemon takes for the battery.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth::v1::generate_request::Input;
use hearth::{Client, Error, Event, v1};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Clients at work at once.
const WORKERS: u64 = 6;
const SAMPLE: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_secs(20);

/// Numbers that do not repeat for long.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// How the requests ended.
#[derive(Default)]
struct Fates {
    answered: AtomicU64,
    cancelled: AtomicU64,
    refused: AtomicU64,
    wrong: AtomicU64,
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, Ordering::Relaxed);
}

fn request(random: &mut Random) -> v1::GenerateRequest {
    let seed = random.below(40);
    let length = 1 + random.below(180);
    let ids = (0..length)
        .map(|i| 300 + u32::try_from((seed * 7919 + i * 131) % 40_000).unwrap_or(0))
        .collect();
    let classes = [
        v1::Class::Interactive,
        v1::Class::Utility,
        v1::Class::Background,
    ];
    let class = classes[usize::try_from(random.below(3)).unwrap_or(0)];
    v1::GenerateRequest {
        input: Some(Input::Tokens(v1::TokenIds { ids })),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(u32::try_from(1 + random.below(40)).unwrap_or(1)),
            ignore_eos: true,
            class: class.into(),
            logprobs: (random.below(8) == 0).then_some(3),
            deadline: Some(prost_types::Duration {
                seconds: i64::try_from(1 + random.below(60)).unwrap_or(1),
                nanos: 0,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One request; some are dropped before their end.
async fn one(client: &Client, random: &mut Random, fates: &Fates) -> Result<(), Error> {
    let patience = random.below(60);
    let drops = random.below(5) == 0;
    let mut events = client.generate(request(random)).await?;
    let mut seen = 0;
    while let Some(event) = events.next().await? {
        seen += 1;
        if drops && seen > patience {
            count(&fates.cancelled);
            return Ok(());
        }
        if let Event::End(_) = event {
            count(&fates.answered);
            return Ok(());
        }
    }
    count(&fates.wrong);
    Ok(())
}

async fn work(seed: u64, until: Instant, fates: Arc<Fates>) -> Outcome<()> {
    let mut random = Random(seed * 77 + 5);
    let mut client = Client::connect().await?;
    while Instant::now() < until {
        if random.below(20) == 0 {
            client = Client::connect().await?;
        }
        match one(&client, &mut random, &fates).await {
            Ok(()) => {}
            // A refusal that says when to come back is an answer.
            Err(Error::Rpc(error)) if error.retry_after.is_some() => {
                count(&fates.refused);
                let pause = error.retry_after.unwrap_or_default();
                tokio::time::sleep(pause.min(Duration::from_secs(5))).await;
            }
            // It came before the model was back.
            Err(Error::Rpc(error)) if error.code == tonic::Code::DeadlineExceeded => {
                count(&fates.answered);
            }
            Err(error) => {
                println!("wrong: {error}");
                count(&fates.wrong);
            }
        }
    }
    Ok(())
}

/// Resident memory in KiB, and open descriptors, of a process of this machine.
fn sizes(pid: u32) -> Outcome<(f64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("no VmRSS")?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((rss.parse()?, descriptors))
}

/// Least squares: KiB an hour.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let n = samples.iter().map(|_| 1.0).sum::<f64>();
    let (x, y) = samples
        .iter()
        .fold((0.0, 0.0), |sum, s| (sum.0 + s.0 / n, sum.1 + s.1 / n));
    let (over, under) = samples.iter().fold((0.0, 0.0), |sum, s| {
        (sum.0 + (s.0 - x) * (s.1 - y), sum.1 + (s.0 - x) * (s.0 - x))
    });
    3600.0 * over / under.max(f64::MIN_POSITIVE)
}

fn turn(script: Option<&str>, n: u64) -> Outcome<()> {
    if let Some(script) = script {
        let status = std::process::Command::new("sh")
            .args([script, &n.to_string()])
            .status()?;
        if !status.success() {
            println!("the script failed in turn {n}: {status}");
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let minutes: u64 = args.next().map_or(Ok(30), |text| text.parse())?;
    let script = args.next();
    let client = Client::connect().await?;
    let pid = client.status().await?.pid;
    let begun = Instant::now();
    let until = begun + Duration::from_secs(60 * minutes);
    let fates = Arc::new(Fates::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|seed| tokio::spawn(work(seed, until, Arc::clone(&fates))))
        .collect();
    let (mut samples, mut descriptors, mut turns) = (Vec::new(), Vec::new(), 0);
    let mut next_turn = begun + TURN;
    while Instant::now() < until {
        tokio::time::sleep(SAMPLE).await;
        if Instant::now() >= next_turn {
            turns += 1;
            turn(script.as_deref(), turns)?;
            next_turn += TURN;
        }
        let (rss, open) = sizes(pid)?;
        samples.push((begun.elapsed().as_secs_f64(), rss));
        descriptors.push(open);
        if samples.len() % 12 == 0 {
            println!(
                "{:>5.0} s  {rss:>9.0} KiB  {open} descriptors",
                samples[samples.len() - 1].0
            );
        }
    }
    for worker in workers {
        worker.await??;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let warm_up = samples.len() / 3;
    let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{} answered, {} cancelled, {} refused with a time to come back, {} wrong; {turns} turns",
        value(&fates.answered),
        value(&fates.cancelled),
        value(&fates.refused),
        value(&fates.wrong)
    );
    println!(
        "RSS after a third of the time: {:+.0} KiB an hour; descriptors {} to {}",
        slope(&samples[warm_up..]),
        descriptors[warm_up..].iter().min().unwrap_or(&0),
        descriptors[warm_up..].iter().max().unwrap_or(&0)
    );
    let model = client.status().await?.model.unwrap_or_default();
    println!("at rest: {} KV blocks in use", model.kv_blocks_used);
    Ok(())
}
