//! What a step costs in energy: the machine's meter is read while steps run, and what it counted is
//! shared out among those who had the GPU meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::scheduler::SequenceId;

/// The meter is read after so much work at the earliest. What a sequence used since then, when it
/// ends, is told by the power measured last.
const READ_AFTER: Duration = Duration::from_millis(20);
/// Longer pauses of the GPU are charged to nobody.
const PAUSE: Duration = Duration::from_millis(200);

/// What a meter shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MeterReading {
    /// Joules since some time long ago. Counters that went round begin anew.
    Joules(f64),
    /// Watts now.
    Watts(f64),
}

/// Something on this machine that tells energy or power. It is read many times a second, on the engine's
/// thread: it must not take longer than a file of the system's does.
pub trait EnergyMeter: std::fmt::Debug + Send + Sync {
    /// What it shows now; `None`: it failed, this time.
    fn read(&self) -> Option<MeterReading>;
}

/// Charges kept at most for sequences that somebody else settles.
const ASIDE_MAX: usize = 64;

/// Work that the meter has not been read for yet.
#[derive(Debug)]
struct Share {
    id: SequenceId,
    app: Arc<str>,
    time: Duration,
}

/// A sequence's and its app's part of what the meter counted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Charge {
    pub(crate) id: SequenceId,
    pub(crate) app: Arc<str>,
    pub(crate) energy_uj: u64,
}

/// Shares out what the meter counts.
pub(crate) struct EnergyShares {
    meter: Option<Arc<dyn EnergyMeter>>,
    shares: Vec<Share>,
    /// The counter at the last reading.
    counter: Option<f64>,
    read_at: Option<Instant>,
    watts: Option<f64>,
    worked_at: Option<Instant>,
    /// Charged already, and not told yet.
    charges: Vec<Charge>,
    /// Told, but of a sequence of another model: by sequence, in microjoules.
    aside: Vec<(SequenceId, u64)>,
}

/// One meter's shares, for all models that step on the GPU.
#[derive(Clone)]
pub(crate) struct SharedEnergy(Arc<Mutex<EnergyShares>>);

