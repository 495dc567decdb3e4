//! `hearth status`: what the daemon is doing, once or at every change.

use std::fmt::Write as _;

use hearth::v1::{
    AppSocketStatus, Counters, DaemonStatus, DeferredStatus, LifecycleState, WatchStatusRequest,
};

use crate::cli::{Global, StatusArgs};
use crate::exit::Failure;
use crate::json;
use crate::output::{Output, bytes};

use super::{connect_to_running, power, ps};

/// Moves to the upper left corner and clears the screen below.
const CLEAR_SCREEN: &str = "\u{1b}[H\u{1b}[J";

/// Apps that `hearth status` names; `hearth ps --apps` has all.
const BUSIEST: usize = 3;

/// Shows the daemon's state. Never starts a daemon: one that does not run is an answer.
///
/// # Errors
/// The daemon cannot be reached.
pub(crate) async fn status(
    args: StatusArgs,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let client = connect_to_running(global).await?;
    if !args.watch {
        return show(&client.status().await?, output);
    }
    let mut stream = client
        .daemon()
        .watch_status(WatchStatusRequest { min_interval: None })
        .await
        .map_err(hearth::Error::from)?
        .into_inner();
    while let Some(response) = stream.message().await.map_err(hearth::Error::from)? {
        let Some(status) = response.status else {
            continue;
        };
        if output.shares_screen() && !output.json {
            output.text(CLEAR_SCREEN)?;
        }
        show(&status, output)?;
    }
    Ok(())
}

fn show(status: &DaemonStatus, output: Output) -> Result<(), Failure> {
    if output.json {
        return Ok(output.object(&json::status(status))?);
    }
    Ok(output.text(&text(status))?)
}

/// The state as text: one fact a line, the most important first.
pub(crate) fn text(status: &DaemonStatus) -> String {
    let mut lines = Lines(String::new());
    lines.add("daemon", &daemon(status));
    if let Some(reason) = &status.reason {
        lines.add("", reason);
    }
    model_lines(status, &mut lines);
    if let Some(adapter) = &status.adapter {
        let kind = json::adapter_kind(adapter.kind);
        lines.add(
            "adapter",
            &format!("{} ({kind}, {})", adapter.name, adapter.backend),
        );
        if !adapter.driver.is_empty() {
            lines.add("driver", &adapter.driver);
        }
    }
    if let Some(queue) = &status.queue {
        lines.add(
            "requests",
            &format!(
                "{} running of {}, {} waiting of {}",
                queue.active, queue.slots, queue.waiting, queue.waiting_max
            ),
        );
    }
    lines.add("deferred", &deferred(status));
    if let Some(counters) = &status.counters {
        counter_lines(counters, &mut lines);
    }
    lines.add("apps", &busiest(status));
    if let Some(plan) = &status.plan {
        lines.add("plan", &power::line(plan));
    }
    if let Some(rss) = status.rss_bytes {
        lines.add("memory", &format!("{} resident", bytes(rss)));
    }
    lines.add("socket", &socket(status));
    if let Some(process) = &status.process {
        lines.add("hardening", &process.hardening.join(", "));
        let watchdog = json::ms(process.watchdog).map(duration);
        let words = watchdog.map(|period| format!("restarted after a silence of {period}"));
        lines.add("watchdog", &words.unwrap_or_default());
    }
    for socket in &status.app_sockets {
        lines.add("app socket", &app_socket(socket));
    }
    for warning in &status.warnings {
        lines.add("warning", warning);
    }
    lines.0
}

fn counter_lines(counters: &Counters, lines: &mut Lines) {
    let remark = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!(" ({count} {what})"),
    };
    lines.add(
        "so far",
        &format!(
            "{} requests{}, {} prompt tokens{}, {} generated tokens{}",
            counters.requests,
            remark(counters.refused, "more refused"),
            counters.prompt_tokens,
            remark(counters.cached_tokens, "from the cache"),
            counters.generated_tokens,
            speed(counters.generated_tokens, json::ms(counters.decode_time)),
        ),
    );
    if let Some(energy) = counters.energy.filter(|energy| energy.joules > 0.0) {
        lines.add("energy", &ps::joules(&energy));
    }
    if counters.drafted_tokens > 0 {
        lines.add(
            "speculation",
            &format!(
                "{} of {} drafted tokens accepted",
                counters.accepted_tokens, counters.drafted_tokens
            ),
        );
    }
}

/// The requests that wait for their time, by what they wait for; nothing if there are none.
fn deferred(status: &DaemonStatus) -> String {
    let reasons = ["until idle", "until mains"].map(|reason| {
        let waits = |request: &&DeferredStatus| ps::reason(request) == reason;
        (status.deferred.iter().filter(waits).count(), reason)
    });
    let words = reasons
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"));
    words.collect::<Vec<_>>().join(", ")
}

/// The apps that used the most of the GPU's time; nothing before the first request.
fn busiest(status: &DaemonStatus) -> String {
    let users: Vec<_> = ps::by_gpu_time(status)
        .into_iter()
        .filter(|app| app.requests > 0)
        .collect();
    let mut words: Vec<String> = users
        .iter()
        .take(BUSIEST)
        .map(|app| format!("{} {}", app.app, ps::gpu_time(app.gpu_time)))
        .collect();
    if users.len() > BUSIEST {
        words.push(format!("{} more", users.len() - BUSIEST));
    }
    words.join(", ")
}

fn socket(status: &DaemonStatus) -> String {
    let process = status.process.as_ref();
    match process.is_some_and(|process| process.socket_activated) {
        true => format!("{} (kept by the service manager)", status.socket_path),
        false => status.socket_path.clone(),
    }
}

