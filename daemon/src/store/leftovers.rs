//! Removes what nobody will come back for: partial files of killed imports, blobs that no manifest
//! names, pulls that were begun long ago. It runs when a store is opened.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use super::{Store, StoreError, intake, manifest, open_inside};
use crate::limits::{MODELS_MAX, PULL_KEPT_MAX};

impl Store {
    pub(super) fn remove_leftovers(&self) {
        for folder in [self.blobs(), self.manifests()] {
            remove_parts(&folder);
        }
        if let Err(error) = self.remove_unnamed() {
            tracing::warn!(%error, "blobs without a name were not looked for");
        }
        remove_old_pulls(&self.incoming());
    }

    /// Removes blobs that no manifest names: an import was killed between the two. Nothing is removed
    /// while one manifest cannot be read, which may name them.
    fn remove_unnamed(&self) -> Result<(), StoreError> {
        let _commit = self.commit()?;
        let Ok(entries) = std::fs::read_dir(self.manifests()) else {
            return Ok(());
        };
        let mut named = HashSet::new();
        for entry in entries.flatten().take(2 * MODELS_MAX) {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let Ok(model) = manifest::read(&path) else {
                return Ok(());
            };
            named.extend(
                model
                    .files
                    .into_iter()
                    .map(|file| self.blob_of(&file.sha256)),
            );
        }
        let Ok(entries) = std::fs::read_dir(self.blobs()) else {
            return Ok(());
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let blob = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix("sha256-"))
                .is_some_and(manifest::is_sha256);
            if blob && !named.contains(&path) && std::fs::remove_file(&path).is_ok() {
                tracing::info!(path = %path.display(), "removed a blob that no model names");
            }
        }
        Ok(())
    }
}

fn remove_parts(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|end| end != "part") {
            continue;
        }
        // Another daemon may be writing it: then it is locked.
        let unused = open_inside(&path).is_ok_and(|file| file.try_lock().is_ok());
        if unused && std::fs::remove_file(&path).is_ok() {
            tracing::info!(path = %path.display(), "removed what a killed import left behind");
        }
    }
}

/// Removes the folders of pulls that nobody has gone on with for [`PULL_KEPT_MAX`].
fn remove_old_pulls(incoming: &Path) {
    let Ok(entries) = std::fs::read_dir(incoming) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(intake::is_key);
        if ours && is_old(&path) && intake::remove_pull(&path) {
            tracing::info!(path = %path.display(), "removed a pull that was begun long ago");
        }
    }
}

/// Whether nothing in the folder, or the folder itself, has changed for [`PULL_KEPT_MAX`].
fn is_old(folder: &Path) -> bool {
    let Ok(found) = folder.symlink_metadata() else {
        return false;
    };
    if !found.is_dir() {
        return false;
    }
    let inside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let newest = inside
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .chain(found.modified().ok())
        .max();
    newest
        .and_then(|changed| SystemTime::now().duration_since(changed).ok())
        .is_some_and(|age| age > PULL_KEPT_MAX)
}
