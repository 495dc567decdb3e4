//! The command `hearth` as a process: what it does where no daemon runs. It never starts one.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `hearth` in an empty home, never starting a daemon.
fn hearth(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .env("HOME", home)
        .env("XDG_STATE_HOME", home.join("state"))
        .env("XDG_RUNTIME_DIR", home)
        .env("HEARTH_AUTOSTART", "0")
        .env("HEARTH_SOCKET", home.join("hearthd.sock"))
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    hearth(home.path()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_and_version_succeed() {
    for args in [
        &["--help"][..],
        &["help", "run"],
        &["--version"],
        &["run", "--help"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn completions_and_pages_need_no_daemon() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains("tokenize"), "{shell}");
    }
    let page = text(&run(&["man"]).stdout);
    assert!(
        page.contains(".TH") && page.contains("Exit codes"),
        "{page}"
    );
    let page = text(&run(&["man", "run"]).stdout);
    assert!(
        page.contains("HEARTH-RUN") && page.contains("min\\-p"),
        "{page}"
    );
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    for name in [
        "hearth.1",
        "hearth-run.1",
        "hearth-doctor.1",
        "hearth-app-socket.1",
    ] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["run"],
        &["run", "--temperature", "warm", "x"],
        &["run", "--logprobs=3", "x"],
        &["man", "nonsense"],
        &["import", "/no/such/file.gguf"],
        &["--socket", "relative.sock", "status"],
    ] {
        let output = run(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn no_daemon_exits_with_8_and_says_how_to_start_it() {
    for args in [
        &["run", "why"][..],
        &["chat"],
        &["tokenize", "why"],
        &["ls"],
        &["show", "x"],
        &["load", "x"],
        &["unload"],
        &["status"],
        &["status", "--watch"],
        &["ps"],
        &["ps", "--apps"],
        &["app-socket", "a", "--", "true"],
    ] {
        let output = run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(
            stderr.starts_with("hearth: the daemon is not running"),
            "{stderr}"
        );
        assert!(
            stderr.contains("\n\nhint: start it with `hearthd`"),
            "{stderr}"
        );
    }
}

#[test]
fn a_relative_or_long_socket_is_named_in_the_failure() {
    let home = tempfile::tempdir().unwrap();
    let long = format!("/{}", "x".repeat(200));
    let output = hearth(home.path())
        .env("HEARTH_SOCKET", &long)
        .arg("status")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("201 bytes"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_failure_in_json_is_one_object_on_stdout() {
    let output = run(&["ls", "--json"]);
    assert_eq!(output.status.code(), Some(8));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["kind"], "unreachable");
    assert_eq!(object["exit_code"], 8);
}

#[test]
fn standard_input_that_is_no_text_is_refused_before_the_daemon_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let mut child = hearth(home.path())
        .args(["run", "why"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&[b'o', b'k', 0xFF])
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("at byte 2"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let home = tempfile::tempdir().unwrap();
    let mut child = hearth(home.path())
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_doctor_works_without_a_daemon() {
    let home = tempfile::tempdir().unwrap();
    let output = hearth(home.path())
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    let stdout = text(&output.stdout);
    let names: Vec<String> = stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|object| object["name"].as_str().map(str::to_owned))
        .collect();
    for name in ["driver", "program", "folder", "daemon"] {
        assert!(names.iter().any(|n| n == name), "{name} in {stdout}");
    }
}

#[test]
fn a_missing_daemon_program_is_told() {
    let home = tempfile::tempdir().unwrap();
    // A copy, so that no hearthd lies beside it.
    let copy = home.path().join("hearth");
    std::fs::copy(env!("CARGO_BIN_EXE_hearth"), &copy).unwrap();
    let output = Command::new(&copy)
        .args(["ls"])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", home.path())
        .env("HEARTH_SOCKET", home.path().join("s.sock"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert!(
        text(&output.stderr).contains("hearthd"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_daemon_that_cannot_start_is_told_with_its_last_words() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("hearth");
    std::fs::copy(env!("CARGO_BIN_EXE_hearth"), &copy).unwrap();
    let daemon = home.path().join("hearthd");
    std::fs::write(
        &daemon,
        "#!/bin/sh\necho 'config.toml:3: unknown key' >&2\nexit 78\n",
    )
    .unwrap();
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(&copy)
        .args(["ls"])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", "/usr/bin:/bin")
        .env("HEARTH_SOCKET", home.path().join("s.sock"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{stderr}");
    assert!(
        stderr.contains("unknown key") && stderr.contains("hearthd.log"),
        "{stderr}"
    );
}
