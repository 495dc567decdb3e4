//! Copies a model file into the store: check, copy while hashing, check the copy, rename.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_engine::format::Checkpoint;
use sha2::{Digest as _, Sha256};

use super::{BadModel, Manifest, ModelFacts, Store, StoreError, failed, manifest, name};
use crate::limits::MODELS_MAX;

const BUFFER_BYTES: usize = 1 << 20;

/// A partial file, removed when dropped unless it was kept.
struct Part {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Copies the file `source` into the store under `name` (`None`: made from the file's name).
    /// Blocks. `progress` hears of bytes done and in all, and stops the import by returning false.
    /// A file that is in the store already is named, not stored twice.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is kept then.
    pub fn import(
        &self,
        source: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Manifest, StoreError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => name::from_file_name(
                &source
                    .file_name()
                    .map(|s| s.to_string_lossy())
                    .unwrap_or_default(),
            ),
        };
        name::check(&name)?;
        let mut file = open_source(source)?;
        let total = file.metadata().map_err(StoreError::Unopenable)?.len();
        // A file that is no model is refused before anything is copied.
        let header = file.try_clone().map_err(StoreError::Unopenable)?;
        ModelFacts::read(&Checkpoint::from_gguf(header).map_err(BadModel::Format)?)?;
        file.rewind().map_err(StoreError::Unopenable)?;

        let blobs = self.blobs();
        check_space(&blobs, total)?;
        let mut part = create_part(&blobs)?;
        let sha256 = copy(&mut file, &mut part, total, progress)?;
        part.file.sync_all().map_err(failed("write", &part.path))?;
        // What counts is what was written: the source may have changed under our hands.
        let written = File::open(&part.path).map_err(failed("open", &part.path))?;
        let facts = ModelFacts::read(&Checkpoint::from_gguf(written).map_err(BadModel::Format)?)?;
        let imported_at_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let model = Manifest {
            name,
            sha256,
            file_bytes: total,
            imported_at_s,
            facts,
        };
        self.keep(part, model)
    }

    /// Gives a partial file its name, unless the store has the same bytes already.
    fn keep(&self, mut part: Part, model: Manifest) -> Result<Manifest, StoreError> {
        let _commit = self.commit();
        match self.get(&model.name) {
            Ok(present) if present.sha256 == model.sha256 && self.blob_path(&present).is_ok() => {
                return Ok(present);
            }
            Ok(present) if present.sha256 != model.sha256 => {
                return Err(StoreError::NameTaken { name: model.name });
            }
            _ => {}
        }
        if self.list()?.len() >= MODELS_MAX {
            return Err(StoreError::Full);
        }
        let blob = self.blob_of(&model.sha256);
        if self.blob_path(&model).is_err() {
            std::fs::rename(&part.path, &blob).map_err(failed("rename to", &blob))?;
            part.kept = true;
            let blobs = self.blobs();
            manifest::sync_folder(&blobs).map_err(failed("write", &blobs))?;
        }
        let manifests = self.manifests();
        manifest::write(&manifests, &model).map_err(failed("write a manifest in", &manifests))?;
        Ok(model)
    }
}

/// Opens what a caller named: any path of theirs, links too, but only a regular file.
fn open_source(path: &Path) -> Result<File, StoreError> {
    if !path.is_absolute() {
        return Err(StoreError::NotAbsolute);
    }
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        // A pipe without a writer must not hold us up.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    }
    let file = options.open(path).map_err(StoreError::Unopenable)?;
    let found = file.metadata().map_err(StoreError::Unopenable)?;
    if found.is_file() {
        Ok(file)
    } else {
        Err(StoreError::NotAFile)
    }
}

fn create_part(blobs: &Path) -> Result<Part, StoreError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = blobs.join(format!("import-{}-{number}.part", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path).map_err(failed("create", &path))?;
    let _ = file.try_lock();
    Ok(Part {
        file,
        path,
        kept: false,
    })
}

fn copy(
    source: &mut File,
    part: &mut Part,
    total: u64,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<String, StoreError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0_u64;
    loop {
        if !progress(done, total) {
            return Err(StoreError::Cancelled);
        }
        let n = source.read(&mut buffer).map_err(StoreError::Unopenable)?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > total {
            return Err(StoreError::Changed);
        }
        hash.update(&buffer[..n]);
        part.file
            .write_all(&buffer[..n])
            .map_err(failed("write", &part.path))?;
    }
    if done != total {
        return Err(StoreError::Changed);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(unix)]
fn check_space(folder: &Path, needed_bytes: u64) -> Result<(), StoreError> {
    let found = rustix::fs::statvfs(folder)
        .map_err(|errno| failed("measure the disk of", folder)(errno.into()))?;
    let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
    if free_bytes < needed_bytes {
        return Err(StoreError::NoSpace {
            needed_bytes,
            free_bytes,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_space(_folder: &Path, _needed_bytes: u64) -> Result<(), StoreError> {
    Ok(())
}
