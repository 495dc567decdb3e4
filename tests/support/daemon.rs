//! A daemon within the test's own process, and clients of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_engine::EngineConfig;
use hearth_proto::v1;
use hearth_proto::v1::daemon_client::DaemonClient;
use hearth_proto::v1::inference_client::InferenceClient;
use hearth_proto::v1::models_client::ModelsClient;
use hearthd::ServeError;
use hearthd::config::{self, Config};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use crate::tiny_model;

/// What a test's daemon is made of.
pub struct Setup {
    dir: TempDir,
    model: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
    engine: fn(&mut EngineConfig),
}

impl Default for Setup {
    fn default() -> Self {
        Self::tiny()
    }
}

impl Setup {
    /// With the tiny model.
    pub fn tiny() -> Self {
        let mut setup = Self::empty();
        let path = setup.dir.path().join("tiny.gguf");
        tiny_model::write(&path, 1);
        setup.model = Some(path);
        setup
    }

    /// Without a model.
    pub fn empty() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            model: None,
            flags: Vec::new(),
            engine: |_| {},
        }
    }

    /// With the model in this file.
    pub fn file(path: &Path) -> Self {
        Self {
            model: Some(path.to_owned()),
            ..Self::empty()
        }
    }

    /// With a setting.
    pub fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.flags.push((name, value.to_string()));
        self
    }

    /// With what no flag sets.
    pub fn engine(mut self, change: fn(&mut EngineConfig)) -> Self {
        self.engine = change;
        self
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration, as flags would make it.
    pub fn config(&self) -> Config {
        let file = self.dir.path().join("config.toml");
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        // In the file, so that a process finds them too; without the machine's battery and memory.
        let mut text = String::new();
        let state = path("state");
        for (name, value) in [
            ("state_dir", state.as_str()),
            ("power_source", "none"),
            ("memory_watch", "false"),
        ] {
            if self.flags.iter().all(|(set, _)| *set != name) {
                let _ = writeln!(text, "{name} = '{value}'");
            }
        }
        let flags: BTreeMap<_, _> = self.flags.iter().cloned().collect();
        for (name, value) in flags {
            let _ = writeln!(text, "{name} = '{value}'");
        }
        std::fs::write(&file, text).unwrap();
        let mut flags = vec![
            ("socket", path("run/hearthd.sock")),
            ("models_dir", path("models")),
        ];
        flags.extend(
            self.model
                .iter()
                .map(|path| ("model", path.display().to_string())),
        );
        let mut config = config::load(Some(&file), &|_| None, &flags).unwrap();
        (self.engine)(&mut config.engine);
        config
    }
}

/// A daemon on a thread of this process.
pub struct Daemon {
    pub socket: PathBuf,
    pub setup: Setup,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Daemon {
    /// Starts one; its model may still be on its way.
    pub fn start(setup: Setup) -> Self {
        let config = setup.config();
        let socket_path = config.socket.clone();
        let socket = hearthd::socket::bind(&socket_path).unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(hearthd::serve(config, socket, shutdown));
        Self {
            socket: socket_path,
            setup,
            stop: Some(stop),
            task,
        }
    }

    /// Starts one with the tiny model and waits until it is warm.
    pub async fn tiny() -> (Self, Clients) {
        Self::ready(Setup::tiny()).await
    }

    /// Starts one and waits until it is ready.
    pub async fn ready(setup: Setup) -> (Self, Clients) {
        let daemon = Self::start(setup);
        let mut clients = daemon.clients().await;
        clients.wait_ready().await;
        (daemon, clients)
    }

    /// A new connection.
    pub async fn clients(&self) -> Clients {
        Clients::connect(&self.socket).await
    }

    /// Tells it to stop, without waiting.
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops it and waits for its end.
    pub async fn stop(mut self) {
        self.begin_stop();
        let ended = tokio::time::timeout(Duration::from_secs(20), &mut self.task).await;
        ended.expect("the daemon ends in time").unwrap().unwrap();
    }
}

/// One connection's clients.
pub struct Clients {
    pub channel: Channel,
    pub inference: InferenceClient<Channel>,
    pub models: ModelsClient<Channel>,
    pub daemon: DaemonClient<Channel>,
}

impl Clients {
    pub async fn connect(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            inference: InferenceClient::new(channel.clone()),
            models: ModelsClient::new(channel.clone()),
            daemon: DaemonClient::new(channel.clone()),
            channel,
        }
    }

