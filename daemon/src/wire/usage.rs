//! Who runs what and who has used how much, in contract words. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_engine::{AppUsage, Class, SequenceUsage};
use hearth_proto::v1;

use super::duration;
use crate::energy::Meter;

/// Who has used how much, in order of names: the engine's accounts, and apps that are only
/// connected.
pub(crate) fn apps(
    accounts: Vec<AppUsage>,
    connections: BTreeMap<String, u32>,
    meter: Option<&Meter>,
) -> Vec<v1::AppStatus> {
    let mut apps: BTreeMap<String, v1::AppStatus> = accounts
        .into_iter()
        .map(|account| (account.app.to_string(), app(&account, meter)))
        .collect();
    for (name, count) in connections {
        let entry = apps.entry(name.clone()).or_insert_with(|| v1::AppStatus {
            app: name,
            gpu_time: Some(duration(Duration::ZERO)),
            ..Default::default()
        });
        entry.connections = count;
    }
    apps.into_values().collect()
}

fn app(account: &AppUsage, meter: Option<&Meter>) -> v1::AppStatus {
    v1::AppStatus {
        app: account.app.to_string(),
        connections: 0,
        active: account.active_now,
        waiting: account.waiting_now,
        requests: account.requests,
        prompt_tokens: account.prompt_tokens,
        cached_tokens: account.cached_tokens,
        generated_tokens: account.generated_tokens,
        gpu_time: Some(duration(account.gpu_time)),
        kv_blocks: account.kv_blocks_now,
        kv_blocks_cached: account.kv_blocks_cached_now,
        energy: meter.map(|meter| meter.energy(account.energy_uj)),
    }
}

/// How urgent something is.
pub(crate) fn class(class: Class) -> v1::Class {
    match class {
        Class::Interactive => v1::Class::Interactive,
        Class::Utility => v1::Class::Utility,
        Class::Background => v1::Class::Background,
    }
}

/// A sequence, with its model's name.
pub(crate) fn sequence(model: String, sequence: SequenceUsage) -> v1::SequenceStatus {
    v1::SequenceStatus {
        model,
        id: sequence.id,
        app: sequence.app.to_string(),
        pid: sequence.pid.unwrap_or(0),
        class: class(sequence.class).into(),
        prompt_tokens: sequence.prompt_tokens,
        cached_tokens: sequence.cached_tokens,
        generated_tokens: sequence.generated_tokens,
        kv_blocks: sequence.kv_blocks,
        ahead: sequence.ahead,
        replays: sequence.replays,
        gpu_time: Some(duration(sequence.gpu_time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_connections_meet_by_name() {
        let account = |name: &str, tokens| AppUsage {
            app: name.into(),
            generated_tokens: tokens,
            gpu_time: Duration::from_millis(250),
            ..Default::default()
        };
        let connections = [("b", 2), ("a", 1)].map(|(name, n)| (name.to_owned(), n));
        let apps = apps(
            vec![account("b", 7), account("c", 9)],
            BTreeMap::from(connections),
            None,
        );
        let seen: Vec<_> = apps
            .iter()
            .map(|app| (app.app.as_str(), app.connections, app.generated_tokens))
            .collect();
        assert_eq!(seen, [("a", 1, 0), ("b", 2, 7), ("c", 0, 9)]);
        assert_eq!(apps[1].gpu_time.unwrap().nanos, 250_000_000);
        assert!(apps[0].gpu_time.is_some(), "no time is 0, not unknown");
    }

    #[test]
    fn a_sequence_keeps_its_numbers_and_who_runs_is_nobodys_next() {
        let usage = SequenceUsage {
            id: 3,
            model: 1,
            app: "notes".into(),
            pid: None,
            class: Class::Background,
            prompt_tokens: 100,
            cached_tokens: 64,
            generated_tokens: 5,
            kv_blocks: 7,
            ahead: None,
            replays: true,
            gpu_time: Duration::from_secs(1),
        };
        let running = sequence("m".to_owned(), usage.clone());
        assert_eq!((running.id, running.pid, running.ahead), (3, 0, None));
        assert!(running.replays && running.model == "m");
        assert_eq!(running.class(), v1::Class::Background);
        assert_eq!(
            (
                running.prompt_tokens,
                running.cached_tokens,
                running.generated_tokens
            ),
            (100, 64, 5)
        );
        let more = SequenceUsage {
            ahead: Some(0),
            pid: Some(9),
            ..usage
        };
        let waiting = sequence(String::new(), more);
        assert_eq!((waiting.pid, waiting.ahead), (9, Some(0)));
    }
}
