//! `hearth pull` against a hub on this machine: from the hub to a warm model, over kills, out of the
//! cache of the hub's own tools, and past every trick that a hub may play (in `hostile`, with `tricks` and `listings`).

mod hostile;
mod listings;
mod tricks;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::hub::{Asked, COMMIT, FakeHub, HubFile, REPO, TOKEN};
use hearth_test_support::{Clients, Daemon, Setup, hearth_binary, long_tests, text_of, tiny_model};
use tokio::process::Command;

/// The tiny model as a hub has it.
fn tiny(dir: &Path) -> HubFile {
    let path = dir.join("made.gguf");
    tiny_model::write(&path, 1);
    HubFile::large("tiny.Q4_0.gguf", std::fs::read(path).unwrap())
}

/// `hearth` with these arguments and nothing of the test's own environment.
fn hearth(daemon: &Daemon, environment: &[(&str, String)], args: &[&str]) -> Command {
    let mut command = Command::new(hearth_binary());
    command
        .env_clear()
        .env("HEARTH_SOCKET", &daemon.socket)
        .env("HOME", daemon.setup.dir())
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .args(args)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    command
}

/// What a command came to.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn run(mut command: Command) -> Outcome {
    let output = tokio::time::timeout(Duration::from_secs(90), command.output());
    let output = output.await.expect("the command ends").unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn show(clients: &mut Clients, name: &str) -> v1::ShowResponse {
    let request = v1::ShowRequest {
        model: name.to_owned(),
    };
    clients.models.show(request).await.unwrap().into_inner()
}

fn models(daemon: &Daemon) -> PathBuf {
    daemon.setup.dir().join("models")
}

/// Names in a folder of the store.
fn names_in(daemon: &Daemon, folder: &str) -> Vec<String> {
    let entries = models(daemon).join(folder).read_dir().unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_from_the_hub_and_answers() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let home = daemon.setup.dir().join("hf");
    let file = tiny(daemon.setup.dir());
    let (bytes, sha256) = (file.bytes.len(), file.sha256());
    let other = HubFile::large("tiny.Q8_0.gguf", b"another".to_vec());
    let files = vec![
        other,
        file,
        HubFile::small("README.md", b"read me".to_vec()),
    ];
    let hub = FakeHub::sound(daemon.setup.dir(), files);
    let mut environment = hub.environment(&home);
    environment.push(("HF_TOKEN", TOKEN.to_owned()));

    // Nobody is there to be asked.
    let refused = run(hearth(&daemon, &environment, &["pull", REPO])).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert!(hub.asked().is_empty());
    // While power is saved pulls wait.
    run(hearth(&daemon, &[], &["power", "saver"])).await;
    let later = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert_eq!(later.code, Some(9), "{}", later.stderr);
    run(hearth(&daemon, &[], &["power", "auto"])).await;

    let pulled = run(hearth(
        &daemon,
        &environment,
        &["pull", "--json", "--yes", REPO],
    ))
    .await;
    assert_eq!(pulled.code, Some(0), "{}{}", pulled.stdout, pulled.stderr);
    let lines: Vec<serde_json::Value> = pulled
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "plan");
    assert_eq!(
        (&lines[0]["license"], &lines[0]["commit"]),
        (&"mit".into(), &COMMIT.into())
    );
    assert_eq!(lines[0]["total_bytes"], bytes);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["event"], &last["name"]),
        (&"pulled".into(), &"tiny.q4_0".into())
    );
    // The hub's own token went to the hub, and to nobody else.
    for asked in hub.asked() {
        assert_eq!(asked.authorized(), !asked.at_storage, "{}", asked.path);
    }
    let shown = show(&mut clients, "tiny.q4_0").await;
    assert_eq!(
        shown.source.as_deref(),
        Some(format!("hub:{REPO}@{COMMIT}").as_str())
    );
    assert_eq!(shown.model.unwrap().sha256, sha256);
    assert_eq!(shown.files[0].name, "tiny.Q4_0.gguf");
    assert!(!shown.memory.unwrap().measured);
    assert_eq!(names_in(&daemon, "blobs"), [format!("sha256-{sha256}")]);
    assert!(names_in(&daemon, "incoming").is_empty());

    let before = hub.asked().len();
    let again = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert!(
        again.stdout.starts_with("already there: tiny.q4_0"),
        "{}",
        again.stdout
    );
    assert_eq!(
        hub.asked().len(),
        before + 1,
        "only the listing is asked for"
    );
    let taken = ["pull", "--yes", "--name", "tiny.q4_0", "maker/tiny:q8_0"];
    let taken = run(hearth(&daemon, &environment, &taken)).await;
    assert_eq!(taken.code, Some(2), "{}", taken.stderr);

    let loaded = run(hearth(&daemon, &[], &["load", "tiny.q4_0"])).await;
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    let text = text_of(clients.endless("hello", 4).await, |reply| reply.event).await;
    assert_eq!(text.unwrap().end.unwrap().generated_tokens, 4);
    let shown = run(hearth(&daemon, &[], &["show", "tiny.q4_0"])).await;
    for part in ["mit", "llama", "GPU memory", COMMIT, "context", "gguf"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    run(hearth(&daemon, &[], &["unload"])).await;
    let removed = run(hearth(&daemon, &[], &["rm", "tiny.q4_0"])).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(names_in(&daemon, "blobs").is_empty());
    daemon.stop().await;
}

