//! The command `hearth`: reads the command line, runs the command, and turns its failure into words
//! on stderr and an exit code. It knows no command from the inside.

mod advice;
mod cli;
mod commands;
mod duration;
mod exit;
mod hub;
mod json;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::exit::{Failure, Kind};
use crate::output::{Output, complain};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return answer_parse_error(&error),
    };
    let output = Output::new(cli.global.json);
    match run(cli, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                complain(&failure.render());
            } else if failure.kind == Kind::Interrupted {
                // The terminal wrote `^C` in the middle of a line.
                output.note("");
            }
            if output.json && !matches!(failure.kind, Kind::PipeClosed | Kind::Command(_)) {
                // The reader may be gone; the exit code says the same.
                let _ = output.object(&json::failure(&failure));
            }
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

/// Prints help and versions to stdout as successes, all else as a usage failure.
fn answer_parse_error(error: &clap::Error) -> ExitCode {
    // Only a reader that went away can make this fail.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(Kind::Usage.exit_code()),
    }
}

fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // The chat stops replies, not itself, at Ctrl-C; an app socket has its own answers to it.
    let owns_interrupt = matches!(cli.command, Command::Chat(_) | Command::AppSocket(_));
    let result = runtime.block_on(async {
        let command = commands::run(cli, output);
        if owns_interrupt {
            return command.await;
        }
        tokio::select! {
            result = command => result,
            // Dropping the command drops its stream, which stops the generation.
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        }
    });
    // A read from a terminal or a pipe cannot be called off: do not wait for it.
    runtime.shutdown_background();
    result
}
