//! Models on disk: `blobs/sha256-HEX` holds each file once, `manifests/NAME.json` names it.
//!
//! It knows nothing of the GPU and nothing of gRPC. Several daemons may share one store: files
//! appear by rename, and a partial file is locked by whoever writes it.

mod import;
mod manifest;
pub(crate) mod name;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_engine::format::{Checkpoint, FormatError};
use hearth_engine::model::ModelError;

pub use manifest::{Manifest, ModelFacts};
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
    /// The file cannot be opened for import.
    #[error("the file cannot be opened")]
    Unopenable(#[source] io::Error),
    /// The file is not a sound model.
    #[error("not a model that can be used")]
    BadModel(#[from] BadModel),
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
    /// imports left behind.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            commit: Mutex::new(()),
        };
        for folder in [store.blobs(), store.manifests()] {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder
                .create(&folder)
                .map_err(failed("make the folder", &folder))?;
            remove_leftovers(&folder);
        }
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

    /// Where a model's file lies: a regular file in the store, checked to be there.
    ///
    /// # Errors
    /// It is missing, or not a regular file.
    pub fn blob_path(&self, model: &Manifest) -> Result<PathBuf, StoreError> {
        let path = self.blob_of(&model.sha256);
        let found = path.symlink_metadata().map_err(failed("look at", &path))?;
        if found.is_file() {
            Ok(path)
        } else {
            Err(StoreError::NotAFile)
        }
    }

    /// Reads a stored model's header again.
    ///
    /// # Errors
    /// It is missing or not sound.
    pub fn open_model(&self, model: &Manifest) -> Result<Checkpoint, StoreError> {
        let path = self.blob_path(model)?;
        let file = open_inside(&path).map_err(failed("open", &path))?;
        Ok(Checkpoint::from_gguf(file).map_err(BadModel::Format)?)
    }

    /// Removes a name, and its file if no other name holds it. Returns the bytes given back.
    ///
    /// # Errors
    /// There is no such model, or the disk fails.
    pub fn delete(&self, name: &str) -> Result<u64, StoreError> {
        let _commit = self.commit();
        let model = self.get(name)?;
        let path = manifest::path_of(&self.manifests(), name);
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        if self
            .list()?
            .iter()
            .any(|other| other.sha256 == model.sha256)
        {
            return Ok(0);
        }
        let blob = self.blob_of(&model.sha256);
        match std::fs::remove_file(&blob) {
            Ok(()) => Ok(model.file_bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed("remove", &blob)(error)),
        }
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    fn blob_of(&self, sha256: &str) -> PathBuf {
        self.blobs().join(format!("sha256-{sha256}"))
    }

    fn commit(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
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
