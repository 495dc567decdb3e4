//! Chat templates are rendered in a process apart: whatever a template asks for, the daemon lives,
//! stays small, and answers others meanwhile.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{Clients, Process, Setup, long_tests, reason, text_of, tiny_model};
use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

/// Longest time that a refusal of a hostile template may take: its limit of time and a margin, since
/// other tests run beside this one.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// How much the daemon may grow from templates that want gigabytes, in KiB.
const GROWTH_MAX_KIB: u64 = 48 << 10;
const SECRET: &str = "kanarienvogel";

/// A template that doubles a value 64 times by an expression of `s.x`.
fn doubling(first: &str, next: &str, last: &str) -> String {
    format!(
        "{{% set s = namespace(x={first}) %}}{{% for i in range(64) %}}{{% set s.x = {next} %}}\
         {{% endfor %}}{last}"
    )
}

/// Templates that ask for memory or time without end, or go too deep.
fn hostile() -> Vec<String> {
    let mut all = vec![
        doubling("'x'", "s.x ~ s.x", "{{ s.x }}"),
        doubling("'x'", "s.x + s.x", "{{ s.x | length }}"),
        doubling("[1]", "s.x + s.x", "{{ s.x | length }}"),
        doubling("[1]", "[s.x, s.x]", "{{ s.x | tojson | length }}"),
        // A list that holds another twice, 64 deep, against its like: 2^64 comparisons.
        "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(64) %}\
         {% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}"
            .to_owned(),
        // As deep as fuel allows, for whoever frees it.
        "{% set s = namespace(x=[]) %}{% for i in range(30000) %}{% set s.x = [s.x] %}{% endfor %}\
         {{ s.x | string | length }}"
            .to_owned(),
        "{% set s = namespace(x='x') %}{% for i in range(64) %}{% set y %}{{ s.x }}{{ s.x }}\
         {% endset %}{% set s.x = y %}{% endfor %}{{ s.x | length }}"
            .to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 2) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{{ ('x' * 100000) | replace('x', 'x' * 100000) }}".to_owned(),
    ];
    // A namespace that holds itself: whoever walks through it needs a stack without end.
    let walks = ["{{ s }}", "{{ s ~ 1 }}", "{{ s | tojson }}"];
    all.extend(walks.map(|walk| format!("{{% set s = namespace() %}}{{% set s.x = [s] %}}{walk}")));
    let expressions = [
        "range(10**9) | list | length",
        "range(10**9) | join('x')",
        "'x' * 1073741824",
        "('x' * 1000000) * 1000000",
        "[1] * 10**9",
    ];
    all.extend(expressions.map(|expression| format!("{{{{ {expression} }}}}")));
    all
}

/// So many tokens, the same each time.
fn greedy(tokens: u32) -> v1::GenerationOptions {
    v1::GenerationOptions {
        max_tokens: Some(tokens),
        ignore_eos: true,
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn chat(clients: &mut Clients) -> Result<String, Status> {
    let request = v1::ChatRequest {
        messages: vec![v1::ChatMessage {
            role: v1::Role::User.into(),
            content: SECRET.to_owned(),
        }],
        options: Some(greedy(4)),
        ..Default::default()
    };
    let stream = clients.inference.chat(request).await?.into_inner();
    Ok(text_of(stream, |reply: v1::ChatResponse| reply.event)
        .await?
        .text)
}

/// A reply's tokens.
async fn steady(mut clients: Clients, tokens: u32) -> Vec<u32> {
    let request = v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        options: Some(greedy(tokens)),
        ..Default::default()
    };
    let stream = clients.inference.generate(request).await.unwrap();
    let stream = stream.into_inner();
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await;
    text.unwrap().ids
}

/// Brings a model into the store and makes it the warm one.
async fn load(clients: &mut Clients, path: &Path) {
    let request = v1::ImportRequest {
        path: path.display().to_string(),
        ..Default::default()
    };
    let mut import = clients.models.import(request).await.unwrap().into_inner();
    while import.message().await.unwrap().is_some() {}
    let model = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let request = v1::LoadRequest {
        model,
        ..Default::default()
    };
    let mut stream = clients.models.load(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    clients.wait_ready().await;
}

/// Processes whose parent is `parent`.
fn children(parent: u32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may hold anything, ")" included.
        let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
        let parent_of = rest.and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        parent_of == Some(parent)
    };
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_child).collect()
}

fn renderer_of(process: &Process) -> Pid {
    let children = children(process.pid());
    assert_eq!(children.len(), 1, "the renderer is the daemon's only child");
    Pid::from_raw(children[0]).unwrap()
}

