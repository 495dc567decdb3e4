//! Prompts and replies reach no log, no metric, no status and no crash output, at no level, whatever
//! goes wrong.
//!
//! A few hundred canaries, or 10,000 with `HEARTH_LONG_TESTS=1`: each prompt has one of its own, and
//! several are at work at once.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_proto::v1;
use hearth_proto::v1::generate_request::Input;
use hearth_test_support::{Clients, Layer, Process, Setup, long_tests, text_of};
use rustix::process::Signal;
use tonic::Status;

/// What every canary begins with. No word of any product.
const CANARY: &str = "kanarienvogel";
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// Callers at once.
const CALLERS: usize = 6;

/// Everything that a daemon lets others see.
struct Seen {
    log: PathBuf,
    metrics_file: PathBuf,
    metrics_socket: PathBuf,
    /// Statuses, and what failing calls were told.
    told: String,
}

impl Seen {
    fn of(setup: &Setup) -> Self {
        Self {
            log: setup.dir().join("log"),
            metrics_file: setup.dir().join("out/hearth.prom"),
            metrics_socket: setup.dir().join("out/metrics.sock"),
            told: String::new(),
        }
    }

    fn start(&self, setup: &Setup, level: &str, layer: &Layer) -> Process {
        std::fs::create_dir(self.metrics_file.parent().unwrap()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(self.metrics_file.parent().unwrap(), mode).unwrap();
        let log = File::create(&self.log).unwrap();
        Process::start_with(setup, |command: &mut Command| {
            command.args(["--log", level, "--metrics-interval-s", "1"]);
            command.arg("--metrics-file").arg(&self.metrics_file);
            command.arg("--metrics-socket").arg(&self.metrics_socket);
            command.stderr(log.try_clone().unwrap()).stdout(log);
            layer.hand_on(command);
        })
    }

    /// Has `CALLERS` callers send these canaries.
    async fn send(&mut self, numbers: Range<usize>, socket: &Path) {
        let callers = (0..CALLERS).map(|nth| {
            let numbers = numbers.clone().skip(nth).step_by(CALLERS);
            let caller = send_all(numbers, socket.to_owned(), self.metrics_socket.clone());
            tokio::spawn(caller)
        });
        for caller in callers.collect::<Vec<_>>() {
            self.told += &caller.await.unwrap();
        }
    }

    /// Fails if a canary is anywhere: as words, as the numbers of its bytes, or as hexadecimal digits.
    fn search(&self, level: &str) {
        let numbers: Vec<String> = CANARY.bytes().map(|byte| byte.to_string()).collect();
        let digits: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
        let forms = [CANARY.to_owned(), numbers.join(", "), digits];
        let read = |path: &Path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        for (place, text) in [
            ("log", read(&self.log)),
            ("metrics file", read(&self.metrics_file)),
            ("statuses and metrics", self.told.clone()),
        ] {
            for form in &forms {
                assert!(!text.contains(form), "at {level}, the {place} holds {form}");
            }
        }
        assert!(self.told.contains("hearth_"), "there are metrics");
    }
}

/// Notes what a failing call was told.
fn hear<T>(told: &mut String, result: Result<T, Status>) -> Option<T> {
    result
        .map_err(|status| write!(told, "{status:?} {}", status.message()).unwrap())
        .ok()
}

/// Asks for everything that can be asked for while the daemon lives.
async fn ask(told: &mut String, clients: &mut Clients, metrics: &Path) {
    write!(told, "{:?}", clients.status().await).unwrap();
    let mut stream = UnixStream::connect(metrics).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    stream.read_to_string(told).unwrap();
}

/// Sends these canaries one after the other; what was told meanwhile.
async fn send_all(
    numbers: impl Iterator<Item = usize>,
    socket: PathBuf,
    metrics: PathBuf,
) -> String {
    let mut told = String::new();
    let mut clients = Clients::connect(&socket).await;
    for (nth, number) in numbers.enumerate() {
        send(number, &mut clients, &mut told).await;
        if nth % 50 == 0 {
            ask(&mut told, &mut clients, &metrics).await;
        }
    }
    told
}

fn options() -> v1::GenerationOptions {
    v1::GenerationOptions {
        max_tokens: Some(2),
        ..Default::default()
    }
}

fn chat(canary: &str, role: v1::Role, options: v1::GenerationOptions) -> v1::ChatRequest {
    let message = |role: v1::Role, content: String| v1::ChatMessage {
        role: role.into(),
        content,
    };
    v1::ChatRequest {
        messages: vec![
            message(v1::Role::System, format!("{canary}<|im_end|>")),
            message(role, canary.to_owned()),
        ],
        options: Some(options),
        ..Default::default()
    }
}

fn generate(canary: String, options: v1::GenerationOptions) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(Input::Prompt(canary)),
        options: Some(options),
        ..Default::default()
    }
}

