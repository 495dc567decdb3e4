//! Models over the socket and in the store: import, list, show, load, unload, delete, and what is
//! refused.

use std::path::Path;
use std::time::Duration;

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Setup, reason, text_of, tiny_model};
use hearthd::store::{Store, StoreError};
use tonic::{Code, Status};

pub(crate) async fn import(
    clients: &mut Clients,
    path: &Path,
    name: &str,
) -> Result<v1::ModelInfo, Status> {
    let request = v1::ImportRequest {
        path: path.display().to_string(),
        name: name.to_owned(),
        ..Default::default()
    };
    let mut stream = clients.models.import(request).await?.into_inner();
    let mut model = None;
    while let Some(reply) = stream.message().await? {
        if let Some(v1::import_response::Event::Model(info)) = reply.event {
            model = Some(info);
        }
    }
    Ok(model.expect("a model at the end"))
}

pub(crate) async fn load(clients: &mut Clients, name: &str) -> Result<v1::ModelInfo, Status> {
    let request = v1::LoadRequest {
        model: name.to_owned(),
        ..Default::default()
    };
    let mut stream = clients.models.load(request).await?.into_inner();
    let mut model = None;
    while let Some(reply) = stream.message().await? {
        if let Some(v1::load_response::Event::Model(info)) = reply.event {
            model = Some(info);
        }
    }
    Ok(model.expect("a model at the end"))
}