    pub async fn status(&mut self) -> v1::DaemonStatus {
        let reply = self
            .daemon
            .get_status(v1::GetStatusRequest {})
            .await
            .unwrap();
        reply.into_inner().status.unwrap()
    }

    /// Waits for a state in which requests are answered, one way or the other.
    pub async fn wait_ready(&mut self) {
        self.wait_for("ready", |status| {
            assert!(
                status.state() != v1::LifecycleState::Starting || status.reason.is_none(),
                "the GPU could not be opened: {:?}",
                status.reason
            );
            status.state() == v1::LifecycleState::Ready
        })
        .await;
    }

    /// Waits until the status is as wanted; panics after 60 s.
    pub async fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&v1::DaemonStatus) -> bool,
    ) -> v1::DaemonStatus {
        let mut status = self.status().await;
        for _ in 0..6000 {
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            status = self.status().await;
        }
        panic!("never {what}: {status:?}");
    }

    /// Starts a generation of tokens that only `max_tokens` or a cancel ends.
    pub async fn endless(
        &mut self,
        prompt: &str,
        max_tokens: u32,
    ) -> Streaming<v1::GenerateResponse> {
        let request = v1::GenerateRequest {
            input: Some(v1::generate_request::Input::Prompt(prompt.to_owned())),
            options: Some(v1::GenerationOptions {
                max_tokens: Some(max_tokens),
                ignore_eos: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.inference.generate(request).await.unwrap().into_inner()
    }
}

/// A whole generation.
#[derive(Default)]
pub struct Text {
    pub text: String,
    pub echo: Option<v1::Echo>,
    pub ids: Vec<u32>,
    pub tokens: Vec<v1::Token>,
    pub deltas: usize,
    pub prefills: Vec<v1::Prefill>,
    pub loadings: usize,
    pub end: Option<v1::End>,
}

/// Reads a generation to its end; checks that nothing follows `end`.
pub async fn text_of<T>(
    mut stream: Streaming<T>,
    event_of: impl Fn(T) -> Option<v1::GenerationEvent>,
) -> Result<Text, Status> {
    use v1::generation_event::Event;
    let mut text = Text::default();
    while let Some(message) = stream.message().await? {
        assert!(text.end.is_none(), "an event after the end");
        match event_of(message)
            .and_then(|event| event.event)
            .expect("an event")
        {
            Event::Queued(_) => {}
            Event::Loading(_) => text.loadings += 1,
            Event::Prefill(prefill) => text.prefills.push(prefill),
            // A prompt that is read in chunks is echoed in chunks.
            Event::Echo(echo) => {
                let whole = text.echo.get_or_insert_default();
                whole.text.push_str(&echo.text);
                whole.tokens.extend(echo.tokens);
            }
            Event::Delta(delta) => {
                text.deltas += 1;
                text.text.push_str(&delta.text);
                text.ids.extend(delta.tokens.iter().map(|token| token.id));
                text.tokens.extend(delta.tokens);
            }
            Event::End(end) => text.end = Some(end),
        }
    }
    Ok(text)
}

/// The reason that a status gives.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map_or_else(|| format!("no reason: {status}"), |info| info.reason)
}

/// The default model's file, if it is set up.
pub fn default_model() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let path = std::env::var_os("HEARTH_MODEL_FILE").map_or_else(
        || root.join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    );
    path.is_file().then_some(path)
}