/// Waits until no process has this id, a dead one that nobody reaped aside.
async fn wait_for_end_of(pid: Pid) {
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    for _ in 0..1000 {
        match std::fs::read_to_string(&stat) {
            Ok(text) if !text.contains(") Z ") => {}
            Ok(_) | Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the renderer outlives the daemon");
}

/// Kibibytes that the daemon holds.
fn resident(process: &Process) -> u64 {
    let words = process.proc_status("VmRSS");
    words.trim_end_matches(" kB").parse().unwrap()
}

/// A daemon whose words go to the file `log`.
fn logged(setup: &Setup) -> Process {
    let log = File::create(setup.dir().join("log")).unwrap();
    Process::start_with(setup, |command| {
        command.args(["--log", "trace"]);
        command.stderr(log.try_clone().unwrap()).stdout(log);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_template_harms_nobody() {
    let setup = Setup::tiny();
    let process = logged(&setup);
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    chat(&mut clients).await.unwrap();
    let renderer = renderer_of(&process);
    let mut wanted = None;
    // One of three will do in the short form: memory and time are among them.
    let step = if long_tests() { 1 } else { 3 };
    for (nth, template) in hostile().into_iter().step_by(step).enumerate() {
        let path = setup.dir().join(format!("hostile-{nth}.gguf"));
        tiny_model::write_with_template(&path, 1, &template);
        load(&mut clients, &path).await;
        // What it says alone, once: the model is the same each time.
        if wanted.is_none() {
            wanted = Some(steady(Clients::connect(&process.socket).await, 200).await);
        }
        let before = resident(&process);
        let beside = tokio::spawn(steady(Clients::connect(&process.socket).await, 200));
        let begun = Instant::now();
        let refused = chat(&mut clients).await.expect_err(&template);
        assert!(begun.elapsed() < REFUSED_WITHIN, "{template}");
        assert_eq!(refused.code(), Code::InvalidArgument, "{template}");
        assert_eq!(reason(&refused), "BAD_FIELD");
        assert!(refused.message().contains("chat template"), "{refused}");
        assert_eq!(Some(beside.await.unwrap()), wanted, "{template}");
        let grown = resident(&process).saturating_sub(before);
        assert!(grown < GROWTH_MAX_KIB, "{grown} KiB: {template}");
    }
    assert_eq!(renderer_of(&process), renderer, "it was never lost");
    assert!(process.terminate().success());
    wait_for_end_of(renderer).await;
    let log = std::fs::read_to_string(setup.dir().join("log")).unwrap();
    assert!(log.contains("the model is warm") && !log.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_renderer_the_daemon_renders_itself() {
    let setup = Setup::tiny();
    let process = logged(&setup);
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    let wanted = chat(&mut clients).await.unwrap();
    let renderer = renderer_of(&process);
    // What ends a whole group of processes leaves it to the daemon.
    kill_process(renderer, Signal::TERM).unwrap();
    kill_process(renderer, Signal::INT).unwrap();
    assert_eq!(chat(&mut clients).await.unwrap(), wanted);
    assert_eq!(renderer_of(&process), renderer);
    kill_process(renderer, Signal::KILL).unwrap();
    for _ in 0..3 {
        assert_eq!(chat(&mut clients).await.unwrap(), wanted);
    }
    assert!(children(process.pid()).is_empty(), "it is reaped");
    assert!(process.terminate().success());
    let log = std::fs::read_to_string(setup.dir().join("log")).unwrap();
    assert_eq!(log.matches("chat templates is gone").count(), 1, "{log}");
    assert!(!log.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_leave_take_no_one_elses_answer() {
    let setup = Setup::tiny();
    let process = Process::start(&setup);
    let mut clients = Clients::connect(&process.socket).await;
    clients.wait_ready().await;
    let wanted = chat(&mut clients).await.unwrap();
    for turn in 0..30 {
        let mut leaving = Clients::connect(&process.socket).await;
        let left = tokio::spawn(async move { chat(&mut leaving).await });
        tokio::time::sleep(Duration::from_micros(turn * 200)).await;
        left.abort();
        assert_eq!(chat(&mut clients).await.unwrap(), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_renderer_dies_with_a_killed_daemon_and_can_do_nothing_else() {
    let setup = Setup::empty();
    let process = Process::start(&setup);
    let mut clients = Clients::connect(&process.socket).await;
    clients.status().await;
    let renderer = renderer_of(&process);
    let proc = |name: &str| {
        std::fs::read_to_string(format!("/proc/{}/{name}", renderer.as_raw_nonzero())).unwrap()
    };
    // It is up, and confined, when its name is its own and it has no core file.
    let begun = Instant::now();
    while !proc("status").contains("NoNewPrivs:\t1") && begun.elapsed() < REFUSED_WITHIN {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(proc("comm").trim(), "hearth-render");
    let status = proc("status");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Threads:\t1"));
    let limits = proc("limits");
    let core = limits.lines().find(|line| line.contains("core file"));
    let core: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{limits}");
    process.kill();
    wait_for_end_of(renderer).await;
}
