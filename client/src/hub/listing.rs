//! What a repository holds at a revision, as the hub describes it. Names that no file of a model can
//! have are left out.

use serde::Deserialize;
use serde_json::Value;

use super::error::HubError;
use super::http::{Answer, Http};
use super::limits::{LISTING_BYTES_MAX, SIBLINGS_MAX};
use super::names::{in_url, is_commit, is_model_file, shown};
use super::published::{Hash, Published};
use super::source::Source;

/// What is needed of a repository.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) license: Option<String>,
    pub(super) files: Vec<Published>,
}

/// What is needed of the hub's description.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    card_data: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub.
    ///
    /// # Errors
    /// It does not answer, refuses, or answers what is not sound.
    pub(super) fn fetch(http: &Http, source: &Source) -> Result<Self, HubError> {
        let path = format!(
            "/api/models/{}/revision/{}?blobs=true",
            source.repo,
            in_url(&source.revision)
        );
        let what = format!("{}@{}", source.repo, source.revision);
        let answer = http.get(&path, &[], &what)?;
        let bytes = http.read(answer, LISTING_BYTES_MAX)?;
        let told: Description = serde_json::from_slice(&bytes)
            .map_err(|error| HubError::Answer(shown(&error.to_string())))?;
        if !is_commit(&told.sha) {
            return Err(HubError::Answer("its commit is none".to_owned()));
        }
        if is_commit(&source.revision) && told.sha != source.revision {
            return Err(HubError::Answer("it is of another commit".to_owned()));
        }
        if told.siblings.len() > SIBLINGS_MAX {
            return Err(HubError::Answer("it lists too many files".to_owned()));
        }
        let license = license(&told.card_data, &told.tags);
        let mut files = Vec::new();
        for sibling in told.siblings {
            if is_model_file(&sibling.rfilename) {
                files.push(published(sibling)?);
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(HubError::Answer(format!(
                "it lists {} twice",
                twice[0].name
            )));
        }
        Ok(Self {
            commit: told.sha,
            license,
            files,
        })
    }
}

/// A listed file. Its hash is that of large file storage, if it is kept there.
fn published(sibling: Sibling) -> Result<Published, HubError> {
    let size = sibling.size;
    let (hash, lfs_size) = match sibling.lfs {
        Some(lfs) => (lfs.sha256, lfs.size),
        None => (sibling.blob_id, None),
    };
    if let (Some(one), Some(other)) = (size, lfs_size)
        && one != other
    {
        let why = format!("it gives two sizes of {}", sibling.rfilename);
        return Err(HubError::Answer(why));
    }
    let hash = match hash {
        Some(text) => Some(Hash::parse(&text).ok_or_else(|| {
            HubError::Answer(format!("the hash of {} is none", sibling.rfilename))
        })?),
        None => None,
    };
    Ok(Published {
        name: sibling.rfilename,
        bytes: size.or(lfs_size).unwrap_or(0),
        // Without a size nothing is known.
        hash: hash.filter(|_| size.or(lfs_size).is_some()),
    })
}

/// The licence that the model's card names.
fn license(card: &Value, tags: &[String]) -> Option<String> {
    let of = |key: &str| match card.get(key) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(several)) => {
            let texts: Vec<&str> = several.iter().filter_map(Value::as_str).collect();
            Some(texts.join(", "))
        }
        _ => None,
    };
    let named = of("license").or_else(|| {
        let tag = tags.iter().find_map(|tag| tag.strip_prefix("license:"));
        tag.map(str::to_owned)
    });
    let named = match named.as_deref() {
        Some("other") => of("license_name").or(named),
        _ => named,
    };
    named
        .map(|text| shown(&text))
        .filter(|text| !text.is_empty())
}

/// Asks the hub for the hash and size of a file that the listing did not tell them of.
///
/// # Errors
/// It does not answer, or not what they are.
pub(super) fn ask_for_hash(
    http: &Http,
    repo: &str,
    commit: &str,
    file: &mut Published,
) -> Result<(), HubError> {
    let path = format!("/{repo}/resolve/{commit}/{}", in_url(&file.name));
    let answer = http.head(&path, &file.name)?;
    let unknown = || HubError::Answer(format!("it does not tell the hash of {}", file.name));
    let (hash, size) = facts(&answer)?;
    file.hash = Some(hash.ok_or_else(unknown)?);
    let length = answer.headers.get("content-length");
    let length = length.and_then(|text| text.to_str().ok()?.parse().ok());
    file.bytes = size.or(length).ok_or_else(unknown)?;
    Ok(())
}

/// The hash and size of a file that the hub itself named in an answer, where it did.
fn facts(answer: &Answer) -> Result<(Option<Hash>, Option<u64>), HubError> {
    let text = |name: &str| answer.of_hub.get(name).and_then(|text| text.to_str().ok());
    let hash = match text("x-linked-etag") {
        Some(linked) => {
            let unsound = || HubError::Answer("its linked ETag is no hash".to_owned());
            Some(Hash::parse(linked).ok_or_else(unsound)?)
        }
        None => text("etag").and_then(Hash::parse),
    };
    let size = match text("x-linked-size") {
        Some(size) => {
            let unsound = |_| HubError::Answer("its linked size is no number".to_owned());
            Some(size.parse().map_err(unsound)?)
        }
        None => None,
    };
    Ok((hash, size))
}

/// Checks that an answer with a file is about the commit and the file that were asked for.
///
/// # Errors
/// It says otherwise.
pub(super) fn check(answer: &Answer, commit: &str, file: &Published) -> Result<(), HubError> {
    let text = |name: &str| answer.of_hub.get(name).and_then(|text| text.to_str().ok());
    if text("x-repo-commit").is_some_and(|told| told != commit) {
        return Err(HubError::Answer("it is of another commit".to_owned()));
    }
    let (hash, size) = facts(answer)?;
    let damaged = |why: &str| HubError::Damaged {
        file: file.name.clone(),
        why: why.to_owned(),
    };
    match (hash, &file.hash) {
        (Some(Hash::Sha256(told)), Some(Hash::Sha256(wanted))) if told != *wanted => {
            Err(damaged("the hub now tells another hash"))
        }
        (Some(Hash::Git(told)), Some(Hash::Git(wanted))) if told != *wanted => {
            Err(damaged("the hub now tells another hash"))
        }
        _ if size.is_some_and(|size| size != file.bytes) => {
            Err(damaged("the hub now tells another size"))
        }
        _ => Ok(()),
    }
}
