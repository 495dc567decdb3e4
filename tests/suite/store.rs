//! The store as it lies on disk: models of several files, what is shared, what is given back, and what
//! is removed that nobody comes back for.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hearth_test_support::tiny_model;
use hearthd::store::{Manifest, Store, StoreError};
use sha2::{Digest as _, Sha256};

fn import(store: &Store, path: &Path, name: Option<&str>) -> Result<Manifest, StoreError> {
    store.import(path, name, None, &mut |_, _| true)
}

fn count(folder: &Path) -> usize {
    folder.read_dir().unwrap().count()
}

fn sha256(path: &Path) -> String {
    let hash = Sha256::digest(fs::read(path).unwrap());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_split_model_is_one_model_of_two_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("models")).unwrap();
    let first = tiny_model::write_split(dir.path(), "Big", 1);
    let second = dir.path().join("Big-00002-of-00002.gguf");
    // Any part names the model.
    let model = import(&store, &second, None).unwrap();
    assert_eq!((model.name.as_str(), model.files.len()), ("big", 2));
    assert_eq!(model.files[0].name, "Big-00001-of-00002.gguf");
    let bytes = first.metadata().unwrap().len() + second.metadata().unwrap().len();
    assert_eq!(model.file_bytes(), bytes);
    assert_eq!(
        (sha256(&first), sha256(&second)),
        (model.files[0].sha256.clone(), model.files[1].sha256.clone())
    );
    // The two parts say as much as the whole.
    let whole = dir.path().join("whole.gguf");
    tiny_model::write(&whole, 1);
    let whole = import(&store, &whole, None).unwrap();
    assert_eq!(whole.facts.parameter_count, model.facts.parameter_count);
    assert_eq!(store.open_model(&model).unwrap().tensors().len(), 20);

    // Without its other part there is no model.
    fs::rename(&first, dir.path().join("gone")).unwrap();
    assert!(import(&store, &second, Some("half")).is_err());
    let blobs = dir.path().join("models/blobs");
    assert_eq!(count(&blobs), 3);
    assert_eq!(store.delete("big").unwrap(), bytes);
    assert_eq!(count(&blobs), 1);
}

#[test]
fn of_a_folder_the_model_is_taken_and_shared_files_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    let store = Store::open(&root).unwrap();
    let folder = dir.path().join("Tiny-1B");
    tiny_model::write_folder(&folder);
    let model = import(&store, &folder, None).unwrap();
    assert_eq!(model.name, "tiny-1b");
    let names: Vec<&str> = model.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    assert_eq!(model.facts.format, "safetensors");
    assert_eq!(
        (model.facts.n_layers, model.facts.hidden_dim),
        (tiny_model::LAYERS, tiny_model::HIDDEN)
    );
    assert_eq!(count(&root.join("blobs")), 6);
    for (file, (name, path)) in model.files.iter().zip(store.files(&model).unwrap().iter()) {
        assert_eq!(
            (file.name.as_str(), file.sha256.as_str()),
            (name, sha256(path).as_str())
        );
        assert_eq!(
            fs::read(path).unwrap(),
            fs::read(folder.join(name)).unwrap()
        );
    }

    // A sister with another configuration shares all else.
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    fs::write(
        folder.join("config.json"),
        config.replace("10000.0", "20000.0"),
    )
    .unwrap();
    let sister = import(&store, &folder, Some("sister")).unwrap();
    assert_eq!(count(&root.join("blobs")), 7);
    assert_ne!(sister.sha256(), model.sha256());
    assert_eq!(store.delete("tiny-1b").unwrap(), model.files[0].bytes);
    assert_eq!(count(&root.join("blobs")), 6);
    store.open_model(&sister).unwrap();
    assert_eq!(store.delete("sister").unwrap(), sister.file_bytes());
    assert_eq!(count(&root.join("blobs")), 0);

    // A folder with a shard missing, or with two models, or with none.
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    assert!(matches!(
        import(&store, &folder, None),
        Err(StoreError::BadModel(_))
    ));
    let two = dir.path().join("two");
    fs::create_dir(&two).unwrap();
    tiny_model::write(&two.join("a.gguf"), 1);
    tiny_model::write(&two.join("b.gguf"), 2);
    assert!(matches!(
        import(&store, &two, None),
        Err(StoreError::Several { files: 2 })
    ));
    let none = dir.path().join("none");
    fs::create_dir(&none).unwrap();
    assert!(matches!(
        import(&store, &none, None),
        Err(StoreError::BadModel(_))
    ));
    assert_eq!(count(&root.join("blobs")), 0);
}

#[test]
fn what_nobody_comes_back_for_is_removed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    let store = Store::open(&root).unwrap();
    let file = dir.path().join("a.gguf");
    tiny_model::write(&file, 1);
    let model = import(&store, &file, None).unwrap();
    // Killed between the blob and its manifest.
    let orphan = root.join(format!("blobs/sha256-{}", "0".repeat(64)));
    let stranger = root.join("blobs/notes.txt");
    fs::write(&orphan, "half a model").unwrap();
    fs::write(&stranger, "not ours").unwrap();
    let pull = |key: char, age_days: u64, held: bool| {
        let folder = root.join("incoming").join(key.to_string().repeat(32));
        fs::create_dir(&folder).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        let part = File::create(folder.join("a.gguf.part")).unwrap();
        let then = SystemTime::now() - Duration::from_secs(age_days * 86_400);
        for file in [&lock, &part, &File::open(&folder).unwrap()] {
            file.set_modified(then).unwrap();
        }
        if held {
            lock.lock().unwrap();
        }
        (folder, lock)
    };
    let young = pull('a', 6, false);
    let old = pull('b', 8, false);
    let alive = pull('c', 8, true);
    let foreign = root.join("incoming/keep");
    fs::create_dir(&foreign).unwrap();

    // A manifest that cannot be read may name anything: then nothing is removed.
    let broken = root.join("manifests/broken.json");
    fs::write(&broken, "{").unwrap();
    Store::open(&root).unwrap();
    assert!(orphan.exists());
    fs::remove_file(&broken).unwrap();

    let store = Store::open(&root).unwrap();
    assert!(!orphan.exists());
    assert!(stranger.exists() && foreign.exists());
    store.open_model(&model).unwrap();
    let there = [&young, &old, &alive].map(|(folder, _)| folder.exists());
    assert_eq!(there, [true, false, true]);
}
