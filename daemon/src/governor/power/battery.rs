//! Batteries of macOS and Windows. Read now and then; the systems' own notices are not used.

use starship_battery::units::ratio::percent;
use starship_battery::{Manager, State};

use crate::governor::signals::{Battery, Warning};

/// Its name in the plan's reason.
pub(crate) const NAME: &str = "the system";

/// What the system tells. Blocks.
pub(crate) fn read() -> Battery {
    let Ok(batteries) = Manager::new().and_then(|manager| manager.batteries()) else {
        return Battery::default();
    };
    let (mut present, mut on_battery) = (false, false);
    let (mut sum, mut count) = (0.0, 0.0);
    for battery in batteries.flatten() {
        present = true;
        on_battery |= battery.state() == State::Discharging;
        sum += f64::from(battery.state_of_charge().get::<percent>());
        count += 1.0;
    }
    Battery {
        present,
        on_battery,
        percent: present.then(|| sum / count),
        warning: Warning::None,
    }
}
