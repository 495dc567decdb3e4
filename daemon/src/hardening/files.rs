//! Where the daemon may write: its own folders, devices, and the caches of GPU drivers. By Landlock,
//! which says nothing of reading: a model may be imported from anywhere.

use std::error::Error;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, path_beneath_rules,
};

use crate::config::Config;

/// The version whose kinds of writing are known here. Older kernels know fewer, which will do.
const FILES: ABI = ABI::V3;

/// Confines this thread and all that it starts.
pub(super) fn confine(config: &Config) -> Result<String, Box<dyn Error>> {
    let own = own_folders(config);
    for folder in &own {
        make_private(folder)?;
    }
    let status = confine_to(&[own, drivers_folders()].concat(), &system_files())?;
    match status {
        RulesetStatus::NotEnforced => Err("the kernel has no Landlock".into()),
        RulesetStatus::PartiallyEnforced => {
            Ok("writing confined to own folders (in part, by an older Landlock)".to_owned())
        }
        RulesetStatus::FullyEnforced => Ok("writing confined to own folders".to_owned()),
    }
}

/// Lets this thread, and all that it starts, write nothing.
pub(super) fn confine_wholly() -> Result<RulesetStatus, Box<dyn Error>> {
    confine_to(&[], &[])
}

/// Lets everything be done in `folders` and below, what is there be written in `files` and below,
/// and nothing be written elsewhere.
fn confine_to(folders: &[PathBuf], files: &[PathBuf]) -> Result<RulesetStatus, Box<dyn Error>> {
    let writing = AccessFs::from_write(FILES);
    let existing = AccessFs::WriteFile | AccessFs::Truncate;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?
        .add_rules(path_beneath_rules(folders, writing))?
        .add_rules(path_beneath_rules(files, existing))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// The folders that are the daemon's, or that the configuration gives it.
fn own_folders(config: &Config) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let folders = [
        parent(&config.socket),
        Some(config.models_dir.clone()),
        config.engine.cache_dir.clone(),
        config.state_dir.clone(),
        config.metrics.file.as_deref().and_then(parent),
        config.metrics.socket.as_deref().and_then(parent),
    ];
    folders.into_iter().flatten().collect()
}

/// Where GPU drivers keep compiled shaders and temporary files, and where devices lie.
fn drivers_folders() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME");
    let beneath_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let folders = [
        Some(PathBuf::from("/dev")),
        Some(std::env::temp_dir()),
        variable("XDG_CACHE_HOME").or_else(|| beneath_home(".cache")),
        beneath_home(".nv"),
        variable("MESA_SHADER_CACHE_DIR"),
        variable("__GL_SHADER_DISK_CACHE_PATH"),
    ];
    folders.into_iter().flatten().collect()
}

/// Where the kernel takes requests as files: pressure triggers, names of threads.
fn system_files() -> Vec<PathBuf> {
    vec![PathBuf::from("/proc"), PathBuf::from("/sys")]
}

/// Makes a folder, for the owner alone, if it is missing.
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if folder.is_dir() {
        return Ok(());
    }
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    // Something else in the way is found, and told better, by whoever needs the folder.
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Result};

    use super::*;

    #[test]
    fn only_what_is_named_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (own, file) = (dir.path().join("own"), dir.path().join("file"));
        fs::create_dir(&own).unwrap();
        for path in [&file, &dir.path().join("foreign")] {
            fs::write(path, "precious").unwrap();
        }
        let root = dir.path().to_owned();
        let thread = std::thread::spawn(move || {
            let status = confine_to(
                &[own.clone(), root.join("missing")],
                std::slice::from_ref(&file),
            );
            if status.unwrap() == RulesetStatus::NotEnforced {
                return; // This kernel has no Landlock: nothing can be seen of it.
            }
            fs::create_dir(own.join("sub")).unwrap();
            fs::write(own.join("sub/a"), "a").unwrap();
            fs::rename(own.join("sub/a"), own.join("b")).unwrap();
            fs::remove_file(own.join("b")).unwrap();
            fs::write(&file, "new").unwrap();
            // Everything may be read.
            assert_eq!(fs::read(root.join("foreign")).unwrap(), b"precious");
            let refused = |result: Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            };
            refused(fs::write(root.join("foreign"), "mine"));
            refused(fs::write(root.join("new"), "mine"));
            refused(fs::remove_file(root.join("foreign")));
            refused(fs::remove_file(&file));
            refused(fs::create_dir(root.join("folder")));
        });
        thread.join().unwrap();
        assert_eq!(fs::read(dir.path().join("foreign")).unwrap(), b"precious");
    }
}
