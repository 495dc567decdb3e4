//! Metrics: off unless asked for, sound in their format, replaced as a whole, silent when idle, and
//! without a word of a prompt.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Setup, text_of};
use hearthd::limits::METRICS_CONNECTIONS_MAX;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const CANARY: &str = "kanarienvogel";

/// A family of figures, read by the rules of the text format.
#[derive(Default)]
struct Family {
    kind: String,
    /// Labels as text, and the figure.
    samples: BTreeMap<String, f64>,
}

type Figures = BTreeMap<String, Family>;

/// A metric's name at the beginning of `text`, and what follows it.
fn name(text: &str) -> (&str, &str) {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !ok(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    assert!(
        name.starts_with("hearth_"),
        "{text:?} does not begin with a name of ours"
    );
    (name, rest)
}

/// The labels at the beginning of `text`, sorted, and what follows them.
fn labels(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut found = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return (found, text);
    };
    loop {
        let (key, value) = rest.split_once("=\"").expect("a label has a value");
        assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        let mut letters = value.char_indices();
        let mut text = String::new();
        let end = loop {
            match letters.next().expect("a value ends") {
                (at, '"') => break at,
                (_, '\\') => match letters.next().expect("an escape has a letter").1 {
                    'n' => text.push('\n'),
                    c @ ('\\' | '"') => text.push(c),
                    c => panic!("there is no escape \\{c}"),
                },
                (_, c) => text.push(c),
            }
        };
        assert!(found.insert(key.to_owned(), text).is_none(), "{key} twice");
        rest = &value[end + 1..];
        match rest.split_at_checked(1).expect("labels end") {
            (",", more) => rest = more,
            ("}", more) => return (found, more),
            (other, _) => panic!("{other:?} after a label"),
        }
    }
}

