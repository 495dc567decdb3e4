//! `hearth app-socket` against a daemon of canned answers: the path, the command it runs, signals,
//! exit codes.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::Fake;
use rustix::process::{Pid, Signal, kill_process};

const PATH: &str = "/run/org.example.App/.sock";

fn hearth(fake: &Fake, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .arg("app-socket")
        .args(args)
        .env("HOME", fake.dir.path())
        .env_remove("HEARTH_AUTOSTART")
        .env("HEARTH_SOCKET", fake.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(fake: &Fake, args: &[&str]) -> Output {
    hearth(fake, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Starts it and reads the first line that it, or its command, prints.
fn started(fake: &Fake, args: &[&str]) -> (Child, String) {
    let mut child = hearth(fake, args).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    (child, line.trim_end().to_owned())
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn wait_for_drop(fake: &Fake) {
    let begin = Instant::now();
    while !fake.dropped.load(Ordering::SeqCst) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the socket was not given back"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[test]
fn the_path_alone_is_printed_and_a_signal_ends_it_well() {
    for ending in [Signal::INT, Signal::TERM] {
        let fake = Fake::start(version());
        let (mut child, line) = started(&fake, &["org.example.App"]);
        assert_eq!(line, PATH);
        assert!(child.try_wait().unwrap().is_none(), "it holds the socket");
        assert!(!fake.dropped.load(Ordering::SeqCst));
        signal(&child, ending);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
        wait_for_drop(&fake);
    }
}

#[test]
fn json_is_one_object() {
    let fake = Fake::start(version());
    let (child, line) = started(&fake, &["--json", "a", "--instance", "two"]);
    signal(&child, Signal::TERM);
    child.wait_with_output().unwrap();
    assert_eq!(
        line,
        r#"{"event":"app_socket","app":"a","instance":"two","socket_path":"/run/a/two.sock"}"#
    );
}

#[test]
fn a_launcher_that_is_killed_gives_the_socket_back() {
    let fake = Fake::start(version());
    let (mut child, _) = started(&fake, &["org.example.App"]);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for_drop(&fake);
}

#[test]
fn a_command_finds_the_socket_and_its_exit_code_is_passed_on() {
    let fake = Fake::start(version());
    let script = "echo \"$HEARTH_SOCKET $HEARTH_AUTOSTART $1\"; exit 42";
    let args = ["org.example.App", "--", "sh", "-c", script, "sh", "--json"];
    let output = run(&fake, &args);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(text(&output.stdout), format!("{PATH} 0 --json\n"));
    assert_eq!(text(&output.stderr), "", "the command says why itself");
    wait_for_drop(&fake);
    let output = run(&fake, &["--json", "a", "--", "sh", "-c", "exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "", "stdout is the command's");
    assert_eq!(run(&fake, &["a", "--", "true"]).status.code(), Some(0));
    let killed = run(&fake, &["a", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn signals_are_the_commands_affair() {
    let fake = Fake::start(version());
    // It says how it was ended. A sleep in the background, so that the shell hears at once.
    let script = "trap 'kill $!; exit 7' TERM; echo ready; sleep 60 & wait";
    let (child, line) = started(&fake, &["a", "--", "sh", "-c", script]);
    assert_eq!(line, "ready");
    // The terminal would send this to the command as well.
    signal(&child, Signal::INT);
    signal(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    wait_for_drop(&fake);
}

#[test]
fn a_socket_that_is_lost_ends_the_wait_and_not_the_command() {
    let fake = Fake::start(version());
    let output = run(&fake, &["draining"]);
    assert_eq!(output.status.code(), Some(8));
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("hearth: the app socket is closed: "),
        "{stderr}"
    );
    // The command ends when it has seen the warning.
    let heard = fake.dir.path().join("stderr");
    let script = "until grep -q closed \"$1\"; do sleep 0.05; done; exit 5";
    let heard_path = heard.to_str().unwrap();
    let args = ["draining", "--", "sh", "-c", script, "sh", heard_path];
    let status = hearth(&fake, &args)
        .stderr(std::fs::File::create(&heard).unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(5));
    let stderr = std::fs::read_to_string(&heard).unwrap();
    assert!(
        stderr.starts_with("hearth: warning: the app socket is closed: "),
        "{stderr}"
    );
}

#[test]
fn refusals_have_their_exit_codes() {
    let fake = Fake::start(version());
    for (app, code) in [("inside", 3), ("full", 6), ("bad name", 2)] {
        let output = run(&fake, &[app, "--", "echo", "it ran"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{app}: {stderr}");
        assert!(output.stdout.is_empty(), "the command does not run");
        assert!(stderr.starts_with("hearth: refused"), "{stderr}");
    }
    let output = run(&fake, &["a", "--", "no-such-program-anywhere"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cannot run no-such-program"), "{stderr}");
}
