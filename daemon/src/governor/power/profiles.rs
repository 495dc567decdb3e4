//! power-profiles-daemon, or another service of its names: whether the person chose to save power, and
//! whether the machine slowed itself down.

use tokio::sync::mpsc;
use zbus::{Connection, zvariant};

use crate::governor::Signal;
use crate::governor::bus::{self, Follower, News, Properties, property};
use crate::governor::signals::Profile;

/// Its name now, and its name before it moved to UPower's: many systems have both, some have one.
pub(crate) const NAMES: [(&str, &str); 2] = [
    (
        "org.freedesktop.UPower.PowerProfiles",
        "/org/freedesktop/UPower/PowerProfiles",
    ),
    ("net.hadess.PowerProfiles", "/net/hadess/PowerProfiles"),
];

/// Follows the name `which` of [`NAMES`] for ever; the default is sent when nobody has it.
pub(crate) async fn follow(bus: Connection, which: usize, signals: mpsc::Sender<Signal>) {
    let (service, path) = NAMES[which];
    let Ok(mut follower) = Follower::of_properties(&bus, service, path).await else {
        return;
    };
    let mut told = Profile::default();
    let mut there = true;
    loop {
        let profile = match there {
            true => bus::until_answered(|| read(&bus, which)).await,
            false => None,
        };
        let profile = profile.unwrap_or_default();
        if told != profile {
            told = profile.clone();
            if signals.send(Signal::Profile(which, profile)).await.is_err() {
                return;
            }
        }
        match follower.next().await {
            Some((News::Changed | News::Appeared, _)) => there = true,
            Some((News::Gone, _)) => there = false,
            None => break,
        }
    }
    let _ = signals
        .send(Signal::Profile(which, Profile::default()))
        .await;
}

async fn read(bus: &Connection, which: usize) -> zbus::Result<Profile> {
    let (service, path) = NAMES[which];
    // The interface has the service's name.
    let found = bus::properties(bus, service, path, service).await?;
    profile(&found).ok_or(zbus::Error::Variant(zvariant::Error::IncorrectType))
}

/// What the properties say. `None`: they are not complete.
fn profile(found: &Properties) -> Option<Profile> {
    let active: String = property(found, "ActiveProfile")?;
    let degraded: Option<String> = property(found, "PerformanceDegraded");
    Some(Profile {
        saver: active == "power-saver",
        // The system's word goes into the log and the status: a word, no more.
        degraded: degraded
            .map(|why| {
                let is_plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
                why.chars().filter(is_plain).take(40).collect::<String>()
            })
            .filter(|why| !why.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use zbus::zvariant::{OwnedValue, Value};

    use super::*;

    fn told(active: Value<'_>, degraded: &str) -> Option<Profile> {
        let own = |value: Value<'_>| OwnedValue::try_from(value).unwrap();
        let found = Properties::from([
            ("ActiveProfile".to_owned(), own(active)),
            ("PerformanceDegraded".to_owned(), own(degraded.into())),
        ]);
        profile(&found)
    }

    #[test]
    fn profiles_have_names() {
        for (name, saver) in [
            ("power-saver", true),
            ("balanced", false),
            ("performance", false),
            ("", false),
        ] {
            let wanted = Profile {
                saver,
                degraded: None,
            };
            assert_eq!(told(name.into(), "").unwrap(), wanted, "{name}");
        }
        assert_eq!(told(7_u32.into(), ""), None);
        assert_eq!(profile(&Properties::new()), None);
    }

    #[test]
    fn a_slow_machine_says_why_in_a_word() {
        let degraded = |text| told("performance".into(), text).unwrap().degraded;
        assert_eq!(degraded("lap-detected").unwrap(), "lap-detected");
        assert_eq!(degraded("a\nb\u{1b}[2J").unwrap(), "ab2J");
        assert_eq!(degraded(&"x".repeat(1000)).unwrap().len(), 40);
    }
}
