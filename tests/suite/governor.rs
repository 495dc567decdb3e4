//! The governor against a played machine: battery, power profiles, sleep, heat and memory change, and
//! both the plan that watchers are told and its effect on what runs are as they should be.

mod machine;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_proto::v1::PowerLevel::{Battery, Critical, Mains, Saver};
use hearth_test_support::{Clients, Setup, long_tests, reason, text_of};
use machine::{LOGIND, Machine, NEW_PROFILES, OLD_PROFILES, Running, UPOWER, fifo};
use tonic::Code;

const INTERACTIVE: v1::Class = v1::Class::Interactive;

/// A laptop on mains, with a full battery, and its daemon.
async fn laptop() -> (Machine, Vec<machine::Played>, Running) {
    let (machine, played) = Machine::with(&[UPOWER]).await;
    machine.battery(false, 100.0).await;
    let mut daemon = machine.start(machine.setup()).await;
    let plan = daemon.level(Mains).await;
    assert_eq!(plan.reason, "mains (UPower)");
    (machine, played, daemon)
}

/// A prompt of so many words.
async fn ask(clients: &mut Clients, words: usize, tokens: u32) -> Result<v1::End, tonic::Status> {
    let request = v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello ".repeat(words))),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(tokens),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let stream = clients.inference.generate(request).await?.into_inner();
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await?;
    Ok(text.end.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn unplugged_it_runs_half_as_many_and_plugged_in_all_again() {
    let (machine, _played, mut daemon) = laptop().await;
    let before = daemon.last_plan().await;
    let _load = daemon.load(7, INTERACTIVE).await;
    daemon.active(7).await;
    machine.battery(true, 80.0).await;
    let plan = daemon.level(Battery).await;
    assert_eq!(plan.reason, "on battery, 80 % (UPower)");
    assert_eq!(
        (plan.slots, plan.prefill_chunk),
        (4, before.prefill_chunk / 2)
    );
    assert!(plan.pace >= 1.0 && plan.background_pace < 1.0 && plan.keep_weights);
    let idle = plan.unload_after_idle.unwrap();
    assert_eq!(idle.seconds, 300);
    let status = daemon.active(4).await;
    assert_eq!(status.queue.unwrap().waiting, 3, "the others wait");
    machine.battery(false, 80.0).await;
    assert_eq!(daemon.level(Mains).await.slots, before.slots);
    daemon.active(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_20_per_cent_only_the_urgent_run_and_contexts_are_short() {
    let (machine, _played) = Machine::with(&[UPOWER]).await;
    machine.battery(true, 30.0).await;
    let setup = machine.setup().set("saver_context_len", 64);
    let mut daemon = machine.start(setup).await;
    daemon.level(Battery).await;
    let _background = daemon.load(2, v1::Class::Background).await;
    daemon.active(2).await;
    assert!(ask(&mut daemon.clients, 60, 4).await.is_ok());
    machine.battery(true, 19.0).await;
    let plan = daemon.level(Saver).await;
    assert_eq!(plan.reason, "battery low, 19 % (UPower)");
    assert_eq!((plan.slots, plan.context_len_max), (2, 64));
    assert_eq!(plan.classes, [i32::from(INTERACTIVE)]);
    assert!(plan.pulls_paused && plan.pace < 1.0);
    daemon.active(0).await;
    let refused = ask(&mut daemon.clients, 60, 4).await.unwrap_err();
    assert_eq!(reason(&refused), "CONTEXT_OVERFLOW", "{refused}");
    let _urgent = daemon.load(3, INTERACTIVE).await;
    let status = daemon.active(2).await;
    let classes: Vec<_> = status
        .sequences
        .iter()
        .filter(|s| s.ahead.is_none())
        .collect();
    assert!(
        classes.iter().all(|s| s.class() == INTERACTIVE),
        "{classes:?}"
    );
    machine.battery(true, 24.0).await;
    daemon
        .told("24 %", |s| s.plan.as_ref().unwrap().reason.contains("24 %"))
        .await;
    assert_eq!(
        daemon.last_plan().await.power(),
        Saver,
        "a bit more is not enough"
    );
    machine.battery(true, 26.0).await;
    daemon.level(Battery).await;
    daemon.active(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_5_per_cent_one_runs_slowly_and_the_weights_go_soon() {
    let (machine, _played) = Machine::with(&[UPOWER]).await;
    machine.battery(false, 50.0).await;
    let setup = machine
        .setup()
        .set("critical_unload_s", 0.3)
        .set("critical_pace", 0.25);
    let mut daemon = machine.start(setup).await;
    daemon.level(Mains).await;
    let load = daemon.load(3, INTERACTIVE).await;
    daemon.active(3).await;
    machine.battery(true, 4.0).await;
    let plan = daemon.level(Critical).await;
    assert_eq!(plan.reason, "battery critical, 4 % (UPower)");
    assert_eq!((plan.slots, plan.classes.len()), (1, 1));
    daemon.active(1).await;
    let share = daemon.share_at_work(Duration::from_secs(1)).await;
    assert!(
        share < 0.4,
        "at a pace of 0.25 the GPU works {share} of the time"
    );
    drop(load);
    daemon
        .told("unloaded", |status| status.model.is_none())
        .await;
    assert_eq!(
        ask(&mut daemon.clients, 3, 4)
            .await
            .unwrap()
            .generated_tokens,
        4
    );
    machine.battery(true, 50.0).await;
    machine.warn(4).await;
    assert_eq!(daemon.last_plan().await.power(), Critical, "UPower says so");
    machine.warn(3).await;
    daemon.level(Saver).await;
    machine.warn(1).await;
    daemon.level(Battery).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_saver_counts_on_mains_too() {
    let (machine, _played) = Machine::with(&[UPOWER, OLD_PROFILES]).await;
    let mut daemon = machine.start(machine.setup()).await;
    let plan = daemon.level(Mains).await;
    assert_eq!(plan.reason, "mains: no battery (UPower)");
    let _load = daemon.load(4, INTERACTIVE).await;
    daemon.active(4).await;
    machine
        .set(OLD_PROFILES, "ActiveProfile", "power-saver")
        .await;
    let plan = daemon.level(Saver).await;
    assert_eq!(plan.reason, "power saver chosen (power-profiles-daemon)");
    daemon.active(2).await;
    machine.set(OLD_PROFILES, "ActiveProfile", "balanced").await;
    daemon.level(Mains).await;
    daemon.active(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_upower_the_kernel_is_asked() {
    let (machine, _played) = Machine::with(&[]).await;
    machine.kernel("supply", "AC", &[("type", "Mains"), ("online", "0")]);
    let battery = [
        ("type", "Battery"),
        ("status", "Discharging"),
        ("capacity", "61"),
    ];
    machine.kernel("supply", "BAT0", &battery);
    let mut daemon = machine.start(machine.setup()).await;
    let plan = daemon.level(Battery).await;
    assert_eq!(
        plan.reason,
        "on battery, 61 % (sysfs; UPower does not answer)"
    );
    let _load = daemon.load(6, INTERACTIVE).await;
    daemon.active(4).await;
    machine.kernel("supply", "AC", &[("online", "1")]);
    daemon.level(Mains).await;
    daemon.active(6).await;
    // It comes after all, and its word counts.
    let _upower = machine.play(UPOWER).await;
    machine.battery(true, 60.0).await;
    assert_eq!(
        daemon.level(Battery).await.reason,
        "on battery, 60 % (UPower)"
    );
    daemon.active(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upower_may_be_restarted() {
    let (machine, mut played, mut daemon) = laptop().await;
    for round in 0..2 {
        machine.battery(true, 70.0).await;
        daemon.level(Battery).await;
        played.clear();
        let plan = daemon.level(Mains).await;
        assert!(
            plan.reason.contains("UPower does not answer"),
            "{round}: {}",
            plan.reason
        );
        played.push(machine.play(UPOWER).await);
        machine.battery(false, 70.0).await;
        daemon
            .told("UPower is back", |s| {
                s.plan.as_ref().unwrap().reason == "mains (UPower)"
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_bus_is_opened_again() {
    let (mut machine, mut played, mut daemon) = laptop().await;
    machine.battery(true, 70.0).await;
    daemon.level(Battery).await;
    played.clear();
    machine.stop_bus();
    let plan = daemon.level(Mains).await;
    assert!(
        plan.reason.contains("UPower does not answer"),
        "{}",
        plan.reason
    );
    machine.start_bus().await;
    played.extend([machine.play(UPOWER).await, machine.play(LOGIND).await]);
    machine.battery(true, 60.0).await;
    let plan = daemon.level(Battery).await;
    assert_eq!(plan.reason, "on battery, 60 % (UPower)");
    machine.until_inhibited(1).await;
    machine.battery(false, 60.0).await;
    assert_eq!(daemon.level(Mains).await.reason, "mains (UPower)");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_profiles_have_two_names_and_either_counts() {
    let (machine, _played) = Machine::with(&[UPOWER, OLD_PROFILES, NEW_PROFILES]).await;
    machine.add(NEW_PROFILES, "ActiveProfile", "balanced").await;
    machine.add(NEW_PROFILES, "PerformanceDegraded", "").await;
    let mut daemon = machine.start(machine.setup()).await;
    daemon.level(Mains).await;
    machine
        .set(NEW_PROFILES, "ActiveProfile", "power-saver")
        .await;
    daemon.level(Saver).await;
    machine
        .set(OLD_PROFILES, "ActiveProfile", "power-saver")
        .await;
    machine
        .set(NEW_PROFILES, "ActiveProfile", "performance")
        .await;
    // Longer than it takes to leave the level.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let plan = daemon.last_plan().await;
    assert_eq!((plan.power(), plan.slots), (Saver, 2), "{}", plan.reason);
    machine.set(OLD_PROFILES, "ActiveProfile", "balanced").await;
    daemon.level(Mains).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_slows_itself_down_is_spared() {
    let (machine, _played) = Machine::with(&[UPOWER, OLD_PROFILES]).await;
    let mut daemon = machine.start(machine.setup()).await;
    daemon.level(Mains).await;
    machine
        .set(OLD_PROFILES, "PerformanceDegraded", "lap-detected")
        .await;
    let plan = daemon.level(Saver).await;
    assert_eq!(
        plan.reason,
        "the machine slows down: lap-detected (power-profiles-daemon)"
    );
    let _load = daemon.load(4, INTERACTIVE).await;
    daemon.active(2).await;
    machine.set(OLD_PROFILES, "PerformanceDegraded", "").await;
    daemon.level(Mains).await;
    daemon.active(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_machine_sleeps_the_gpu_rests_and_after_it_all_goes_on() {
    let (machine, _played) = Machine::with(&[LOGIND]).await;
    let mut daemon = machine.start(machine.setup()).await;
    let held = machine.until_inhibited(1).await;
    let words = |what: &str| what.to_owned();
    assert_eq!(held, [(words("sleep"), words("Hearth"), words("delay"))]);
    let _load = daemon.load(2, INTERACTIVE).await;
    daemon.active(2).await;
    for _ in 0..2 {
        let begun = Instant::now();
        machine.prepare_for_sleep(true).await;
        machine.until_inhibited(0).await;
        // A bound of logind's own: it waits for 5 s.
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        let steps = daemon.clients.status().await.counters.unwrap().steps;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let later = daemon.clients.status().await.counters.unwrap().steps;
        assert_eq!(steps, later, "the GPU is at rest");
        machine.prepare_for_sleep(false).await;
        machine.until_inhibited(1).await;
        daemon
            .told("it goes on", |s| {
                s.counters
                    .is_some_and(|counters| counters.steps > later + 20)
            })
            .await;
    }
    drop(daemon);
    machine.until_inhibited(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plug_that_flaps_changes_the_level_once() {
    let (machine, _played) = Machine::with(&[UPOWER]).await;
    machine.battery(false, 100.0).await;
    // Far longer than a flap: slow machines flap slowly.
    let mut daemon = machine.start(machine.setup().set("power_up_s", 20)).await;
    daemon.level(Mains).await;
    let _load = daemon.load(6, INTERACTIVE).await;
    let mut levels = vec![Mains];
    for n in 0..30 {
        machine.battery(n % 2 == 0, 100.0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        levels.push(daemon.last_plan().await.power());
    }
    levels.dedup();
    assert!(levels.len() <= 2, "{levels:?}");
    machine.battery(true, 100.0).await;
    daemon.level(Battery).await;
    daemon.active(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heat_counts_while_requests_run() {
    let (machine, _played) = Machine::with(&[UPOWER]).await;
    let zone = |temp: &str| machine.kernel("thermal", "thermal_zone0", &[("temp", temp)]);
    let files = [
        ("type", "x86_pkg_temp"),
        ("trip_point_0_type", "critical"),
        ("trip_point_0_temp", "100000"),
    ];
    machine.kernel("thermal", "thermal_zone0", &files);
    zone("50000");
    let mut daemon = machine.start(machine.setup()).await;
    daemon.level(Mains).await;
    let load = daemon.load(4, INTERACTIVE).await;
    daemon.active(4).await;
    zone("94000");
    assert_eq!(
        daemon.level(Saver).await.reason,
        "hot: 94 °C (x86_pkg_temp)"
    );
    daemon.active(2).await;
    zone("99000");
    let plan = daemon.level(Critical).await;
    assert_eq!(plan.reason, "dangerously hot: 99 °C (x86_pkg_temp)");
    daemon.active(1).await;
    drop(load);
    zone("60000");
    daemon.level(Mains).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bus_or_a_battery_it_is_mains() {
    let machine = Machine::without_bus();
    let mut daemon = machine.start(machine.setup()).await;
    let plan = daemon.level(Mains).await;
    assert_eq!(
        plan.reason,
        "mains: no battery (sysfs; UPower does not answer)"
    );
    let _load = daemon.load(5, INTERACTIVE).await;
    daemon.active(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_by_hand_outlives_the_daemon() {
    let (machine, _played, mut daemon) = laptop().await;
    machine.battery(true, 10.0).await;
    daemon.level(Saver).await;
    let choose = |mode: v1::PowerMode| v1::SetPowerModeRequest { mode: mode.into() };
    let answer = daemon
        .clients
        .daemon
        .set_power_mode(choose(v1::PowerMode::Full))
        .await;
    let answer = answer.unwrap().into_inner();
    let plan = answer.plan.unwrap();
    assert!(answer.kept);
    assert_eq!((plan.power(), plan.mode()), (Mains, v1::PowerMode::Full));
    assert_eq!(plan.reason, "full power by hand; on battery, 10 % (UPower)");
    let load = daemon.load(5, INTERACTIVE).await;
    daemon.active(5).await;
    drop(load);
    let Running { process, setup, .. } = daemon;
    process.kill();
    let mut daemon = machine.start(setup).await;
    let by_hand = |status: &v1::DaemonStatus| {
        let plan = status.plan.as_ref().unwrap();
        plan.mode() == v1::PowerMode::Full && plan.power() == Mains
    };
    daemon.told("as chosen before", by_hand).await;
    let unset = daemon
        .clients
        .daemon
        .set_power_mode(choose(v1::PowerMode::Unspecified))
        .await;
    assert_eq!(unset.unwrap_err().code(), Code::InvalidArgument);
    let answer = daemon
        .clients
        .daemon
        .set_power_mode(choose(v1::PowerMode::Auto))
        .await;
    assert_eq!(
        answer.unwrap().into_inner().plan.unwrap().power(),
        Saver,
        "at once"
    );
}

/// What the daemon is told of the machine's memory.
struct Memory {
    meminfo: PathBuf,
    part: PathBuf,
    pressure: PathBuf,
}

impl Memory {
    fn of(machine: &Machine) -> Self {
        let memory = Self {
            meminfo: machine.path("meminfo"),
            part: machine.path("meminfo.part"),
            pressure: machine.path("pressure"),
        };
        fifo(&memory.pressure);
        memory.free(60);
        memory
    }

    fn setup(&self, machine: &Machine) -> Setup {
        machine
            .setup()
            .set("power_source", "none")
            .set("memory_watch", "true")
            .set("meminfo_file", self.meminfo.display())
            .set("pressure_file", self.pressure.display())
    }

    /// So many per cent are free from now on.
    fn free(&self, percent: u32) {
        let text = format!(
            "MemTotal: 16000000 kB\nMemAvailable: {} kB\n",
            percent * 160_000
        );
        std::fs::write(&self.part, text).unwrap();
        std::fs::rename(&self.part, &self.meminfo).unwrap();
    }

    /// The kernel's event, as far as a daemon can tell.
    fn press(&self) {
        std::fs::write(&self.pressure, "x").unwrap();
    }
}

/// Whether weights may not, or may, be in memory.
fn keeps(weights: bool) -> impl Fn(&v1::DaemonStatus) -> bool {
    move |status| status.plan.as_ref().unwrap().keep_weights == weights
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_left_in_the_middle_of_a_reply_is_loaded_by_the_next_request() {
    let machine = Machine::without_bus();
    let memory = Memory::of(&machine);
    let mut daemon = machine.start(memory.setup(&machine)).await;
    for _ in 0..2 {
        let load = daemon.load(2, INTERACTIVE).await;
        daemon.active(2).await;
        memory.free(3);
        memory.press();
        daemon.told("short", keeps(false)).await;
        let away =
            |status: &v1::DaemonStatus| status.warnings.iter().any(|w| w.contains("off the GPU"));
        daemon.told("off the GPU", away).await;
        // Those who wait give up: it has nothing to come back for.
        drop(load);
        daemon
            .told("unloaded", |status| status.model.is_none())
            .await;
        memory.free(60);
        daemon.told("enough", keeps(true)).await;
        let answer = ask(&mut daemon.clients, 3, 4).await.unwrap();
        assert_eq!(answer.generated_tokens, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_memory_sheds_and_unloads_and_calm_brings_it_all_back() {
    let machine = Machine::without_bus();
    let memory = Memory::of(&machine);
    let (free, press) = (|percent| memory.free(percent), || memory.press());
    let mut daemon = machine.start(memory.setup(&machine)).await;
    let at = |level: v1::MemoryLevel| {
        move |status: &v1::DaemonStatus| status.plan.as_ref().unwrap().memory() == level
    };
    daemon.told("calm", at(v1::MemoryLevel::Calm)).await;
    press();
    let plan = daemon
        .told("pressed", at(v1::MemoryLevel::Some))
        .await
        .plan
        .unwrap();
    assert!((plan.prefix_cache_share - 0.5).abs() < 1e-6 && plan.keep_weights);
    daemon.told("calm again", at(v1::MemoryLevel::Calm)).await;
    for round in 0..if long_tests() { 20 } else { 4 } {
        let load = daemon.load(3, INTERACTIVE).await;
        daemon.active(3).await;
        free(8);
        press();
        let plan = daemon
            .told("high", at(v1::MemoryLevel::High))
            .await
            .plan
            .unwrap();
        assert_eq!((plan.slots, plan.keep_waiting_kv), (1, false), "{round}");
        assert!(plan.prefix_cache_share <= 0.0 && plan.reason.contains("8 % free (meminfo)"));
        daemon.active(1).await;
        drop(load);
        daemon.active(0).await;
        free(4);
        press();
        daemon
            .told("unloaded", |s| {
                s.model.is_none() && !s.plan.as_ref().unwrap().keep_weights
            })
            .await;
        let refused = ask(&mut daemon.clients, 3, 4).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unavailable, "MEMORY_SHORT")
        );
        free(60);
        daemon.told("calm", at(v1::MemoryLevel::Calm)).await;
        daemon.told("weights may come", keeps(true)).await;
        assert_eq!(
            ask(&mut daemon.clients, 3, 4)
                .await
                .unwrap()
                .generated_tokens,
            4
        );
    }
}
