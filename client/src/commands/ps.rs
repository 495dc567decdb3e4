//! `hearth ps`: who runs what now, and who has used how much since the daemon's start.

use hearth::v1::{
    AppStatus, DaemonStatus, DeferredStatus, Energy, EnergySource, SequenceStatus, StartWhen,
};

use crate::cli::{Global, PsArgs};
use crate::exit::Failure;
use crate::json;
use crate::output::{Output, complain, table_with_numbers};

use super::{connect_to_running, status};

const SEQUENCES: [&str; 10] = [
    "ID",
    "APP",
    "PID",
    "CLASS",
    "STATE",
    "PROMPT",
    "CACHED",
    "GENERATED",
    "KV",
    "GPU-TIME",
];
/// Where a sequence's model stands if several are warm.
const MODEL_AT: usize = 4;
const APPS: [&str; 12] = [
    "APP",
    "CONNECTIONS",
    "RUNNING",
    "WAITING",
    "REQUESTS",
    "PROMPT",
    "CACHED",
    "GENERATED",
    "KV",
    "KEPT",
    "GPU-TIME",
    "ENERGY",
];

/// Shows sequences, or the apps' accounts. Never starts a daemon.
///
/// # Errors
/// The daemon cannot be reached.
pub(crate) async fn ps(args: PsArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect_to_running(global).await?;
    let status = client.status().await?;
    if output.json {
        return Ok(output.object(&json::usage(&status))?);
    }
    let (rows, none): (Vec<Vec<String>>, _) = if args.apps {
        (
            by_gpu_time(&status).into_iter().map(account).collect(),
            "no app is connected, and none has asked for anything",
        )
    } else {
        (lines(&status), "nothing runs and nothing waits")
    };
    if rows.is_empty() {
        complain(&format!("{none}\n"));
        return Ok(());
    }
    let table = match (args.apps, status.models.len()) {
        (true, _) => text(&APPS, rows),
        (false, 0 | 1) => text(&SEQUENCES, rows),
        (false, _) => {
            let mut head = SEQUENCES.to_vec();
            head.insert(MODEL_AT, "MODEL");
            text(&head, rows)
        }
    };
    Ok(output.text(&table)?)
}

/// Sequences, then what waits for its time; with the model where several are warm.
fn lines(status: &DaemonStatus) -> Vec<Vec<String>> {
    let several = status.models.len() > 1;
    let with_model = |model: &str, mut row: Vec<String>| {
        if several {
            row.insert(MODEL_AT, model.to_owned());
        }
        row
    };
    let sequences = status.sequences.iter();
    let sequences = sequences.map(|one| with_model(&one.model, sequence(one)));
    let deferred = status.deferred.iter();
    let deferred = deferred.map(|one| with_model("-", self::deferred(one)));
    sequences.chain(deferred).collect()
}

/// A table with its head.
fn text(head: &[&str], rows: Vec<Vec<String>>) -> String {
    const WORDS: [&str; 4] = ["APP", "CLASS", "MODEL", "STATE"];
    let numbers: Vec<usize> = head
        .iter()
        .enumerate()
        .filter(|(_, name)| !WORDS.contains(name))
        .map(|(at, _)| at)
        .collect();
    let head = head.iter().map(|&name| name.to_owned()).collect();
    let table: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    table_with_numbers(&table, &numbers)
}

fn sequence(sequence: &SequenceStatus) -> Vec<String> {
    let state = match sequence.ahead {
        Some(ahead) => format!("queued {ahead}"),
        None if sequence.replays => "replay".to_owned(),
        None if sequence.generated_tokens == 0 => "prefill".to_owned(),
        None => "decode".to_owned(),
    };
    vec![
        sequence.id.to_string(),
        sequence.app.clone(),
        match sequence.pid {
            0 => "-".to_owned(),
            pid => pid.to_string(),
        },
        json::class(sequence.class),
        state,
        sequence.prompt_tokens.to_string(),
        sequence.cached_tokens.to_string(),
        sequence.generated_tokens.to_string(),
        sequence.kv_blocks.to_string(),
        gpu_time(sequence.gpu_time),
    ]
}

/// What a request that waits for its time waits for.
pub(super) fn reason(request: &DeferredStatus) -> &'static str {
    match request.start_when() {
        StartWhen::OnMains => "until mains",
        _ => "until idle",
    }
}

fn deferred(request: &DeferredStatus) -> Vec<String> {
    let mut row = vec!["-".to_owned(); SEQUENCES.len()];
    row[1].clone_from(&request.app);
    if request.pid != 0 {
        row[2] = request.pid.to_string();
    }
    row[3] = json::class(request.class);
    row[4] = reason(request).to_owned();
    row
}