/// Reads Prometheus's text format and holds it to its rules.
fn parse(text: &str) -> Figures {
    assert!(text.ends_with('\n'), "the last line is whole");
    let mut figures = Figures::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = name(rest);
            assert!(help.len() > 2, "{name} is explained");
            let old = figures.insert(name.to_owned(), Family::default());
            assert!(old.is_none(), "{name} comes twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = name(rest);
            assert_eq!(name, current, "a type follows its help");
            let kind = kind.trim();
            assert!(["counter", "gauge"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            figures.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let (name, rest) = name(line);
            assert_eq!(name, current, "figures follow their type");
            let (labels, value) = labels(rest);
            let value: f64 = value.strip_prefix(' ').unwrap().parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let family = figures.get_mut(name).unwrap();
            assert!(!family.kind.is_empty(), "{name} has a type");
            let key = format!("{labels:?}");
            assert!(
                family.samples.insert(key, value).is_none(),
                "{line} comes twice"
            );
        }
    }
    assert!(figures.values().all(|family| !family.samples.is_empty()));
    figures
}

/// A figure without labels.
fn figure(figures: &Figures, name: &str) -> f64 {
    let family = figures.get(name).unwrap_or_else(|| panic!("no {name}"));
    family.samples["{}"]
}

fn labelled<const N: usize>(figures: &Figures, name: &str, labels: [(&str, &str); N]) -> f64 {
    let family = figures.get(name).unwrap_or_else(|| panic!("no {name}"));
    let labels = BTreeMap::from(labels);
    *family
        .samples
        .get(&format!("{labels:?}"))
        .unwrap_or_else(|| panic!("no {name} of {labels:?}"))
}

/// Asks with a canary everywhere that a user's text can stand.
async fn sing(clients: &mut Clients, max_tokens: u32) {
    let request = v1::ChatRequest {
        messages: vec![v1::ChatMessage {
            role: v1::Role::User.into(),
            content: CANARY.repeat(3),
        }],
        options: Some(v1::GenerationOptions {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            stop: vec![CANARY.to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let stream = clients.inference.chat(request).await.unwrap().into_inner();
    text_of(stream, |reply: v1::ChatResponse| reply.event)
        .await
        .unwrap();
    let refused = v1::GenerateRequest {
        model: CANARY.to_owned(),
        input: Some(v1::generate_request::Input::Prompt(CANARY.to_owned())),
        ..Default::default()
    };
    clients.inference.generate(refused).await.unwrap_err();
}

/// Reads the file until it is as wanted; every version on the way must be sound.
async fn wait_for(path: &Path, what: &str, wanted: impl Fn(&Figures) -> bool) -> Figures {
    let begun = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            assert!(!text.contains(CANARY), "the prompt is in the file");
            let figures = parse(&text);
            if wanted(&figures) {
                return figures;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A folder that outlives the daemon, and a setup that exports to this name in it.
fn exporting(setting: &'static str, name: &str) -> (Setup, PathBuf, TempDir) {
    let private = fs::Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new()
        .permissions(private)
        .tempdir()
        .unwrap();
    let path = dir.path().join(name);
    let setup = Setup::tiny().set(setting, path.display());
    (setup, path, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_exported_unless_asked_for() {
    let (daemon, mut clients) = Daemon::tiny().await;
    clients.endless("hello", 4).await;
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<String>>()
    };
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    let all: BTreeSet<String> = set(&["config.toml", "models", "run", "tiny.gguf"]);
    assert_eq!(names(daemon.setup.dir()), all);
    let sockets: BTreeSet<String> = set(&["hearthd.lock", "hearthd.sock"]);
    assert_eq!(names(&daemon.setup.dir().join("run")), sockets);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_follows_what_happens_and_rests_when_nothing_does() {
    let (setup, path, _dir) = exporting("metrics_file", "hearth.prom");
    let (daemon, mut clients) = Daemon::ready(setup.set("metrics_interval_s", 1)).await;
    let ready = |figures: &Figures| labelled(figures, "hearth_state", [("state", "ready")]) > 0.0;
    let figures = wait_for(&path, "ready", ready).await;
    assert_eq!(figure(&figures, "hearth_requests_total"), 0.0);
    let first = path.metadata().unwrap();
    assert_eq!(first.mode() & 0o777, 0o600, "its owner's alone");

    sing(&mut clients, 12).await;
    let counted = |figures: &Figures| {
        figure(figures, "hearth_generated_tokens_total") == 12.0
            && figure(figures, "hearth_requests_refused_total") == 1.0
            && figure(figures, "hearth_sequences_running") == 0.0
    };
    let figures = wait_for(&path, "the tokens are counted", counted).await;
    assert_eq!(figure(&figures, "hearth_requests_total"), 1.0);
    assert_eq!(figure(&figures, "hearth_connections"), 1.0);
    assert!(figure(&figures, "hearth_decode_seconds_total") > 0.0);
    let labels = |state| [("model", "tiny"), ("state", state)];
    let blocks = |state| labelled(&figures, "hearth_kv_blocks", labels(state));
    let total = clients.status().await.model.unwrap().kv_blocks_total;
    assert_eq!(
        blocks("used") + blocks("cached") + blocks("free"),
        f64::from(total)
    );
    let me = clients.status().await.apps[0].app.clone();
    assert_eq!(
        labelled(&figures, "hearth_app_connections", [("app", me.as_str())]),
        1.0
    );
    assert_ne!(path.metadata().unwrap().ino(), first.ino(), "another file");

    // Two intervals bring the last of it; in two more nothing is written.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let rest = path.metadata().unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let later = path.metadata().unwrap();
    assert_eq!(
        (later.ino(), later.modified().unwrap()),
        (rest.ino(), rest.modified().unwrap()),
        "written while nothing happened"
    );

    daemon.stop().await;
    let figures = parse(&fs::read_to_string(&path).unwrap());
    assert_eq!(
        labelled(&figures, "hearth_state", [("state", "stopped")]),
        1.0
    );
    assert_eq!(figure(&figures, "hearth_connections"), 0.0);
    let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "nothing lies beside it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_stops_nobody() {
    let setup = Setup::tiny();
    let path = setup.dir().join("missing/hearth.prom");
    let (daemon, mut clients) = Daemon::ready(setup.set("metrics_file", path.display())).await;
    sing(&mut clients, 2).await;
    assert!(!path.exists());
    daemon.stop().await;
}

/// One request over HTTP/1.1: the answer's head and its body.
async fn http(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

async fn get(socket: &Path, accept: &str) -> (String, String) {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    http(socket, &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_scrapers_and_nobody_else() {
    let (setup, socket, _dir) = exporting("metrics_socket", "metrics.sock");
    let (daemon, mut clients) = Daemon::ready(setup).await;
    assert_eq!(
        socket.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    sing(&mut clients, 5).await;
    let done = |status: &v1::DaemonStatus| status.queue.unwrap().active == 0;
    clients.wait_for("idle", done).await;

    let (head, body) = get(&socket, "*/*").await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    let figures = parse(&body);
    assert_eq!(figure(&figures, "hearth_generated_tokens_total"), 5.0);

    let (head, open) = get(&socket, "application/openmetrics-text;version=1.0.0").await;
    assert!(
        head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    assert!(open.ends_with("\n# EOF\n"));
    assert!(open.contains("\n# TYPE hearth_generated_tokens counter\n"));
    for line in open.lines().filter(|line| !line.starts_with('#')) {
        let known = line.starts_with("hearth_resident_memory_bytes ") || body.contains(line);
        assert!(known, "{line} is not in both formats");
    }
    for text in [&body, &open] {
        assert!(!text.contains(CANARY), "the prompt is among the figures");
    }

    let (head, _) = http(&socket, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 405 "), "{head}");
    let (head, _) = http(&socket, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 404 "), "{head}");
    let long = format!(
        "GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    // The daemon may close before it has read all of it.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "a header has a limit");

    daemon.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_socket_are_few_and_end() {
    let (setup, socket, _dir) = exporting("metrics_socket", "metrics.sock");
    let (daemon, _clients) = Daemon::ready(setup).await;
    let mut idle = Vec::new();
    for _ in 0..METRICS_CONNECTIONS_MAX {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    let mut one_more = UnixStream::connect(&socket).await.unwrap();
    let mut nothing = Vec::new();
    let closed = one_more.read_to_end(&mut nothing);
    let closed = tokio::time::timeout(Duration::from_secs(5), closed).await;
    assert_eq!(closed.expect("one too many is closed at once").unwrap(), 0);
    for mut stream in idle {
        let closed =
            tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut nothing));
        closed
            .await
            .expect("a silent connection is closed")
            .unwrap();
    }
    assert!(get(&socket, "*/*").await.0.starts_with("http/1.1 200 "));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_keeps_the_rules_of_the_daemons_own() {
    let setup = Setup::tiny();
    let open = setup.dir().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let taken = setup.dir().join("private/metrics.sock");
    fs::create_dir(taken.parent().unwrap()).unwrap();
    fs::set_permissions(taken.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&taken, "precious").unwrap();
    for (path, wanted) in [
        (open.join("metrics.sock"), "chmod 700"),
        (taken.clone(), "is not a socket"),
        (setup.config().socket, "another hearthd"),
    ] {
        let setup = Setup::tiny().set("metrics_socket", path.display());
        let config = setup.config();
        let main = match wanted {
            // A live socket, whoever has it, is not taken away.
            "another hearthd" => path,
            _ => config.socket.clone(),
        };
        let socket = hearthd::socket::bind(&main).unwrap();
        let error = hearthd::serve(config, socket, std::future::pending())
            .await
            .unwrap_err();
        let error = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
}
