//! The command `hearth` and the library against a daemon of canned answers: streams, exit codes,
//! interrupts, closed pipes. No model and no GPU are needed.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::Fake;
use hearth::{Client, Event, v1};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn hearth(fake: &Fake) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .env("HOME", fake.dir.path())
        .env("HEARTH_AUTOSTART", "0")
        .env("HEARTH_SOCKET", fake.socket())
        .stdin(Stdio::null());
    command
}

fn run(fake: &Fake, args: &[&str]) -> Output {
    hearth(fake).args(args).output().unwrap()
}

fn with_stdin(fake: &Fake, args: &[&str], stdin: &str) -> Output {
    let mut child = hearth(fake)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Starts an endless reply and waits for its first bytes.
fn endless(fake: &Fake) -> Child {
    let mut child = hearth(fake)
        .args(["run", "forever"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"on ");
    child
}

fn wait_for_drop(fake: &Fake) {
    let begin = Instant::now();
    while !fake.dropped.load(Ordering::SeqCst) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the stream was not dropped"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_reply_alone_is_on_stdout() {
    let fake = Fake::start(VERSION);
    let output = run(&fake, &["run", "hello"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "Hello\n");
    assert_eq!(text(&output.stderr), "", "no progress where nobody looks");
}

#[test]
fn json_is_one_event_a_line() {
    let fake = Fake::start(VERSION);
    let output = run(&fake, &["run", "--json", "--logprobs", "--", "hello"]);
    let events: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["loading", "queued", "prefill", "delta", "delta", "end"]
    );
    assert_eq!(events[3]["text"], "Hel");
    assert_eq!(events[3]["tokens"][0]["logprob"], -0.25);
    assert_eq!(events[5]["finish_reason"], "eos");
}

#[test]
fn standard_input_joins_the_words() {
    let fake = Fake::start(VERSION);
    let output = with_stdin(&fake, &["run", "sum", "up"], "a diff\n");
    assert_eq!(text(&output.stdout), "<a diff\n\nsum up>\n");
    let output = with_stdin(&fake, &["run", "--no-stdin", "sum", "up"], "");
    assert_eq!(text(&output.stdout), "<sum up>\n");
    let output = with_stdin(&fake, &["run", "--raw"], "exact \n");
    assert_eq!(text(&output.stdout), "<raw exact \n>\n");
    let output = run(&fake, &["run", "--system", "be brief", "why"]);
    assert_eq!(text(&output.stdout), "<be brief|why>\n");
}

#[test]
fn every_kind_of_refusal_has_its_exit_code_and_hint() {
    let fake = Fake::start(VERSION);
    for (prompt, code, hint) in [
        ("denied", 3, ""),
        ("overflow", 4, "--allow-truncation"),
        ("no model", 5, "hearth import"),
        ("busy", 6, "try again in 3 s"),
        ("deferred", 9, "try again in 60 s"),
        ("late", 1, "--timeout"),
    ] {
        let output = run(&fake, &["run", prompt]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{prompt}: {stderr}");
        assert!(
            stderr.starts_with("hearth: ") && stderr.contains(hint),
            "{prompt}: {stderr}"
        );
    }
}

#[test]
fn a_reply_that_breaks_keeps_what_came() {
    let fake = Fake::start(VERSION);
    let output = run(&fake, &["run", "broken"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(text(&output.stdout), "Hal\n");
}

#[test]
fn a_cut_prompt_is_never_silent() {
    let fake = Fake::start(VERSION);
    let output = run(&fake, &["run", "--allow-truncation", "cut"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr).contains("3 of 9 prompt tokens"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_interrupt_stops_the_reply_and_exits_with_130() {
    let fake = Fake::start(VERSION);
    let child = endless(&fake);
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(text(&output.stderr), "");
    wait_for_drop(&fake);
}

#[test]
fn a_reader_that_leaves_ends_the_reply_quietly() {
    let fake = Fake::start(VERSION);
    let mut child = endless(&fake);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
    wait_for_drop(&fake);
}

#[test]
fn a_chat_from_a_pipe_remembers_what_was_said() {
    let fake = Fake::start(VERSION);
    let output = with_stdin(
        &fake,
        &["chat"],
        "one\n\n/help\ntwo\\\nlines\n/clear\n/system S\nthree\n",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        "<one>\n<one|<one>|two\nlines>\n<S|three>\n"
    );
    assert!(
        !fake
            .dir
            .path()
            .join(".local/state/hearth/chat_history")
            .exists()
    );
}

#[test]
fn a_chat_from_a_pipe_ends_at_a_failure() {
    let fake = Fake::start(VERSION);
    let output = with_stdin(&fake, &["chat"], "busy\none\n");
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn tokens_are_shown_in_each_form() {
    let fake = Fake::start(VERSION);
    assert_eq!(
        text(&run(&fake, &["tokenize", "a b"]).stdout),
        "     97  \"a\"\n     32  \" \"\n     98  \"b\"\n"
    );
    assert_eq!(
        text(&run(&fake, &["tokenize", "--ids", "ab"]).stdout),
        "97 98\n"
    );
    assert_eq!(
        text(&run(&fake, &["tokenize", "--count", "ab"]).stdout),
        "2\n"
    );
    assert_eq!(
        text(&with_stdin(&fake, &["tokenize", "--ids"], "a\n").stdout),
        "97 10\n"
    );
    assert_eq!(
        text(&run(&fake, &["tokenize", "--json", "a"]).stdout),
        "{\"count\":1,\"ids\":[97],\"pieces\":[\"a\"]}\n"
    );
}

#[test]
fn another_version_is_warned_of_and_a_software_adapter_only_by_status() {
    let fake = Fake::start("0.0.9");
    let output = run(&fake, &["run", "hello"]);
    assert_eq!(output.status.code(), Some(0));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("0.0.9") && stderr.contains("kill 4711"),
        "{stderr}"
    );
    assert!(!stderr.contains("software"), "{stderr}");
    let output = run(&fake, &["status"]);
    assert!(text(&output.stdout).contains("a software adapter"));
}

/// A daemon with one sequence at work, one in the queue and two apps; these models are warm.
fn at_work(models: &[&str]) -> Fake {
    let sequence = v1::SequenceStatus {
        id: 9,
        app: "notes".to_owned(),
        pid: 321,
        class: v1::Class::Interactive.into(),
        prompt_tokens: 40,
        cached_tokens: 32,
        generated_tokens: 5,
        kv_blocks: 3,
        ahead: None,
        replays: false,
        model: models[0].to_owned(),
        gpu_time: Some(prost_types::Duration {
            seconds: 1,
            nanos: 500_000_000,
        }),
    };
    let waiting = v1::SequenceStatus {
        id: 10,
        app: "indexer".to_owned(),
        class: v1::Class::Background.into(),
        ahead: Some(4),
        ..sequence.clone()
    };
    let app = |name: &str, seconds| v1::AppStatus {
        app: name.to_owned(),
        connections: 1,
        requests: 2,
        gpu_time: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    let warm = |name: &&str| v1::WarmModel {
        info: Some(v1::ModelInfo {
            name: (*name).to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Fake::with_status(v1::DaemonStatus {
        version: VERSION.to_owned(),
        models: models.iter().map(warm).collect(),
        sequences: vec![sequence, waiting],
        apps: vec![app("indexer", 1), app("notes", 30)],
        ..Default::default()
    })
}

#[test]
fn ps_and_status_tell_models_apart_where_several_are_warm() {
    let fake = at_work(&["big", "small"]);
    assert_eq!(
        text(&run(&fake, &["ps"]).stdout),
        "ID  APP      PID  CLASS        MODEL  STATE     PROMPT  CACHED  GENERATED  KV  GPU-TIME\n \
         9  notes    321  interactive  big    decode        40      32          5   3     1.5 s\n\
         10  indexer  321  background   big    queued 4      40      32          5   3     1.5 s\n"
    );
    let status = text(&run(&fake, &["status"]).stdout);
    let lines: Vec<&str> = status.lines().collect();
    for (name, model) in [("model", "big"), ("beside it", "small")] {
        let wanted = format!("{name:<11} {model} ");
        assert!(lines.iter().any(|l| l.starts_with(&wanted)), "{status}");
    }
    let stdout = text(&run(&fake, &["status", "--json"]).stdout);
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(object["models"][1]["info"]["name"], "small");
    assert_eq!(object["sequences"][1]["model"], "big");
}

#[test]
fn ps_shows_who_runs_what() {
    let fake = at_work(&["big"]);
    let output = run(&fake, &["ps"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        "ID  APP      PID  CLASS        STATE     PROMPT  CACHED  GENERATED  KV  GPU-TIME\n \
         9  notes    321  interactive  decode        40      32          5   3     1.5 s\n\
         10  indexer  321  background   queued 4      40      32          5   3     1.5 s\n"
    );
    let accounts = text(&run(&fake, &["ps", "--apps"]).stdout);
    let names: Vec<&str> = accounts
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(names, ["APP", "notes", "indexer"], "the busiest first");
    assert!(accounts.lines().nth(1).unwrap().ends_with("30.0 s       -"));

    for args in [&["ps", "--json"][..], &["ps", "--apps", "--json"]] {
        let stdout = text(&run(&fake, args).stdout);
        assert_eq!(stdout.lines().count(), 1, "one object");
        let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(object["sequences"][0]["id"], 9);
        assert_eq!(object["sequences"][0]["gpu_ms"], 1500.0);
        assert!(object["sequences"][0]["ahead"].is_null());
        assert_eq!(object["sequences"][1]["ahead"], 4);
        assert_eq!(object["sequences"][1]["class"], "background");
        assert_eq!(object["apps"][1]["app"], "notes");
    }
    let status = text(&run(&fake, &["status"]).stdout);
    assert!(status.contains("notes 30.0 s, indexer 1.0 s"), "{status}");
}

#[test]
fn an_idle_daemon_has_an_empty_ps_and_says_so() {
    let fake = Fake::start(VERSION);
    let output = run(&fake, &["ps"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(text(&output.stderr), "nothing runs and nothing waits\n");
    let output = run(&fake, &["ps", "--json"]);
    assert_eq!(
        text(&output.stdout),
        "{\"sequences\":[],\"deferred\":[],\"apps\":[]}\n"
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_busy_daemon_is_waited_for_if_asked() {
    let fake = Fake::start(VERSION);
    assert_eq!(run(&fake, &["run", "busy twice"]).status.code(), Some(6));
    let output = run(&fake, &["run", "--wait", "busy twice"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "<busy twice>\n");

    let fake = Fake::start(VERSION);
    let output = run(&fake, &["run", "--wait=1m", "busy later"]);
    assert_eq!(text(&output.stdout), "<busy later>\n");

    // The daemon says 3 s: one second is not enough, and is not waited.
    let output = run(&fake, &["run", "--wait=1s", "busy"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains("try again in 3 s"));
}

#[tokio::test]
async fn an_app_reads_text_events_and_errors() {
    let fake = Fake::start(VERSION);
    let client = Client::connect_to(fake.socket()).await.unwrap();
    assert_eq!(
        client.ask("hello").await.unwrap().text().await.unwrap(),
        "Hello"
    );
    assert_eq!(client.tokenize("ab").await.unwrap(), [97, 98]);
    assert_eq!(client.status().await.unwrap().version, VERSION);
    let error = client.ask("busy").await.unwrap_err();
    let hearth::Error::Rpc(rpc) = error else {
        panic!("{error:?}")
    };
    assert_eq!(rpc.retry_after, Some(Duration::from_secs(3)));

    let mut reply = client.ask("forever").await.unwrap();
    assert!(matches!(reply.next().await.unwrap(), Some(Event::Delta(_))));
    drop(reply);
    tokio::task::spawn_blocking(move || wait_for_drop(&fake))
        .await
        .unwrap();
}
