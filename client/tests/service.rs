//! `hearth service` against service managers that only write down what they are asked.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fake::Fake;
use serde_json::Value;

/// A home with service managers in it.
struct Home {
    dir: tempfile::TempDir,
    socket: PathBuf,
}

/// Writes down its name and arguments; fails at the word in `fail`, says what is in `say`.
const MANAGER: &str = "#!/bin/sh
here=${0%/*}/..
echo \"${0##*/} $*\" >> \"$here/calls\"
if [ -f \"$here/fail\" ]; then
    case \"$*\" in *\"$(cat \"$here/fail\")\"*) echo 'it cannot be' >&2; exit 4 ;; esac
fi
[ ! -f \"$here/say\" ] || cat \"$here/say\"
";

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "run/hearth"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for name in ["systemctl", "journalctl", "launchctl", "tail"] {
            program(&dir.path().join("bin").join(name), MANAGER);
        }
        program(&dir.path().join("a daemon"), "#!/bin/sh\n");
        let socket = dir.path().join("run/hearth/hearthd.sock");
        Self { dir, socket }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        command.args(args).env_clear().env("PATH", path);
        command.env("HOME", self.dir.path());
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        command.env("HEARTH_SOCKET", &self.socket);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that has to succeed, and hands out what it wrote.
    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the managers were asked since the last time.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        calls.lines().map(str::to_owned).collect()
    }

    fn install(&self, manager: &str) -> String {
        let program = self.path("a daemon").display().to_string();
        self.done(&[
            "service",
            "--manager",
            manager,
            "install",
            "--program",
            &program,
        ])
    }

    /// Every file beneath the home but the managers' own.
    fn files(&self) -> Vec<String> {
        let mut folders = vec![self.dir.path().to_owned()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.dir.path()).unwrap();
                let name = name.display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.starts_with("bin/") {
                    found.push(name);
                }
            }
        }
        found.sort();
        found
    }
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn systemd_gets_its_units_and_is_told_to_start_them() {
    let home = Home::new();
    let before = home.files();
    let said = home.install("systemd");
    assert!(said.starts_with("installed"), "{said}");
    assert_eq!(
        home.calls(),
        [
            "systemctl --user show-environment",
            "systemctl --user daemon-reload",
            "systemctl --user enable hearthd.socket hearthd.service",
            "systemctl --user start hearthd.socket",
            "systemctl --user restart hearthd.service",
        ]
    );
    let units = home.path(".config/systemd/user");
    let service = fs::read_to_string(units.join("hearthd.service")).unwrap();
    let exec = format!("\nExecStart=\"{}\"\n", home.path("a daemon").display());
    assert!(service.contains(&exec), "{service}");
    let socket = fs::read_to_string(units.join("hearthd.socket")).unwrap();
    assert!(
        socket.contains("\nListenStream=%t/hearth/hearthd.sock\n"),
        "{socket}"
    );
    let models = home.path(".local/share/hearth/models");
    assert_eq!(
        models.metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );

    // Again, over itself: a new version.
    home.install("systemd");
    home.calls();
    home.done(&["service", "--manager", "systemd", "uninstall"]);
    assert_eq!(
        home.calls(),
        [
            "systemctl --user show-environment",
            "systemctl --user disable --now hearthd.service hearthd.socket",
            "systemctl --user daemon-reload",
            "systemctl --user reset-failed hearthd.service hearthd.socket",
        ]
    );
    assert_eq!(home.files(), before, "nothing is left");
    assert!(
        !home.path(".local/share/hearth").exists(),
        "not even empty folders"
    );
}

#[test]
fn launchd_gets_its_agent_and_is_told_to_load_it() {
    let home = Home::new();
    let before = home.files();
    home.install("launchd");
    let user = format!("gui/{}", rustix::process::getuid().as_raw());
    let agent = home.path("Library/LaunchAgents/org.hearth.hearthd.plist");
    assert_eq!(
        home.calls(),
        [
            format!("launchctl print {user}"),
            format!("launchctl bootout {user}/org.hearth.hearthd"),
            format!("launchctl enable {user}/org.hearth.hearthd"),
            format!("launchctl bootstrap {user} {}", agent.display()),
        ]
    );
    let text = fs::read_to_string(&agent).unwrap();
    assert!(text.contains(&format!("<string>{}</string>", home.socket.display())));
    assert!(
        text.contains("/a daemon</string>") && !text.contains("NAME"),
        "{text}"
    );

    home.done(&["service", "--manager", "launchd", "stop"]);
    home.done(&["service", "--manager", "launchd", "start"]);
    let calls = home.calls();
    assert!(
        calls.iter().any(|call| call.contains("kickstart")),
        "{calls:?}"
    );
    home.done(&["service", "--manager", "launchd", "uninstall"]);
    assert_eq!(
        home.calls()[1..],
        [format!("launchctl bootout {user}/org.hearth.hearthd")]
    );
    assert_eq!(home.files(), before, "nothing is left");
}

