//! Random schedules, and shares of the GPU's time, on a clock that is made up: nothing here depends on
//! the machine.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

/// Numbers that do not repeat for long.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }
}

#[derive(Debug, Clone)]
struct Job {
    app: Arc<str>,
    class: Class,
    chunks: u32,
    tokens: u32,
    slot: Option<u32>,
    first_ran: Option<Duration>,
}

/// A GPU that is made up, and the sequences at work on it.
struct Machine {
    scheduler: Scheduler,
    shares: Shares,
    now: Duration,
    jobs: BTreeMap<SequenceId, Job>,
    done: Vec<Job>,
    used: HashMap<(Arc<str>, Class), Duration>,
    next: u64,
    chunk: Duration,
    step: Duration,
}

impl Machine {
    fn new(slots: u32) -> Self {
        Self::with(Shares {
            slots,
            app_slots_max: u32::MAX,
            background_share: 0.2,
        })
    }

    fn with(shares: Shares) -> Self {
        Self {
            scheduler: Scheduler::new(shares.clone()),
            shares,
            now: Duration::ZERO,
            jobs: BTreeMap::new(),
            done: Vec::new(),
            used: HashMap::new(),
            next: 0,
            chunk: Duration::from_millis(100),
            step: Duration::from_millis(40),
        }
    }

