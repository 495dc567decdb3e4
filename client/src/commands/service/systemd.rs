//! The service in the user's systemd: the texts of its units, and the calls that install, start and
//! remove them. The texts are the files in `systemd/`, with paths put in.

use std::path::{Path, PathBuf};

use crate::exit::{Failure, Kind};

use super::steps::{Call, Step};
use super::{Place, State};

const SERVICE: &str = "hearthd.service";
const SOCKET: &str = "hearthd.socket";
const SERVICE_TEXT: &str = include_str!("../../../../systemd/hearthd.service");
const SOCKET_TEXT: &str = include_str!("../../../../systemd/hearthd.socket");

/// The lines of the unit that hold paths, as they are in the file.
const EXEC_LINE: &str = "ExecStart=%h/.local/bin/hearthd\n";
const LISTEN_LINE: &str = "ListenStream=%t/hearth/hearthd.sock\n";
const WRITE_LINE: &str =
    "ReadWritePaths=-%h/.local/share/hearth -%h/.local/state/hearth -%h/.cache -%h/.nv %t/hearth\n";
/// What marks the part of the unit that needs user namespaces.
const NAMESPACES: (&str, &str) = ("# begin namespaces\n", "# end namespaces\n");
/// Exit codes of systemd's own child: the namespaces cannot be had.
const EXIT_NAMESPACES: [&str; 3] = ["217", "218", "226"];

/// The folder of the user's units.
fn unit_folder() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let absolute = |path: &PathBuf| path.is_absolute();
    let config = set("XDG_CONFIG_HOME")
        .filter(absolute)
        .or_else(|| Some(set("HOME").filter(absolute)?.join(".config")));
    let config = config.ok_or_else(|| Failure::new(Kind::Runtime, "HOME is not set"))?;
    Ok(config.join("systemd/user"))
}

fn systemctl(arguments: &[&str]) -> Call {
    Call::new("systemctl", &[&["--user"], arguments].concat())
}

/// Checks that there is a systemd of this user's.
///
/// # Errors
/// There is none, with a hint.
pub(super) async fn check() -> Result<(), Failure> {
    let asked = systemctl(&["show-environment"]).output().await;
    asked.map(drop).map_err(|failure| match failure.hint {
        Some(_) => failure,
        None => failure.with_hint(
            "this user has no systemd of its own here; log in at the machine or by SSH, or ask for \
             one with `loginctl enable-linger`",
        ),
    })
}

/// A path as a word in a unit: nothing in it is expanded, and it is one word.
fn word(path: &Path) -> Result<String, Failure> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    let text = text
        .ok_or_else(|| Failure::usage(format!("{} cannot be written in a unit", path.display())))?;
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

fn service_text(place: &Place) -> Result<String, Failure> {
    // Only here a dollar sign would be expanded.
    let program = word(&place.program)?.replace('$', "$$");
    let mut write = WRITE_LINE.trim_end().to_owned();
    for folder in &place.folders {
        write.push_str(" -");
        write.push_str(&word(folder)?);
    }
    let text = SERVICE_TEXT
        .replace(EXEC_LINE, &format!("ExecStart={program}\n"))
        .replace(WRITE_LINE, &format!("{write}\n"));
    if !place.no_namespaces {
        return Ok(text);
    }
    let (begin, end) = NAMESPACES;
    let parts = text.split_once(begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(end)?;
        Some(format!(
            "{before}# Left out: this system forbids user namespaces.\n{after}"
        ))
    });
    Ok(parts.unwrap_or(text))
}

fn socket_text(place: &Place) -> Result<String, Failure> {
    let usual = std::env::var_os("XDG_RUNTIME_DIR")
        .map(|runtime| Path::new(&runtime).join("hearth/hearthd.sock"));
    if usual.as_deref() == Some(&place.socket) {
        return Ok(SOCKET_TEXT.to_owned());
    }
    // The rest of the line is the path, blanks and quotes included.
    let path = place.socket.to_string_lossy().replace('%', "%%");
    Ok(SOCKET_TEXT.replace(LISTEN_LINE, &format!("ListenStream={path}\n")))
}

/// What installs it, or brings an installed one up to date.
///
/// # Errors
/// A path cannot be written in a unit.
pub(super) fn install(place: &Place) -> Result<Vec<Step>, Failure> {
    let folder = unit_folder()?;
    let mut steps: Vec<Step> = place
        .folders
        .iter()
        .cloned()
        .map(Step::MakeFolder)
        .collect();
    steps.extend([
        Step::Write {
            path: folder.join(SOCKET),
            text: socket_text(place)?,
        },
        Step::Write {
            path: folder.join(SERVICE),
            text: service_text(place)?,
        },
        Step::Run(systemctl(&["daemon-reload"])),
    ]);
    steps.extend(place.running.map(|pid| Step::EndDaemon { pid }));
    steps.extend([
        Step::Run(systemctl(&["enable", SOCKET, SERVICE])),
        Step::Run(systemctl(&["start", SOCKET])),
        // The one that runs may be of an older version. Callers wait at the socket meanwhile.
        Step::Run(systemctl(&["restart", SERVICE])),
    ]);
    Ok(steps)
}

