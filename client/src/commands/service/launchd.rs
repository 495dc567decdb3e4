//! The service in the user's launchd: the text of its agent, and the calls that install, start and
//! remove it. The text is the file in `launchd/`, with paths put in.

use std::path::{Path, PathBuf};

use crate::exit::{Failure, Kind};

use super::steps::{Call, Step};
use super::{Place, State};

const LABEL: &str = "org.hearth.hearthd";
const TEXT: &str = include_str!("../../../../launchd/org.hearth.hearthd.plist");
/// The paths in the file that are put in.
const PROGRAM: &str = "<string>/usr/local/bin/hearthd</string>";
const SOCKET: &str =
    "<string>/Users/NAME/Library/Application Support/hearth/run/hearthd.sock</string>";
const LOG: &str = "<string>/Users/NAME/Library/Application Support/hearth/hearthd.log</string>";

fn launchctl(arguments: &[&str]) -> Call {
    Call::new("launchctl", arguments)
}

/// Where the user's agents run.
fn domain() -> String {
    #[cfg(unix)]
    let user = rustix::process::getuid().as_raw();
    #[cfg(not(unix))]
    let user = 0;
    format!("gui/{user}")
}

fn agent_path() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let home = home.filter(|path| path.is_absolute());
    let home = home.ok_or_else(|| Failure::new(Kind::Runtime, "HOME is not set"))?;
    let name = format!("Library/LaunchAgents/{LABEL}.plist");
    Ok(home.join(name))
}

/// Checks that there is a launchd that takes agents of this user.
///
/// # Errors
/// There is none, with a hint.
pub(super) async fn check() -> Result<(), Failure> {
    let asked = launchctl(&["print", &domain()]).output().await;
    asked.map(drop).map_err(|failure| match failure.hint {
        Some(_) => failure,
        None => failure.with_hint("agents run in a graphical session: log in at the machine"),
    })
}

/// A path as text in XML.
fn word(path: &Path) -> Result<String, Failure> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| {
        Failure::usage(format!("{} cannot be written in an agent", path.display()))
    })?;
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    Ok(format!("<string>{}</string>", text.replace('>', "&gt;")))
}

fn text(place: &Place) -> Result<String, Failure> {
    Ok(TEXT
        .replace(PROGRAM, &word(&place.program)?)
        .replace(SOCKET, &word(&place.socket)?)
        .replace(LOG, &word(&place.log)?))
}

/// What installs it, or brings an installed one up to date.
///
/// # Errors
/// A path cannot be written in an agent, or the home directory is unknown.
pub(super) fn install(place: &Place) -> Result<Vec<Step>, Failure> {
    let path = agent_path()?;
    let agent = format!("{}/{LABEL}", domain());
    let mut folders = place.folders.clone();
    // launchd makes no folder for a socket or a log.
    folders.extend(place.socket.parent().map(Path::to_owned));
    folders.extend(place.log.parent().map(Path::to_owned));
    let mut steps: Vec<Step> = folders.into_iter().map(Step::MakeFolder).collect();
    steps.push(Step::Write {
        path: path.clone(),
        text: text(place)?,
    });
    steps.push(Step::Run(launchctl(&["bootout", &agent]).may_fail()));
    steps.extend(place.running.map(|pid| Step::EndDaemon { pid }));
    let path = path.to_string_lossy();
    steps.push(Step::Run(launchctl(&["enable", &agent])));
    steps.push(Step::Run(launchctl(&["bootstrap", &domain(), &path])));
    Ok(steps)
}

/// What removes it.
///
/// # Errors
/// The home directory is unknown.
pub(super) fn uninstall() -> Result<Vec<Step>, Failure> {
    let agent = format!("{}/{LABEL}", domain());
    Ok(vec![
        Step::Run(launchctl(&["bootout", &agent]).may_fail()),
        Step::Remove(agent_path()?),
    ])
}

/// What starts it.
///
/// # Errors
/// The home directory is unknown.
pub(super) fn start(running: Option<u32>) -> Result<Vec<Step>, Failure> {
    let path = agent_path()?;
    let agent = format!("{}/{LABEL}", domain());
    let mut steps: Vec<Step> = running
        .map(|pid| Step::EndDaemon { pid })
        .into_iter()
        .collect();
    // It fails if the agent is there already.
    let bootstrap = launchctl(&["bootstrap", &domain(), &path.to_string_lossy()]);
    steps.push(Step::Run(bootstrap.may_fail()));
    steps.push(Step::Run(launchctl(&["kickstart", &agent])));
    Ok(steps)
}

/// What stops it.
pub(super) fn stop() -> Vec<Step> {
    vec![Step::Run(launchctl(&[
        "bootout",
        &format!("{}/{LABEL}", domain()),
    ]))]
}

/// How it is.
///
/// # Errors
/// The home directory is unknown.
pub(super) async fn state() -> Result<State, Failure> {
    let is_installed = agent_path()?.exists();
    let asked = launchctl(&["print", &format!("{}/{LABEL}", domain())]);
    // It fails if the agent is not there.
    let printed = asked.output().await.unwrap_or_default();
    let of = |name: &str| {
        let line = printed
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    let state = of("state =");
    Ok(State {
        is_installed,
        is_enabled: is_installed,
        is_running: state.as_deref() == Some("running"),
        is_listening: state.is_some(),
        pid: of("pid =").and_then(|pid| pid.parse().ok()),
        words: state.unwrap_or_else(|| "not loaded".to_owned()),
    })
}

/// What shows the log.
pub(super) fn logs(log: &Path, lines: u32, follow: bool) -> Call {
    let (lines, log) = (lines.to_string(), log.to_string_lossy());
    let mut arguments = vec!["-n", &lines];
    if follow {
        arguments.push("-F");
    }
    arguments.push(&log);
    Call::new("tail", &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_in_as_text() {
        let place = Place {
            program: PathBuf::from("/opt/a & <b>/hearthd"),
            socket: PathBuf::from("/Users/me/run/hearthd.sock"),
            folders: Vec::new(),
            log: PathBuf::from("/Users/me/hearthd.log"),
            no_namespaces: false,
            running: None,
        };
        let text = text(&place).unwrap();
        assert!(
            text.contains("<string>/opt/a &amp; &lt;b&gt;/hearthd</string>"),
            "{text}"
        );
        assert_eq!(
            text.matches("<string>/Users/me/hearthd.log</string>")
                .count(),
            2
        );
        assert!(text.contains("<string>/Users/me/run/hearthd.sock</string>"));
        assert!(
            !text.contains("NAME") && !text.contains("/usr/local"),
            "{text}"
        );
    }
}
