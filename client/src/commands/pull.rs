//! `hearth pull`: fetches a model from a hub into the store. The daemon makes no network connection:
//! this process fetches, and the daemon takes in what was fetched.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth::Client;
use hearth::v1::{self, import_response};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::Code;

use crate::cli::{Global, PullArgs};
use crate::exit::{Failure, Kind};
use crate::hub::{Fetched, Hub, HubError, Plan, Settings, Source, Staging, store_name};
use crate::output::{Output, bytes};

use super::connect;
use super::models::{report, rpc, show_progress};

/// Least time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Fetches a model.
///
/// # Errors
/// The hub or the daemon refuses, or a file is not what was published.
pub(crate) async fn pull(args: PullArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let source = Source::parse(&args.source)?;
    let may_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !args.yes && !may_ask {
        return Err(
            Failure::usage("a pull asks before it fetches, and nobody is there to answer")
                .with_hint("give --yes to fetch without being asked"),
        );
    }
    let hub = Hub::new(Settings::read(&|name| std::env::var_os(name))?)?;
    let client = connect(global, output).await?;
    let models = models_dir(&client).await?;

    let progress = output.progress();
    progress.say(format!("asking for {}", source.repo));
    let (hub, plan, source) = blocking(move || {
        let plan = hub.plan(&source);
        plan.map(|plan| (hub, plan, source))
    })
    .await??;
    progress.clear();
    let name = args.name.unwrap_or_else(|| name_of(&source, &plan));
    tell(&plan, &name, output)?;
    match stored(&client, &name).await? {
        Some(shown)
            if shown.source.as_deref() == Some(&origin_text(&plan)) && same(&shown, &plan) =>
        {
            return report(&shown.model.unwrap_or_default(), "already there", output);
        }
        Some(_) => {
            let text = format!("the name `{name}` belongs to another model");
            return Err(Failure::usage(text).with_hint("give another one with --name"));
        }
        None => {}
    }
    if !args.yes && !confirm("Fetch this?").await? {
        return Err(Failure::new(Kind::Runtime, "nothing was fetched"));
    }
    let (staging, fetched) = fetch(hub, plan.clone(), models, output).await?;
    take_in(&client, &plan, &name, staging, fetched, output).await
}

/// The folder of the store, as the daemon tells it, unless it wants no pull now.
async fn models_dir(client: &Client) -> Result<PathBuf, Failure> {
    let status = client.status().await?;
    if status.plan.as_ref().is_some_and(|plan| plan.pulls_paused) {
        let text = "the daemon saves power, and pulls wait meanwhile";
        return Err(Failure::new(Kind::Deferred, text).with_hint("`hearth power full` allows them"));
    }
    match status.models_dir.as_str() {
        "" => Err(Failure::new(
            Kind::Denied,
            "the daemon does not tell where its store is: not through an app's socket",
        )),
        folder => Ok(PathBuf::from(folder)),
    }
}

/// The model of this name in the store, if there is one.
async fn stored(client: &Client, name: &str) -> Result<Option<v1::ShowResponse>, Failure> {
    let request = v1::ShowRequest {
        model: name.to_owned(),
    };
    match client.models().show(request).await {
        Ok(shown) => Ok(Some(shown.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(rpc(status)),
    }
}

fn same(shown: &v1::ShowResponse, plan: &Plan) -> bool {
    let there = shown
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.bytes));
    there.eq(plan
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.bytes)))
}

fn name_of(source: &Source, plan: &Plan) -> String {
    if let Some(name) = &source.name {
        return name.clone();
    }
    let gguf = plan.files.iter().find(|file| file.name.ends_with(".gguf"));
    match (gguf, plan.repo.split_once('/')) {
        (Some(file), _) => store_name(&file.name),
        (None, Some((_, repo))) => store_name(repo),
        (None, None) => store_name(&plan.repo),
    }
}

fn origin_text(plan: &Plan) -> String {
    format!("hub:{}@{}", plan.repo, plan.commit)
}

/// Says what would be fetched.
fn tell(plan: &Plan, name: &str, output: Output) -> Result<(), Failure> {
    if output.json {
        let file = |file: &crate::hub::Published| json!({ "name": file.name, "bytes": file.bytes });
        return Ok(output.object(&json!({
            "event": "plan",
            "name": name,
            "repo": plan.repo,
            "commit": plan.commit,
            "license": plan.license,
            "total_bytes": plan.bytes(),
            "files": plan.files.iter().map(file).collect::<Vec<_>>(),
        }))?);
    }
    let mut text = format!("{} at {}\n", plan.repo, plan.commit);
    for file in &plan.files {
        text.push_str(&format!("  {}  {}\n", file.name, bytes(file.bytes)));
    }
    let license = plan.license.as_deref().unwrap_or("not told");
    text.push_str(&format!(
        "licence: {license}\nsize: {}\n",
        bytes(plan.bytes())
    ));
    text.push_str(&format!("name here: {name}"));
    output.note(&text);
    Ok(())
}

