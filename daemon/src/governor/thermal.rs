//! Temperatures against the points at which the machine turns itself off, from the kernel's thermal
//! zones. Read while requests run; it tells nothing by itself.

use std::fs;
use std::path::Path;

use super::signals::{Heat, Thermal};
use crate::config::Governor;
use crate::limits::{THERMAL_ZONES_MAX, TRIP_POINTS_MAX};
use crate::sys_files;

/// The zone that is closest to its limit; `None`: no zone tells of one. Blocks for a moment.
pub(super) fn read(settings: &Governor) -> Option<Thermal> {
    let entries = fs::read_dir(&settings.thermal_dir).ok()?.flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("thermal_zone")
        })
        .take(THERMAL_ZONES_MAX)
        .filter_map(|entry| zone(&entry.path(), settings))
        .max_by(|a, b| {
            let order = a.heat.cmp(&b.heat);
            order.then(a.celsius.total_cmp(&b.celsius))
        })
}

fn zone(dir: &Path, settings: &Governor) -> Option<Thermal> {
    let text = |name: &str| sys_files::text(&dir.join(name));
    // In thousandths of a degree; sensors that are off tell zero or less.
    let celsius = |name: &str| {
        let thousandths = sys_files::number(&dir.join(name))?;
        Some(thousandths / 1000.0).filter(|celsius| (1.0..=200.0).contains(celsius))
    };
    let now = celsius("temp")?;
    let (mut critical, mut hot) = (None, None);
    for point in 0..TRIP_POINTS_MAX {
        let Some(kind) = text(&format!("trip_point_{point}_type")) else {
            break;
        };
        let at = celsius(&format!("trip_point_{point}_temp"));
        match kind.as_str() {
            "critical" => critical = at,
            "hot" => hot = at,
            _ => {}
        }
    }
    let limit = critical.or(hot)?;
    let serious = limit - settings.thermal_serious_margin_c;
    let serious = hot.map_or(serious, |hot| hot.min(serious));
    let heat = if critical.is_some() && now >= limit - settings.thermal_critical_margin_c {
        Heat::Critical
    } else if now >= serious {
        Heat::Serious
    } else {
        Heat::Nominal
    };
    let name = text("type").unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_ .".contains(*c);
    Some(Thermal {
        heat,
        celsius: now,
        source: name.chars().filter(is_plain).take(40).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, zone: &str, files: &[(&str, &str)]) {
        let zone = dir.join(zone);
        fs::create_dir_all(&zone).unwrap();
        for (name, text) in files {
            fs::write(zone.join(name), format!("{text}\n")).unwrap();
        }
    }

    /// The heat of a zone with these points, at `now`.
    fn heat(points: &[(&str, &str)], now: &str) -> Option<Thermal> {
        let dir = tempfile::tempdir().unwrap();
        let names = |n: usize| {
            (
                format!("trip_point_{n}_type"),
                format!("trip_point_{n}_temp"),
            )
        };
        write(
            dir.path(),
            "thermal_zone0",
            &[("type", "x86_pkg_temp"), ("temp", now)],
        );
        for (n, (kind, at)) in points.iter().enumerate() {
            let (kind_name, at_name) = names(n);
            write(
                dir.path(),
                "thermal_zone0",
                &[(&kind_name, kind), (&at_name, at)],
            );
        }
        read(&Governor {
            thermal_dir: dir.path().to_owned(),
            ..Governor::default()
        })
    }

    #[test]
    fn heat_is_told_by_its_distance_to_the_end() {
        let points = [("passive", "60000"), ("critical", "100000")];
        for (now, wanted) in [
            ("45000", Heat::Nominal),
            ("92999", Heat::Nominal),
            ("93000", Heat::Serious),
            ("97999", Heat::Serious),
            ("98000", Heat::Critical),
            ("120000", Heat::Critical),
        ] {
            assert_eq!(heat(&points, now).unwrap().heat, wanted, "{now}");
        }
        let points = [("critical", "100000"), ("hot", "80000")];
        assert_eq!(heat(&points, "80000").unwrap().heat, Heat::Serious);
        assert_eq!(heat(&points, "79000").unwrap().heat, Heat::Nominal);
    }

    #[test]
    fn what_tells_no_limit_tells_nothing() {
        assert_eq!(heat(&[], "99000"), None);
        assert_eq!(heat(&[("passive", "60000")], "99000"), None);
        assert_eq!(heat(&[("critical", "-274000")], "99000"), None);
        assert_eq!(heat(&[("critical", "100000")], "0"), None);
        assert_eq!(heat(&[("critical", "100000")], "hot"), None);
        let settings = Governor {
            thermal_dir: "/nonexistent".into(),
            ..Governor::default()
        };
        assert_eq!(read(&settings), None);
    }

    #[test]
    fn the_zone_in_danger_counts() {
        let dir = tempfile::tempdir().unwrap();
        let zone = |name: &str, temp: &str, critical: &str| {
            let files = [
                ("type", name),
                ("temp", temp),
                ("trip_point_0_type", "critical"),
                ("trip_point_0_temp", critical),
            ];
            write(dir.path(), &format!("thermal_zone_{name}"), &files);
        };
        zone("cpu", "90000", "105000");
        zone("battery", "58000", "60000");
        let settings = Governor {
            thermal_dir: dir.path().to_owned(),
            ..Governor::default()
        };
        let thermal = read(&settings).unwrap();
        assert_eq!(
            (thermal.heat, thermal.source.as_str()),
            (Heat::Critical, "battery")
        );
    }
}
