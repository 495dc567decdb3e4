//! Takes what a pull has gathered in the store's own folder `incoming/KEY` into the store: open once,
//! hash, compare, check, rename. Nothing is copied.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use hearth_engine::format::is_model_file;
use hearth_engine::limits::MODEL_FILES_MAX;

use super::import::{Ready, check_together, hash_of, now_s};
use super::manifest::is_sha256;
use super::{Manifest, Store, StoreError, StoredFile, name, open_inside};

/// The file in a pull's folder that its process holds a lock on.
const LOCK: &str = "lock";

/// Where a model was fetched from, and what was published there.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `hub:REPO@COMMIT`.
    pub source: String,
    /// The licence as the hub tells it.
    pub license: Option<String>,
    /// The files that make up the model. No other file is taken in.
    pub files: Vec<StoredFile>,
}

impl Store {
    /// The folder of a pull, if `path` is below the folder of arrivals.
    ///
    /// # Errors
    /// It lies there and is none.
    pub(super) fn pull_at(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let incoming = self.incoming();
        let Ok(below) = path.strip_prefix(&incoming) else {
            return Ok(None);
        };
        let mut parts = below.components();
        let (Some(Component::Normal(key)), None) = (parts.next(), parts.next()) else {
            return Err(StoreError::NotAPull);
        };
        let Some(key) = key.to_str().filter(|key| is_key(key)) else {
            return Err(StoreError::NotAPull);
        };
        let folder = incoming.join(key);
        // A link could lead anywhere.
        let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
        if !is_folder(&incoming) || !is_folder(&folder) {
            return Err(StoreError::NotAPull);
        }
        Ok(Some(folder))
    }

    /// Takes the files of a pull in. They stay where they are if anything is wrong but their bytes.
    pub(super) fn take_in(
        &self,
        folder: &Path,
        name: &str,
        origin: &Origin,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Manifest, StoreError> {
        name::check(name)?;
        let mut wanted = origin.files.clone();
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        let sound = |file: &StoredFile| is_model_file(&file.name) && is_sha256(&file.sha256);
        if wanted.is_empty()
            || wanted.len() > MODEL_FILES_MAX
            || !wanted.iter().all(sound)
            || !wanted.is_sorted_by(|a, b| a.name < b.name)
        {
            return Err(StoreError::NotAPull);
        }
        let mut opened = Vec::with_capacity(wanted.len());
        for file in &wanted {
            // The name is one of few and has no separator: see `is_plain`.
            let path = folder.join(&file.name);
            let handle = match is_plain(&file.name) {
                true => open_inside(&path).map_err(StoreError::Unopenable)?,
                false => return Err(StoreError::NotAPull),
            };
            opened.push((file, path, handle));
        }
        let total = wanted
            .iter()
            .fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        let mut done = 0;
        for (file, path, handle) in &mut opened {
            let found = hash_of(handle, &mut done, total, progress)?;
            if found != (file.sha256.clone(), file.bytes) {
                // It will never be right: the next pull fetches it again.
                let _ = std::fs::remove_file(path);
                return Err(StoreError::NotAsPublished {
                    file: file.name.clone(),
                });
            }
        }
        let handles: Vec<(&str, &File)> = opened
            .iter()
            .map(|(file, _, handle)| (file.name.as_str(), handle))
            .collect();
        let mut facts = check_together(&handles)?;
        facts.license = facts.license.or_else(|| origin.license.clone());
        let model = Manifest {
            name: name.to_owned(),
            files: wanted.clone(),
            imported_at_s: now_s(),
            source: Some(origin.source.clone()),
            facts,
        };
        let ready = opened
            .into_iter()
            .map(|(file, path, handle)| Ready {
                sha256: file.sha256.clone(),
                path,
                handle,
            })
            .collect();
        let model = self.keep(ready, model)?;
        remove_files(folder);
        Ok(model)
    }
}

/// Whether a text names the folder of a pull: 32 lower-case hexadecimal digits.
pub(super) fn is_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a name is that of a file right in a folder.
pub(super) fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let normal = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    normal && !name.contains(['/', '\\', '\0'])
}

/// Removes a pull's folder unless its process still lives. False if it is still there.
pub(super) fn remove_pull(folder: &Path) -> bool {
    let lock = open_inside(&folder.join(LOCK));
    if let Ok(file) = &lock
        && file.try_lock().is_err()
    {
        return false;
    }
    remove_files(folder);
    !folder.exists()
}

/// Removes the files right in a folder, then the folder; what is in folders below stays.
fn remove_files(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let _ = std::fs::remove_dir(folder);
}
