//! Streams that end before their time, hundreds at random moments: each frees what it held, and a
//! deadline says so. The time that takes is printed, and no test depends on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Setup, text_of};
use tonic::Code;

/// Streams under way at once, each worker on a connection of its own.
const WORKERS: u64 = 8;
const CANCELS: u64 = 500;
const DEADLINES: u64 = 200;

/// A small generator of numbers (splitmix64): the same ones in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn request(prompt: String, deadline: Option<Duration>) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt(prompt)),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(1500),
            ignore_eos: true,
            deadline: deadline.map(|time| time.try_into().unwrap()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn prompt(random: &mut Random) -> String {
    "hello world ".repeat(1 + usize::try_from(random.below(40)).unwrap())
}

/// KV blocks that streams hold.
fn blocks_held(status: &v1::DaemonStatus) -> u32 {
    status.model.as_ref().unwrap().kv_blocks_used
}

/// Starts a stream, reads it for a while or not at all, and lets it go.
async fn cancel_one(clients: &mut Clients, random: &mut Random) {
    let request = request(prompt(random), None);
    match random.below(4) {
        // While it is being accepted, or waits, or its prompt is read.
        0 => {
            let time = Duration::from_micros(random.below(3000));
            let _ = tokio::time::timeout(time, clients.inference.generate(request)).await;
        }
        kind => {
            let mut stream = clients
                .inference
                .generate(request)
                .await
                .unwrap()
                .into_inner();
            let events = if kind == 1 { 1 } else { random.below(16) };
            for _ in 0..events {
                stream.message().await.unwrap().expect("it goes on");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_random_cancels_leave_nothing_behind() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let before = clients.status().await;
    let begun = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for seed in 0..WORKERS {
        let mut own = daemon.clients().await;
        let begun = Arc::clone(&begun);
        workers.push(tokio::spawn(async move {
            let mut random = Random(seed);
            while begun.fetch_add(1, Ordering::Relaxed) < CANCELS {
                cancel_one(&mut own, &mut random).await;
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let after = clients
        .wait_for("rid of all streams", |status| {
            let queue = status.queue.unwrap();
            queue.active == 0 && queue.waiting == 0 && blocks_held(status) == blocks_held(&before)
        })
        .await;
    let (was, is) = (before.counters.unwrap(), after.counters.unwrap());
    let (accepted, cancelled) = (is.requests - was.requests, is.cancelled - was.cancelled);
    // Those cancelled in the first moment may never have come in.
    assert!((CANCELS / 2..=CANCELS).contains(&accepted), "{accepted}");
    assert_eq!(cancelled, accepted, "all were cancelled, and none ended");
    let text = text_of(
        clients.endless("hello", 5).await,
        |reply: v1::GenerateResponse| reply.event,
    );
    assert_eq!(text.await.unwrap().end.unwrap().generated_tokens, 5);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_stream_frees_its_slot_while_others_run() {
    let (daemon, mut clients) = Daemon::ready(Setup::tiny().set("slots", 2)).await;
    let mut other = daemon.clients().await;
    let mut times = Vec::new();
    for _ in 0..40 {
        let mut busy = clients.endless("world", 1500).await;
        busy.message().await.unwrap().unwrap();
        let mut stream = other.endless("hello", 1500).await;
        while !matches!(
            stream
                .message()
                .await
                .unwrap()
                .unwrap()
                .event
                .unwrap()
                .event,
            Some(v1::generation_event::Event::Delta(_))
        ) {}
        let begun = Instant::now();
        drop(stream);
        while clients.status().await.queue.unwrap().active > 1 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it keeps its slot"
            );
        }
        times.push(begun.elapsed());
        drop(busy);
        clients
            .wait_for("idle", |status| status.queue.unwrap().active == 0)
            .await;
    }
    times.sort();
    println!(
        "from cancel to free slot, as GetStatus sees it: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_deadlines_end_their_streams_and_say_so() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let before = clients.status().await;
    let begun = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for seed in 0..WORKERS {
        let mut own = daemon.clients().await;
        let begun = Arc::clone(&begun);
        workers.push(tokio::spawn(async move {
            let mut random = Random(seed);
            let mut ends = Vec::new();
            while begun.fetch_add(1, Ordering::Relaxed) < DEADLINES {
                let deadline = Duration::from_millis(1 + random.below(60));
                let request = request(prompt(&mut random), Some(deadline));
                let text = match own.inference.generate(request).await {
                    Ok(reply) => {
                        let event = |reply: v1::GenerateResponse| reply.event;
                        text_of(reply.into_inner(), event).await
                    }
                    Err(status) => Err(status),
                };
                ends.push(match text {
                    Ok(text) => Ok(text.end.expect("every stream ends")),
                    Err(status) => Err(status),
                });
            }
            ends
        }));
    }
    let mut in_stream = 0;
    for worker in workers {
        for end in worker.await.unwrap() {
            match end {
                Ok(end) => {
                    assert_eq!(end.finish_reason(), v1::FinishReason::Deadline);
                    assert!(end.generated_tokens < 1500);
                    in_stream += 1;
                }
                // The deadline passed before there was a stream.
                Err(status) => assert_eq!(status.code(), Code::DeadlineExceeded, "{status}"),
            }
        }
    }
    assert!(in_stream > DEADLINES / 2, "{in_stream}");
    clients
        .wait_for("rid of all streams", |status| {
            let queue = status.queue.unwrap();
            queue.active == 0 && queue.waiting == 0 && blocks_held(status) == blocks_held(&before)
        })
        .await;
    daemon.stop().await;
}
