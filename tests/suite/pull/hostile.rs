//! What a hub, or whoever stands between, may try. After each: nothing outside the store was written,
//! nothing that is not what was published was taken in, and the command says what happened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use hearth_test_support::hub::{FakeHub, HubFile, REPO, TOKEN, Twist, answer};
use hearth_test_support::{Clients, Daemon, Setup};
use tokio::sync::Semaphore;

use super::tricks::{Case, cases, length};
use super::{hearth, models, names_in, run, tiny};

/// Commands at once.
const AT_ONCE: usize = 6;

/// All files below a folder, with their contents.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path.display().to_string(), bytes));
            }
        }
    }
    found.sort();
    found
}

async fn play(case: Case, daemon: &Daemon, places: &Semaphore) -> Result<(), String> {
    let _place = places.acquire().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let is_slow = case.is_slow();
    let hub = FakeHub::start(
        dir.path(),
        vec![tiny(dir.path())],
        Duration::ZERO,
        case.twist,
    );
    let before = tree(dir.path());
    let mut environment = hub.environment(&home);
    environment.push(("HF_TOKEN", TOKEN.to_owned()));
    environment.push(("HOME", home.display().to_string()));
    // Patience, where it is not what is tried: machines that test are slow.
    if !is_slow {
        environment.push(("HF_HUB_DOWNLOAD_TIMEOUT", "10".to_owned()));
    }
    let name: String = case.name.replace([' ', ','], "-").to_ascii_lowercase();
    let args = ["pull", "--json", "--yes", "--name", &name, REPO];
    let outcome = run(hearth(daemon, &environment, &args)).await;
    let told = |what: &str| {
        Err(format!(
            "{}: {what}: {:?}\n{}{}",
            case.name, outcome.code, outcome.stdout, outcome.stderr
        ))
    };
    if outcome.code != Some(case.code) || !outcome.stderr.contains(case.says) {
        return told(&format!("wanted {} and {:?}", case.code, case.says));
    }
    if (case.code == 0) != outcome.stderr.is_empty() || outcome.stderr.contains('\u{1b}') {
        return told("what it says");
    }
    if tree(dir.path()) != before {
        return told("something was written outside the store");
    }
    let asked = hub.asked();
    if asked
        .iter()
        .any(|asked| asked.at_storage && asked.authorized())
    {
        return told("the token went to another host");
    }
    let stored = models(daemon)
        .join(format!("manifests/{name}.json"))
        .exists();
    if stored != (case.code == 0) {
        return told("what is in the store");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_a_hub_does_only_what_was_published_is_taken_in() {
    let (daemon, _) = Daemon::ready(Setup::empty()).await;
    let daemon = Arc::new(daemon);
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut playing = tokio::task::JoinSet::new();
    for case in cases {
        let (daemon, places) = (Arc::clone(&daemon), Arc::clone(&places));
        playing.spawn(async move { play(case, &daemon, &places).await });
    }
    let mut faults = Vec::new();
    while let Some(played) = playing.join_next().await {
        faults.extend(played.unwrap().err());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Of all that was sent one file was right.
    let right = tiny(daemon.setup.dir());
    assert_eq!(
        names_in(&daemon, "blobs"),
        [format!("sha256-{}", right.sha256())]
    );
    assert_eq!(tree(&models(&daemon).join("blobs"))[0].1, right.bytes);
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_nobody_vouches_for_is_not_talked_to() {
    let (daemon, _) = Daemon::ready(Setup::empty()).await;
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let hub = FakeHub::sound(dir.path(), vec![tiny(dir.path())]);
    let stranger = FakeHub::sound(other.path(), vec![]);
    let mut environment = hub.environment(dir.path());
    environment.push(("SSL_CERT_FILE", stranger.roots.display().to_string()));
    let outcome = run(hearth(&daemon, &environment, &["pull", "--yes", REPO])).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.to_lowercase().contains("certificate"),
        "{}",
        outcome.stderr
    );
    assert!(hub.asked().is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_catalogue_is_given_no_other_bytes() {
    let (daemon, _) = Daemon::ready(Setup::empty()).await;
    let dir = tempfile::tempdir().unwrap();
    // At the right commit there is a file of the right name, and it is a model.
    let catalogue = include_str!("../../../client/data/catalogue.json");
    let catalogue: serde_json::Value = serde_json::from_str(catalogue).unwrap();
    let known = catalogue["models"].as_array().unwrap();
    let known = known
        .iter()
        .find(|known| known["name"] == "llama3.2-1b-instruct");
    let text = |key: &str| known.unwrap()[key].as_str().unwrap().to_owned();
    let file = HubFile::large(&text("file"), tiny(dir.path()).bytes);
    let (commit, offered) = (text("revision"), file.sha256());
    let path = format!("/api/models/{}/revision/{commit}?blobs=true", text("repo"));
    let twist: Twist = Box::new(move |asked, facts, out| {
        if asked.path == path {
            let mut told = facts.listing();
            told["sha"] = commit.as_str().into();
            answer(out, 200, &[], told.to_string().as_bytes());
        }
        asked.path == path
    });
    let hub = FakeHub::start(dir.path(), vec![file], Duration::ZERO, twist);
    let environment = hub.environment(dir.path());
    let args = ["pull", "--yes", "llama3.2-1b-instruct"];
    let outcome = run(hearth(&daemon, &environment, &args)).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    for part in ["the catalogue", &offered, &text("sha256")] {
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    assert_eq!(hub.asked().len(), 1, "nothing is fetched");
    assert!(names_in(&daemon, "blobs").is_empty());
    daemon.stop().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_folder_of_arrivals_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    // Half a file, then nothing: the folder of the pull is there, and a partial file in it.
    let twist: Twist = Box::new(|asked, facts, out| {
        if asked.at_storage {
            let bytes = &facts.files[0].bytes;
            answer(out, 200, &[length(bytes.len())], &bytes[..1000]);
        }
        asked.at_storage
    });
    let hub = FakeHub::start(dir.path(), vec![tiny(dir.path())], Duration::ZERO, twist);
    let environment = hub.environment(dir.path());
    let pull = || run(hearth(&daemon, &environment, &["pull", "--yes", REPO]));
    assert_eq!(pull().await.code, Some(1));
    let incoming = models(&daemon).join("incoming");
    let folder = incoming.join(&names_in(&daemon, "incoming")[0]);
    let part = folder.join("tiny.Q4_0.gguf.part");

    for link in ["symbolic", "hard"] {
        std::fs::remove_file(&part).unwrap();
        match link {
            "hard" => std::fs::hard_link(&precious, &part).unwrap(),
            _ => symlink(&precious, &part).unwrap(),
        }
        let outcome = pull().await;
        assert_eq!(outcome.code, Some(1), "{link}: {}", outcome.stderr);
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious", "{link}");
    }
    // Folders that are links: of the pull, and of all.
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for link in [&folder, &incoming] {
        std::fs::rename(link, dir.path().join("aside")).unwrap();
        symlink(&elsewhere, link).unwrap();
        let outcome = pull().await;
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        assert_eq!(elsewhere.read_dir().unwrap().count(), 0);
        std::fs::remove_file(link).unwrap();
        std::fs::rename(dir.path().join("aside"), link).unwrap();
    }
    // The daemon decides for itself what a pull is.
    let file = tiny(dir.path());
    let sha256 = file.sha256();
    let (name, bytes) = (file.name.clone(), file.bytes.len() as u64);
    std::fs::remove_file(&part).unwrap();
    std::fs::write(dir.path().join(&name), &file.bytes).unwrap();
    symlink(dir.path().join(&name), folder.join(&name)).unwrap();
    let here = folder.display().to_string();
    for (path, named, says) in [
        (here.clone(), name.as_str(), "cannot be opened"),
        (
            here.clone(),
            "../../../tiny.Q4_0.gguf",
            "not a finished pull",
        ),
        (here.clone(), "/etc/passwd", "not a finished pull"),
        (format!("{here}/.."), name.as_str(), "not a finished pull"),
        (
            format!("{here}/{name}"),
            name.as_str(),
            "not a finished pull",
        ),
        (
            incoming.display().to_string(),
            name.as_str(),
            "not a finished pull",
        ),
        (
            dir.path().display().to_string(),
            name.as_str(),
            "not a finished pull",
        ),
    ] {
        let origin = v1::ImportOrigin {
            source: "hub:x".to_owned(),
            license: None,
            files: vec![v1::ModelFile {
                name: named.to_owned(),
                sha256: sha256.clone(),
                bytes,
            }],
        };
        let refused = import(&mut clients, path.clone(), Some(origin))
            .await
            .unwrap_err();
        assert!(
            refused.message().contains(says),
            "{path} {named}: {refused}"
        );
    }
    let refused = import(&mut clients, here, None).await.unwrap_err();
    assert!(
        refused.message().contains("not a finished pull"),
        "{refused}"
    );
    assert!(names_in(&daemon, "blobs").is_empty());
    daemon.stop().await;
}

async fn import(
    clients: &mut Clients,
    path: String,
    origin: Option<v1::ImportOrigin>,
) -> Result<(), tonic::Status> {
    let request = v1::ImportRequest {
        path,
        name: "x".to_owned(),
        quantize: 0,
        origin,
    };
    let mut stream = clients.models.import(request).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}
