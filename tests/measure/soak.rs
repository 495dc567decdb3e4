//! Measures a long run: mixed load on a running daemon for some minutes, with its power mode switched
//! meanwhile, and what its memory and descriptors did. A measurement, not a test.
//!
//! `HEARTH_SOCKET=... cargo run --release -p hearth-tests --example soak [MINUTES] [SCRIPT]`
//!
//! SCRIPT, if given, is run by `sh` every 20 s with the number of the turn: it may squeeze memory or
//! change what the daemon takes for the battery. Where that unloads the model, memory comes and goes with
//! the weights, so it is compared at like states: with the model warm for some seconds, and without it.
//!
//! Before it begins, every slot and every block of the KV cache is used once. On a software adapter the
//! memory of buffers is the process's own and comes when it is first written, whenever that is: it would
//! look like growth.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth::v1::generate_request::Input;
use hearth::{Client, Error, Event, v1};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Clients at work at once.
const WORKERS: u64 = 6;
/// Tokens of a block of the KV cache.
const KV_BLOCK_TOKENS: u32 = 16;
const SAMPLE: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_secs(20);
/// How long a state must have held before memory is compared.
const SETTLED: Duration = Duration::from_secs(8);

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

/// Prompts of `length` tokens, one for each seed, all at once, each answered with `generated` tokens.
async fn ask_at_once(
    client: &Client,
    seeds: std::ops::Range<u32>,
    length: u32,
    generated: u32,
) -> Outcome<()> {
    let asked = seeds.map(|seed| {
        let ids = (0..length).map(|i| 300 + (seed * 7919 + i * 131) % 40_000);
        let request = v1::GenerateRequest {
            input: Some(Input::Tokens(v1::TokenIds { ids: ids.collect() })),
            options: Some(v1::GenerationOptions {
                max_tokens: Some(generated),
                ignore_eos: true,
                logprobs: Some(1),
                ..Default::default()
            }),
            ..Default::default()
        };
        let client = client.clone();
        tokio::spawn(async move {
            let mut events = client.generate(request).await?;
            while events.next().await?.is_some() {}
            Ok::<(), Error>(())
        })
    });
    for answered in asked.collect::<Vec<_>>() {
        answered.await??;
    }
    Ok(())
}

/// Uses what memory the daemon has set aside for its work: every slot at once, with log-probabilities, which
/// come by buffers of their own, and every block of the KV cache, by prompts that are kept for later ones, so that each takes other blocks. Returns how many blocks
/// are kept at the end, and how many there are.
async fn fill(client: &Client) -> Outcome<(u32, u32)> {
    let status = client.status().await?;
    let model = status.model.ok_or("no model is warm")?;
    let slots = status.plan.ok_or("no plan")?.slots.max(1);
    ask_at_once(client, 1000..1000 + slots, 16, 128).await?;
    let share = (model.kv_blocks_total / slots * KV_BLOCK_TOKENS).min(model.context_len - 1);
    for prompt in 0..model.kv_blocks_total * KV_BLOCK_TOKENS / share {
        ask_at_once(client, prompt..prompt + 1, share, 1).await?;
    }
    let filled = client.status().await?.model.ok_or("no model is warm")?;
    Ok((filled.kv_blocks_cached, filled.kv_blocks_total))
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

/// A look at the daemon.
#[derive(Clone, Copy)]
struct Sample {
    at: f64,
    rss: f64,
    descriptors: usize,
    state: State,
}

/// States in which memory is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Warm,
    Unloaded,
    /// One of the others is new, or the model is on its way.
    Between,
}

/// Follows whether the weights are there, and for how long it has been so.
struct States {
    state: State,
    since: Instant,
}

impl States {
    fn look(&mut self, status: &v1::DaemonStatus) -> State {
        let keeps = status.plan.as_ref().is_some_and(|plan| plan.keep_weights);
        let state = match (keeps, status.model.is_some()) {
            (false, _) => State::Unloaded,
            (true, true) => State::Warm,
            (true, false) => State::Between,
        };
        if self.state != state {
            *self = Self {
                state,
                since: Instant::now(),
            };
        }
        match self.since.elapsed() >= SETTLED {
            true => state,
            false => State::Between,
        }
    }
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

/// Looks at the daemon, and has the script take its turns, until the time is over.
async fn watch(
    client: &Client,
    until: Instant,
    script: Option<&str>,
) -> Outcome<(Vec<Sample>, u64)> {
    let begun = Instant::now();
    let pid = client.status().await?.pid;
    let mut states = States {
        state: State::Between,
        since: begun,
    };
    let (mut samples, mut turns) = (Vec::new(), 0);
    let mut next_turn = begun + TURN;
    while Instant::now() < until {
        tokio::time::sleep(SAMPLE).await;
        if Instant::now() >= next_turn {
            turns += 1;
            turn(script, turns)?;
            next_turn += TURN;
        }
        let status = client.status().await?;
        let state = states.look(&status);
        let (rss, descriptors) = sizes(pid)?;
        let at = begun.elapsed().as_secs_f64();
        samples.push(Sample {
            at,
            rss,
            descriptors,
            state,
        });
        if samples.len() % 60 == 0 {
            println!("{at:>5.0} s  {rss:>9.0} KiB  {descriptors} descriptors");
        }
    }
    Ok((samples, turns))
}

/// What memory did while the daemon was in a state.
fn print_memory(samples: &[Sample], state: State, name: &str) {
    let alike: Vec<_> = samples.iter().filter(|s| s.state == state).collect();
    let (Some(first), Some(last)) = (alike.first(), alike.last()) else {
        println!("{name}: never so");
        return;
    };
    let line: Vec<_> = alike.iter().map(|s| (s.at, s.rss)).collect();
    let least = line
        .iter()
        .fold(f64::MAX, |least, (_, rss)| least.min(*rss));
    let most = line.iter().fold(0.0_f64, |most, (_, rss)| most.max(*rss));
    println!(
        "{name}: {} looks; RSS {:+.0} KiB an hour; {least:.0} to {most:.0} KiB, at first {:.0}, at last {:.0}",
        alike.len(),
        slope(&line),
        first.rss,
        last.rss
    );
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let minutes: u64 = args.next().map_or(Ok(30), |text| text.parse())?;
    let script = args.next();
    let client = Client::connect().await?;
    let begun = Instant::now();
    let (cached, blocks) = fill(&client).await?;
    println!(
        "{cached} of {blocks} KV blocks were used before it began, in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let fates = Arc::new(Fates::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|seed| tokio::spawn(work(seed, until, Arc::clone(&fates))))
        .collect();
    let (samples, turns) = watch(&client, until, script.as_deref()).await?;
    for worker in workers {
        worker.await??;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{} answered, {} cancelled, {} refused with a time to come back, {} wrong; {turns} turns",
        value(&fates.answered),
        value(&fates.cancelled),
        value(&fates.refused),
        value(&fates.wrong)
    );
    let after = &samples[samples.len() / 3..];
    println!("after a third of the time:");
    print_memory(after, State::Warm, "warm");
    print_memory(after, State::Unloaded, "unloaded");
    let descriptors = after.iter().map(|s| s.descriptors);
    println!(
        "descriptors {} to {}",
        descriptors.clone().min().unwrap_or(0),
        descriptors.max().unwrap_or(0)
    );
    let model = client.status().await?.model.unwrap_or_default();
    println!("at rest: {} KV blocks in use", model.kv_blocks_used);
    Ok(())
}