/// What removes it.
///
/// # Errors
/// The home directory is unknown.
pub(super) fn uninstall() -> Result<Vec<Step>, Failure> {
    let folder = unit_folder()?;
    Ok(vec![
        // Units that are not there, or do not run, are as wanted already.
        Step::Run(systemctl(&["disable", "--now", SERVICE, SOCKET]).may_fail()),
        Step::Remove(folder.join(SERVICE)),
        Step::Remove(folder.join(SOCKET)),
        Step::Run(systemctl(&["daemon-reload"])),
        Step::Run(systemctl(&["reset-failed", SERVICE, SOCKET]).may_fail()),
    ])
}

/// What starts it.
pub(super) fn start(running: Option<u32>) -> Vec<Step> {
    let mut steps: Vec<Step> = running
        .map(|pid| Step::EndDaemon { pid })
        .into_iter()
        .collect();
    steps.push(Step::Run(systemctl(&["start", SOCKET, SERVICE])));
    steps
}

/// What stops it.
pub(super) fn stop() -> Vec<Step> {
    vec![Step::Run(systemctl(&["stop", SERVICE, SOCKET]))]
}

/// What a failure to start may be due to.
pub(super) async fn advice() -> &'static str {
    let asked = systemctl(&["show", SERVICE, "--property=ExecMainStatus", "--value"]);
    let status = asked.output().await.unwrap_or_default();
    if EXIT_NAMESPACES.contains(&status.trim()) {
        return "this system forbids user namespaces: try `hearth service install --no-namespaces`";
    }
    "`hearth service logs --no-follow` tells more"
}

/// How it is.
///
/// # Errors
/// systemd does not answer.
pub(super) async fn state() -> Result<State, Failure> {
    let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,MainPID,StatusText";
    let service = systemctl(&["show", SERVICE, properties]).output().await?;
    let socket = systemctl(&["show", SOCKET, "--property=ActiveState"]);
    let socket = socket.output().await?;
    let of = |text: &str, name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    let active = of(&service, "ActiveState");
    let mut words = format!("{active} ({})", of(&service, "SubState"));
    let text = of(&service, "StatusText");
    if !text.is_empty() {
        words = format!("{words}, {text}");
    }
    Ok(State {
        is_installed: of(&service, "LoadState") == "loaded",
        is_enabled: of(&service, "UnitFileState") == "enabled",
        is_running: active == "active",
        is_listening: of(&socket, "ActiveState") == "active",
        pid: of(&service, "MainPID").parse().ok().filter(|pid| *pid != 0),
        words,
    })
}

/// What shows the log.
pub(super) fn logs(lines: u32, follow: bool) -> Call {
    let lines = lines.to_string();
    let mut arguments = vec!["--user", "--unit", SERVICE, "--lines", &lines, "--no-pager"];
    if follow {
        arguments.push("--follow");
    }
    Call::new("journalctl", &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            program: PathBuf::from("/opt/a b/100%/$x/hearthd"),
            socket: PathBuf::from("/run/elsewhere/100%/hearthd.sock"),
            folders: vec![PathBuf::from("/data/my \"models\"")],
            log: PathBuf::from("/log"),
            no_namespaces: false,
            running: None,
        }
    }

    #[test]
    fn paths_are_put_in_and_nothing_in_them_is_expanded() {
        let text = service_text(&place()).unwrap();
        assert!(
            text.contains("\nExecStart=\"/opt/a b/100%%/$$x/hearthd\"\n"),
            "{text}"
        );
        assert!(
            text.contains("%t/hearth -\"/data/my \\\"models\\\"\"\n"),
            "{text}"
        );
        assert!(!text.contains(EXEC_LINE) && text.contains("PrivateUsers=yes\n"));
        let text = socket_text(&place()).unwrap();
        assert!(
            text.contains("\nListenStream=/run/elsewhere/100%%/hearthd.sock\n"),
            "{text}"
        );
        let bad = Path::new("/a\nExecStart=/b");
        assert!(word(bad).is_err());
    }

    #[test]
    fn namespaces_can_be_left_out() {
        let place = Place {
            no_namespaces: true,
            ..place()
        };
        let text = service_text(&place).unwrap();
        assert!(!text.contains("PrivateUsers=yes") && !text.contains("ReadWritePaths"));
        assert!(text.contains("NoNewPrivileges=yes\n") && text.contains("WantedBy="));
    }
}
