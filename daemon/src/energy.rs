//! What on this machine tells energy: the processor's counters (RAPL), the GPU's own sensor, the rate at
//! which the battery drains; or a figure of power from the configuration.
//!
//! The best there is is chosen once, at start. All are files of Linux's `/sys`; elsewhere there is only the
//! configured figure.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_engine::{EnergyMeter, MeterReading};
use hearth_proto::v1;

use crate::sys_files::{Supply, folders, number, supplies, text};

/// A battery's firmware may take milliseconds to answer: it is asked this often at most.
const BATTERY_INTERVAL: Duration = Duration::from_secs(5);

/// A meter, and what its figures are worth.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    /// The meter itself.
    pub(crate) meter: Arc<dyn EnergyMeter>,
    /// Whether the machine measures, or a figure of power is assumed.
    pub(crate) measured: bool,
    /// What it is, in words.
    pub(crate) name: String,
}

impl Meter {
    /// So much energy, in microjoules, in the contract's words.
    pub(crate) fn energy(&self, microjoules: u64) -> v1::Energy {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 9 gigajoules")]
        let joules = microjoules as f64 / 1e6;
        let source = if self.measured {
            v1::EnergySource::Measured
        } else {
            v1::EnergySource::Estimated
        };
        v1::Energy {
            joules,
            source: source.into(),
        }
    }
}

/// The best meter under `sys`, which is `/sys` but for tests; else `gpu_watts`, if that is set.
pub(crate) fn find(sys: &Path, gpu_watts: Option<f64>) -> Option<Meter> {
    let measured = |meter: Arc<dyn EnergyMeter>, name: String| Meter {
        meter,
        measured: true,
        name,
    };
    if let Some((gpu, name)) = gpu_sensor(sys) {
        return Some(measured(Arc::new(gpu), name));
    }
    if let Some(rapl) = Rapl::find(sys) {
        return Some(measured(Arc::new(rapl), "the processor (RAPL)".to_owned()));
    }
    // A figure of one's own is nearer to the GPU's share than what the whole machine draws.
    if let Some(watts) = gpu_watts {
        return Some(Meter {
            meter: Arc::new(Assumed(watts)),
            measured: false,
            name: format!("gpu_watts = {watts}"),
        });
    }
    let battery = Battery::find(sys)?;
    Some(measured(Arc::new(battery), "the battery".to_owned()))
}

fn name_of(folder: &Path) -> String {
    text(&folder.join("name")).unwrap_or_default()
}

/// A GPU's sensor in hwmon: energy in microjoules, or power in microwatts.
#[derive(Debug)]
enum GpuSensor {
    Energy(PathBuf),
    Power(PathBuf),
}

/// Drivers of GPUs whose hwmon sensors are the GPU's or its package's own.
const GPU_DRIVERS: [&str; 4] = ["amdgpu", "i915", "xe", "nouveau"];

fn gpu_sensor(sys: &Path) -> Option<(GpuSensor, String)> {
    let of_gpu = |folder: &PathBuf| GPU_DRIVERS.contains(&name_of(folder).as_str());
    let hwmon = folders(&sys.join("class/hwmon")).into_iter().find(of_gpu)?;
    let name = format!("the GPU's sensor ({})", name_of(&hwmon));
    let energy = hwmon.join("energy1_input");
    if number(&energy).is_some() {
        return Some((GpuSensor::Energy(energy), name));
    }
    ["power1_average", "power1_input"]
        .map(|file| hwmon.join(file))
        .into_iter()
        .find(|path| number(path).is_some())
        .map(|path| (GpuSensor::Power(path), name))
}

impl EnergyMeter for GpuSensor {
    fn read(&self) -> Option<MeterReading> {
        match self {
            Self::Energy(path) => Some(MeterReading::Joules(number(path)? / 1e6)),
            Self::Power(path) => Some(MeterReading::Watts(number(path)? / 1e6)),
        }
    }
}

/// The processor packages' energy counters, which include an integrated GPU.
#[derive(Debug)]
struct Rapl {
    counters: Vec<PathBuf>,
}

impl Rapl {
    fn find(sys: &Path) -> Option<Self> {
        let counters: Vec<PathBuf> = folders(&sys.join("class/powercap"))
            .into_iter()
            .filter(|zone| name_of(zone).starts_with("package"))
            .map(|zone| zone.join("energy_uj"))
            // Many systems let root alone read them.
            .filter(|path| number(path).is_some())
            .collect();
        (!counters.is_empty()).then_some(Self { counters })
    }
}

impl EnergyMeter for Rapl {
    fn read(&self) -> Option<MeterReading> {
        let sum: Option<f64> = self.counters.iter().map(|path| number(path)).sum();
        Some(MeterReading::Joules(sum? / 1e6))
    }
}

/// What the batteries give away: the whole machine's power.
#[derive(Debug)]
struct Battery {
    folders: Vec<PathBuf>,
    last: Mutex<Option<(Instant, Option<f64>)>>,
}

