//! The kernel's folder of power supplies, where no service tells of power. Read now and then; it tells
//! nothing by itself.

use std::path::Path;

use crate::governor::signals::{Battery, Warning};
use crate::sys_files::{Supply, number, supplies, text};

/// Its name in the plan's reason.
pub(crate) const NAME: &str = "sysfs; UPower does not answer";
/// Its name in the plan's reason where nobody else was asked.
pub(crate) const NAME_ALONE: &str = "sysfs";

/// What the folder `dir` tells. Blocks: a battery may take its time. A machine without the folder has
/// no battery.
pub(crate) fn read(dir: &Path) -> Battery {
    let mut mains_off = false;
    let mut mains_on = false;
    let mut discharging = false;
    let mut present = false;
    let (mut now, mut full) = (0.0, 0.0);
    let mut percents = Vec::new();
    for (supply, folder) in supplies(dir) {
        let text = |name: &str| text(&folder.join(name));
        let number = |name: &str| number(&folder.join(name));
        match supply {
            Supply::Mains => match text("online").as_deref() {
                Some("0") => mains_off = true,
                Some(_) => mains_on = true,
                None => {}
            },
            Supply::Battery => {
                present = true;
                discharging |= text("status").as_deref() == Some("Discharging");
                let pair = |what: &str| {
                    number(&format!("{what}_now")).zip(number(&format!("{what}_full")))
                };
                if let Some((has, holds)) = pair("energy").or_else(|| pair("charge")) {
                    now += has;
                    full += holds;
                }
                percents.extend(number("capacity"));
            }
        }
    }
    // Several batteries count by what they hold, if they tell; else each the same.
    let percent = if full > 0.0 {
        Some(now / full * 100.0)
    } else {
        mean(&percents)
    };
    let on_battery = present && !mains_on && (discharging || mains_off);
    Battery {
        present,
        on_battery,
        percent: percent.map(|percent| percent.clamp(0.0, 100.0)),
        warning: Warning::None,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let count = u32::try_from(values.len())
        .ok()
        .filter(|count| *count > 0)?;
    Some(values.iter().sum::<f64>() / f64::from(count))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder of supplies, each with its files.
    fn folder(supplies: &[(&str, &[(&str, &str)])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, files) in supplies {
            let supply = dir.path().join(name);
            fs::create_dir(&supply).unwrap();
            for (file, text) in *files {
                fs::write(supply.join(file), format!("{text}\n")).unwrap();
            }
        }
        dir
    }

    const AC_OFF: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains"), ("online", "0")]);
    const AC_ON: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains"), ("online", "1")]);
    const MOUSE: (&str, &[(&str, &str)]) = (
        "hidpp_battery_0",
        &[
            ("type", "Battery"),
            ("scope", "Device"),
            ("status", "Discharging"),
            ("capacity", "3"),
        ],
    );

    #[test]
    fn a_desktop_has_no_battery_whatever_its_mouse_says() {
        assert_eq!(read(Path::new("/nonexistent")), Battery::default());
        assert_eq!(read(folder(&[]).path()), Battery::default());
        assert_eq!(read(folder(&[MOUSE, AC_ON]).path()), Battery::default());
    }

    #[test]
    fn a_laptop_unplugged_and_plugged_in() {
        let battery = (
            "BAT0",
            &[
                ("type", "Battery"),
                ("present", "1"),
                ("status", "Discharging"),
                ("capacity", "55"),
            ] as &[(&str, &str)],
        );
        let unplugged = read(folder(&[AC_OFF, battery, MOUSE]).path());
        assert!(unplugged.present && unplugged.on_battery);
        assert_eq!(unplugged.percent, Some(55.0));
        // A weak charger: the battery empties slowly, but there is mains.
        let plugged = read(folder(&[AC_ON, battery]).path());
        assert!(plugged.present && !plugged.on_battery);
        let alone = read(folder(&[battery]).path());
        assert!(alone.on_battery, "a tablet tells of no mains");
    }

    #[test]
    fn batteries_count_by_what_they_hold() {
        let big = (
            "BAT0",
            &[
                ("type", "Battery"),
                ("status", "Discharging"),
                ("energy_now", "10000000"),
                ("energy_full", "90000000"),
                ("capacity", "11"),
            ] as &[(&str, &str)],
        );
        let small = (
            "BAT1",
            &[
                ("type", "Battery"),
                ("status", "Unknown"),
                ("energy_now", "10000000"),
                ("energy_full", "10000000"),
                ("capacity", "100"),
            ] as &[(&str, &str)],
        );
        let both = read(folder(&[AC_OFF, big, small]).path());
        assert_eq!(both.percent, Some(20.0));
        assert!(both.on_battery);
    }

    #[test]
    fn nonsense_tells_nothing() {
        let odd = (
            "BAT0",
            &[
                ("type", "Battery"),
                ("present", "0"),
                ("status", "Discharging"),
            ] as &[(&str, &str)],
        );
        assert_eq!(read(folder(&[odd, AC_OFF]).path()), Battery::default());
        let odd = (
            "BAT0",
            &[
                ("type", "Battery"),
                ("capacity", "many"),
                ("energy_now", "1"),
            ] as &[(&str, &str)],
        );
        let read = read(folder(&[odd]).path());
        assert_eq!((read.present, read.percent), (true, None));
    }
}
