//! Measures how apps share a running daemon with a warm model: a crowd of them, a greedy one, one with
//! long background work, eight streams at once, prompts seen before. A measurement, not a test: it
//! asserts nothing about time.
//!
//! `HEARTH_SOCKET=... cargo run --release -p hearth-tests --example load [crowd|greedy|background|batch|prefix]...`
//!
//! Each app has an app socket of its own, and so a label of its own.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use hearth::v1::generate_request::Input;
use hearth::{AppSocket, Client, Error, Event, v1};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Apps of the crowd, and their requests in all.
const APPS: u32 = 64;
const REQUESTS: u32 = 2_000;

/// An app: its socket, which lives as long as this, and a client that came through it.
struct App {
    name: String,
    _socket: AppSocket,
    client: Client,
}

async fn app(launcher: &Client, name: &str) -> Outcome<App> {
    let socket = launcher.open_app_socket(name, None).await?;
    let client = Client::connect_to(socket.path()).await?;
    Ok(App {
        name: name.to_owned(),
        _socket: socket,
        client,
    })
}

/// `len` tokens that no prompt with another `seed` begins with.
fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| 300 + (seed.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(40_503)) % 40_000)
        .collect()
}

fn request(ids: Vec<u32>, max_tokens: u32, class: v1::Class) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(Input::Tokens(v1::TokenIds { ids })),
        options: Some(v1::GenerationOptions {
            sampling: Some(v1::SamplingParams {
                temperature: Some(0.0),
                ..Default::default()
            }),
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            class: class.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a reply took: to its first token, and in all; its tokens; those of its prompt that were cached.
#[derive(Debug, Clone, Default)]
struct Reply {
    first: Duration,
    whole: Duration,
    ids: Vec<u32>,
    cached: u32,
}

async fn run(client: &Client, request: v1::GenerateRequest) -> Result<Reply, Error> {
    let started = Instant::now();
    let mut events = client.generate(request).await?;
    let mut reply = Reply::default();
    while let Some(event) = events.next().await? {
        match event {
            Event::Delta(delta) => {
                if reply.first.is_zero() {
                    reply.first = started.elapsed();
                }
                reply.ids.extend(delta.tokens.iter().map(|token| token.id));
            }
            Event::End(end) => reply.cached = end.cached_tokens,
            _ => {}
        }
    }
    reply.whole = started.elapsed();
    Ok(reply)
}

fn percentile(times: &mut [Duration], part: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * part / 100).copied().unwrap_or_default()
}

fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|s| s * s).sum();
    let count = f64::from(u32::try_from(shares.len()).unwrap_or(u32::MAX));
    if squares > 0.0 {
        sum * sum / (squares * count)
    } else {
        0.0
    }
}

/// GPU seconds of the apps whose names begin with `prefix`.
fn shares(status: &v1::DaemonStatus, prefix: &str) -> Vec<f64> {
    let apps = status.apps.iter().filter(|app| app.app.starts_with(prefix));
    apps.filter_map(|app| Duration::try_from(app.gpu_time?).ok())
        .map(|time| time.as_secs_f64())
        .collect()
}

async fn report_rest(client: &Client) -> Outcome<()> {
    let mut status = client.status().await?;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if status
            .queue
            .as_ref()
            .is_none_or(|q| q.active + q.waiting == 0)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        status = client.status().await?;
    }
    let model = status.model.unwrap_or_default();
    println!(
        "  at rest: {} KV blocks in use, {} cached, of {}",
        model.kv_blocks_used, model.kv_blocks_cached, model.kv_blocks_total
    );
    Ok(())
}

/// What became of a request of the crowd, until it was answered.
#[derive(Default)]
struct Fate {
    refusals: Vec<Duration>,
    without_retry_info: u32,
    first: Duration,
}