fn daemon(status: &DaemonStatus) -> String {
    let state = json::lifecycle(status.state);
    let uptime = json::ms(status.uptime).map(|ms| format!(", up {}", duration(ms)));
    let uptime = uptime.unwrap_or_default();
    // Sandboxed apps are not told.
    let pid = match status.pid {
        0 => String::new(),
        pid => format!(", pid {pid}"),
    };
    format!("{state}, version {}{pid}{uptime}", status.version)
}

fn model_lines(status: &DaemonStatus, lines: &mut Lines) {
    if let Some(loading) = &status.loading {
        let percent = loading
            .done_bytes
            .saturating_mul(100)
            .checked_div(loading.total_bytes);
        let percent = percent
            .map(|percent| format!(", {percent}%"))
            .unwrap_or_default();
        lines.add("model", &format!("loading {}{percent}", loading.name));
    }
    if status.models.is_empty()
        && status.loading.is_none()
        && status.state == i32::from(LifecycleState::Ready)
    {
        lines.add("model", "none is warm");
    }
    for (nth, warm) in status.models.iter().enumerate() {
        let info = warm.info.clone().unwrap_or_default();
        let stays = match json::ms(warm.unloads_in) {
            _ if warm.pinned => " (pinned)".to_owned(),
            Some(ms) => format!(" for {} more", duration(ms)),
            None => String::new(),
        };
        // Of the others the daemon does not tell.
        let activations = match nth {
            0 => format!(", {} activations", json::activations(status.activations)),
            _ => String::new(),
        };
        lines.add(
            if nth == 0 { "model" } else { "beside it" },
            &format!(
                "{} ({}), warm{stays}, context {} tokens{activations}",
                info.name, info.quantization, warm.context_len,
            ),
        );
        lines.add(
            "GPU memory",
            &format!(
                "{} weights, {} KV ({} of {} blocks used, {} kept), {} scratch",
                bytes(warm.weights_bytes),
                bytes(warm.kv_bytes),
                warm.kv_blocks_used,
                warm.kv_blocks_total,
                warm.kv_blocks_cached,
                bytes(warm.scratch_bytes)
            ),
        );
    }
}

fn app_socket(socket: &AppSocketStatus) -> String {
    let instance = socket.instance.as_ref();
    let instance = instance
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    format!(
        "{}{instance}, {} connections, held by process {}",
        socket.app, socket.connections, socket.launcher_pid
    )
}

/// Lines of a name and a value.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            let _ = writeln!(self.0, "{name:<11} {value}");
        }
    }
}

/// Generated tokens a second, as a remark; nothing before the first token.
fn speed(tokens: u64, decode_ms: Option<f64>) -> String {
    match decode_ms {
        Some(ms) if ms > 0.0 && tokens > 0 => {
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens is small")]
            let rate = tokens as f64 * 1000.0 / ms;
            format!(" ({rate:.1} a second)")
        }
        _ => String::new(),
    }
}

/// Milliseconds as the two largest of days, hours, minutes and seconds.
pub(super) fn duration(ms: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float to integer cast saturates, and the fraction is not wanted"
    )]
    let seconds = (ms / 1000.0) as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth::v1;

    #[test]
    fn a_daemon_without_a_model_is_told_so() {
        let status = DaemonStatus {
            state: v1::LifecycleState::Ready.into(),
            version: "0.1.0".to_owned(),
            pid: 7,
            uptime: Some(prost_types::Duration {
                seconds: 61,
                nanos: 0,
            }),
            warnings: vec!["software adapter: slow".to_owned()],
            app_sockets: vec![AppSocketStatus {
                app: "org.example.App".to_owned(),
                instance: Some("two".to_owned()),
                launcher_pid: 9,
                connections: 3,
            }],
            ..Default::default()
        };
        assert_eq!(
            text(&status),
            "daemon      ready, version 0.1.0, pid 7, up 1 min 1 s\n\
             model       none is warm\n\
             app socket  org.example.App (two), 3 connections, held by process 9\n\
             warning     software adapter: slow\n"
        );
    }

    #[test]
    fn what_apps_share_is_told_in_short() {
        let app = |name: &str, requests, seconds| v1::AppStatus {
            app: name.to_owned(),
            requests,
            gpu_time: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let status = DaemonStatus {
            queue: Some(v1::Queue {
                active: 8,
                waiting: 3,
                waiting_max: 512,
                slots: 8,
                app_waiting_max: 256,
            }),
            counters: Some(Counters {
                requests: 9,
                refused: 1,
                prompt_tokens: 100,
                cached_tokens: 64,
                ..Default::default()
            }),
            apps: vec![
                app("a", 1, 1),
                app("b", 1, 20),
                app("idle", 0, 0),
                app("c", 1, 3),
                app("d", 1, 2),
            ],
            ..Default::default()
        };
        let text = text(&status);
        for line in [
            "requests    8 running of 8, 3 waiting of 512\n",
            "so far      9 requests (1 more refused), 100 prompt tokens (64 from the cache), \
             0 generated tokens\n",
            "apps        b 20.0 s, c 3.0 s, d 2.0 s, 1 more\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn times_and_speeds_are_short() {
        assert_eq!(duration(59_999.0), "59 s");
        assert_eq!(duration(3_600_000.0), "1 h 0 min");
        assert_eq!(duration(90_000_000.0), "1 d 1 h");
        assert_eq!(speed(0, Some(10.0)), "");
        assert_eq!(speed(100, Some(4_000.0)), " (25.0 a second)");
    }
}