pub(crate) async fn names(clients: &mut Clients) -> Vec<(String, v1::ModelState)> {
    let reply = clients
        .models
        .list(v1::ListRequest {})
        .await
        .unwrap()
        .into_inner();
    reply
        .models
        .into_iter()
        .map(|model| (model.name.clone(), model.state()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_its_way_from_file_to_gone() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let request = v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        ..Default::default()
    };
    let status = clients.inference.generate(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "NO_MODEL")
    );
    assert!(status.message().contains("hearth import"));

    let file = daemon.setup.dir().join("My Model.gguf");
    tiny_model::write(&file, 1);
    let model = import(&mut clients, &file, "").await.unwrap();
    assert_eq!(model.name, "my-model");
    assert_eq!(model.sha256.len(), 64);
    assert_eq!(
        (model.n_layers, model.vocab_size),
        (tiny_model::LAYERS, tiny_model::vocab_size())
    );
    assert_eq!(
        names(&mut clients).await,
        [("my-model".to_owned(), v1::ModelState::Stored)]
    );
    // Again, and under a second name: the file is stored once.
    import(&mut clients, &file, "my-model").await.unwrap();
    import(&mut clients, &file, "second").await.unwrap();
    let blobs = daemon.setup.dir().join("models/blobs");
    assert_eq!(blobs.read_dir().unwrap().count(), 1);

    let shown = clients
        .models
        .show(v1::ShowRequest {
            model: "second".to_owned(),
        })
        .await
        .unwrap();
    let shown = shown.into_inner();
    assert!(shown.chat_template.unwrap().contains("im_start"));
    assert_eq!(
        (shown.n_heads, shown.head_dim),
        (tiny_model::HEADS, tiny_model::HEAD_DIM)
    );

    let need = shown.memory.unwrap();
    assert!(!need.measured && need.available_bytes > Some(1 << 20));

    assert_eq!(
        load(&mut clients, "second").await.unwrap().state(),
        v1::ModelState::Warm
    );
    let warm = clients.status().await.model.unwrap();
    assert_eq!(
        (need.kv_bytes, need.context_len),
        (warm.kv_bytes, warm.context_len)
    );
    let stream = clients.endless("hello", 3).await;
    text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .unwrap();
    let delete = |name: &str| v1::DeleteRequest {
        model: name.to_owned(),
    };
    let status = clients.models.delete(delete("second")).await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_IN_USE");
    clients
        .models
        .unload(v1::UnloadRequest::default())
        .await
        .unwrap();
    let status = clients
        .models
        .unload(v1::UnloadRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "NO_MODEL");
    assert!(clients.status().await.model.is_none());

    let freed = clients
        .models
        .delete(delete("second"))
        .await
        .unwrap()
        .into_inner()
        .freed_bytes;
    assert_eq!(freed, 0, "the other name holds the file");
    let freed = clients
        .models
        .delete(delete("my-model"))
        .await
        .unwrap()
        .into_inner()
        .freed_bytes;
    assert_eq!(freed, model.file_bytes);
    assert_eq!(blobs.read_dir().unwrap().count(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_model_is_loaded_at_start_and_two_are_not() {
    let setup = Setup::empty();
    let store = Store::open(&setup.dir().join("models")).unwrap();
    let file = setup.dir().join("a.gguf");
    tiny_model::write(&file, 1);
    store.import(&file, None, None, &mut |_, _| true).unwrap();
    let (daemon, mut clients) = Daemon::ready(setup).await;
    assert_eq!(
        names(&mut clients).await,
        [("a".to_owned(), v1::ModelState::Warm)]
    );

    let other = daemon.setup.dir().join("b.gguf");
    tiny_model::write(&other, 2);
    import(&mut clients, &other, "").await.unwrap();
    // Whoever does not wait for streams unloads their model.
    let mut stream = clients.endless("hello", 1900).await;
    stream.message().await.unwrap().unwrap();
    clients
        .models
        .unload(v1::UnloadRequest::default())
        .await
        .unwrap();
    let ended = text_of(stream, |reply: v1::GenerateResponse| reply.event)
        .await
        .err()
        .unwrap();
    assert_eq!(
        (ended.code(), reason(&ended).as_str()),
        (Code::Unavailable, "MODEL_GONE")
    );
    load(&mut clients, "b").await.unwrap();
    let states = names(&mut clients).await;
    assert_eq!(states[0], ("a".to_owned(), v1::ModelState::Stored));
    assert_eq!(states[1], ("b".to_owned(), v1::ModelState::Warm));
    clients
        .models
        .unload(v1::UnloadRequest::default())
        .await
        .unwrap();
    let status = load(&mut clients, "").await.unwrap_err();
    assert_eq!(reason(&status), "NO_MODEL");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_and_names_are_refused_and_leave_nothing() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let dir = daemon.setup.dir().to_owned();
    let good = dir.join("good.gguf");
    tiny_model::write(&good, 1);
    let mut bytes = std::fs::read(&good).unwrap();
    let cut = dir.join("cut.gguf");
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    let text = dir.join("text.gguf");
    std::fs::write(&text, "no model").unwrap();
    let empty = dir.join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    let lying = dir.join("lying.gguf");
    bytes[8..16].fill(0xff);
    std::fs::write(&lying, &bytes).unwrap();
    for bad in [&cut, &text, &empty, &lying] {
        let status = import(&mut clients, bad, "").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}");
        assert_eq!(reason(&status), "BAD_MODEL_FILE", "{bad:?}: {status}");
    }
    for path in [
        dir.clone(),
        dir.join("missing.gguf"),
        "relative.gguf".into(),
        "/dev/null".into(),
    ] {
        let status = import(&mut clients, &path, "").await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "BAD_FIELD")
        );
    }
    for name in ["../x", "A", ".x", "a/b", &"a".repeat(101)] {
        let status = import(&mut clients, &good, name).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "BAD_FIELD")
        );
    }
    import(&mut clients, &good, "taken").await.unwrap();
    let other = dir.join("other.gguf");
    tiny_model::write(&other, 2);
    let status = import(&mut clients, &other, "taken").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::AlreadyExists, "NAME_TAKEN")
    );
    let blobs: Vec<_> = dir.join("models/blobs").read_dir().unwrap().collect();
    assert_eq!(blobs.len(), 1, "only the good file is kept");
    let status = load(&mut clients, "unknown").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "MODEL_NOT_FOUND")
    );
    daemon.stop().await;
}

