//! The units: sound to systemd and launchd, and closed as far as the daemon can bear.

use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The units in a folder of their own, with a program that exists.
fn units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["hearthd.service", "hearthd.socket"] {
        let text = std::fs::read_to_string(root().join("systemd").join(name)).unwrap();
        let text = text.replace("%h/.local/bin/hearthd", "/bin/true");
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// What `systemd-analyze` says, where there is one.
fn analyze(units: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("systemd-analyze");
    command.arg("--user").args(arguments).current_dir(units);
    let output = command.env("XDG_RUNTIME_DIR", units).output().ok()?;
    Some(output)
}

fn all(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

#[test]
fn systemd_finds_nothing_wrong() {
    let units = units();
    let Some(said) = analyze(
        units.path(),
        &["verify", "./hearthd.service", "./hearthd.socket"],
    ) else {
        return; // Not every system has systemd.
    };
    let text = all(&said);
    // Versions differ in what they know, and each is allowed to say so of what is new to it.
    let faults: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("hearthd") && !line.contains("Unknown system call"))
        .collect();
    assert!(faults.is_empty(), "{text}");
}

#[test]
fn the_service_is_exposed_by_three_of_ten_at_most() {
    let units = units();
    let Some(said) = analyze(
        units.path(),
        &[
            "security",
            "--offline=true",
            "--threshold=30",
            "./hearthd.service",
        ],
    ) else {
        return;
    };
    let text = all(&said);
    if text.contains("unrecognized option") {
        return; // Before version 250 it could not look at a file.
    }
    assert!(text.contains("Overall exposure level"), "{text}");
    assert!(said.status.success(), "{text}");
}

#[test]
fn launchd_gets_what_the_daemon_asks_for() {
    let path = root().join("launchd/org.hearth.hearthd.plist");
    let check = "\
import plistlib, sys
agent = plistlib.load(open(sys.argv[1], 'rb'))
socket = agent['Sockets']['Listeners']
assert socket['SockFamily'] == 'Unix' and socket['SockPathMode'] == 0o600, socket
assert socket['SockPathName'].startswith('/')
assert agent['Umask'] == 0o077 and agent['HardResourceLimits']['Core'] == 0
assert agent['KeepAlive'] == {'SuccessfulExit': False}
assert agent['RunAtLoad'] is True and agent['Label'] == 'org.hearth.hearthd'
assert agent['ProcessType'] == 'Adaptive' and agent['ExitTimeOut'] == 20
";
    let Ok(output) = Command::new("python3")
        .args(["-c", check])
        .arg(&path)
        .output()
    else {
        return; // There is no Python here; `make test` installs one.
    };
    assert!(output.status.success(), "{}", all(&output));
    // The name by which the daemon asks for it.
    let source = root().join("daemon/src/socket/activation.rs");
    assert!(
        std::fs::read_to_string(source)
            .unwrap()
            .contains("c\"Listeners\"")
    );
}
