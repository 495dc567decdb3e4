//! Copies a model's files into the store: check, copy while hashing, check the copy, rename.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_engine::format::{Checkpoint, FormatError, ModelFiles, split_names};
use sha2::{Digest as _, Sha256};

use super::{
    BadModel, Manifest, ModelFacts, Origin, Store, StoreError, StoredFile, failed, intake,
    manifest, name,
};
use crate::limits::MODELS_MAX;

const BUFFER_BYTES: usize = 1 << 20;

/// A partial file, removed when dropped unless it was kept.
pub(super) struct Part {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Once kept it has another name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file that is hashed and checked, and where it lies until it gets its name.
pub(super) struct Ready {
    pub(super) sha256: String,
    pub(super) path: PathBuf,
    pub(super) handle: File,
}

impl Store {
    /// Copies a model into the store under `name` (`None`: made from the path): the GGUF file at
    /// `source`, with the other parts beside it if it is split, or the files of a model in a folder.
    /// The folder of a finished pull, below the store's own `incoming`, is taken in by rename, and
    /// must be what `origin` says. Blocks. `progress` hears of bytes done and in all, and stops the
    /// import by returning false. A file that is in the store already is named, not stored twice.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is kept then.
    pub fn import(
        &self,
        source: &Path,
        name: Option<&str>,
        origin: Option<&Origin>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Manifest, StoreError> {
        if !source.is_absolute() {
            return Err(StoreError::NotAbsolute);
        }
        match (self.pull_at(source)?, origin) {
            (Some(folder), Some(origin)) => {
                return self.take_in(&folder, name.unwrap_or_default(), origin, progress);
            }
            (None, None) => {}
            _ => return Err(StoreError::NotAPull),
        }
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
        let mut sources = open_sources(source)?;
        let total = sources
            .iter()
            .fold(0_u64, |sum, (file, _)| sum.saturating_add(file.bytes));
        // What is no model is refused before anything is copied.
        let handles: Vec<(&str, &File)> = sources
            .iter()
            .map(|(file, handle)| (file.name.as_str(), handle))
            .collect();
        check_together(&handles)?;

        let blobs = self.blobs();
        check_space(&blobs, total)?;
        let mut parts = Vec::with_capacity(sources.len());
        let mut done = 0;
        for (file, handle) in &mut sources {
            let mut part = create_part(&blobs)?;
            let length = file.bytes;
            file.sha256 = copy(handle, &mut part, length, &mut |bytes| {
                done += bytes;
                progress(done, total)
            })?;
            part.file.sync_all().map_err(failed("write", &part.path))?;
            parts.push(part);
        }
        // What counts is what was written: the sources may have changed under our hands.
        let handles: Vec<(&str, &File)> = sources
            .iter()
            .zip(&parts)
            .map(|((file, _), part)| (file.name.as_str(), &part.file))
            .collect();
        let facts = check_together(&handles)?;
        let model = Manifest {
            name,
            files: sources.into_iter().map(|(file, _)| file).collect(),
            imported_at_s: now_s(),
            source: None,
            facts,
        };
        self.keep(ready(&model, &parts)?, model)
    }

    /// Gives files their names, unless the store has the same bytes already, and the model its own.
    pub(super) fn keep(&self, ready: Vec<Ready>, model: Manifest) -> Result<Manifest, StoreError> {
        let _commit = self.commit()?;
        match self.get(&model.name) {
            Ok(present) if present.files == model.files && self.files(&present).is_ok() => {
                return Ok(present);
            }
            Ok(present) if present.sha256() != model.sha256() => {
                return Err(StoreError::NameTaken { name: model.name });
            }
            _ => {}
        }
        if self.list()?.len() >= MODELS_MAX {
            return Err(StoreError::Full);
        }
        for file in ready {
            let blob = self.blob_of(&file.sha256);
            if blob.symlink_metadata().is_ok_and(|found| found.is_file()) {
                continue;
            }
            std::fs::rename(&file.path, &blob).map_err(failed("rename to", &blob))?;
            if !is_same(&file.handle, &blob) {
                let _ = std::fs::remove_file(&blob);
                return Err(StoreError::Changed);
            }
        }
        let blobs = self.blobs();
        manifest::sync_folder(&blobs).map_err(failed("write", &blobs))?;
        let manifests = self.manifests();
        manifest::write(&manifests, &model).map_err(failed("write a manifest in", &manifests))?;
        Ok(model)
    }
}

/// A model's partial files, ready for their names.
fn ready(model: &Manifest, parts: &[Part]) -> Result<Vec<Ready>, StoreError> {
    let files = model.files.iter().zip(parts);
    files
        .map(|(file, part)| {
            Ok(Ready {
                sha256: file.sha256.clone(),
                path: part.path.clone(),
                handle: part.file.try_clone().map_err(failed("open", &part.path))?,
            })
        })
        .collect()
}

/// Reads the headers of a model's open files and what they say together.
pub(super) fn check_together(files: &[(&str, &File)]) -> Result<ModelFacts, StoreError> {
    let mut opened = Vec::with_capacity(files.len());
    for (name, file) in files {
        let mut file = file.try_clone().map_err(StoreError::Unopenable)?;
        file.rewind().map_err(StoreError::Unopenable)?;
        opened.push(((*name).to_owned(), file));
    }
    // A lone file is a GGUF file, whatever its name.
    let lone = opened.len() == 1 && !opened[0].0.ends_with(".safetensors");
    let checkpoint = match (lone, opened.pop()) {
        (true, Some((_, file))) => Checkpoint::from_gguf(file),
        (_, last) => Checkpoint::from_files(opened.into_iter().chain(last).collect()),
    };
    Ok(ModelFacts::read(&checkpoint.map_err(BadModel::Format)?)?)
}

/// The time, in seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Whether the file at `path` is the open one.
#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same(_file: &File, _path: &Path) -> bool {
    true
}

/// Opens the files of the model at a path, in the order of their names.
pub(super) fn open_sources(source: &Path) -> Result<Vec<(StoredFile, File)>, StoreError> {
    let files = ModelFiles::at(source).map_err(|error| match error {
        FormatError::Io { source, .. } => StoreError::Unopenable(source),
        error => StoreError::BadModel(BadModel::Format(error)),
    })?;
    let mut opened = Vec::new();
    for (name, path) in files.iter() {
        let file = open_source(path)?;
        let found = file.metadata().map_err(StoreError::Unopenable)?;
        // A lone GGUF file may have any name; in the store it has one that says what it is.
        let name = match name.ends_with(".gguf") || intake::is_plain(name) && source.is_dir() {
            true => name.to_owned(),
            false => format!("{}.gguf", name::from_file_name(name)),
        };
        let stored = StoredFile {
            name,
            sha256: String::new(),
            bytes: found.len(),
        };
        opened.push((stored, file));
    }
    opened.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let gguf = opened
        .iter()
        .filter(|(file, _)| file.name.ends_with(".gguf"))
        .count();
    let parts = opened.first().and_then(|(file, _)| split_names(&file.name));
    if gguf > 1 && parts.is_none_or(|parts| parts.len() != gguf) {
        return Err(StoreError::Several { files: gguf });
    }
    Ok(opened)
}

/// Opens what a caller named: any path of theirs, links too, but only a regular file.
fn open_source(path: &Path) -> Result<File, StoreError> {
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

pub(super) fn create_part(blobs: &Path) -> Result<Part, StoreError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = blobs.join(format!("import-{}-{number}.part", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path).map_err(failed("create", &path))?;
    let _ = file.try_lock();
    Ok(Part { file, path })
}

/// Copies `length` bytes and no more; returns their hash.
fn copy(
    source: &mut File,
    part: &mut Part,
    length: u64,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<String, StoreError> {
    source.rewind().map_err(StoreError::Unopenable)?;
    let Part { file, path } = part;
    let mut written = 0_u64;
    let hash = read_all(source, &mut |piece| {
        written += piece.len() as u64;
        if written > length {
            return Err(StoreError::Changed);
        }
        if !progress(piece.len() as u64) {
            return Err(StoreError::Cancelled);
        }
        file.write_all(piece).map_err(failed("write", path))
    })?;
    if written == length {
        Ok(hash)
    } else {
        Err(StoreError::Changed)
    }
}

/// The hash and size of an open file.
pub(super) fn hash_of(
    file: &mut File,
    done: &mut u64,
    total: u64,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(String, u64), StoreError> {
    file.rewind().map_err(StoreError::Unopenable)?;
    let mut bytes = 0_u64;
    let hash = read_all(file, &mut |piece| {
        bytes += piece.len() as u64;
        *done += piece.len() as u64;
        if progress(*done, total) {
            Ok(())
        } else {
            Err(StoreError::Cancelled)
        }
    })?;
    Ok((hash, bytes))
}

fn read_all(
    file: &mut File,
    on_piece: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<String, StoreError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // An empty piece too: a caller that has gone is noticed before the first byte.
        let n = file.read(&mut buffer).map_err(StoreError::Unopenable)?;
        on_piece(&buffer[..n])?;
        if n == 0 {
            return Ok(manifest::hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

#[cfg(unix)]
pub(super) fn check_space(folder: &Path, needed_bytes: u64) -> Result<(), StoreError> {
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
pub(super) fn check_space(_folder: &Path, _needed_bytes: u64) -> Result<(), StoreError> {
    Ok(())
}
