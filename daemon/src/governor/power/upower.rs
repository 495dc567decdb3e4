//! UPower: whether the machine runs from its battery, and how full that is. By signals, never by polling.

use tokio::sync::mpsc;
use zbus::{Connection, zvariant};

use crate::governor::Signal;
use crate::governor::bus::{self, Follower, News, Properties, property};
use crate::governor::signals::{Battery, Warning};

/// Its name in the plan's reason.
pub(crate) const NAME: &str = "UPower";

const SERVICE: &str = "org.freedesktop.UPower";
const ROOT: &str = "/org/freedesktop/UPower";
/// All batteries as one.
const DISPLAY: &str = "/org/freedesktop/UPower/devices/DisplayDevice";
const DEVICE: &str = "org.freedesktop.UPower.Device";
/// `Type` of a device that is a battery or an uninterruptible supply.
const BATTERIES: [u32; 2] = [2, 3];

/// Follows UPower for ever; `None` is sent when it is not there.
pub(crate) async fn follow(bus: Connection, signals: mpsc::Sender<Signal>) {
    let Ok(mut follower) = Follower::of_properties(&bus, SERVICE, ROOT).await else {
        let _ = signals.send(Signal::Upower(None)).await;
        return;
    };
    let mut told = None;
    let mut there = true;
    loop {
        let battery = match there {
            true => bus::until_answered(|| read(&bus)).await,
            false => None,
        };
        if told != Some(battery) {
            told = Some(battery);
            if signals.send(Signal::Upower(battery)).await.is_err() {
                return;
            }
        }
        match follower.next().await {
            Some((News::Changed | News::Appeared, _)) => there = true,
            Some((News::Gone, _)) => there = false,
            None => break,
        }
    }
    let _ = signals.send(Signal::Upower(None)).await;
}

async fn read(bus: &Connection) -> zbus::Result<Battery> {
    let root = bus::properties(bus, SERVICE, ROOT, SERVICE).await?;
    let display = bus::properties(bus, SERVICE, DISPLAY, DEVICE).await?;
    battery(&root, &display).ok_or(zbus::Error::Variant(zvariant::Error::IncorrectType))
}

/// What UPower's properties say. `None`: they are not complete.
fn battery(root: &Properties, display: &Properties) -> Option<Battery> {
    let on_battery: bool = property(root, "OnBattery")?;
    let kind: u32 = property(display, "Type")?;
    let present = BATTERIES.contains(&kind) && property(display, "IsPresent").unwrap_or(false);
    let percent: Option<f64> = property(display, "Percentage");
    // 0 unknown, 1 none, 2 discharging (of an uninterruptible supply), 3 low, 4 critical, 5 action.
    let warning = match property::<u32>(display, "WarningLevel") {
        Some(3) => Warning::Low,
        Some(4 | 5) => Warning::Critical,
        _ => Warning::None,
    };
    Some(Battery {
        present,
        on_battery,
        percent: percent.filter(|percent| present && (0.0..=100.0).contains(percent)),
        warning: if present { warning } else { Warning::None },
    })
}

#[cfg(test)]
mod tests {
    use zbus::zvariant::{OwnedValue, Value};

    use super::*;

    fn properties(pairs: Vec<(&str, Value<'_>)>) -> Properties {
        let own = |(name, value): (&str, Value<'_>)| {
            (name.to_owned(), OwnedValue::try_from(value).unwrap())
        };
        pairs.into_iter().map(own).collect()
    }

    fn display(kind: u32, present: bool, percent: f64, warning: u32) -> Properties {
        properties(vec![
            ("Type", kind.into()),
            ("IsPresent", present.into()),
            ("Percentage", percent.into()),
            ("WarningLevel", warning.into()),
            ("IconName", "battery-full-symbolic".into()),
        ])
    }

    #[test]
    fn what_a_laptop_tells() {
        let root = properties(vec![
            ("OnBattery", true.into()),
            ("LidIsClosed", false.into()),
        ]);
        for (level, warning) in [
            (0, Warning::None),
            (1, Warning::None),
            (2, Warning::None),
            (3, Warning::Low),
            (4, Warning::Critical),
            (5, Warning::Critical),
            (6, Warning::None),
        ] {
            let battery = battery(&root, &display(2, true, 18.5, level)).unwrap();
            let wanted = Battery {
                present: true,
                on_battery: true,
                percent: Some(18.5),
                warning,
            };
            assert_eq!(battery, wanted, "{level}");
        }
    }

    #[test]
    fn what_a_desktop_tells() {
        let root = properties(vec![("OnBattery", false.into())]);
        let battery = battery(&root, &display(0, false, 0.0, 1)).unwrap();
        assert_eq!(battery, Battery::default());
    }

    #[test]
    fn nonsense_is_no_answer() {
        let whole = display(2, true, 50.0, 1);
        assert_eq!(battery(&Properties::new(), &whole), None);
        let wrong = properties(vec![("OnBattery", "yes".into())]);
        assert_eq!(battery(&wrong, &whole), None);
        let root = properties(vec![("OnBattery", true.into())]);
        assert_eq!(battery(&root, &Properties::new()), None);
        for percent in [-1.0, 101.0, f64::NAN] {
            let battery = battery(&root, &display(2, true, percent, 1)).unwrap();
            assert_eq!(battery.percent, None);
        }
    }
}