impl Battery {
    fn find(sys: &Path) -> Option<Self> {
        let folders: Vec<PathBuf> = supplies(&sys.join("class/power_supply"))
            .into_iter()
            .filter(|(supply, _)| *supply == Supply::Battery)
            .map(|(_, folder)| folder)
            .collect();
        (!folders.is_empty()).then(|| Self {
            folders,
            last: Mutex::new(None),
        })
    }

    /// Watts; `None` while none of them discharges.
    fn watts(&self) -> Option<f64> {
        let watts = |folder: &PathBuf| {
            if text(&folder.join("status"))? != "Discharging" {
                return None;
            }
            let power = number(&folder.join("power_now"));
            let current = || {
                let volts = number(&folder.join("voltage_now"))? / 1e6;
                Some(number(&folder.join("current_now"))? * volts)
            };
            // Some drivers give the current a sign.
            Some(power.or_else(current)?.abs() / 1e6)
        };
        self.folders
            .iter()
            .filter_map(watts)
            .reduce(|all, one| all + one)
    }
}

impl EnergyMeter for Battery {
    fn read(&self) -> Option<MeterReading> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let watts = match *last {
            Some((at, watts)) if at.elapsed() < BATTERY_INTERVAL => watts,
            _ => {
                let watts = self.watts();
                *last = Some((Instant::now(), watts));
                watts
            }
        };
        watts.map(MeterReading::Watts)
    }
}

/// A figure from the configuration.
#[derive(Debug)]
struct Assumed(f64);

impl EnergyMeter for Assumed {
    fn read(&self) -> Option<MeterReading> {
        Some(MeterReading::Watts(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn read(files: &[(&str, &str)]) -> Option<(MeterReading, bool, String)> {
        let dir = sys(files);
        let found = find(dir.path(), None)?;
        Some((found.meter.read()?, found.measured, found.name))
    }

    #[test]
    fn the_gpu_comes_before_the_processor_and_that_before_the_battery() {
        let gpu = [
            ("class/hwmon/hwmon0/name", "coretemp\n"),
            ("class/hwmon/hwmon1/name", "amdgpu\n"),
            ("class/hwmon/hwmon1/power1_average", "12000000\n"),
        ];
        let rapl = [
            ("class/powercap/intel-rapl:0/name", "package-0\n"),
            ("class/powercap/intel-rapl:0/energy_uj", "5000000\n"),
            ("class/powercap/intel-rapl:0:0/name", "core\n"),
            ("class/powercap/intel-rapl:0:0/energy_uj", "77\n"),
            ("class/powercap/intel-rapl:1/name", "package-1\n"),
            ("class/powercap/intel-rapl:1/energy_uj", "2000000\n"),
        ];
        let battery = [
            ("class/power_supply/AC/type", "Mains\n"),
            ("class/power_supply/BAT0/type", "Battery\n"),
            ("class/power_supply/BAT0/status", "Discharging\n"),
            ("class/power_supply/BAT0/current_now", "-1000000\n"),
            ("class/power_supply/BAT0/voltage_now", "11500000\n"),
            ("class/power_supply/mouse/type", "Battery\n"),
            ("class/power_supply/mouse/scope", "Device\n"),
            ("class/power_supply/mouse/status", "Discharging\n"),
            ("class/power_supply/mouse/power_now", "1000000\n"),
        ];
        let all: Vec<_> = gpu.iter().chain(&rapl).chain(&battery).copied().collect();
        let (reading, measured, name) = read(&all).unwrap();
        assert_eq!((reading, measured), (MeterReading::Watts(12.0), true));
        assert!(name.contains("amdgpu"));
        let (reading, ..) = read(&all[gpu.len()..]).unwrap();
        assert_eq!(reading, MeterReading::Joules(7.0), "packages alone");
        let (reading, _, name) = read(&battery).unwrap();
        assert_eq!(reading, MeterReading::Watts(11.5));
        assert_eq!(name, "the battery");
        assert!(read(&[]).is_none());
    }

    #[test]
    fn a_battery_that_says_it_powers_the_system_is_the_machines() {
        let battery = [
            ("class/power_supply/BAT0/type", "Battery\n"),
            ("class/power_supply/BAT0/scope", "System\n"),
            ("class/power_supply/BAT0/status", "Discharging\n"),
            ("class/power_supply/BAT0/power_now", "9000000\n"),
        ];
        let (reading, ..) = read(&battery).unwrap();
        assert_eq!(reading, MeterReading::Watts(9.0));
    }

    #[test]
    fn a_charging_battery_tells_nothing() {
        let charging = [
            ("class/power_supply/BAT0/type", "Battery\n"),
            ("class/power_supply/BAT0/status", "Charging\n"),
            ("class/power_supply/BAT0/power_now", "9000000\n"),
        ];
        assert!(read(&charging).is_none());
        let dir = sys(&charging);
        let assumed = find(dir.path(), Some(8.0)).unwrap();
        assert!(!assumed.measured);
        let energy = assumed.energy(2_500_000);
        assert_eq!(energy.joules.to_bits(), 2.5f64.to_bits());
        assert_eq!(energy.source(), v1::EnergySource::Estimated);
    }
}
