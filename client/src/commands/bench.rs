//! `hearth bench`: hands everything to `hearthd bench`, which owns an engine to measure.

use std::ffi::OsString;
use std::io;
use std::process::Command;

use crate::cli::{BenchArgs, Global};
use crate::exit::Failure;
#[cfg(not(unix))]
use crate::exit::Kind;

/// Runs `hearthd bench` in the place of this process, or as a child where that cannot be done.
///
/// # Errors
/// The program is missing or cannot be run; or, as a child, it failed.
pub(crate) fn bench(args: BenchArgs, global: &Global) -> Result<(), Failure> {
    let program = hearth::daemon_program().ok_or(hearth::Error::ProgramNotFound)?;
    let mut command = Command::new(&program);
    command.arg("bench").args(args.args);
    if global.json {
        command.arg(OsString::from("--json"));
    }
    let error = replace(&mut command)?;
    Err(Failure::from(hearth::Error::Spawn {
        program,
        source: error,
    }))
}

/// Returns only if the program could not be run.
#[cfg(unix)]
fn replace(command: &mut Command) -> Result<io::Error, Failure> {
    Ok(std::os::unix::process::CommandExt::exec(command))
}

#[cfg(not(unix))]
fn replace(command: &mut Command) -> Result<io::Error, Failure> {
    match command.status() {
        Ok(status) if status.success() => std::process::exit(0),
        Ok(status) => Err(Failure::new(
            Kind::Runtime,
            format!("hearthd bench failed ({status})"),
        )),
        Err(error) => Ok(error),
    }
}
