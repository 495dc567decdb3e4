//! A machine that is played: a message bus of its own with python-dbusmock's services on it, folders
//! in the place of the kernel's, a real daemon that finds all that, and requests that keep it busy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{Clients, Process, Setup};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Streaming;
use zbus::Connection;
use zbus::zvariant::{DynamicType, OwnedValue, Value};

/// Bounds against hangs alone.
const PATIENCE: Duration = Duration::from_secs(60);
const MOCK: &str = "org.freedesktop.DBus.Mock";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A service: its bus name, the path of its main object, and the interface there.
#[derive(Clone, Copy)]
pub(super) struct Service {
    pub name: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
    /// dbusmock's template for it, or nothing: an empty object.
    template: Option<&'static str>,
}

pub(super) const UPOWER: Service = Service {
    name: "org.freedesktop.UPower",
    path: "/org/freedesktop/UPower",
    interface: "org.freedesktop.UPower",
    template: Some("upower"),
};
pub(super) const OLD_PROFILES: Service = Service {
    name: "net.hadess.PowerProfiles",
    path: "/net/hadess/PowerProfiles",
    interface: "net.hadess.PowerProfiles",
    template: Some("power_profiles_daemon"),
};
pub(super) const NEW_PROFILES: Service = Service {
    name: "org.freedesktop.UPower.PowerProfiles",
    path: "/org/freedesktop/UPower/PowerProfiles",
    interface: "org.freedesktop.UPower.PowerProfiles",
    template: None,
};
pub(super) const LOGIND: Service = Service {
    name: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
    template: Some("logind"),
};
const DISPLAY: &str = "/org/freedesktop/UPower/devices/DisplayDevice";
const DEVICE: &str = "org.freedesktop.UPower.Device";

/// A process that ends with the test.
pub(super) struct Played(Child);

impl Drop for Played {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The machine.
pub(super) struct Machine {
    pub dir: TempDir,
    address: String,
    bus: Option<(Played, Connection)>,
}

impl Machine {
    /// One without a bus.
    pub(super) fn without_bus() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["supply", "thermal"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self {
            address: format!("unix:path={}", dir.path().join("bus").display()),
            dir,
            bus: None,
        }
    }

    /// One with these services.
    pub(super) async fn with(services: &[Service]) -> (Self, Vec<Played>) {
        let mut machine = Self::without_bus();
        machine.start_bus().await;
        let mut played = Vec::new();
        for service in services {
            played.push(machine.play(*service).await);
        }
        (machine, played)
    }

    /// Ends the bus without a goodbye.
    pub(super) fn stop_bus(&mut self) {
        drop(self.bus.take().expect("a bus"));
    }

