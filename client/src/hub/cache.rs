//! The local cache of the hub's own tools: `models--ORG--NAME/{refs,snapshots,blobs}`. It is read, and
//! never changed.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::limits::FILES_MAX;
use super::listing::Listing;
use super::names::{is_commit, is_model_file};
use super::published::{Hash, Published};
use super::settings::Settings;
use super::source::Source;

/// The folder of a repository in the cache. The name of the repository has been checked.
fn folder(settings: &Settings, repo: &str) -> Option<PathBuf> {
    let cache = settings.cache.as_ref()?;
    Some(cache.join(format!("models--{}", repo.replace('/', "--"))))
}

/// Where the cache has a file of this hash and size, if it does. Its bytes are not checked.
pub(super) fn blob(settings: &Settings, repo: &str, file: &Published) -> Option<PathBuf> {
    let hash = file.hash.as_ref()?;
    let path = folder(settings, repo)?.join("blobs").join(hash.digits());
    let found = path.symlink_metadata().ok()?;
    (found.is_file() && found.len() == file.bytes).then_some(path)
}

/// What the cache has of a repository at a revision.
///
/// # Errors
/// It has nothing of it.
pub(super) fn listing(settings: &Settings, source: &Source) -> Result<Listing, HubError> {
    let missing = || HubError::Offline {
        what: format!("{}@{}", source.repo, source.revision),
    };
    let folder = folder(settings, &source.repo).ok_or_else(missing)?;
    let commit = if is_commit(&source.revision) {
        source.revision.clone()
    } else {
        // The revision has been checked: it has no `..` and no root.
        small_text(&folder.join("refs").join(&source.revision)).ok_or_else(missing)?
    };
    if !is_commit(&commit) {
        return Err(missing());
    }
    let snapshot = folder.join("snapshots").join(&commit);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&snapshot)
        .map_err(|_| missing())?
        .flatten()
    {
        let file = entry.file_name().to_str().map(str::to_owned);
        let Some(name) = file.filter(|name| is_model_file(name)) else {
            continue;
        };
        if let Some(file) = linked(&entry.path(), name) {
            files.push(file);
        }
        if files.len() > FILES_MAX {
            return Err(HubError::Answer("the cache has too many files".to_owned()));
        }
    }
    Ok(Listing {
        commit,
        license: None,
        files,
    })
}

/// A file of a snapshot: a link to a blob that is named by its hash.
fn linked(path: &Path, name: String) -> Option<Published> {
    let target = path.read_link().ok()?;
    let hash = Hash::parse(target.file_name()?.to_str()?)?;
    let found = path.metadata().ok()?;
    found.is_file().then_some(Published {
        name,
        bytes: found.len(),
        hash: Some(hash),
    })
}

fn small_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}
