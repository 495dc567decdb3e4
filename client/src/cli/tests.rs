//! Tests of the command line: what is taken, what is refused.

use super::*;
use clap::CommandFactory as _;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("hearth").chain(args.iter().copied()))
}

fn run_args(args: &[&str]) -> RunArgs {
    match parse(args).map(|cli| cli.command) {
        Ok(Command::Run(run)) => run,
        other => panic!("not a run: {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn words_and_flags_mix() {
    let run = run_args(&[
        "run",
        "tell",
        "me",
        "--temperature",
        "0.2",
        "--stop",
        "a",
        "--stop",
        "b",
        "more",
        "--class",
        "background",
        "--timeout",
        "2m",
    ]);
    assert_eq!(run.prompt, ["tell", "me", "more"]);
    assert_eq!(run.generation.temperature, Some(0.2));
    assert_eq!(run.generation.stop, ["a", "b"]);
    assert_eq!(run.generation.class, Some(Class::Background));
    assert_eq!(run.generation.timeout, Some(Duration::from_secs(120)));
}

#[test]
fn logprobs_takes_an_optional_number_and_leaves_the_prompt_alone() {
    assert_eq!(run_args(&["run", "--logprobs", "5"]).logprobs, Some(0));
    assert_eq!(run_args(&["run", "--logprobs", "5"]).prompt, ["5"]);
    assert_eq!(run_args(&["run", "--logprobs=5", "x"]).logprobs, Some(5));
    assert_eq!(run_args(&["run", "x"]).logprobs, None);
}

#[test]
fn wait_takes_an_optional_time_and_leaves_the_prompt_alone() {
    let minute = Duration::from_secs(60);
    assert_eq!(run_args(&["run", "x"]).wait, None);
    assert_eq!(run_args(&["run", "--wait", "5"]).wait, Some(None));
    assert_eq!(run_args(&["run", "--wait", "5"]).prompt, ["5"]);
    assert_eq!(
        run_args(&["run", "--wait=1m", "x"]).wait,
        Some(Some(minute))
    );
}

#[test]
fn global_flags_stand_anywhere() {
    for args in [["--json", "ls"], ["ls", "--json"]] {
        assert!(parse(&args).is_ok_and(|cli| cli.global.json), "{args:?}");
    }
}

#[test]
fn a_negative_number_is_a_value() {
    assert_eq!(
        run_args(&["run", "--temperature", "-1", "x"])
            .generation
            .temperature,
        Some(-1.0)
    );
}

#[test]
fn bench_takes_everything() {
    let cli = parse(&["bench", "--tokens", "5", "--help", "-x"]);
    let Ok(Command::Bench(bench)) = cli.map(|cli| cli.command) else {
        panic!("a bench")
    };
    assert_eq!(bench.args, ["--tokens", "5", "--help", "-x"]);
}

#[test]
fn a_command_stands_after_two_dashes() {
    let cli = parse(&["app-socket", "--instance", "1", "a.b", "--", "sh", "--json"]);
    let cli = cli.unwrap_or_else(|error| panic!("{error}"));
    assert!(!cli.global.json, "the flag is the command's");
    let Command::AppSocket(args) = cli.command else {
        panic!("an app socket")
    };
    assert_eq!(
        (args.app.as_str(), args.instance.as_deref()),
        ("a.b", Some("1"))
    );
    assert_eq!(args.command, ["sh", "--json"]);
}

#[test]
fn wrong_command_lines_are_refused() {
    for args in [
        &[][..],
        &["nonsense"],
        &["run", "--no-such-flag"],
        &["run", "--raw", "--system", "s", "x"],
        &["run", "--timeout", "soon", "x"],
        &["run", "--timeout", "0", "x"],
        &["run", "--timeout", "25h", "x"],
        &["run", "--class", "urgent", "x"],
        &["run", "--cache", "everyone", "x"],
        &["run", "--wait=soon", "x"],
        &["chat", "--wait"],
        &["ps", "extra"],
        &["run", "--top-k", "-1", "x"],
        &["tokenize", "--ids", "--count", "x"],
        &["show"],
        &["app-socket"],
        &["app-socket", "a", "sh"],
        &["completions", "cobol"],
    ] {
        assert!(parse(args).is_err(), "{args:?}");
    }
}