#[test]
fn what_a_killed_import_left_is_removed_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    let store = Store::open(&root).unwrap();
    let file = dir.path().join("a.gguf");
    tiny_model::write(&file, 1);
    let model = store
        .import(&file, Some("a"), None, &mut |_, _| true)
        .unwrap();

    // A caller that goes away leaves nothing.
    let cancelled = store.import(&file, Some("b"), None, &mut |done, _| done == 0);
    assert!(matches!(cancelled, Err(StoreError::Cancelled)));
    let left = root.join("blobs/import-1-1.part");
    std::fs::write(&left, "half").unwrap();
    let held = root.join("blobs/import-2-1.part");
    let other_daemon = std::fs::File::create(&held).unwrap();
    other_daemon.try_lock().unwrap();
    let store = Store::open(&root).unwrap();
    assert!(!left.exists());
    assert!(held.exists(), "another daemon still writes it");

    // A link in place of the blob could point anywhere.
    let files = store.files(&model).unwrap();
    let blob = files.iter().next().unwrap().1.to_owned();
    std::fs::rename(&blob, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &blob).unwrap();
    assert!(matches!(store.files(&model), Err(StoreError::NotAFile)));
    // A manifest that lies about its name is not one.
    let manifests = root.join("manifests");
    std::fs::copy(manifests.join("a.json"), manifests.join("c.json")).unwrap();
    assert!(store.get("c").is_err());
    assert_eq!(store.list().unwrap().len(), 1);
}

/// Two models in the store, `a` warm; there is room for one.
async fn two_models() -> (Daemon, Clients) {
    let (daemon, mut clients) = Daemon::ready(Setup::empty().set("models_max", 1)).await;
    for (name, seed) in [("a", 1), ("b", 2)] {
        let file = daemon.setup.dir().join(format!("{name}.gguf"));
        tiny_model::write(&file, seed);
        import(&mut clients, &file, name).await.unwrap();
    }
    load(&mut clients, "a").await.unwrap();
    (daemon, clients)
}

async fn warm_name(clients: &mut Clients) -> Option<String> {
    Some(clients.status().await.model?.info.unwrap().name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_waits_for_the_replies_under_way() {
    let (daemon, mut clients) = two_models().await;
    let text = |stream| text_of(stream, |reply: v1::GenerateResponse| reply.event);
    let stream = clients.endless("hello", 150).await;
    let mut others = Clients::connect(&daemon.setup.config().socket).await;
    let switch = tokio::spawn(async move { load(&mut others, "b").await });
    let reply = text(stream).await.unwrap();
    assert_eq!(reply.end.unwrap().finish_reason(), v1::FinishReason::Length);
    assert_eq!(switch.await.unwrap().unwrap().name, "b");
    assert_eq!(warm_name(&mut clients).await.as_deref(), Some("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_given_up_changes_nothing() {
    let (daemon, mut clients) = two_models().await;
    let mut stream = clients.endless("hello", 100_000).await;
    stream.message().await.unwrap();
    let mut others = Clients::connect(&daemon.setup.config().socket).await;
    let request = v1::LoadRequest {
        model: "b".to_owned(),
        ..Default::default()
    };
    let switch = others.models.load(request).await.unwrap();
    while clients.status().await.loading.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Whoever asks for the model that is leaving is told so.
    let request = v1::TokenizeRequest {
        model: "a".to_owned(),
        ..Default::default()
    };
    let status = clients.inference.tokenize(request).await.unwrap_err();
    assert_eq!(reason(&status), "MODEL_NOT_WARM");
    drop(switch);
    while warm_name(&mut clients).await.as_deref() != Some("a") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(stream.message().await.unwrap().is_some(), "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_model_gives_its_place_to_no_other() {
    let (_daemon, mut clients) = two_models().await;
    clients.models.pin(v1::PinRequest::default()).await.unwrap();
    let status = load(&mut clients, "b").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "MODEL_PINNED")
    );
    assert_eq!(warm_name(&mut clients).await.as_deref(), Some("a"));
    clients
        .models
        .unpin(v1::UnpinRequest::default())
        .await
        .unwrap();
    load(&mut clients, "b").await.unwrap();
    assert_eq!(warm_name(&mut clients).await.as_deref(), Some("b"));
}
