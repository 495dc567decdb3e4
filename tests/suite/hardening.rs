//! What a daemon with a process of its own has given up, and that it does its work without.

use hearth_proto::v1;
use hearth_test_support::{Clients, Process, Setup, text_of, tiny_model};

/// What this kernel offers: whether filters of system calls can be had.
fn has_seccomp() -> bool {
    std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hardened_daemon_does_all_its_work() {
    let setup = Setup::tiny();
    let metrics = setup.dir().join("metrics/hearth.prom");
    std::fs::create_dir(metrics.parent().unwrap()).unwrap();
    let process = Process::start_with(&setup, |command| {
        command.arg("--metrics-file").arg(&metrics);
        command.arg("--metrics-interval-s").arg("1");
    });
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    assert_eq!(process.proc_status("NoNewPrivs"), "1");
    let said = clients.status().await.process.unwrap().hardening;
    assert_eq!(said[0], "no new privileges");
    if has_seccomp() {
        assert_eq!(process.proc_status("Seccomp"), "2");
        for words in ["no sockets but local ones", "no programs are run"] {
            assert!(said.iter().any(|said| said.contains(words)), "{said:?}");
        }
    }

    let stream = clients.endless("hello", 20).await;
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await;
    assert_eq!(text.unwrap().end.unwrap().generated_tokens, 20);
    // From a folder that is not its own, into the store.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("other.gguf");
    tiny_model::write(&file, 2);
    let request = v1::ImportRequest {
        path: file.display().to_string(),
        ..Default::default()
    };
    let mut import = clients.models.import(request).await.unwrap().into_inner();
    while import.message().await.unwrap().is_some() {}
    // A socket for an app, and its folder.
    let launcher = hearth::Client::connect_to(&process.socket).await.unwrap();
    let app = launcher.open_app_socket("org.example.App", None).await;
    let app = app.unwrap();
    let mut confined = Clients::connect(app.path()).await;
    assert!(confined.status().await.process.is_none());
    drop((confined, app, launcher));
    assert!(process.terminate().success());
    let written = std::fs::read_to_string(&metrics).unwrap();
    assert!(written.contains("hearth_"), "{written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_turned_off() {
    let setup = Setup::empty();
    let process = Process::start_with(&setup, |command| {
        command.args(["--hardening", "off"]);
    });
    let mut clients = Clients::connect(&process.socket).await;
    let status = clients.status().await;
    assert!(status.process.unwrap().hardening.is_empty());
    assert_eq!(process.proc_status("Seccomp"), own_seccomp());
    assert!(process.terminate().success());
}

/// The filter that this test itself runs under, in a container say.
fn own_seccomp() -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    line.unwrap().trim().to_owned()
}