/// Small numbers that look like chance and are the same at each run.
fn chance(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 33
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_killed_goes_on_where_it_was() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let home = daemon.setup.dir().join("hf");
    let file = tiny(daemon.setup.dir());
    let (sha256, size) = (file.sha256(), file.bytes.len());
    let kills = if long_tests() { 50 } else { 5 };
    let hub = FakeHub::sound(daemon.setup.dir(), vec![file]);
    let environment = hub.environment(&home);
    let (mut state, mut killed, mut longest) = (7, 0, 0);
    for _ in 0..kills {
        // So many more bytes come, or none; the rest never does, so that it cannot be done before.
        let target = longest + chance(&mut state) % (size as u64 / kills);
        let gate = usize::try_from(target).unwrap();
        hub.facts.gate.store(gate, Ordering::Relaxed);
        let mut child = hearth(&daemon, &environment, &["pull", "--yes", REPO])
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while part_bytes(&daemon) < target {
            assert!(begun.elapsed() < Duration::from_secs(20), "kill {killed}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(child.try_wait().unwrap(), None, "it waits for more");
        child.kill().await.unwrap();
        killed += 1;
        longest = part_bytes(&daemon);
        assert_eq!(longest, target, "what came is kept, and nothing else");
        assert!(names_in(&daemon, "blobs").is_empty() && names_in(&daemon, "manifests").is_empty());
    }
    assert_eq!(killed, kills);
    hub.facts.gate.store(usize::MAX, Ordering::Relaxed);
    let done = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let shown = show(&mut clients, "tiny.q4_0").await;
    assert_eq!(shown.model.unwrap().sha256, sha256);
    let resumed = |asked: &Asked| asked.range_start().is_some_and(|start| start > 0);
    let ranges = hub.asked().iter().filter(|asked| resumed(asked)).count();
    assert!(ranges > 0, "the rest was asked for, not the whole");
    daemon.stop().await;
}

/// Bytes of the only partial file, 0 if there is none.
fn part_bytes(daemon: &Daemon) -> u64 {
    let folders = names_in(daemon, "incoming");
    let Some(folder) = folders.first() else {
        return 0;
    };
    let path = models(daemon).join("incoming").join(folder);
    path.join("tiny.Q4_0.gguf.part")
        .metadata()
        .map_or(0, |found| found.len())
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_of_the_hubs_own_tools_is_used_and_left_alone() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let home = daemon.setup.dir().join("hf");
    let file = tiny(daemon.setup.dir());
    let repo = home.join("hub/models--maker--tiny");
    let blob = repo.join("blobs").join(file.sha256());
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [&repo.join("blobs"), &snapshot, &repo.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    let link = snapshot.join(&file.name);
    std::os::unix::fs::symlink(Path::new("../../blobs").join(file.sha256()), &link).unwrap();

    // A file of the right name and size with other bytes is not taken, and not touched.
    let mut bad = file.bytes.clone();
    bad[1000] ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    let hub = FakeHub::sound(daemon.setup.dir(), vec![file.clone()]);
    let mut environment = hub.environment(&home);
    environment.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let offline = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert_eq!(offline.code, Some(5), "{}", offline.stderr);
    assert_eq!(std::fs::read(&blob).unwrap(), bad);

    std::fs::write(&blob, &file.bytes).unwrap();
    let missing = run(hearth(
        &daemon,
        &environment,
        &["pull", "--yes", "maker/other"],
    ))
    .await;
    assert_eq!(missing.code, Some(5), "{}", missing.stderr);
    let offline = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert_eq!(offline.code, Some(0), "{}", offline.stderr);
    assert!(hub.asked().is_empty(), "no network");
    let online = ["pull", "--yes", "--name", "second", REPO];
    let online = run(hearth(&daemon, &hub.environment(&home), &online)).await;
    assert_eq!(online.code, Some(0), "{}", online.stderr);
    assert_eq!(hub.asked().len(), 1, "the listing, and no file");
    assert_eq!(std::fs::read(&blob).unwrap(), file.bytes);
    assert!(link.is_symlink());
    assert_eq!(
        show(&mut clients, "second").await.model.unwrap().sha256,
        file.sha256()
    );
    daemon.stop().await;
}
