//! kill -9 at any moment: the next daemon is ready soon, the store is whole, nothing is in the way.
//!
//! Eight moments, or fifty with `HEARTH_LONG_TESTS=1`, which takes the default model as well where
//! it is set up. The long form prints how long the next daemon took.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{
    Clients, Process, Setup, default_model, long_tests, text_of, tiny_model,
};
use hearthd::store::Store;
use sha2::{Digest as _, Sha256};

/// What the daemon is at when it dies.
#[derive(Debug, Clone, Copy)]
enum At {
    Load,
    Import,
    Generate,
}

/// Random moments; the seed is printed, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: Duration) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let micros = u64::try_from(bound.as_micros()).unwrap();
        Duration::from_micros((self.0 >> 33) % micros.max(1))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_nothing_in_the_way() {
    let (points, large) = match long_tests() {
        true => (50, default_model()),
        false => (8, None),
    };
    let setup = large.as_deref().map_or_else(Setup::tiny, Setup::file);
    let source = large.unwrap_or_else(|| setup.config().model.map(PathBuf::from).unwrap());
    let seed = u64::from(std::process::id());
    let mut dice = Dice(seed);
    eprintln!("seed {seed}");

    // How long things take undisturbed, which bounds the moments.
    let begun = Instant::now();
    let (first, mut clients) = ready(&setup).await;
    let load = begun.elapsed();
    let begun = Instant::now();
    import(&mut clients, &source, "whole").await;
    let copy = begun.elapsed();
    first.kill();

    let mut slowest = Duration::ZERO;
    for point in 0..points {
        let at = [At::Load, At::Import, At::Generate][point % 3];
        disturb(&setup, &source, at, &mut dice, load, copy).await;
        let begun = Instant::now();
        let (process, mut clients) = ready(&setup).await;
        slowest = slowest.max(begun.elapsed());
        check_store(&setup, &mut clients, at).await;
        let stream = clients.endless("hello", 3).await;
        let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await;
        assert!(text.is_ok(), "after {at:?}");
        match point % 2 {
            0 => process.kill(),
            _ => {
                let socket = process.socket.clone();
                assert!(process.terminate().success());
                assert!(!socket.exists(), "a stale socket");
            }
        }
    }
    eprintln!("ready at first in {load:?}, after a kill in at most {slowest:?} ({points} kills)");
    let most = load * 10 + Duration::from_secs(30);
    assert!(slowest < most, "{slowest:?}");
}

async fn ready(setup: &Setup) -> (Process, Clients) {
    let process = Process::start(setup);
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    (process, clients)
}

async fn import(clients: &mut Clients, source: &Path, name: &str) {
    let request = v1::ImportRequest {
        path: source.display().to_string(),
        name: name.to_owned(),
        ..Default::default()
    };
    let mut stream = clients.models.import(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
}

/// Kills a daemon at a random moment of what it is at.
async fn disturb(
    setup: &Setup,
    source: &Path,
    at: At,
    dice: &mut Dice,
    load: Duration,
    copy: Duration,
) {
    match at {
        At::Load => {
            let process = Process::start(setup);
            tokio::time::sleep(dice.below(load)).await;
            process.kill();
        }
        At::Import => {
            let (process, mut clients) = ready(setup).await;
            // Other bytes each time: what the store has already is not written again.
            let other = setup.dir().join("other.gguf");
            if source.metadata().unwrap().len() < 1 << 20 {
                tiny_model::write(&other, u64::from(process.pid()));
            } else {
                std::fs::copy(source, &other).unwrap();
            }
            let wait = dice.below(copy);
            let request = v1::ImportRequest {
                path: other.display().to_string(),
                name: format!("other-{}", process.pid()),
                ..Default::default()
            };
            let mut stream = clients.models.import(request).await.unwrap().into_inner();
            tokio::time::sleep(wait).await;
            process.kill();
            // Whole or broken off, but with an end.
            while let Ok(Some(_)) = stream.message().await {}
        }
        At::Generate => {
            let (process, mut clients) = ready(setup).await;
            let mut stream = clients.endless("hello", 1900).await;
            stream.message().await.unwrap().unwrap();
            tokio::time::sleep(dice.below(Duration::from_millis(500))).await;
            process.kill();
            while let Ok(Some(_)) = stream.message().await {}
        }
    }
}

/// Each model that is listed is there with the bytes that its name promises, and nothing else is.
async fn check_store(setup: &Setup, clients: &mut Clients, at: At) {
    let listed = clients.models.list(v1::ListRequest {}).await.unwrap();
    let names: Vec<String> = listed
        .into_inner()
        .models
        .into_iter()
        .map(|m| m.name)
        .collect();
    assert!(
        names.contains(&"whole".to_owned()),
        "after {at:?}: {names:?}"
    );
    let root = setup.config().models_dir;
    for file in std::fs::read_dir(root.join("blobs")).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let promised = name.strip_prefix("sha256-");
        let promised = promised.unwrap_or_else(|| panic!("after {at:?}: {name} is left behind"));
        let digest = Sha256::digest(std::fs::read(file.path()).unwrap());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, promised, "after {at:?}");
    }
    let store = Store::open(&root).unwrap();
    for model in store.list().unwrap() {
        assert!(store.files(&model).is_ok(), "after {at:?}: {}", model.name);
    }
}
