//! The folder `incoming/KEY` of the store in which a pull gathers files, until the daemon takes them
//! in. What lies there was perhaps put there by someone else: links are not followed, and a file counts
//! once its hash is right.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Plan;
use super::error::{HubError, failed};
use super::limits::SPACE_LEFT_MIN;
use super::published::{Fetched, Hashing, Published, hex};

/// The folder of one pull. As long as it lives nobody else uses the folder.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
    _lock: File,
}

impl Staging {
    /// Makes or finds the folder of a plan.
    ///
    /// # Errors
    /// It cannot be made, is no folder, or another process uses it.
    pub(super) fn open(models: &Path, endpoint: &str, plan: &Plan) -> Result<Self, HubError> {
        let mut key = Sha256::new();
        key.update(format!("{endpoint}\n{}\n{}\n", plan.repo, plan.commit));
        for file in &plan.files {
            key.update(format!("{}\n", file.name));
        }
        let incoming = models.join("incoming");
        let mut folder = incoming.clone();
        folder.push(&hex(&key.finalize())[..32]);
        for folder in [models, &incoming, &folder] {
            make_folder(folder)?;
        }
        let path = folder.join("lock");
        let lock = open(&path, OpenOptions::new().write(true).create(true))
            .map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                folder,
                _lock: lock,
            }),
            Err(std::fs::TryLockError::WouldBlock) => Err(HubError::Busy),
            Err(std::fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes it with all that is in it.
    pub(crate) fn remove(self) {
        for entry in std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_file(entry.path());
        }
        let _ = std::fs::remove_dir(&self.folder);
    }

    /// Whether a file is there whole, as it seems.
    pub(super) fn has(&self, file: &Published) -> bool {
        self.size_of(&self.place(file)) == Some(file.bytes)
    }

    /// Checks that the disk has room for what is missing of these files.
    pub(super) fn check_space<'a>(
        &self,
        files: impl Iterator<Item = &'a Published>,
    ) -> Result<(), HubError> {
        let missing = |file: &Published| {
            let there = self.size_of(&self.part(file)).unwrap_or(0);
            file.bytes.saturating_sub(there)
        };
        let missing = files.map(missing).fold(0_u64, u64::saturating_add);
        let needed_bytes = missing.saturating_add(SPACE_LEFT_MIN);
        let free_bytes = free_bytes(&self.folder)?;
        if missing > 0 && free_bytes < needed_bytes {
            return Err(HubError::NoSpace {
                needed_bytes,
                free_bytes,
            });
        }
        Ok(())
    }

    /// Takes a file that is there from before, or links or copies it from `cached`. `None`: it has to
    /// be fetched. A file that is not right is removed here, never in the cache.
    pub(super) fn take(
        &self,
        file: &Published,
        cached: Option<&Path>,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<Option<Fetched>, HubError> {
        let place = self.place(file);
        for from in [None, cached] {
            if let Some(from) = from {
                // A link where both are on one file system: neither time nor space. The hub's own
                // tools never write into a file of the cache.
                let there = std::fs::hard_link(from, &place)
                    .or_else(|_| std::fs::copy(from, &place).map(|_| ()));
                if there.is_err() {
                    let _ = std::fs::remove_file(&place);
                    continue;
                }
            }
            if place.symlink_metadata().is_err() {
                continue;
            }
            let mut hashing = Hashing::new(file.bytes);
            let read = open(&place, OpenOptions::new().read(true))
                .and_then(|mut reader| hashing.read(&mut reader, file, on_bytes));
            match read.map(|()| hashing.check(file)) {
                Ok(Ok(fetched)) => return Ok(Some(fetched)),
                _ => std::fs::remove_file(&place).map_err(failed("remove", &place))?,
            }
        }
        Ok(None)
    }

    /// Where a file is put together.
    pub(super) fn part(&self, file: &Published) -> PathBuf {
        // A name like `config.json` is one of few, and has no separator: see `names`.
        self.folder.join(format!("{}.part", file.name))
    }

    /// Opens the partial file of a file, to read what is there and to add to it.
    pub(super) fn open_part(&self, file: &Published) -> Result<File, HubError> {
        let path = self.part(file);
        let opened = open(
            &path,
            OpenOptions::new().read(true).append(true).create(true),
        );
        let opened = opened.map_err(failed("open", &path))?;
        if has_other_names(&opened).map_err(failed("look at", &path))? {
            let error = io::Error::other("it has a second name elsewhere");
            return Err(failed("write", &path)(error));
        }
        Ok(opened)
    }

    /// The ETag of what is in the partial file, if one was kept.
    pub(super) fn etag(&self, file: &Published) -> Option<String> {
        let mut text = String::new();
        let kept = open(&self.etag_path(file), OpenOptions::new().read(true)).ok()?;
        kept.take(1024).read_to_string(&mut text).ok()?;
        text.bytes()
            .all(|byte| byte.is_ascii_graphic())
            .then_some(text)
    }

    /// Keeps the ETag of what is in the partial file. Without it a later try asks for the rest all the
    /// same, and the hash decides.
    pub(super) fn keep_etag(&self, file: &Published, etag: Option<&str>) {
        let path = self.etag_path(file);
        let _ = std::fs::remove_file(&path);
        if let Some(etag) = etag
            && let Ok(mut kept) = open(&path, OpenOptions::new().write(true).create_new(true))
        {
            let _ = kept.write_all(etag.as_bytes());
        }
    }

    /// Gives a partial file its name.
    pub(super) fn finish(&self, file: &Published) -> Result<(), HubError> {
        let place = self.place(file);
        std::fs::rename(self.part(file), &place).map_err(failed("rename to", &place))?;
        let _ = std::fs::remove_file(self.etag_path(file));
        Ok(())
    }

    /// Removes a partial file.
    pub(super) fn forget(&self, file: &Published) {
        let _ = std::fs::remove_file(self.part(file));
        let _ = std::fs::remove_file(self.etag_path(file));
    }

    fn place(&self, file: &Published) -> PathBuf {
        self.folder.join(&file.name)
    }

    fn etag_path(&self, file: &Published) -> PathBuf {
        self.folder.join(format!("{}.etag", file.name))
    }

    fn size_of(&self, path: &Path) -> Option<u64> {
        let found = path.symlink_metadata().ok()?;
        found.is_file().then_some(found.len())
    }
}

/// Makes a folder for the owner alone, or finds it: a link could lead anywhere and is none.
fn make_folder(folder: &Path) -> Result<(), HubError> {
    #[cfg_attr(
        not(unix),
        expect(unused_mut, reason = "a mode is set where there are such")
    )]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("make the folder", folder))?,
    }
    let found = folder
        .symlink_metadata()
        .map_err(failed("look at", folder))?;
    if found.is_dir() {
        return Ok(());
    }
    let error = io::Error::from(io::ErrorKind::NotADirectory);
    Err(failed("use the folder", folder)(error))
}

/// Opens a regular file; links are not followed, and a pipe does not hold us up.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let flags = i32::try_from(flags).unwrap_or(0);
        std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags);
        std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

#[cfg(unix)]
fn has_other_names(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(file.metadata()?.nlink() > 1)
}

#[cfg(not(unix))]
fn has_other_names(_file: &File) -> io::Result<bool> {
    Ok(false)
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Result<u64, HubError> {
    let found = rustix::fs::statvfs(folder)
        .map_err(|errno| failed("measure the disk of", folder)(errno.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Result<u64, HubError> {
    Ok(u64::MAX)
}
