//! Models on disk: `blobs/sha256-HEX` holds each file once, `manifests/NAME.json` names the files of
//! a model, `incoming/KEY` is where a pull gathers files before it asks for them to be taken in.
//!
//! It knows nothing of the GPU and nothing of gRPC. Several daemons may share one store: files
//! appear by rename, a partial file is locked by whoever writes it, and names are given and taken
//! under one lock.

mod fewer_bits;
mod import;
mod intake;
mod leftovers;
mod manifest;
pub(crate) mod name;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_engine::QuantizeError;
use hearth_engine::format::{Checkpoint, FormatError, ModelFiles};
use hearth_engine::model::ModelError;

pub use intake::Origin;
pub use manifest::{Manifest, ModelFacts, StoredFile};
pub use name::NameError;

use crate::limits::MODELS_MAX;

/// The store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is not sound.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No model has this name.
    #[error("there is no model `{name}`")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name belongs to another file.
    #[error("the name `{name}` belongs to another model")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The path is relative.
    #[error("the path is not absolute")]
    NotAbsolute,
    /// The path is a folder, a device or the like.
    #[error("the path is not a regular file")]
    NotAFile,
    /// A folder with more models than one.
    #[error("the folder holds {files} GGUF files; name one of them")]
    Several {
        /// How many.
        files: usize,
    },
    /// A path below the store's own folder of arrivals that is not the folder of a pull.
    #[error("the path is not a finished pull")]
    NotAPull,
    /// A file that was fetched is not what was published.
    #[error("{file} is not the file that was to be fetched")]
    NotAsPublished {
        /// Its name.
        file: String,
    },
    /// The file cannot be opened for import.
    #[error("the file cannot be opened")]
    Unopenable(#[source] io::Error),
    /// The file is not a sound model.
    #[error("not a model that can be used")]
    BadModel(#[from] BadModel),
    /// The model cannot be turned into fewer bits.
    #[error("the model cannot be quantised")]
    Quantize(#[source] QuantizeError),
    /// The file changed while it was copied.
    #[error("the file changed while it was copied")]
    Changed,
    /// The disk is too small.
    #[error("the store needs {needed_bytes} bytes, its disk has {free_bytes} left")]
    NoSpace {
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// Too many models.
    #[error("the store holds {MODELS_MAX} models, which is the most")]
    Full,
    /// The caller went away.
    #[error("the import was cancelled")]
    Cancelled,
    /// The disk failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a file is not a model that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BadModel {
    /// The file is not sound.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The engine does not run it.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A folder of models.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    // Held while names are looked up and written, so that two imports cannot both take one.
    commit: Mutex<()>,
}

impl Store {
    /// Opens a store, makes its folders if they are missing (mode 0700), and removes what killed
    /// imports and forgotten pulls left behind.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            commit: Mutex::new(()),
        };
        for folder in [store.blobs(), store.manifests(), store.incoming()] {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder
                .create(&folder)
                .map_err(failed("make the folder", &folder))?;
        }
        store.remove_leftovers();
        Ok(store)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All models, by name. Manifests that are not sound are left out, with a line in the log.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Manifest>, StoreError> {
        let folder = self.manifests();
        let entries = std::fs::read_dir(&folder).map_err(failed("read", &folder))?;
        let mut models = Vec::new();
        for entry in entries.flatten().take(2 * MODELS_MAX) {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            match manifest::read(&path) {
                Ok(model) => models.push(model),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a manifest is not sound");
                }
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// One model.
    ///
    /// # Errors
    /// The name is not sound, or there is none, or its manifest is not sound.
    pub fn get(&self, name: &str) -> Result<Manifest, StoreError> {
        name::check(name)?;
        let path = manifest::path_of(&self.manifests(), name);
        match manifest::read(&path) {
            Ok(model) => Ok(model),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NotFound {
                name: name.to_owned(),
            }),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// A model's files: their names and where each lies, every one checked to be a regular file.
    ///
    /// # Errors
    /// One is missing, or not a regular file.
    pub fn files(&self, model: &Manifest) -> Result<ModelFiles, StoreError> {
        let place = |file: &StoredFile| {
            let path = self.blob_of(&file.sha256);
            let found = path.symlink_metadata().map_err(failed("look at", &path))?;
            if found.is_file() {
                Ok((file.name.clone(), path))
            } else {
                Err(StoreError::NotAFile)
            }
        };
        let files: Result<Vec<_>, StoreError> = model.files.iter().map(place).collect();
        Ok(ModelFiles::new(files?))
    }

    /// Reads a stored model's headers again.
    ///
    /// # Errors
    /// A file is missing or not sound.
    pub fn open_model(&self, model: &Manifest) -> Result<Checkpoint, StoreError> {
        let mut files = Vec::with_capacity(model.files.len());
        for (name, path) in self.files(model)?.iter() {
            let file = open_inside(path).map_err(failed("open", path))?;
            files.push((name.to_owned(), file));
        }
        Ok(Checkpoint::from_files(files).map_err(BadModel::Format)?)
    }

    /// Removes a name, and those of its files that no other name holds. Returns the bytes given back.
    ///
    /// # Errors
    /// There is no such model, or the disk fails.
    pub fn delete(&self, name: &str) -> Result<u64, StoreError> {
        let _commit = self.commit()?;
        let model = self.get(name)?;
        let path = manifest::path_of(&self.manifests(), name);
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        let others = self.list()?;
        let held: HashSet<&str> = others
            .iter()
            .flat_map(|other| &other.files)
            .map(|file| file.sha256.as_str())
            .collect();
        let mut freed = 0;
        for file in &model.files {
            if held.contains(file.sha256.as_str()) {
                continue;
            }
            let blob = self.blob_of(&file.sha256);
            match std::fs::remove_file(&blob) {
                Ok(()) => freed += file.bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &blob)(error)),
            }
        }
        Ok(freed)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Where pulls gather files.
    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn blob_of(&self, sha256: &str) -> PathBuf {
        self.blobs().join(format!("sha256-{sha256}"))
    }

    /// Keeps everyone else, in other daemons too, from giving and taking names.
    fn commit(&self) -> Result<Commit<'_>, StoreError> {
        let inner = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(failed("open", &path))?;
        file.lock().map_err(failed("lock", &path))?;
        Ok(Commit {
            _file: file,
            _inner: inner,
        })
    }
}

/// The right to give and take names, as long as it lives.
struct Commit<'a> {
    _file: File,
    _inner: MutexGuard<'a, ()>,
}

fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Opens a regular file of the store; symbolic links could lead out of it and are not followed.
fn open_inside(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
        let flags = i32::try_from(flags).unwrap_or(0);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    }
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}
