//! The policy against tables and random signals: levels are reached and left as written, nothing
//! oscillates, and the stricter of power and memory wins in every field.

use proptest::prelude::*;

use super::super::signals::{Battery, MemoryEvents, Thermal};
use super::*;

const BASE: Base = Base {
    slots: 8,
    context_len: 8192,
    prefill_chunk: 512,
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A policy under test, with its clock.
struct Lab {
    settings: Governor,
    state: State,
    now: Duration,
    signals: Signals,
}

impl Lab {
    /// On mains with a full battery, calm.
    fn new() -> Self {
        let mut signals = Signals::default();
        signals.power.watched = true;
        signals.power.source = "UPower";
        signals.power.battery = Some(Battery {
            present: true,
            on_battery: false,
            percent: Some(100.0),
            warning: Warning::None,
        });
        signals.memory.watched = true;
        signals.memory.source = "meminfo";
        signals.memory.free_percent = Some(60.0);
        signals.memory.shares_memory = true;
        signals.memory.model_percent = 10.0;
        let mut lab = Self {
            settings: Governor::default(),
            state: State::default(),
            now: Duration::ZERO,
            signals,
        };
        lab.step();
        lab
    }

    fn step(&mut self) -> Decision {
        let (state, decision) = step(self.state, &self.signals, self.now, &self.settings, BASE);
        self.state = state;
        self.signals.memory.events = MemoryEvents::default();
        decision
    }

    /// Lets this time pass as the governor does: by asking again when the policy says so, and at its end.
    fn pass(&mut self, time: Duration) -> Decision {
        let end = self.now + time;
        let mut decision = self.step();
        while let Some(again) = decision.again.filter(|again| *again <= end) {
            assert!(again > self.now, "a timer in the past is a busy loop");
            self.now = again;
            decision = self.step();
        }
        self.now = end;
        self.step()
    }

    fn power(&mut self, time: Duration) -> PowerLevel {
        self.pass(time).plan.power.unwrap()
    }

    fn memory(&mut self, time: Duration) -> MemoryLevel {
        self.pass(time).plan.memory.unwrap()
    }
}

type Change = fn(&mut Signals);

fn unplug(signals: &mut Signals) {
    let battery = signals.power.battery.as_mut().unwrap();
    battery.on_battery = true;
    battery.percent = Some(80.0);
}

fn discharge(signals: &mut Signals, percent: f64) {
    unplug(signals);
    signals.power.battery.as_mut().unwrap().percent = Some(percent);
}

fn warn(signals: &mut Signals, warning: Warning) {
    unplug(signals);
    signals.power.battery.as_mut().unwrap().warning = warning;
}

fn heat(signals: &mut Signals, heat: Heat) {
    signals.thermal = Some(Thermal {
        heat,
        celsius: 97.0,
        source: "x86_pkg_temp".to_owned(),
    });
}

fn plug(signals: &mut Signals) {
    signals.power.battery.as_mut().unwrap().on_battery = false;
}

/// What enters a level, the level, and what leaves it.
const POWER: [(&str, Change, PowerLevel, Change); 11] = [
    ("battery", unplug, PowerLevel::Battery, plug),
    ("19.9 %", |s| discharge(s, 19.9), PowerLevel::Saver, plug),
    (
        "saver",
        |s| s.power.saver = true,
        PowerLevel::Saver,
        |s| {
            s.power.saver = false;
        },
    ),
    (
        "degraded",
        |s| s.power.degraded = Some("lap-detected".to_owned()),
        PowerLevel::Saver,
        |s| s.power.degraded = None,
    ),
    ("warned", |s| warn(s, Warning::Low), PowerLevel::Saver, plug),
    (
        "hot",
        |s| heat(s, Heat::Serious),
        PowerLevel::Saver,
        |s| {
            heat(s, Heat::Nominal);
        },
    ),
    ("4.9 %", |s| discharge(s, 4.9), PowerLevel::Critical, plug),
    (
        "warned twice",
        |s| warn(s, Warning::Critical),
        PowerLevel::Critical,
        plug,
    ),
    (
        "too hot",
        |s| heat(s, Heat::Critical),
        PowerLevel::Critical,
        |s| heat(s, Heat::Nominal),
    ),
    ("20 %", |s| discharge(s, 20.0), PowerLevel::Battery, plug),
    ("5 %", |s| discharge(s, 5.0), PowerLevel::Saver, plug),
];

#[test]
fn every_power_level_is_entered_after_2_s_and_left_after_30() {
    for (what, enter, level, leave) in POWER {
        let mut lab = Lab::new();
        assert_eq!(lab.power(seconds(1)), PowerLevel::Mains, "{what}");
        enter(&mut lab.signals);
        assert_eq!(
            lab.power(Duration::from_millis(1999)),
            PowerLevel::Mains,
            "{what}"
        );
        assert_eq!(lab.power(Duration::from_millis(1)), level, "{what}");
        assert_eq!(lab.power(seconds(3600)), level, "{what} lasts");
        leave(&mut lab.signals);
        assert_eq!(lab.power(Duration::from_millis(29_999)), level, "{what}");
        assert_eq!(
            lab.power(Duration::from_millis(1)),
            PowerLevel::Mains,
            "{what}"
        );
        let decision = lab.step();
        assert_eq!(
            decision.again, None,
            "{what}: nothing is pending afterwards"
        );
        assert_eq!(decision.plan.allowance, hearth_engine::Allowance::default());
    }
}

#[test]
fn a_battery_has_to_fill_beyond_where_it_was_low() {
    let mut lab = Lab::new();
    discharge(&mut lab.signals, 4.0);
    assert_eq!(lab.power(seconds(2)), PowerLevel::Critical);
    for (percent, level) in [
        (9.9, PowerLevel::Critical),
        (10.0, PowerLevel::Saver),
        (24.9, PowerLevel::Saver),
        (25.0, PowerLevel::Battery),
        (20.0, PowerLevel::Battery),
        (19.0, PowerLevel::Saver),
    ] {
        discharge(&mut lab.signals, percent);
        assert_eq!(lab.power(seconds(30)), level, "{percent}");
    }
}

#[test]
fn the_first_word_counts_at_once() {
    let mut lab = Lab::new();
    lab.state = State::default();
    discharge(&mut lab.signals, 4.0);
    let plan = lab.step().plan;
    assert_eq!(plan.power, Some(PowerLevel::Critical));
    assert_eq!(plan.reason, "battery critical, 4 % (UPower)");
    lab.signals.power.battery = None;
    lab.state = State::default();
    assert_eq!(lab.step().plan.power, None, "nobody has told");
}

#[test]
fn flapping_mains_change_the_level_twice_at_most() {
    // Ten minutes of 1 Hz, with every share of the second on mains, from either side.
    for on_mains_ms in [1, 100, 500, 900, 999] {
        for starts_on_battery in [false, true] {
            let mut lab = Lab::new();
            if starts_on_battery {
                unplug(&mut lab.signals);
                lab.pass(seconds(60));
            }
            let mut levels = vec![lab.power(Duration::ZERO)];
            for _ in 0..600 {
                plug(&mut lab.signals);
                levels.push(lab.power(Duration::from_millis(on_mains_ms)));
                unplug(&mut lab.signals);
                levels.push(lab.power(Duration::from_millis(1000 - on_mains_ms)));
            }
            levels.dedup();
            assert!(levels.len() <= 3, "{on_mains_ms} ms on mains: {levels:?}");
        }
    }
}

#[test]
fn memory_levels_are_entered_at_once_and_left_one_by_one() {
    let table: [(Change, MemoryLevel); 9] = [
        (|s| s.memory.free_percent = Some(14.9), MemoryLevel::Some),
        (|s| s.memory.free_percent = Some(15.0), MemoryLevel::Calm),
        (|s| s.memory.free_percent = Some(9.9), MemoryLevel::High),
        (|s| s.memory.free_percent = Some(4.9), MemoryLevel::Critical),
        (|s| s.memory.events.some = true, MemoryLevel::Some),
        (|s| s.memory.events.full = true, MemoryLevel::High),
        (|s| s.memory.events.cgroup_high = true, MemoryLevel::High),
        (|s| s.memory.events.full_long = true, MemoryLevel::High),
        (|s| s.memory.free_percent = None, MemoryLevel::Calm),
    ];
    for (enter, level) in table {
        let mut lab = Lab::new();
        enter(&mut lab.signals);
        assert_eq!(lab.step().plan.memory, Some(level));
        lab.signals.memory.free_percent = Some(60.0);
        let mut left = level;
        while left > MemoryLevel::Calm {
            assert_eq!(lab.memory(Duration::from_millis(59_999)), left);
            left = one_less(left);
            assert_eq!(lab.memory(Duration::from_millis(1)), left);
        }
        let decision = lab.step();
        assert_eq!((decision.again, decision.short), (None, false));
    }
}

#[test]
fn a_second_long_stall_soon_after_the_first_is_critical() {
    for (pause, level) in [
        (seconds(2), MemoryLevel::Critical),
        (seconds(10), MemoryLevel::Critical),
        (seconds(11), MemoryLevel::High),
    ] {
        let mut lab = Lab::new();
        lab.signals.memory.events.full_long = true;
        assert_eq!(lab.step().plan.memory, Some(MemoryLevel::High));
        lab.pass(pause);
        lab.signals.memory.events.full_long = true;
        assert_eq!(lab.step().plan.memory, Some(level), "{pause:?}");
    }
}

#[test]
fn pressure_that_goes_on_is_no_calm() {
    let mut lab = Lab::new();
    for _ in 0..100 {
        lab.signals.memory.events.full = true;
        assert_eq!(lab.step().plan.memory, Some(MemoryLevel::High));
        lab.pass(seconds(59));
    }
    assert_eq!(lab.memory(seconds(1)), MemoryLevel::Some);
}

#[test]
fn weights_go_and_come_back_when_there_is_room() {
    let mut lab = Lab::new();
    lab.signals.memory.free_percent = Some(4.0);
    assert!(!lab.step().plan.keep_weights);
    // With 10 % for the model, 29 % is not enough for 20 % to stay.
    lab.signals.memory.free_percent = Some(29.0);
    let decision = lab.pass(seconds(3600));
    assert_eq!(decision.plan.memory, Some(MemoryLevel::Calm));
    assert!(!decision.plan.keep_weights && decision.short);
    assert!(
        decision.plan.reason.contains("20 % of memory"),
        "{}",
        decision.plan.reason
    );
    lab.signals.memory.free_percent = Some(30.0);
    assert!(lab.step().plan.keep_weights);
    assert!(!lab.step().short);
}

#[test]
fn weights_that_go_again_soon_stay_away_for_longer() {
    let mut lab = Lab::new();
    lab.settings.memory_calm = Duration::from_millis(100);
    let mut waits = Vec::new();
    for _ in 0..9 {
        lab.signals.memory.free_percent = Some(4.0);
        assert!(!lab.step().plan.keep_weights);
        lab.signals.memory.free_percent = Some(60.0);
        let gone = lab.now;
        while !lab.pass(seconds(1)).plan.keep_weights {}
        waits.push((lab.now - gone).as_secs());
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
    lab.pass(seconds(601));
    lab.signals.memory.free_percent = Some(4.0);
    lab.step();
    lab.signals.memory.free_percent = Some(60.0);
    assert!(!lab.pass(seconds(9)).plan.keep_weights);
    assert!(
        lab.pass(seconds(1)).plan.keep_weights,
        "well for long: from the beginning"
    );
}

#[test]
fn a_gpu_with_memory_of_its_own_keeps_its_weights() {
    let mut lab = Lab::new();
    lab.signals.memory.shares_memory = false;
    lab.signals.memory.free_percent = Some(1.0);
    let plan = lab.step().plan;
    assert_eq!(
        (plan.memory, plan.keep_weights),
        (Some(MemoryLevel::Critical), true)
    );
}

#[test]
fn a_persons_word_counts_on_the_battery_not_on_heat_nor_on_memory() {
    let mut lab = Lab::new();
    discharge(&mut lab.signals, 3.0);
    lab.pass(seconds(60));
    lab.signals.mode = PowerMode::Full;
    let plan = lab.step().plan;
    assert_eq!(plan.power, Some(PowerLevel::Mains), "at once");
    assert_eq!(plan.allowance, hearth_engine::Allowance::default());
    assert_eq!(plan.reason, "full power by hand; on battery, 3 % (UPower)");
    heat(&mut lab.signals, Heat::Serious);
    assert_eq!(lab.power(seconds(2)), PowerLevel::Saver);
    lab.signals.memory.free_percent = Some(9.0);
    assert_eq!(lab.step().plan.allowance.slots, 1);
    lab.signals.mode = PowerMode::Auto;
    assert_eq!(
        lab.step().plan.power,
        Some(PowerLevel::Critical),
        "nothing was forgotten"
    );

    let mut lab = Lab::new();
    lab.signals.mode = PowerMode::Saver;
    let plan = lab.step().plan;
    assert_eq!(plan.power, Some(PowerLevel::Saver));
    assert_eq!(plan.reason, "saving power by hand; mains (UPower)");
    discharge(&mut lab.signals, 3.0);
    assert_eq!(
        lab.power(seconds(2)),
        PowerLevel::Critical,
        "stricter than the word"
    );
}

#[test]
fn what_levels_allow() {
    let power = |level| Effects::of_power(level, BASE, &Governor::default());
    let mains = power(PowerLevel::Mains);
    assert_eq!(mains.unload_after_idle, Some(seconds(1800)));
    let battery = power(PowerLevel::Battery);
    assert_eq!(
        (battery.allowance.slots, battery.allowance.prefill_chunk_max),
        (4, 256)
    );
    assert!(battery.allowance.background_pace < 1.0 && battery.allowance.pace >= 1.0);
    assert_eq!(battery.unload_after_idle, Some(seconds(300)));
    let saver = power(PowerLevel::Saver);
    assert_eq!(
        (saver.allowance.slots, saver.allowance.context_len_max),
        (2, 4096)
    );
    assert_eq!(
        saver.allowance.least_class,
        hearth_engine::Class::Interactive
    );
    assert!(saver.pulls_paused && !battery.pulls_paused);
    let critical = power(PowerLevel::Critical);
    assert_eq!(critical.allowance.slots, 1);
    assert_eq!(
        (critical.unload_after_idle, critical.unload_strict),
        (Some(seconds(30)), true)
    );
    let memory = |level| Effects::of_memory(level, BASE, &Governor::default()).allowance;
    assert!((memory(MemoryLevel::Some).prefix_cache_share - 0.5).abs() < 1e-6);
    let high = memory(MemoryLevel::High);
    assert_eq!(
        (high.slots, high.context_len_max, high.keep_waiting_kv),
        (1, 2048, false)
    );
    let never = Governor {
        keep_alive: Duration::ZERO,
        ..Governor::default()
    };
    let mains = Effects::of_power(PowerLevel::Mains, BASE, &never);
    assert_eq!(mains.unload_after_idle, None);
}

/// Whether `a` allows nothing that `b` does not.
fn is_within(a: &Plan, b: &Effects) -> bool {
    let (x, y) = (&a.allowance, &b.allowance);
    x.slots <= y.slots
        && x.context_len_max <= y.context_len_max
        && x.prefill_chunk_max <= y.prefill_chunk_max
        && x.least_class <= y.least_class
        && x.pace <= y.pace
        && x.background_pace <= y.background_pace
        && x.prefix_cache_share <= y.prefix_cache_share
        && x.keep_waiting_kv <= y.keep_waiting_kv
        && a.pulls_paused >= b.pulls_paused
        && a.unload_strict >= b.unload_strict
        && match (a.unload_after_idle, b.unload_after_idle) {
            (_, None) => true,
            (Some(a), Some(b)) => a <= b,
            (None, Some(_)) => false,
        }
}

const POWERS: [PowerLevel; 4] = [
    PowerLevel::Mains,
    PowerLevel::Battery,
    PowerLevel::Saver,
    PowerLevel::Critical,
];
const MEMORIES: [MemoryLevel; 4] = [
    MemoryLevel::Calm,
    MemoryLevel::Some,
    MemoryLevel::High,
    MemoryLevel::Critical,
];

/// A machine's signals at a moment, and how long they last.
fn moment() -> impl Strategy<Value = (Signals, Duration)> {
    let battery = (any::<bool>(), any::<bool>(), 0.0..100.0_f64, 0..3_u8);
    let rest = (any::<bool>(), any::<bool>(), 0..3_u8, 0..3_u8);
    let memory = (0.0..100.0_f64, any::<[bool; 4]>(), 0..8_u8);
    (battery, rest, memory, 1..70_000_u64).prop_map(|(battery, rest, memory, ms)| {
        let mut signals = Lab::new().signals;
        let (present, on_battery, percent, warning) = battery;
        signals.power.battery = Some(Battery {
            present,
            on_battery,
            percent: Some(percent),
            warning: [Warning::None, Warning::Low, Warning::Critical][usize::from(warning)],
        });
        let (saver, degraded, hot, mode) = rest;
        signals.power.saver = saver;
        signals.power.degraded = degraded.then(|| "hot".to_owned());
        let heats = [Heat::Nominal, Heat::Serious, Heat::Critical];
        heat(&mut signals, heats[usize::from(hot)]);
        signals.mode = [PowerMode::Auto, PowerMode::Full, PowerMode::Saver][usize::from(mode)];
        let (free, [some, full, full_long, cgroup_high], rare) = memory;
        signals.memory.free_percent = Some(free);
        if rare == 0 {
            signals.memory.events = MemoryEvents {
                some,
                full,
                full_long,
                cgroup_high,
            };
        }
        (signals, Duration::from_millis(ms))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn on_any_walk_the_stricter_wins_and_nothing_is_faster_than_its_dwell(
        walk in proptest::collection::vec(moment(), 1..120)
    ) {
        let mut lab = Lab::new();
        // For each power level, whether it is reached and since when.
        let mut reached = [(false, Duration::ZERO); 4];
        let mut memory_changed: Option<(MemoryLevel, Duration)> = None;
        for (mut signals, time) in walk {
            // By hand it may change at once; that is another test's.
            signals.mode = PowerMode::Auto;
            lab.signals = signals;
            let end = lab.now + time;
            loop {
                let decision = lab.step();
                let plan = &decision.plan;
                let (power, memory) = (plan.power.unwrap(), plan.memory.unwrap());
                let settings = &lab.settings;
                prop_assert!(is_within(plan, &Effects::of_power(power, BASE, settings)));
                prop_assert!(is_within(plan, &Effects::of_memory(memory, BASE, settings)));
                for (level, (is, since)) in POWERS.into_iter().zip(&mut reached).skip(1) {
                    if (power >= level) != *is {
                        // Down it goes 2 s after a cause came; what it left just before may be another's.
                        let least = if *is { settings.power_up } else { Duration::ZERO };
                        prop_assert!(lab.now - *since >= least, "{level:?} at {:?}", lab.now);
                        (*is, *since) = (power >= level, lab.now);
                    }
                }
                match memory_changed {
                    Some((old, at)) if memory < old => {
                        prop_assert_eq!(memory, one_less(old));
                        prop_assert!(lab.now - at >= settings.memory_calm);
                        memory_changed = Some((memory, lab.now));
                    }
                    Some((old, _)) if memory == old => {}
                    _ => memory_changed = Some((memory, lab.now)),
                }
                let again = decision.again.unwrap_or(end).min(end);
                prop_assert!(again > lab.now, "a timer in the past is a busy loop");
                lab.now = again;
                if lab.now == end {
                    break;
                }
            }
        }
    }

    #[test]
    fn by_hand_the_plan_is_never_looser_than_heat_and_memory(
        walk in proptest::collection::vec(moment(), 1..120)
    ) {
        let mut lab = Lab::new();
        for (signals, time) in walk {
            lab.signals = signals;
            let plan = lab.pass(time).plan;
            let memory = Effects::of_memory(plan.memory.unwrap(), BASE, &lab.settings);
            prop_assert!(is_within(&plan, &memory));
            if plan.mode == PowerMode::Saver {
                prop_assert!(plan.power.unwrap() >= PowerLevel::Saver);
            }
            prop_assert!(!plan.reason.is_empty() && plan.reason.len() < 400);
        }
    }
}

#[test]
fn any_two_levels_join_by_the_stricter_of_each_field() {
    let settings = Governor::default();
    for power in POWERS {
        for memory in MEMORIES {
            let (a, b) = (
                Effects::of_power(power, BASE, &settings),
                Effects::of_memory(memory, BASE, &settings),
            );
            let both = a.stricter(b);
            assert_eq!(both, b.stricter(a));
            assert_eq!(
                both.allowance.slots,
                a.allowance.slots.min(b.allowance.slots)
            );
            let pace = a.allowance.pace.min(b.allowance.pace);
            assert!((both.allowance.pace - pace).abs() < f32::EPSILON);
        }
    }
}