impl SharedEnergy {
    /// Shares out what `meter` counts; `None`: nothing.
    pub(crate) fn new(meter: Option<Arc<dyn EnergyMeter>>) -> Self {
        Self(Arc::new(Mutex::new(EnergyShares::new(meter))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, EnergyShares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EnergyShares {
    /// Shares out what `meter` counts; `None`: nothing.
    pub(crate) fn new(meter: Option<Arc<dyn EnergyMeter>>) -> Self {
        Self {
            meter,
            shares: Vec::new(),
            counter: None,
            read_at: None,
            watts: None,
            worked_at: None,
            charges: Vec::new(),
            aside: Vec::new(),
        }
    }

    /// A step begins: after a pause, what was counted until now is nobody's.
    pub(crate) fn step_begins(&mut self, now: Instant) {
        let Some(meter) = &self.meter else { return };
        let recent = |at: Instant| now.saturating_duration_since(at) < PAUSE;
        if !self.read_at.is_some_and(recent) && !self.worked_at.is_some_and(recent) {
            // What was left uncounted before the pause is told by the power measured last.
            let watts = self.watts.unwrap_or(0.0);
            let left = self.shares.drain(..);
            self.charges.extend(left.map(|share| Charge {
                energy_uj: microjoules(watts * share.time.as_secs_f64()),
                id: share.id,
                app: share.app,
            }));
            self.counter = match meter.read() {
                Some(MeterReading::Joules(joules)) => Some(joules),
                _ => None,
            };
            self.read_at = Some(now);
        }
    }

    /// A sequence had the GPU for `time`.
    pub(crate) fn worked(&mut self, id: SequenceId, app: &Arc<str>, time: Duration, now: Instant) {
        if self.meter.is_none() {
            return;
        }
        self.worked_at = Some(now);
        match self.shares.iter_mut().find(|share| share.id == id) {
            Some(share) => share.time += time,
            None => self.shares.push(Share {
                id,
                app: Arc::clone(app),
                time,
            }),
        }
    }

    /// Whether there is a meter.
    pub(crate) fn has_meter(&self) -> bool {
        self.meter.is_some()
    }

    /// Reads the meter if it is time to, and says who used how much since the last reading.
    pub(crate) fn settle(&mut self, now: Instant) -> Vec<Charge> {
        let worked: Duration = self.shares.iter().map(|share| share.time).sum();
        let due = self.watts.is_none() || worked >= READ_AFTER;
        let Some(meter) = self.meter.as_ref().filter(|_| due && !worked.is_zero()) else {
            return std::mem::take(&mut self.charges);
        };
        let worked_s = worked.as_secs_f64();
        let joules = match meter.read() {
            Some(MeterReading::Watts(watts)) => watts * worked_s,
            Some(MeterReading::Joules(counter)) => {
                let before = self.counter.replace(counter);
                match before {
                    Some(before) if counter >= before => counter - before,
                    // It went round, or was not there before.
                    _ => self.watts.unwrap_or(0.0) * worked_s,
                }
            }
            None => {
                // Nothing is known: a battery that charges, say. No figure is better than a wrong one.
                self.watts = None;
                self.shares.clear();
                return std::mem::take(&mut self.charges);
            }
        };
        self.read_at = Some(now);
        self.watts = Some(joules / worked_s);
        let shares = self.shares.drain(..);
        self.charges.extend(shares.map(|share| Charge {
            id: share.id,
            app: share.app,
            energy_uj: microjoules(joules * (share.time.as_secs_f64() / worked_s)),
        }));
        std::mem::take(&mut self.charges)
    }

    /// Keeps a charge until the model whose sequence it is asks for it. Those of sequences that are over
    /// make room in time.
    pub(crate) fn set_aside(&mut self, charge: &Charge) {
        if self.aside.len() >= ASIDE_MAX {
            self.aside.remove(0);
        }
        self.aside.push((charge.id, charge.energy_uj));
    }

    /// Takes what was set aside for a sequence, in microjoules.
    pub(crate) fn take_aside(&mut self, id: SequenceId) -> u64 {
        let of = |(other, _): &(SequenceId, u64)| *other == id;
        let energy_uj = self.aside.iter().filter(|row| of(row)).map(|row| row.1);
        let energy_uj = energy_uj.sum();
        self.aside.retain(|row| !of(row));
        energy_uj
    }

    /// What a sequence used since the last reading, by the power measured last; `None`: nothing is known.
    pub(crate) fn outstanding_uj(&self, id: SequenceId) -> Option<u64> {
        let watts = self.watts?;
        let time = self.shares.iter().find(|share| share.id == id);
        let time = time.map_or(0.0, |share| share.time.as_secs_f64());
        Some(microjoules(time * watts))
    }
}

/// Does `work` and tells the joules that it took, if `meter` tells them.
pub(crate) fn metered<T>(
    meter: Option<&dyn EnergyMeter>,
    work: impl FnOnce() -> T,
) -> (T, Option<f64>) {
    let read = || meter.and_then(EnergyMeter::read);
    let (before, begun) = (read(), Instant::now());
    let result = work();
    let joules = match (before, read()) {
        (Some(MeterReading::Joules(before)), Some(MeterReading::Joules(after))) => {
            Some(after - before).filter(|joules| *joules > 0.0)
        }
        (Some(MeterReading::Watts(before)), Some(MeterReading::Watts(after))) => {
            Some((before + after) / 2.0 * begun.elapsed().as_secs_f64())
        }
        _ => None,
    };
    (result, joules)
}

/// Never negative, never absurd: a meter's word is from outside.
fn microjoules(joules: f64) -> u64 {
    let clamped = (joules * 1e6).clamp(0.0, 1e15);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped; NaN becomes 0"
    )]
    let rounded = clamped.round() as u64;
    rounded
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    struct Scripted(Mutex<Vec<Option<MeterReading>>>);

    impl EnergyMeter for Scripted {
        fn read(&self) -> Option<MeterReading> {
            self.0.lock().unwrap().pop().flatten()
        }
    }

    fn shares(mut readings: Vec<Option<MeterReading>>) -> EnergyShares {
        readings.reverse();
        EnergyShares::new(Some(Arc::new(Scripted(Mutex::new(readings)))))
    }

    fn joules(n: f64) -> Option<MeterReading> {
        Some(MeterReading::Joules(n))
    }

    const A: SequenceId = SequenceId(1);
    const B: SequenceId = SequenceId(2);

    #[test]
    fn a_counter_is_shared_out_by_time() {
        let mut energy = shares(vec![joules(100.0), joules(102.0), joules(50.0)]);
        let (app, now) = (Arc::from("a"), Instant::now());
        energy.step_begins(now);
        energy.worked(A, &app, Duration::from_millis(30), now);
        energy.worked(B, &app, Duration::from_millis(10), now);
        let charges = energy.settle(now);
        let used: Vec<u64> = charges.iter().map(|c| c.energy_uj).collect();
        assert_eq!(used, [1_500_000, 500_000]);
        // 2 J in 40 ms are 50 W; that is what holds until the next reading.
        energy.step_begins(now);
        energy.worked(A, &app, Duration::from_millis(10), now);
        assert_eq!(energy.settle(now), [], "too early");
        assert_eq!(energy.outstanding_uj(A), Some(500_000));
        assert_eq!(energy.outstanding_uj(B), Some(0));
        // A counter that went round says nothing; the last power does.
        energy.worked(A, &app, Duration::from_millis(10), now);
        assert_eq!(energy.settle(now)[0].energy_uj, 1_000_000);
    }

    #[test]
    fn a_charge_set_aside_is_taken_once_and_the_oldest_make_room() {
        let mut energy = shares(vec![]);
        let charge = |id, energy_uj| Charge {
            id,
            app: "a".into(),
            energy_uj,
        };
        energy.set_aside(&charge(A, 5));
        energy.set_aside(&charge(B, 7));
        energy.set_aside(&charge(A, 6));
        assert_eq!((energy.take_aside(A), energy.take_aside(A)), (11, 0));
        for n in 0..ASIDE_MAX as u64 {
            energy.set_aside(&charge(SequenceId(100 + n), 1));
        }
        assert_eq!(energy.take_aside(B), 0);
    }

    #[test]
    fn what_is_counted_in_a_pause_is_nobodys() {
        let mut energy = shares(vec![joules(0.0), joules(1.0), joules(900.0), joules(901.0)]);
        let (app, now) = (Arc::from("a"), Instant::now());
        energy.step_begins(now);
        energy.worked(A, &app, Duration::from_millis(100), now);
        assert_eq!(energy.settle(now)[0].energy_uj, 1_000_000);
        // A short rest is left when the pause begins: 10 W for 5 ms.
        energy.worked(B, &app, Duration::from_millis(5), now);
        let later = now + Duration::from_secs(60);
        energy.step_begins(later);
        energy.worked(A, &app, Duration::from_millis(100), later);
        let charges = energy.settle(later);
        let used: Vec<_> = charges.iter().map(|c| (c.id, c.energy_uj)).collect();
        assert_eq!(used, [(B, 50_000), (A, 1_000_000)]);
    }

    #[test]
    fn watts_count_while_the_gpu_works() {
        let watts = |n| Some(MeterReading::Watts(n));
        let mut energy = shares(vec![watts(5.0), watts(10.0), None, watts(f64::NAN)]);
        let (app, now) = (Arc::from("a"), Instant::now());
        energy.step_begins(now);
        for expected in [Some(1_000_000), None, Some(0)] {
            energy.worked(A, &app, Duration::from_millis(100), now);
            let charge = energy.settle(now).first().map(|c| c.energy_uj);
            assert_eq!(charge, expected);
            let known = energy.outstanding_uj(A).is_some();
            assert_eq!(known, expected.is_some(), "a meter that says nothing");
        }
        let scripted = Scripted(Mutex::new(vec![joules(7.0), joules(4.0)]));
        assert_eq!(metered(Some(&scripted), || 1), (1, Some(3.0)));
        assert_eq!(metered(Some(&scripted), || 2), (2, None), "it failed");
        assert_eq!(metered(None, || 3), (3, None));
        let mut none = EnergyShares::new(None);
        none.step_begins(now);
        none.worked(A, &app, Duration::from_secs(1), now);
        assert_eq!((none.settle(now), none.outstanding_uj(A)), (vec![], None));
    }
}
