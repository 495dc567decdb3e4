//! `hearth completions` and `hearth man`: pages made from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{Cli, ManArgs};
use crate::exit::Failure;
use crate::output::Output;

/// Prints the completion script of a shell.
///
/// # Errors
/// Those of writing.
pub(crate) fn completions(shell: Shell, output: Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut script);
    let script = String::from_utf8_lossy(&script);
    if output.json {
        let object = serde_json::json!({ "shell": shell.to_string(), "script": script });
        return Ok(output.object(&object)?);
    }
    Ok(output.text(&script)?)
}

/// Prints one manual page, or writes all of them into a folder.
///
/// # Errors
/// An unknown command; those of writing.
pub(crate) fn man(args: ManArgs, output: Output) -> Result<(), Failure> {
    let mut root = Cli::command();
    root.build();
    if let Some(dir) = &args.dir {
        return write_pages(&root, dir, output);
    }
    let command = match &args.command {
        None => root,
        Some(name) => root.find_subcommand(name).cloned().ok_or_else(|| {
            Failure::usage(format!("there is no command {name}"))
                .with_hint("`hearth help` lists them")
        })?,
    };
    let page = page(&command)?;
    if output.json {
        return Ok(output.object(&serde_json::json!({ "page": page }))?);
    }
    Ok(output.text(&page)?)
}

fn write_pages(root: &clap::Command, dir: &Path, output: Output) -> Result<(), Failure> {
    fs::create_dir_all(dir)?;
    let commands = root
        .get_subcommands()
        .filter(|command| command.get_name() != "help");
    for command in std::iter::once(root).chain(commands) {
        let path = dir.join(format!("{}.1", page_name(command)));
        fs::write(&path, page(command)?)?;
        if output.json {
            output.object(&serde_json::json!({ "path": path.display().to_string() }))?;
        } else {
            output.line(&path.display().to_string())?;
        }
    }
    Ok(())
}

/// `hearth` or `hearth-COMMAND`.
fn page_name(command: &clap::Command) -> String {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned()
}

fn page(command: &clap::Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    let name = page_name(command);
    clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
