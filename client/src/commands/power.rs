//! `hearth power`: how much power the daemon may use, by whose word, and what follows from it.

use std::fmt::Write as _;

use hearth::v1::{self, Plan, PowerMode as Mode, SetPowerModeRequest};
use serde_json::json;

use crate::cli::{Global, PowerArgs, PowerMode};
use crate::exit::Failure;
use crate::json;
use crate::output::{Output, complain};

use super::connect_to_running;

/// Says by hand how much power may be used, or shows it. Never starts a daemon.
///
/// # Errors
/// The daemon cannot be reached, or is too old to govern.
pub(crate) async fn power(args: PowerArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect_to_running(global).await?;
    let plan = match args.mode {
        None => client.status().await?.plan,
        Some(mode) => {
            let mode = match mode {
                PowerMode::Auto => Mode::Auto,
                PowerMode::Full => Mode::Full,
                PowerMode::Saver => Mode::Saver,
            };
            let request = SetPowerModeRequest { mode: mode.into() };
            let answer = client.daemon().set_power_mode(request).await;
            let answer = answer.map_err(hearth::Error::from)?.into_inner();
            if !answer.kept {
                complain(
                    "hearth: warning: the choice could not be written down; it ends with the daemon\n",
                );
            }
            answer.plan
        }
    };
    let plan = plan.unwrap_or_default();
    if output.json {
        return Ok(output.object(&json!({ "plan": json::plan(&plan) }))?);
    }
    Ok(output.text(&text(&plan))?)
}

/// The plan in a line: its levels and its reason.
pub(super) fn line(plan: &Plan) -> String {
    let levels: Vec<&str> = [power_word(plan), memory_word(plan)]
        .into_iter()
        .flatten()
        .collect();
    let levels = levels.join(", ");
    match (levels.is_empty(), plan.reason.is_empty()) {
        (false, false) => format!("{levels}: {}", plan.reason),
        (_, true) => levels,
        (true, false) => plan.reason.clone(),
    }
}

/// A level of power that saves some.
fn power_word(plan: &Plan) -> Option<&'static str> {
    match plan.power() {
        v1::PowerLevel::Unspecified | v1::PowerLevel::Mains => None,
        v1::PowerLevel::Battery => Some("battery"),
        v1::PowerLevel::Saver => Some("saver"),
        v1::PowerLevel::Critical => Some("critical"),
    }
}

/// A level of memory that is short of some.
fn memory_word(plan: &Plan) -> Option<&'static str> {
    match plan.memory() {
        v1::MemoryLevel::Unspecified | v1::MemoryLevel::Calm => None,
        v1::MemoryLevel::Some => Some("memory short"),
        v1::MemoryLevel::High => Some("memory very short"),
        v1::MemoryLevel::Critical => Some("memory critical"),
    }
}

/// The plan as text.
fn text(plan: &Plan) -> String {
    let mut text = String::new();
    let mode = match plan.mode() {
        Mode::Unspecified | Mode::Auto => "auto",
        Mode::Full => "full, by hand",
        Mode::Saver => "saver, by hand",
    };
    let classes: Vec<String> = plan.classes.iter().map(|c| json::class(*c)).collect();
    let pace = match plan.pace {
        pace if pace < 1.0 => format!(", at {:.0} % of full speed", pace * 100.0),
        _ if plan.background_pace < 1.0 && plan.classes.len() > 2 => {
            let percent = plan.background_pace * 100.0;
            format!(", background at {percent:.0} % of full speed")
        }
        _ => String::new(),
    };
    for (name, value) in [
        ("power", mode.to_owned()),
        ("plan", line(plan)),
        (
            "allows",
            format!(
                "{} at once ({}), contexts of {} tokens{pace}",
                plan.slots,
                classes.join(", "),
                plan.context_len_max
            ),
        ),
    ] {
        let _ = writeln!(text, "{name:<7} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_told_in_words() {
        let mut plan = Plan {
            power: v1::PowerLevel::Saver.into(),
            memory: v1::MemoryLevel::Calm.into(),
            reason: "battery low, 18 % (UPower)".to_owned(),
            slots: 2,
            context_len_max: 4096,
            classes: vec![v1::Class::Interactive.into()],
            pace: 0.7,
            mode: Mode::Auto.into(),
            ..Default::default()
        };
        assert_eq!(
            text(&plan),
            "power   auto\n\
             plan    saver: battery low, 18 % (UPower)\n\
             allows  2 at once (interactive), contexts of 4096 tokens, at 70 % of full speed\n"
        );
        plan.memory = v1::MemoryLevel::High.into();
        assert_eq!(
            line(&plan),
            "saver, memory very short: battery low, 18 % (UPower)"
        );
        // What a sandboxed app is told.
        plan.reason.clear();
        assert_eq!(line(&plan), "saver, memory very short");
        assert_eq!(line(&Plan::default()), "");
    }
}