    /// Starts a bus, where the one before was.
    pub(super) async fn start_bus(&mut self) {
        // Not the system's configuration: nothing is started by the bus, nothing is forbidden.
        let config = self.dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>custom</type><listen>{}</listen><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
             <allow own=\"*\"/></policy></busconfig>",
            self.address
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"])
            .stdin(Stdio::null())
            .spawn()
            .expect("dbus-daemon (tests/setup/setup.sh dbus installs it)");
        let daemon = Played(child);
        let begun = Instant::now();
        let connection = loop {
            let builder = zbus::connection::Builder::address(self.address.as_str()).unwrap();
            match builder.build().await {
                Ok(connection) => break connection,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "no bus: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.bus = Some((daemon, connection));
    }

    /// Plays a service, until what comes back is dropped.
    pub(super) async fn play(&self, service: Service) -> Played {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "dbusmock", "--system"]);
        match service.template {
            Some(template) => command.args(["--template", template]),
            None => command.args([service.name, service.path, service.interface]),
        };
        let child = command
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("python3 (tests/setup/setup.sh dbus installs python3-dbusmock)");
        let mut played = Played(child);
        let begun = Instant::now();
        let ready = || async {
            if service.template.is_none() {
                let probe = self.try_call(service.name, service.path, MOCK, "GetCalls", &());
                return probe.await.is_ok();
            }
            let get_all = (service.interface,);
            let probe = self.try_call(service.name, service.path, PROPERTIES, "GetAll", &get_all);
            let found = probe.await.map(|reply| {
                type Found = std::collections::HashMap<String, OwnedValue>;
                reply.body().deserialize::<Found>().map(|found| found.len())
            });
            matches!(found, Ok(Ok(1..)))
        };
        while !ready().await {
            let ended = played.0.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "{} is not played ({ended:?}): python3-dbusmock is missing? \
                 (tests/setup/setup.sh dbus)",
                service.name
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        played
    }

    async fn try_call<B: serde::Serialize + DynamicType>(
        &self,
        name: &str,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<zbus::Message> {
        let (_, bus) = self.bus.as_ref().expect("a bus");
        let call = bus.call_method(Some(name), path, Some(interface), method, body);
        call.await
    }

    /// Calls a method of a service that is played.
    pub(super) async fn call<B: serde::Serialize + DynamicType>(
        &self,
        service: Service,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Message {
        let call = self.try_call(service.name, service.path, interface, method, body);
        call.await.unwrap()
    }

    /// Changes a property, and says so as the service would.
    pub(super) async fn set(&self, service: Service, name: &str, value: impl Into<Value<'_>>) {
        let body = (service.interface, name, value.into());
        self.call(service, PROPERTIES, "Set", &body).await;
    }

    /// Adds a property to an empty object.
    pub(super) async fn add(&self, service: Service, name: &str, value: impl Into<Value<'_>>) {
        let body = (service.interface, name, value.into());
        self.call(service, MOCK, "AddProperty", &body).await;
    }

    /// UPower's battery: charge in per cent, and whether the machine runs from it.
    pub(super) async fn battery(&self, on_battery: bool, percent: f64) {
        for (name, value) in [
            ("Type", Value::from(2_u32)),
            ("IsPresent", true.into()),
            ("Percentage", percent.into()),
        ] {
            let body = (DEVICE, name, value);
            let call = self.try_call(UPOWER.name, DISPLAY, PROPERTIES, "Set", &body);
            call.await.unwrap();
        }
        self.set(UPOWER, "OnBattery", on_battery).await;
    }

    /// What UPower thinks of the charge.
    pub(super) async fn warn(&self, level: u32) {
        let body = (DEVICE, "WarningLevel", Value::from(level));
        let call = self.try_call(UPOWER.name, DISPLAY, PROPERTIES, "Set", &body);
        call.await.unwrap();
    }

    /// Has logind tell of a sleep, as dbusmock's template never does by itself.
    pub(super) async fn prepare_for_sleep(&self, sleeps: bool) {
        let body = (
            LOGIND.interface,
            "PrepareForSleep",
            "b",
            vec![Value::from(sleeps)],
        );
        self.call(LOGIND, MOCK, "EmitSignal", &body).await;
    }

    /// Who inhibits sleep: what, who, how.
    pub(super) async fn inhibitors(&self) -> Vec<(String, String, String)> {
        type Row = (String, String, String, String, u32, u32);
        let reply = self
            .call(LOGIND, LOGIND.interface, "ListInhibitors", &())
            .await;
        let rows: Vec<Row> = reply.body().deserialize().unwrap();
        rows.into_iter()
            .map(|(what, who, _, mode, _, _)| (what, who, mode))
            .collect()
    }

    /// Waits for so many inhibitors.
    pub(super) async fn until_inhibited(&self, count: usize) -> Vec<(String, String, String)> {
        let begun = Instant::now();
        loop {
            let found = self.inhibitors().await;
            if found.len() == count {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes a file of the kernel's: a folder, a device in it, its files.
    pub(super) fn kernel(&self, folder: &str, device: &str, files: &[(&str, &str)]) {
        let dir = self.dir.path().join(folder).join(device);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            // By renaming: nobody reads half a file.
            let part = dir.join("part");
            fs::write(&part, format!("{text}\n")).unwrap();
            fs::rename(&part, dir.join(name)).unwrap();
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Settings of a daemon on this machine, with times so short that a test takes seconds.
    pub(super) fn setup(&self) -> Setup {
        Setup::tiny()
            .set("power_source", "auto")
            .set("power_supply_dir", self.path("supply").display())
            .set("thermal_dir", self.path("thermal").display())
            .set("power_down_s", 0.1)
            .set("power_up_s", 0.3)
            .set("power_look_s", 0.1)
            .set("look_s", 0.1)
            .set("memory_calm_s", 0.3)
            .set("reload_wait_s", 0.1)
            .set("reload_wait_max_s", 0.5)
    }

    /// Starts the daemon, and waits for its model.
    pub(super) async fn start(&self, setup: Setup) -> Running {
        let process = Process::start_with(&setup, |command| {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        });
        let mut clients = Clients::connect(&process.socket).await;
        clients.wait_ready().await;
        let watch = v1::WatchStatusRequest {
            min_interval: Some(Duration::from_millis(100).try_into().unwrap()),
        };
        let changes = clients
            .daemon
            .watch_status(watch)
            .await
            .unwrap()
            .into_inner();
        Running {
            process,
            clients,
            changes,
            last: None,
            setup,
        }
    }
}

/// A daemon at work, and what it tells of itself.
pub(super) struct Running {
    pub process: Process,
    pub clients: Clients,
    changes: Streaming<v1::WatchStatusResponse>,
    last: Option<v1::DaemonStatus>,
    pub setup: Setup,
}

impl Running {
    /// Waits until a watcher is told so.
    pub(super) async fn told(
        &mut self,
        what: &str,
        wanted: impl Fn(&v1::DaemonStatus) -> bool,
    ) -> v1::DaemonStatus {
        let search = async {
            while !self.last.as_ref().is_some_and(&wanted) {
                let message = self
                    .changes
                    .message()
                    .await
                    .unwrap()
                    .expect("the watch goes on");
                self.last = message.status;
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        assert!(found.is_ok(), "never told: {what}; last {:?}", self.last);
        self.last.clone().unwrap()
    }

    /// Waits until a watcher is told of this level.
    pub(super) async fn level(&mut self, level: v1::PowerLevel) -> v1::Plan {
        let status = self
            .told(level.as_str_name(), |status| {
                status
                    .plan
                    .as_ref()
                    .is_some_and(|plan| plan.power() == level)
            })
            .await;
        status.plan.unwrap()
    }

    /// The plan now.
    pub(super) async fn last_plan(&mut self) -> v1::Plan {
        self.clients.status().await.plan.unwrap()
    }

    /// Waits until so many sequences run.
    pub(super) async fn active(&mut self, count: u32) -> v1::DaemonStatus {
        self.told(&format!("{count} running"), |status| {
            status.queue.is_some_and(|queue| queue.active == count)
        })
        .await
    }

    /// Share of the time in which the GPU is at work, from now on.
    pub(super) async fn share_at_work(&mut self, time: Duration) -> f64 {
        let busy = |status: &v1::DaemonStatus| {
            let counters = status.counters.unwrap();
            let times = [counters.prefill_time, counters.decode_time];
            times.into_iter().flatten().map(seconds).sum::<f64>()
        };
        let (begun, before) = (Instant::now(), busy(&self.clients.status().await));
        tokio::time::sleep(time).await;
        let after = busy(&self.clients.status().await);
        (after - before) / begun.elapsed().as_secs_f64()
    }

    /// Keeps `count` sequences of a class at work.
    pub(super) async fn load(&self, count: usize, class: v1::Class) -> Load {
        let mut tasks = Vec::new();
        for n in 0..count {
            let clients = Clients::connect(&self.process.socket).await;
            tasks.push(tokio::spawn(ask_for_ever(clients, n, class)));
        }
        Load(tasks)
    }
}

fn seconds(time: prost_types::Duration) -> f64 {
    Duration::try_from(time).unwrap().as_secs_f64()
}

/// Requests without an end; they stop when this is dropped.
pub(super) struct Load(Vec<JoinHandle<()>>);

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn ask_for_ever(mut clients: Clients, n: usize, class: v1::Class) {
    loop {
        let request = v1::GenerateRequest {
            input: Some(v1::generate_request::Input::Prompt(format!("request {n}"))),
            options: Some(v1::GenerationOptions {
                max_tokens: Some(1500),
                ignore_eos: true,
                class: class.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        // A plan may refuse it, with a time to try again.
        if let Ok(stream) = clients.inference.generate(request).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(_)) = stream.message().await {}
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a FIFO.
pub(super) fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}
