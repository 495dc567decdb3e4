//! Readers that take a byte a second, in HTTP/2's own words: they lose their streams, their memory
//! is bounded, and their neighbours do not notice.
//!
//! With `HEARTH_LONG_TESTS` there are 50 of them. What is measured is printed, and no test depends
//! on it.

use std::time::{Duration, Instant};

use h2::RecvStream;
use h2::client::SendRequest;
use hearth_proto::v1;
use hearth_test_support::{Clients, Process, Setup, long_tests, text_of};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Tokens of a reader's reply, which it never gets to the end of.
const TOKENS: u32 = 1900;
/// Tokens of the neighbour's.
const NEIGHBOUR_TOKENS: u32 = 300;
/// Memory that a reader's stream may cost the daemon: 256 events of 20 alternatives each, what
/// waits in the encoder and in HTTP/2, and the allocator's share.
const BYTES_A_STREAM: u64 = 1 << 20;

fn readers() -> u32 {
    if long_tests() { 50 } else { 10 }
}

/// A request as gRPC frames it.
fn request() -> Bytes {
    let request = v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(TOKENS),
            ignore_eos: true,
            logprobs: Some(20),
            ..Default::default()
        }),
        ..Default::default()
    };
    let body = request.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    framed.extend(body);
    framed.into()
}

/// A connection on which the daemon may send one byte at a time, until told to hurry.
async fn connect(socket: &std::path::Path) -> (SendRequest<Bytes>, oneshot::Sender<()>) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake(stream)
        .await
        .unwrap();
    let (hurry, hurried) = oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            ended = &mut connection => return ended,
            Ok(()) = hurried => connection.set_initial_window_size(1 << 20)?,
        }
        connection.await
    });
    (sender, hurry)
}

/// What a reader saw.
struct Seen {
    /// Bytes taken while it dripped.
    dripped: usize,
    status: String,
    details: Vec<u8>,
}

/// Takes a byte a second until `hurry`, then everything.
async fn drip(mut body: RecvStream, mut hurry: watch::Receiver<bool>) -> Seen {
    let mut dripped = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        if !*hurry.borrow() {
            dripped += data.len();
            let hurried = hurry.wait_for(|hurry| *hurry);
            let _ = tokio::time::timeout(Duration::from_secs(1), hurried).await;
        }
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().expect("an end");
    let details = trailers.get("grpc-status-details-bin");
    Seen {
        dripped,
        status: trailers["grpc-status"].to_str().unwrap().to_owned(),
        details: details.map_or_else(Vec::new, |value| {
            let status = tonic::Status::from_header_map(&trailers).unwrap();
            assert!(!value.is_empty());
            status.details().to_vec()
        }),
    }
}

async fn start(
    socket: &std::path::Path,
    hurry: &watch::Receiver<bool>,
) -> (JoinHandle<Seen>, oneshot::Sender<()>) {
    let (sender, widen) = connect(socket).await;
    let request_head = http::Request::post("http://localhost/hearth.v1.Inference/Generate")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut sender = sender.ready().await.unwrap();
    let (response, mut body) = sender.send_request(request_head, false).unwrap();
    body.send_data(request(), true).unwrap();
    let body = response.await.unwrap().into_body();
    let hurry = hurry.clone();
    let task = tokio::spawn(async move {
        // The sender keeps the connection open.
        let _sender = sender;
        drip(body, hurry).await
    });
    (task, widen)
}

/// Tokens a second of one stream.
async fn rate(clients: &mut Clients) -> f64 {
    let begun = Instant::now();
    let stream = clients.endless("world", NEIGHBOUR_TOKENS).await;
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .unwrap();
    assert_eq!(text.end.unwrap().generated_tokens, NEIGHBOUR_TOKENS);
    f64::from(NEIGHBOUR_TOKENS) / begun.elapsed().as_secs_f64()
}

/// Runs streams at once to their end, so that what memory work takes is taken.
async fn work(clients: &mut Clients) {
    let mut streams = Vec::new();
    for _ in 0..readers().min(hearthd::limits::STREAMS_MAX) {
        streams.push(clients.endless("hello", 40).await);
    }
    for stream in streams {
        text_of(stream, |reply: v1::GenerateResponse| reply.event)
            .await
            .unwrap();
    }
}

/// Waits until the engine makes nothing: all readers are full.
async fn all_full(clients: &mut Clients) {
    let begun = Instant::now();
    let mut before = clients.status().await.counters.unwrap().steps;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let steps = clients.status().await.counters.unwrap().steps;
        if steps == before {
            return;
        }
        before = steps;
        assert!(begun.elapsed() < Duration::from_secs(120), "it never rests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_byte_a_second_lose_their_streams_and_nobody_notices() {
    let setup = Setup::tiny();
    let daemon = Process::start_with(&setup, |command| {
        command.args(["--slots", "64", "--kv-bytes-max", "67108864"]);
    });
    let mut clients = Clients::connect(&daemon.socket).await;
    clients.wait_ready().await;
    work(&mut clients).await;
    let alone = rate(&mut clients).await;
    let before = clients.status().await;

    let (hurry_all, hurry) = watch::channel(false);
    let mut tasks = Vec::new();
    for _ in 0..readers() {
        tasks.push(start(&daemon.socket, &hurry).await);
    }
    let begun = Instant::now();
    all_full(&mut clients).await;
    let full = clients.status().await;
    let beside = rate(&mut clients).await;
    println!(
        "{} readers, full after {:.1} s; a neighbour: {alone:.0} tokens/s alone, {beside:.0} \
         beside them ({:.2})",
        readers(),
        begun.elapsed().as_secs_f64(),
        beside / alone
    );
    let grown = full.rss_bytes().saturating_sub(before.rss_bytes());
    println!(
        "memory: {} KiB a reader",
        grown / 1024 / u64::from(readers())
    );
    if before.rss_bytes.is_some() {
        assert!(grown < BYTES_A_STREAM * u64::from(readers()), "{grown}");
    }
    clients
        .wait_for("rid of the readers", |status| {
            status.queue.unwrap().active == 0
        })
        .await;
    println!(
        "all gone {:.1} s after the start",
        begun.elapsed().as_secs_f64()
    );

    hurry_all.send(true).unwrap();
    for (task, widen) in tasks {
        let _ = widen.send(());
        let seen = task.await.unwrap();
        assert!(seen.dripped > 0, "it was no reader at all");
        assert_eq!(seen.status, "8");
        let reason = String::from_utf8_lossy(&seen.details).into_owned();
        assert!(reason.contains("READER_STALLED"), "{reason}");
    }
    assert!(daemon.terminate().success());
}
