//! Reads the small files of Linux's `/sys`, and says which power supplies are the machine's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::limits::POWER_SUPPLIES_MAX;

/// What a power supply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supply {
    /// What comes from outside.
    Mains,
    /// A battery, or an uninterruptible supply, that is in its place.
    Battery,
}

/// What stands in a file, without the space around it.
pub(crate) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// The value of a file that holds one number.
pub(crate) fn number(path: &Path) -> Option<f64> {
    text(path)?
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
}

/// The folders in a folder, in order of names; none if it cannot be read.
pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// The machine's own power supplies below `dir`, which is `/sys/class/power_supply` but for tests.
/// Blocks: a battery may take its time.
pub(crate) fn supplies(dir: &Path) -> Vec<(Supply, PathBuf)> {
    let found = folders(dir).into_iter().take(POWER_SUPPLIES_MAX);
    found
        .filter_map(|folder| Some((supply(&folder)?, folder)))
        .collect()
}

/// What the supply in this folder is; `None` for one that does not feed the machine.
fn supply(folder: &Path) -> Option<Supply> {
    let says = |file: &str| text(&folder.join(file));
    // A mouse has a battery too, and tells that it powers no more than itself. A laptop's may tell
    // that it powers the system, or nothing.
    if says("scope").as_deref() == Some("Device") {
        return None;
    }
    match says("type").as_deref() {
        Some("Mains" | "USB" | "Wireless") => Some(Supply::Mains),
        Some("Battery" | "UPS") if says("present").as_deref() != Some("0") => Some(Supply::Battery),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_feeds_the_machine_is_told_from_what_feeds_a_mouse() {
        let dir = tempfile::tempdir().unwrap();
        for (name, files) in [
            ("AC", &[("type", "Mains")][..]),
            ("BAT0", &[("type", "Battery"), ("scope", "System")]),
            ("BAT1", &[("type", "Battery"), ("present", "1")]),
            ("BAT2", &[("type", "Battery"), ("present", "0")]),
            ("mouse", &[("type", "Battery"), ("scope", "Device")]),
            ("odd", &[("type", "Sun")]),
            ("void", &[]),
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
            for (file, text) in files {
                fs::write(dir.path().join(name).join(file), format!("{text}\n")).unwrap();
            }
        }
        let found: Vec<_> = supplies(dir.path())
            .into_iter()
            .map(|(supply, path)| (path.file_name().unwrap().to_owned(), supply))
            .collect();
        let wanted = [
            ("AC", Supply::Mains),
            ("BAT0", Supply::Battery),
            ("BAT1", Supply::Battery),
        ];
        assert_eq!(found, wanted.map(|(name, supply)| (name.into(), supply)));
        assert!(supplies(&dir.path().join("missing")).is_empty());
    }

    #[test]
    fn a_number_is_finite_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        for (text, wanted) in [
            (" 12\n", Some(12.0)),
            ("-1.5", Some(-1.5)),
            ("nan", None),
            ("inf", None),
            ("1 2", None),
            ("", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(number(&path), wanted, "{text:?}");
        }
    }
}