async fn persist(client: Client, request: v1::GenerateRequest) -> Outcome<Fate> {
    let mut fate = Fate::default();
    loop {
        let started = Instant::now();
        match run(&client, request.clone()).await {
            Ok(reply) => {
                fate.first = reply.first;
                return Ok(fate);
            }
            Err(Error::Rpc(error)) if error.code == tonic::Code::ResourceExhausted => {
                fate.refusals.push(started.elapsed());
                fate.without_retry_info += u32::from(error.retry_after.is_none());
                tokio::time::sleep(error.retry_after.unwrap_or(Duration::from_secs(1))).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// 64 equal apps with 2,000 short requests in all, sent at once.
async fn crowd(launcher: &Client) -> Outcome<()> {
    let mut apps = Vec::new();
    let mut opener = launcher.clone();
    for n in 0..APPS {
        // An app socket lasts as long as its stream, and a connection carries 32 of those.
        if n % 16 == 0 {
            opener = Client::connect().await?;
        }
        apps.push(app(&opener, &format!("crowd{n:02}")).await?);
    }
    let before = launcher.status().await?.counters.unwrap_or_default();
    let started = Instant::now();
    let mut fates = JoinSet::new();
    for n in 0..REQUESTS {
        let client = apps[(n % APPS) as usize].client.clone();
        fates.spawn(persist(
            client,
            request(prompt(n, 6), 4, v1::Class::Interactive),
        ));
    }
    let (mut done, mut half) = (0, 0.0);
    let (mut refusals, mut firsts, mut without) = (Vec::new(), Vec::new(), 0);
    while let Some(fate) = fates.join_next().await {
        let fate = fate??;
        refusals.extend(fate.refusals);
        firsts.push(fate.first);
        without += fate.without_retry_info;
        done += 1;
        if done == REQUESTS / 2 {
            half = jain(&shares(&launcher.status().await?, "crowd"));
        }
    }
    let took = started.elapsed();
    let status = launcher.status().await?;
    let counters = status.counters.unwrap_or_default();
    println!(
        "crowd: {APPS} apps, {REQUESTS} requests of 6 + 4 tokens: {done} answered in {took:.1?}"
    );
    println!(
        "  {} refusals ({without} without RetryInfo), told after p50 {:.1?} p99 {:.1?} max {:.1?}",
        refusals.len(),
        percentile(&mut refusals.clone(), 50),
        percentile(&mut refusals.clone(), 99),
        percentile(&mut refusals.clone(), 100),
    );
    println!(
        "  first token p50 {:.1?} p99 {:.1?}; GPU time across apps: Jain {half:.3} at half, {:.3} at the end",
        percentile(&mut firsts.clone(), 50),
        percentile(&mut firsts.clone(), 99),
        jain(&shares(&status, "crowd")),
    );
    println!(
        "  {} steps, {} paused, {} tokens computed again",
        counters.steps - before.steps,
        counters.preempted - before.preempted,
        counters.replayed_tokens - before.replayed_tokens
    );
    drop(apps);
    report_rest(launcher).await
}

async fn first_tokens(app: &App, seed: u32, count: u32) -> Outcome<Vec<Duration>> {
    let mut times = Vec::new();
    for n in 0..count {
        let request = request(prompt(seed + n, 24), 8, v1::Class::Interactive);
        times.push(run(&app.client, request).await?.first);
    }
    Ok(times)
}

/// An app's time to first token alone, and beside one with 200 requests waiting.
async fn greedy(launcher: &Client) -> Outcome<()> {
    let modest = app(launcher, "modest").await?;
    first_tokens(&modest, 10_000, 2).await?;
    let mut alone = first_tokens(&modest, 20_000, 15).await?;
    let mut crowd = JoinSet::new();
    let mut greedy = Vec::new();
    for _ in 0..8 {
        greedy.push(app(launcher, "greedy").await?);
    }
    for n in 0..208_u32 {
        let client = greedy[(n % 8) as usize].client.clone();
        let request = request(prompt(30_000 + n, 24), 400, v1::Class::Interactive);
        crowd.spawn(async move { run(&client, request).await });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let waiting = launcher.status().await?.queue.unwrap_or_default().waiting;
    let mut beside = first_tokens(&modest, 40_000, 15).await?;
    crowd.abort_all();
    let (alone, beside) = (percentile(&mut alone, 50), percentile(&mut beside, 50));
    println!(
        "greedy: first token, median of 15: {alone:.1?} alone, {beside:.1?} beside {waiting} waiting \
         requests of another app: {:.2}x",
        beside.as_secs_f64() / alone.as_secs_f64()
    );
    drop((crowd, greedy));
    report_rest(launcher).await
}

/// A person's time to first token on an idle daemon, and during a background prefill of 2,000 tokens.
async fn background(launcher: &Client) -> Outcome<()> {
    let person = app(launcher, "person").await?;
    let batch = app(launcher, "batch").await?;
    first_tokens(&person, 50_000, 2).await?;
    let mut alone = first_tokens(&person, 51_000, 9).await?;
    let mut beside = Vec::new();
    let mut chunks: Vec<Duration> = Vec::new();
    for n in 0..3 {
        let long = request(prompt(60_000 + n, 2_000), 1, v1::Class::Background);
        let mut events = batch.client.generate(long).await?;
        let reader = tokio::spawn(async move {
            let (mut last, mut gaps) = (None, Vec::new());
            while let Ok(Some(event)) = events.next().await {
                if let Event::Prefill(_) = event {
                    gaps.extend(last.replace(Instant::now()).map(|l: Instant| l.elapsed()));
                }
            }
            gaps
        });
        tokio::time::sleep(Duration::from_millis(700)).await;
        beside.extend(first_tokens(&person, 70_000 + 10 * n, 3).await?);
        chunks.extend(reader.await?);
    }
    println!(
        "background: first token, median of 9: {:.1?} idle; {:.1?} (worst {:.1?}) during a background \
         prefill of 2,000 tokens, whose chunks take {:.1?} (median)",
        percentile(&mut alone, 50),
        percentile(&mut beside.clone(), 50),
        percentile(&mut beside, 100),
        percentile(&mut chunks, 50),
    );
    report_rest(launcher).await
}

/// Tokens a second of one stream and of eight together, and whether their texts are the same as alone.
async fn batch(launcher: &Client) -> Outcome<()> {
    const TOKENS: u32 = 64;
    let mut apps = Vec::new();
    for n in 0..8 {
        apps.push(app(launcher, &format!("stream{n}")).await?);
    }
    let ask = |n: u32| {
        let mut request = request(prompt(80_000 + n, 16), TOKENS, v1::Class::Interactive);
        // A penalty rules out drafts, which a stream alone would have and others not.
        let sampling = request.options.as_mut().and_then(|o| o.sampling.as_mut());
        if let Some(sampling) = sampling {
            sampling.presence_penalty = Some(0.01);
        }
        request
    };
    let rate = |replies: &[Reply]| {
        // From the last first token to the first end, all of them decode.
        let begin = replies.iter().map(|r| r.first).max().unwrap_or_default();
        let end = replies.iter().map(|r| r.whole).max().unwrap_or_default();
        let tokens = f64::from(TOKENS - 1) * replies.len() as f64;
        tokens / (end.saturating_sub(begin)).as_secs_f64()
    };
    let mut alone = Vec::new();
    for (n, app) in (0..).zip(&apps) {
        alone.push(run(&app.client, ask(n)).await?);
    }
    let single: f64 = alone
        .iter()
        .map(|r| rate(std::slice::from_ref(r)))
        .sum::<f64>()
        / 8.0;
    let mut replies = Vec::new();
    // Twice: drivers compile the kernels of wider steps at their first use.
    for _ in 0..2 {
        let mut together = JoinSet::new();
        for (n, app) in (0..).zip(&apps) {
            let (client, request) = (app.client.clone(), ask(n));
            together.spawn(async move { (n as usize, run(&client, request).await) });
        }
        replies = vec![Reply::default(); apps.len()];
        while let Some(done) = together.join_next().await {
            let (n, reply) = done?;
            replies[n] = reply?;
        }
    }
    let same = replies.iter().zip(&alone).filter(|(a, b)| a.ids == b.ids);
    println!(
        "batch: {single:.1} tokens/s alone, {:.1} for eight together: {:.2}x; {} of 8 replies the same",
        rate(&replies),
        rate(&replies) / single,
        same.count()
    );
    report_rest(launcher).await
}

/// How well times of one kind are told from those of another, from 0.5 (not at all) to 1.
fn auc(cold: &[Duration], probe: &[Duration]) -> f64 {
    let mut faster = 0.0;
    for p in probe {
        for c in cold {
            faster += match p.cmp(c) {
                std::cmp::Ordering::Less => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Greater => 0.0,
            };
        }
    }
    faster / (cold.len() * probe.len()) as f64
}

/// A 1,000-token prompt cold and again; and whether another app can tell that it was seen.
async fn prefix(launcher: &Client) -> Outcome<()> {
    const PROBES: u32 = 200;
    let own = app(launcher, "own").await?;
    let spy = app(launcher, "spy").await?;
    let ask = |seed: u32, len: u32| request(prompt(seed, len), 1, v1::Class::Interactive);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for n in 0..3 {
        cold.push(run(&own.client, ask(90_000 + n, 1_000)).await?.first);
        let again = run(&own.client, ask(90_000 + n, 1_000)).await?;
        println!(
            "  1,000 tokens: cold {:.1?}, again {:.1?} ({} cached)",
            cold[cold.len() - 1],
            again.first,
            again.cached
        );
        warm.push(again.first);
    }
    let (cold, warm) = (percentile(&mut cold, 50), percentile(&mut warm, 50));
    println!(
        "prefix: {cold:.1?} cold, {warm:.1?} again: {:.1} %",
        100.0 * warm.as_secs_f64() / cold.as_secs_f64()
    );
    let (mut never, mut seen, mut mine) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..PROBES {
        // In turn, so that the machine's moods meet all three alike.
        run(&own.client, ask(100_000 + n, 64)).await?;
        never.push(run(&spy.client, ask(200_000 + n, 64)).await?.first);
        seen.push(run(&spy.client, ask(100_000 + n, 64)).await?.first);
        mine.push(run(&own.client, ask(100_000 + n, 64)).await?.first);
    }
    println!(
        "probes: {PROBES} of 64 tokens; another app's, AUC {:.3}; the app's own, AUC {:.3}",
        auc(&never, &seen),
        auc(&never, &mine)
    );
    drop((own.name, spy.name));
    report_rest(launcher).await
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let launcher = Client::connect().await?;
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.is_empty() {
        wanted = ["batch", "prefix", "background", "greedy", "crowd"]
            .map(str::to_owned)
            .into();
    }
    for what in wanted {
        match what.as_str() {
            "crowd" => crowd(&launcher).await?,
            "greedy" => greedy(&launcher).await?,
            "background" => background(&launcher).await?,
            "batch" => batch(&launcher).await?,
            "prefix" => prefix(&launcher).await?,
            other => return Err(format!("there is no measurement `{other}`").into()),
        }
    }
    Ok(())
}
