//! Lengths of time as people write and read them. It measures none.

use std::time::Duration;

/// Longest time that `--timeout` takes: one day.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// Reads a time such as `30s`, `500ms`, `2m`, `1h` or plain seconds such as `1.5`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit}: use ms, s, m or h")),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| "not a number".to_owned())?;
    let duration = Duration::try_from_secs_f64(number * scale)
        .map_err(|_| "not a length of time".to_owned())?;
    if duration.is_zero() || duration > TIMEOUT_MAX {
        return Err("must be above zero and at most 24h".to_owned());
    }
    Ok(duration)
}

/// A duration in words: whole seconds above one second, else milliseconds.
pub(crate) fn seconds(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        format!("{} s", ms.div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("1.5", 1_500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in ["", "s", "-1s", "5x", "1e99", "NaN"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