#[test]
fn a_dry_run_tells_all_and_does_nothing() {
    let home = Home::new();
    let before = home.files();
    let program = home.path("a daemon").display().to_string();
    let install = [
        "service",
        "--manager",
        "systemd",
        "install",
        "--program",
        &program,
    ];
    let said = home.done(&[&install[..], &["--dry-run"]].concat());
    for line in [
        "run systemctl --user daemon-reload",
        "run systemctl --user restart hearthd.service",
        "    PrivateUsers=yes",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    let without = home.done(&[&install[..], &["--dry-run", "--no-namespaces"]].concat());
    assert!(!without.contains("PrivateUsers=yes"));
    let json = home.done(&[&install[..], &["--dry-run", "--json"]].concat());
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["dry_run"], true);
    let steps = value["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["step"] == "write"), "{value}");
    for action in ["start", "stop", "uninstall"] {
        home.done(&["service", "--manager", "systemd", action, "--dry-run"]);
    }
    assert_eq!(home.calls(), Vec::<String>::new());
    assert_eq!(home.files(), before);
    assert!(!home.path(".local").exists());
}

#[test]
fn status_and_logs_are_the_managers_words() {
    let home = Home::new();
    let say = |text: &str| fs::write(home.path("say"), text).unwrap();
    let status = ["service", "--manager", "systemd", "status"];
    say(
        "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n\
         MainPID=42\nStatusText=ready, tiny is warm\n",
    );
    let said = home.done(&status);
    assert!(
        said.contains("active (running), ready, tiny is warm, process 42"),
        "{said}"
    );
    assert!(said.contains("starts at login"), "{said}");
    let json = home.done(&[&status[..], &["--json"]].concat());
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&value["pid"], &value["running"]),
        (&42.into(), &true.into())
    );

    say("LoadState=not-found\nActiveState=inactive\nSubState=dead\nMainPID=0\n");
    let output = home.run(&status);
    assert_eq!(output.status.code(), Some(8));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("not installed"), "{said}");

    say("a line of the log\n");
    home.calls();
    let logs = ["service", "--manager", "systemd", "logs", "-n", "3"];
    assert_eq!(home.done(&logs), "a line of the log\n");
    assert_eq!(
        home.calls(),
        ["journalctl --user --unit hearthd.service --lines 3 --no-pager --follow"]
    );
    home.done(&["service", "--manager", "launchd", "logs", "--no-follow"]);
    let calls = home.calls();
    assert!(
        calls[0].starts_with("tail -n 20 /") && calls[0].ends_with("hearthd.log"),
        "{calls:?}"
    );
}

#[test]
fn what_goes_wrong_is_told_with_a_way_out() {
    let home = Home::new();
    let program = home.path("a daemon").display().to_string();
    let install = [
        "service",
        "--manager",
        "systemd",
        "install",
        "--program",
        &program,
    ];
    let fails = |word: &str| {
        fs::write(home.path("fail"), word).unwrap();
        let output = home.run(&install);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = fails("show-environment");
    assert!(
        said.contains("it cannot be") && said.contains("enable-linger"),
        "{said}"
    );
    assert!(!home.path(".config").exists(), "nothing was written");
    fs::write(home.path("say"), "226\n").unwrap();
    let said = fails("restart");
    assert!(said.contains("--no-namespaces"), "{said}");

    fs::remove_file(home.path("bin/systemctl")).unwrap();
    let mut command = home.command(&install);
    let output = command.env("PATH", home.path("bin")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no `systemctl`"), "{said}");
}

#[test]
fn a_daemon_that_runs_apart_makes_way() {
    let fake = Fake::start(env!("CARGO_PKG_VERSION"));
    assert!(!fake.dropped.load(std::sync::atomic::Ordering::Relaxed));
    let mut home = Home::new();
    home.socket = fake.socket();
    let start = ["service", "--manager", "systemd", "start", "--dry-run"];
    let said = home.done(&start);
    assert!(
        said.starts_with("end the daemon that runs (process "),
        "{said}"
    );
    drop(fake);
    assert!(
        home.done(&start).starts_with("run systemctl"),
        "nobody runs"
    );
}