/// Asks a person; no is the default.
pub(super) async fn confirm(question: &str) -> Result<bool, Failure> {
    let question = format!("{question} [y/N] ");
    let answer = blocking(move || {
        let mut answer = String::new();
        write!(std::io::stderr().lock(), "{question}")?;
        std::io::stdin().lock().read_line(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    })
    .await??;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

/// Fetches the files and shows how it goes.
async fn fetch(
    hub: Hub,
    plan: Plan,
    models: PathBuf,
    output: Output,
) -> Result<(Staging, Vec<Fetched>), Failure> {
    let total = plan.bytes();
    let (told, mut hears) = mpsc::unbounded_channel();
    let work = blocking(move || {
        let staging = hub.staging(&models, &plan)?;
        let mut due = Instant::now();
        let mut on_bytes = |file: &str, done: u64| {
            if Instant::now() >= due {
                due = Instant::now() + PROGRESS_INTERVAL;
                // Nobody hears of it any more once the command was interrupted.
                let _ = told.send((file.to_owned(), done));
            }
        };
        let fetched = hub.fetch(&plan, &staging, &mut on_bytes)?;
        Ok::<_, HubError>((staging, fetched))
    });
    let work = async { Ok(work.await??) };
    let bar = output.bar(total);
    let show = async {
        while let Some((file, done)) = hears.recv().await {
            bar.at(&file, done);
            if output.json {
                output.object(&json!({
                    "event": "progress",
                    "file": file,
                    "done_bytes": done,
                    "total_bytes": total,
                }))?;
            }
        }
        Ok::<_, Failure>(())
    };
    // If nobody reads what is shown any more, the process ends and with it the thread that fetches.
    let (done, ()) = tokio::try_join!(work, show)?;
    Ok(done)
}

/// Has the daemon take in what was fetched.
async fn take_in(
    client: &Client,
    plan: &Plan,
    name: &str,
    staging: Staging,
    fetched: Vec<Fetched>,
    output: Output,
) -> Result<(), Failure> {
    let request = v1::ImportRequest {
        path: utf8(staging.folder())?,
        name: name.to_owned(),
        quantize: v1::Quantize::Unspecified.into(),
        origin: Some(v1::ImportOrigin {
            source: origin_text(plan),
            license: plan.license.clone(),
            files: fetched
                .into_iter()
                .map(|file| v1::ModelFile {
                    name: file.name,
                    sha256: file.sha256,
                    bytes: file.bytes,
                })
                .collect(),
        }),
    };
    match import(client, request, output).await {
        Ok(info) => report(&info, "pulled", output),
        Err(status) => {
            // What is no model will never be one.
            if status.code() == Code::InvalidArgument {
                staging.remove();
            }
            Err(rpc(status))
        }
    }
}

async fn import(
    client: &Client,
    request: v1::ImportRequest,
    output: Output,
) -> Result<v1::ModelInfo, tonic::Status> {
    let progress = output.progress();
    let mut stream = client.models().import(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(import_response::Event::Progress(part)) => {
                // A reader that is gone is noticed when the result is written.
                let _ = show_progress("checking", &part, &progress, output);
            }
            Some(import_response::Event::Model(info)) => return Ok(info),
            None => {}
        }
    }
    Err(tonic::Status::internal("an import closes with the model"))
}

fn utf8(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("the path {} is not UTF-8", path.display())))
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Failure::new(Kind::Runtime, "a bug: the pull panicked"))
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        let kind = match &error {
            HubError::Setting { .. } | HubError::Source(_) | HubError::Choice(_) => Kind::Usage,
            HubError::Offline { .. } | HubError::NotFound { .. } => Kind::ModelUnavailable,
            HubError::Denied { .. } => Kind::Denied,
            HubError::TooOften { .. } | HubError::Busy => Kind::Busy,
            _ => Kind::Runtime,
        };
        let hint = match &error {
            HubError::Denied { known: false, .. } => Some(
                "set HF_TOKEN to a token of yours; of a gated model, accept the licence on its page \
                 first"
                    .to_owned(),
            ),
            HubError::Denied { known: true, .. } => {
                Some("accept the model's licence on its page on the hub, with this account".to_owned())
            }
            HubError::TooOften { retry_after } => Some(match retry_after {
                Some(time) => format!("try again in {} s; what was fetched is kept", time.as_secs()),
                None => "try again later; what was fetched is kept".to_owned(),
            }),
            HubError::Stalled { .. } | HubError::Unreachable { .. } => {
                Some("run the same again: it goes on where it was".to_owned())
            }
            HubError::Damaged { .. } => {
                Some("nothing of it was kept; run the same again to fetch it anew".to_owned())
            }
            _ => None,
        };
        let failure = Self::new(kind, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}