fn account(app: &AppStatus) -> Vec<String> {
    vec![
        app.app.clone(),
        app.connections.to_string(),
        app.active.to_string(),
        app.waiting.to_string(),
        app.requests.to_string(),
        app.prompt_tokens.to_string(),
        app.cached_tokens.to_string(),
        app.generated_tokens.to_string(),
        app.kv_blocks.to_string(),
        app.kv_blocks_cached.to_string(),
        gpu_time(app.gpu_time),
        app.energy.as_ref().map_or_else(|| "-".to_owned(), joules),
    ]
}

/// The apps, the busiest first; equal ones by name.
pub(super) fn by_gpu_time(status: &DaemonStatus) -> Vec<&AppStatus> {
    let mut apps: Vec<&AppStatus> = status.apps.iter().collect();
    let time = |app: &AppStatus| {
        app.gpu_time
            .map_or((0, 0), |time| (time.seconds, time.nanos))
    };
    // A stable sort: the daemon's order is that of names.
    apps.sort_by_key(|app| std::cmp::Reverse(time(app)));
    apps
}

/// Energy in a few letters.
pub(super) fn joules(energy: &Energy) -> String {
    let mark = match energy.source() {
        EnergySource::Estimated => " (estimated)",
        _ => "",
    };
    match energy.joules {
        joules if joules < 1000.0 => format!("{joules:.1} J{mark}"),
        joules => format!("{:.2} Wh{mark}", joules / 3600.0),
    }
}

/// A share of the GPU's time in a few letters.
pub(super) fn gpu_time(time: Option<prost_types::Duration>) -> String {
    match json::ms(time).unwrap_or(0.0) {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => status::duration(ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth::v1;

    fn time(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos })
    }

    #[test]
    fn sequences_line_up_under_their_heads() {
        let running = SequenceStatus {
            id: 7,
            app: "org.gnome.Notes".to_owned(),
            pid: 4711,
            class: v1::Class::Interactive.into(),
            prompt_tokens: 1200,
            cached_tokens: 1184,
            generated_tokens: 31,
            kv_blocks: 77,
            ahead: None,
            replays: false,
            model: "m".to_owned(),
            gpu_time: time(2, 300_000_000),
        };
        let reading = SequenceStatus {
            id: 12,
            app: "a".to_owned(),
            pid: 0,
            class: v1::Class::Utility.into(),
            generated_tokens: 0,
            ..running.clone()
        };
        let replaying = SequenceStatus {
            id: 14,
            replays: true,
            ..running.clone()
        };
        let later = DeferredStatus {
            app: "b".to_owned(),
            pid: 9,
            class: v1::Class::Background.into(),
            start_when: v1::StartWhen::OnMains.into(),
        };
        let waiting = SequenceStatus {
            id: 13,
            class: v1::Class::Background.into(),
            ahead: Some(2),
            gpu_time: None,
            ..reading.clone()
        };
        let sequences = [running, reading, waiting, replaying];
        let rows = sequences.iter().map(sequence);
        let rows = rows.chain([deferred(&later)]).collect();
        assert_eq!(
            text(&SEQUENCES, rows),
            "ID  APP               PID  CLASS        STATE        PROMPT  CACHED  GENERATED  KV  GPU-TIME\n \
             7  org.gnome.Notes  4711  interactive  decode         1200    1184         31  77     2.3 s\n\
             12  a                   -  utility      prefill        1200    1184          0  77     2.3 s\n\
             13  a                   -  background   queued 2       1200    1184          0  77      0 ms\n\
             14  org.gnome.Notes  4711  interactive  replay         1200    1184         31  77     2.3 s\n \
             -  b                   9  background   until mains       -       -          -   -         -\n"
        );
    }

    #[test]
    fn the_busiest_app_comes_first() {
        let app = |name: &str, time| AppStatus {
            app: name.to_owned(),
            gpu_time: time,
            ..Default::default()
        };
        let status = DaemonStatus {
            apps: vec![
                app("a", time(0, 5)),
                app("b", None),
                app("c", time(9, 0)),
                app("d", time(0, 5)),
            ],
            ..Default::default()
        };
        let names: Vec<_> = by_gpu_time(&status).iter().map(|app| &*app.app).collect();
        assert_eq!(names, ["c", "a", "d", "b"]);
        assert_eq!(account(&status.apps[0]).len(), APPS.len());
    }

    #[test]
    fn times_are_short() {
        assert_eq!(gpu_time(None), "0 ms");
        assert_eq!(gpu_time(time(0, 250_000_000)), "250 ms");
        assert_eq!(gpu_time(time(59, 900_000_000)), "59.9 s");
        assert_eq!(gpu_time(time(125, 0)), "2 min 5 s");
    }
}