    fn submit(&mut self, app: &str, class: Class, chunks: u32, tokens: u32) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        let job = Job {
            app: app.into(),
            class,
            chunks,
            tokens,
            slot: None,
            first_ran: None,
        };
        let app = Arc::clone(&job.app);
        self.scheduler.submit(id, app, class, self.now);
        self.jobs.insert(id, job);
        id
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.done.extend(self.jobs.remove(&id));
    }

    fn arrange(&mut self) {
        for step in self.scheduler.arrange(self.now, |_, _| true) {
            match step {
                Move::Pause(id) => self.jobs.get_mut(&id).unwrap().slot = None,
                Move::Run(id, slot) => {
                    let job = self.jobs.get_mut(&id).unwrap();
                    assert!(job.slot.is_none());
                    job.slot = Some(slot);
                    job.first_ran.get_or_insert(self.now);
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        let mut slots: Vec<u32> = self.jobs.values().filter_map(|job| job.slot).collect();
        slots.sort_unstable();
        let count = slots.len();
        slots.dedup();
        assert_eq!(slots.len(), count, "a slot has one sequence");
        assert!(slots.iter().all(|slot| *slot < self.shares.slots));
        assert_eq!(self.scheduler.running().count(), count);
        let mut apps: HashMap<&str, u32> = HashMap::new();
        for job in self.jobs.values().filter(|job| job.slot.is_some()) {
            *apps.entry(&job.app).or_default() += 1;
        }
        assert!(apps.values().all(|n| *n <= self.shares.app_slots_max));
        assert!(count <= self.scheduler.slots_allowed as usize);
        let running = self.jobs.values().filter(|job| job.slot.is_some());
        let least = running.map(|job| job.class).max();
        assert!(least <= Some(self.scheduler.least_class));
    }

    /// One step; returns who took part.
    fn step(&mut self) -> Option<Turn> {
        self.arrange();
        let jobs = &self.jobs;
        let work = |id: SequenceId| {
            let job = &jobs[&id];
            assert!(job.slot.is_some(), "only those with a slot are asked");
            match (job.chunks, job.tokens) {
                (1.., _) => Work::Prefill,
                (0, 1..) => Work::Decode,
                (0, 0) => Work::Nothing,
            }
        };
        let turn = self.scheduler.turn(self.now, work)?;
        let (ids, time) = match &turn {
            Turn::Prefill(id) => (vec![*id], self.chunk),
            Turn::Decode(ids) => (ids.clone(), self.step),
        };
        self.now += time;
        for id in &ids {
            let job = self.jobs.get_mut(id).unwrap();
            if job.chunks > 0 {
                job.chunks -= 1;
            } else {
                job.tokens -= 1;
            }
            let (app, class) = (Arc::clone(&job.app), job.class);
            let share = time / u32::try_from(ids.len()).unwrap();
            self.scheduler.charge(&app, class, share);
            *self.used.entry((app, class)).or_default() += share;
            if self.jobs[id].chunks + self.jobs[id].tokens == 0 {
                self.remove(*id);
            }
        }
        Some(turn)
    }

    fn used(&self, app: &str, class: Class) -> f64 {
        let used = self.used.get(&(app.into(), class));
        used.copied().unwrap_or_default().as_secs_f64()
    }

    fn slots(&self, app: &str) -> usize {
        let of_app = self.jobs.values().filter(|job| *job.app == *app);
        of_app.filter(|job| job.slot.is_some()).count()
    }
}

fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|s| s * s).sum();
    sum * sum / (squares * shares.len() as f64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn everybody_is_served_in_the_end(seed: u64) {
        let mut random = Random(seed);
        let slots = 1 + u32::try_from(random.below(10)).unwrap();
        let mut machine = Machine::with(Shares {
            slots,
            app_slots_max: if random.below(3) == 0 { 1 + slots / 2 } else { u32::MAX },
            background_share: 0.05 + random.below(90) as f32 / 100.0,
        });
        let mut submitted = 0;
        for _ in 0..30 {
            match random.below(9) {
                0..=3 => {
                    let app = random.below(5).to_string();
                    let class = Class::ALL[random.index(3)];
                    let chunks = u32::try_from(1 + random.below(4)).unwrap();
                    let tokens = u32::try_from(random.below(12)).unwrap();
                    machine.submit(&app, class, chunks, tokens);
                    submitted += 1;
                }
                4 if !machine.jobs.is_empty() => {
                    let at = random.index(machine.jobs.len());
                    let id = *machine.jobs.keys().nth(at).unwrap();
                    machine.remove(id);
                }
                5 if !machine.jobs.is_empty() => {
                    let at = random.index(machine.jobs.len());
                    let id = *machine.jobs.keys().nth(at).unwrap();
                    machine.scheduler.set_stalled(id, random.below(2) == 0);
                }
                8 => {
                    let slots = u32::try_from(random.below(12)).unwrap();
                    let class = Class::ALL[random.index(3)];
                    machine.scheduler.allow(slots, class, random.below(2) == 0);
                }
                _ => {
                    machine.step();
                }
            }
        }
        machine.scheduler.allow(u32::MAX, Class::Background, true);
        let ids: Vec<_> = machine.jobs.keys().copied().collect();
        for id in ids {
            machine.scheduler.set_stalled(id, false);
        }
        // Background work may have to save up: then time passes without a step.
        let mut steps = 0;
        while !machine.jobs.is_empty() {
            if machine.step().is_none() {
                machine.now += Duration::from_millis(10);
            }
            steps += 1;
            prop_assert!(steps < 5_000, "not served: {:?}", machine.jobs);
        }
        prop_assert_eq!(machine.done.len(), submitted);
        prop_assert_eq!(machine.scheduler.free_slots.len(), slots as usize);
    }
}

#[test]
fn equal_apps_get_equal_time() {
    let mut machine = Machine::new(8);
    // 64 apps that always have a request waiting, of different sizes.
    let mut random = Random(1);
    for _ in 0..20_000 {
        for app in 0..64 {
            let app = app.to_string();
            if !machine.jobs.values().any(|job| *job.app == *app) {
                let chunks = 1 + u32::try_from(random.below(3)).unwrap();
                let tokens = 4 + u32::try_from(random.below(60)).unwrap();
                machine.submit(&app, Class::Interactive, chunks, tokens);
            }
        }
        machine.step();
    }
    let shares: Vec<f64> = (0..64)
        .map(|app: u32| machine.used(&app.to_string(), Class::Interactive))
        .collect();
    assert!(jain(&shares) >= 0.95, "{} {shares:?}", jain(&shares));
}

#[test]
fn many_requests_are_no_larger_share() {
    let mut machine = Machine::new(8);
    for _ in 0..200 {
        machine.submit("greedy", Class::Interactive, 1, 50);
    }
    for _ in 0..20 {
        machine.step();
    }
    assert_eq!(machine.slots("greedy"), 8, "alone it has everything");
    let modest = machine.submit("modest", Class::Interactive, 1, 50);
    machine.arrange();
    assert_eq!(
        machine.jobs[&modest].first_ran,
        Some(machine.now),
        "at once"
    );
    assert_eq!(
        machine.scheduler.turn(machine.now, |id| {
            if id == modest {
                Work::Prefill
            } else {
                Work::Decode
            }
        }),
        Some(Turn::Prefill(modest)),
        "its prompt comes next"
    );
    for _ in 0..7 {
        machine.submit("modest", Class::Interactive, 1, 50);
    }
    machine.arrange();
    assert_eq!((machine.slots("greedy"), machine.slots("modest")), (4, 4));
}

#[test]
fn more_urgent_requests_take_slots_and_prompts_first() {
    let mut machine = Machine::new(2);
    let slow = machine.submit("a", Class::Background, 20, 10);
    machine.submit("a", Class::Background, 20, 10);
    machine.step();
    let urgent = machine.submit("b", Class::Interactive, 1, 5);
    let turn = machine.step();
    assert_eq!(turn, Some(Turn::Prefill(urgent)), "the next step is its");
    assert!(
        machine.jobs[&slow].slot.is_some(),
        "the later one made room"
    );
    assert_eq!(machine.slots("a"), 1);
}

#[test]
fn background_work_keeps_to_its_share() {
    let mut machine = Machine::new(4);
    machine.submit("batch", Class::Background, 1_000_000, 0);
    machine.submit("person", Class::Interactive, 1, 1_000_000);
    for _ in 0..5_000 {
        machine.step();
    }
    let batch = machine.used("batch", Class::Background);
    let share = batch / machine.now.as_secs_f64();
    assert!((0.15..=0.22).contains(&share), "{share}");
    // Alone, it has everything.
    machine.remove(SequenceId(1));
    let (before, used) = (machine.now, batch);
    for _ in 0..100 {
        machine.step();
    }
    let more = machine.used("batch", Class::Background) - used;
    assert!((more - (machine.now - before).as_secs_f64()).abs() < 1e-6);
}

#[test]
fn who_waits_long_is_served_though_others_never_stop() {
    let mut machine = Machine::new(2);
    let waiting = machine.submit("batch", Class::Background, 1, 3);
    let mut steps = 0;
    while machine.jobs.contains_key(&waiting) {
        for n in 0..4 {
            let app = format!("person{n}");
            if !machine.jobs.values().any(|job| *job.app == *app) {
                machine.submit(&app, Class::Interactive, 1, 20);
            }
        }
        machine.step();
        steps += 1;
        assert!(machine.now < 10 * AGEING, "it starves after {steps} steps");
    }
    assert!(machine.now >= 2 * AGEING, "it was raised by waiting");
}

#[test]
fn long_answers_take_turns() {
    let mut machine = Machine::new(2);
    for app in ["a", "b", "c"] {
        machine.submit(app, Class::Interactive, 1, 100_000);
    }
    for _ in 0..5_000 {
        machine.step();
    }
    let shares = ["a", "b", "c"].map(|app| machine.used(app, Class::Interactive));
    assert!(jain(&shares) > 0.99, "{shares:?}");
}

#[test]
fn a_stalled_reader_holds_no_slot_that_others_want() {
    let mut machine = Machine::new(1);
    let stalled = machine.submit("a", Class::Interactive, 1, 50);
    machine.step();
    machine.scheduler.set_stalled(stalled, true);
    machine.arrange();
    assert!(machine.jobs[&stalled].slot.is_some(), "nobody wants it");
    let other = machine.submit("a", Class::Background, 1, 50);
    machine.arrange();
    assert!(machine.jobs[&other].slot.is_some() && machine.jobs[&stalled].slot.is_none());
    machine.scheduler.set_stalled(stalled, false);
    machine.arrange();
    assert!(machine.jobs[&stalled].slot.is_some(), "more urgent");
}

#[test]
fn what_is_not_allowed_any_more_waits_and_goes_on_later() {
    let mut machine = Machine::new(4);
    let ids = [
        Class::Interactive,
        Class::Background,
        Class::Utility,
        Class::Interactive,
    ]
    .map(|class| machine.submit("a", class, 1, 50));
    machine.step();
    let running = |machine: &Machine| machine.scheduler.running().collect::<Vec<_>>();
    assert_eq!(running(&machine), ids);
    machine.scheduler.allow(2, Class::Utility, true);
    machine.step();
    assert_eq!(running(&machine), [ids[0], ids[3]], "the most urgent");
    machine.remove(ids[0]);
    machine.step();
    assert_eq!(running(&machine), [ids[2], ids[3]]);
    machine.remove(ids[2]);
    machine.now += 10 * AGEING;
    machine.step();
    assert_eq!(
        running(&machine),
        [ids[3]],
        "waiting does not raise it there"
    );
    machine.scheduler.allow(u32::MAX, Class::Background, true);
    machine.step();
    assert_eq!(running(&machine), [ids[1], ids[3]]);
}

#[test]
fn equals_keep_their_slots_where_a_pause_is_dear() {
    let mut machine = Machine::new(1);
    machine.scheduler.allow(1, Class::Background, false);
    let first = machine.submit("a", Class::Interactive, 1, 1000);
    machine.submit("b", Class::Interactive, 1, 10);
    for _ in 0..200 {
        machine.step();
        assert!(machine.jobs[&first].slot.is_some());
    }
    machine.scheduler.allow(1, Class::Background, true);
    machine.step();
    assert!(machine.jobs[&first].slot.is_none(), "it had its turn");
}

#[test]
fn debts_from_when_nobody_asked_do_not_last() {
    let mut machine = Machine::new(1);
    machine.submit("batch", Class::Background, 1_000_000, 0);
    let long = machine.submit("a", Class::Interactive, 1_000, 1);
    while machine.jobs.contains_key(&long) {
        machine.step();
    }
    machine.submit("b", Class::Interactive, 1, 1_000_000);
    machine.step();
    let again = machine.submit("a", Class::Interactive, 1, 1);
    let before = machine.now;
    while machine.jobs.contains_key(&again) {
        machine.step();
    }
    let waited = machine.now - before;
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[test]
fn nobody_overtakes_who_does_not_fit() {
    let mut machine = Machine::new(2);
    let large = machine.submit("a", Class::Interactive, 1, 1);
    let small = machine.submit("b", Class::Interactive, 1, 1);
    let moves = machine.scheduler.arrange(machine.now, |_, id| id != large);
    assert_eq!(moves, []);
    assert_eq!(machine.scheduler.line(machine.now), [large, small]);
}

#[test]
fn memory_is_taken_from_the_paused_then_from_the_least_urgent() {
    let mut machine = Machine::new(2);
    let background = machine.submit("a", Class::Background, 9, 9);
    let first = machine.submit("a", Class::Utility, 9, 9);
    machine.arrange();
    let second = machine.submit("b", Class::Interactive, 9, 9);
    machine.arrange();
    let now = machine.now;
    let give_way = |id| machine.scheduler.giving_way_to(id, now);
    assert_eq!(give_way(second), [background, first]);
    assert_eq!(give_way(first), [background]);
    assert_eq!(give_way(background), []);
}