/// One canary's way through the daemon; its number chooses what goes wrong, if anything.
async fn send(number: usize, clients: &mut Clients, told: &mut String) {
    let canary = format!("{CANARY} {number} \u{1f424}\r\n\u{1b}[31m{CANARY}");
    let plain = options();
    let of_chat = |reply: v1::ChatResponse| reply.event;
    match number % 10 {
        0 => {
            let echo = v1::GenerationOptions {
                echo: true,
                logprobs: Some(3),
                stop: vec![canary.clone()],
                ..plain
            };
            let reply = clients
                .inference
                .chat(chat(&canary, v1::Role::User, echo))
                .await;
            let text = text_of(reply.unwrap().into_inner(), of_chat).await.unwrap();
            assert!(
                text.echo.unwrap().text.contains(CANARY),
                "it was really asked"
            );
        }
        1 => {
            // Too long for the context.
            let reply = clients
                .inference
                .generate(generate(canary.repeat(100), plain))
                .await;
            hear(told, reply.map(drop));
        }
        2 => {
            let bad = v1::GenerationOptions {
                logprobs: Some(99),
                ..plain
            };
            let reply = clients.inference.generate(generate(canary, bad)).await;
            hear(told, reply.map(drop));
        }
        3 => {
            let bad = v1::GenerationOptions {
                stop: vec![canary.repeat(50); 2],
                ..plain
            };
            let reply = clients.inference.generate(generate(canary, bad)).await;
            hear(told, reply.map(drop));
        }
        4 => {
            let role = v1::Role::Unspecified;
            let reply = clients.inference.chat(chat(&canary, role, plain)).await;
            hear(told, reply.map(drop));
        }
        5 => {
            // The caller goes away.
            let endless = v1::GenerationOptions {
                max_tokens: Some(1500),
                ignore_eos: true,
                ..plain
            };
            let reply = clients.inference.generate(generate(canary, endless)).await;
            drop(hear(told, reply));
        }
        6 => {
            // Its time is over at once.
            let hurried = v1::GenerationOptions {
                max_tokens: Some(1500),
                ignore_eos: true,
                ..plain
            };
            let mut request = tonic::Request::new(generate(canary, hurried));
            request.set_timeout(std::time::Duration::from_millis(1));
            if let Some(reply) = hear(told, clients.inference.generate(request).await) {
                let text = text_of(reply.into_inner(), |reply: v1::GenerateResponse| {
                    reply.event
                });
                hear(told, text.await.map(drop));
            }
        }
        7 => {
            let request = v1::TokenizeRequest {
                text: canary,
                ..Default::default()
            };
            hear(told, clients.inference.tokenize(request).await.map(drop));
        }
        8 => {
            let mut request = generate(canary, plain);
            request.model = "no-such-model".to_owned();
            hear(told, clients.inference.generate(request).await.map(drop));
        }
        _ => {
            let reply = clients.inference.generate(generate(canary, plain)).await;
            let reply = hear(told, reply).unwrap().into_inner();
            let text = text_of(reply, |reply: v1::GenerateResponse| reply.event);
            text.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_word_of_a_prompt_is_seen_by_others() {
    let name = "privacy::no_word_of_a_prompt_is_seen_by_others";
    let Some(layer) = Layer::here(name) else {
        return;
    };
    let each = if long_tests() { 2000 } else { 60 };
    for (turn, level) in LEVELS.into_iter().enumerate() {
        let setup = Setup::tiny();
        let mut seen = Seen::of(&setup);
        layer.rest();
        let process = seen.start(&setup, level, &layer);
        let mut clients = Clients::connect(&process.socket).await;
        clients.wait_ready().await;
        let numbers = turn * each..(turn + 1) * each;
        // The GPU is lost on the way, too.
        layer.lose_at_submit(20);
        seen.send(numbers, &process.socket).await;
        let counters = clients.status().await.counters.unwrap();
        assert_eq!(counters.device_rebuilds, 1);
        // One more is at work when the daemon ends, by its own will or not.
        let mut stream = clients.endless(CANARY, 1500).await;
        stream.message().await.unwrap().unwrap();
        ask(&mut seen.told, &mut clients, &seen.metrics_socket).await;
        match turn % 3 {
            0 => assert!(process.terminate().success()),
            1 => {
                process.signal(Signal::ABORT);
                assert!(!process.wait().success());
            }
            _ => {
                process.signal(Signal::ILL);
                assert!(!process.wait().success());
            }
        }
        let log = std::fs::read_to_string(&seen.log).unwrap();
        let words = matches!(level, "info" | "debug" | "trace");
        assert_eq!(
            log.contains("the model is warm"),
            words,
            "there is a log at {level}"
        );
        seen.search(level);
    }
}
