//! The plan's reason in words: what counts, by which figures, and who told. Pure.

use super::plan::MemoryLevel;
use super::policy::Cause;
use super::signals::{MemorySignals, PowerMode, PowerSignals, Signals};
use crate::config::Governor;

/// Why the plan is what it is. `cause`: the strictest that counts.
pub(super) fn reason(
    signals: &Signals,
    cause: Option<Cause>,
    memory: MemoryLevel,
    weights_gone: bool,
    settings: &Governor,
) -> String {
    let power = &signals.power;
    let mut words = match signals.mode {
        PowerMode::Auto => String::new(),
        PowerMode::Full => "full power by hand; ".to_owned(),
        PowerMode::Saver => "saving power by hand; ".to_owned(),
    };
    match cause {
        Some(cause) => words.push_str(&of_cause(cause, signals)),
        None => words.push_str(&supply(power)),
    }
    if let Some(part) = of_memory(&signals.memory, memory) {
        words.push_str("; ");
        words.push_str(&part);
    }
    if weights_gone {
        let part = format!(
            "; the model's weights come back when {:.0} % of memory stays free",
            settings.reload_free_percent
        );
        words.push_str(&part);
    }
    words
}

/// A cause that counts. When the signals show it no more, it counts until it has been gone for a while.
fn of_cause(cause: Cause, signals: &Signals) -> String {
    let power = &signals.power;
    let charge = charge(power);
    let on_battery = power.battery.is_some_and(|battery| battery.on_battery);
    let source = power.source;
    let (words, shows) = match cause {
        Cause::OnBattery => (format!("on battery{charge} ({source})"), on_battery),
        Cause::Low => (format!("battery low{charge} ({source})"), on_battery),
        Cause::Empty => (format!("battery critical{charge} ({source})"), on_battery),
        Cause::SaverProfile => (
            "power saver chosen (power-profiles-daemon)".to_owned(),
            power.saver,
        ),
        Cause::Degraded => {
            let why = power.degraded.as_deref().unwrap_or("no reason told");
            let words = format!("the machine slows down: {why} (power-profiles-daemon)");
            (words, power.degraded.is_some())
        }
        Cause::Hot | Cause::TooHot => match &signals.thermal {
            Some(thermal) => {
                let word = if cause == Cause::Hot {
                    "hot"
                } else {
                    "dangerously hot"
                };
                let words = format!("{word}: {:.0} °C ({})", thermal.celsius, thermal.source);
                (words, true)
            }
            None => ("hot".to_owned(), true),
        },
    };
    if shows {
        words
    } else {
        format!("{}, until just now: {words}", supply(power))
    }
}

/// Where the power comes from, while nothing asks to save it.
fn supply(power: &PowerSignals) -> String {
    let source = power.source;
    match power.battery {
        _ if !power.watched => "power is not watched (power_source)".to_owned(),
        None => "nobody has told of power yet".to_owned(),
        Some(battery) if !battery.present => format!("mains: no battery ({source})"),
        Some(battery) if battery.on_battery => format!("on battery{} ({source})", charge(power)),
        Some(_) => format!("mains ({source})"),
    }
}

fn charge(power: &PowerSignals) -> String {
    let percent = power.battery.and_then(|battery| battery.percent);
    percent.map_or_else(String::new, |percent| format!(", {percent:.0} %"))
}

fn of_memory(memory: &MemorySignals, level: MemoryLevel) -> Option<String> {
    let word = match level {
        MemoryLevel::Calm => return None,
        MemoryLevel::Some => "memory short",
        MemoryLevel::High => "memory very short",
        MemoryLevel::Critical => "memory critically short",
    };
    let free = memory
        .free_percent
        .map(|free| format!(", {free:.0} % free ({})", memory.source));
    let what = match (memory.events.cgroup_high, memory.events) {
        (true, _) => ": over the limit of the cgroup",
        (_, events) if events.some || events.full || events.full_long => ": programs wait for it",
        _ => "",
    };
    Some(format!("{word}{what}{}", free.unwrap_or_default()))
}
