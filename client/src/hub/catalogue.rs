//! Names of well-known models and where they are published: `data/catalogue.json`, which is part of
//! the program.

use serde::Deserialize;

use super::error::HubError;
use super::source::Source;

const CATALOGUE: &str = include_str!("../../data/catalogue.json");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    #[serde(rename = "about")]
    _about: String,
    models: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    repo: String,
    revision: String,
    file: String,
    sha256: String,
    // Shown by the hub's own word before a pull; here for those who read the catalogue.
    #[serde(rename = "license")]
    _license: String,
}

fn read() -> Result<Catalogue, HubError> {
    serde_json::from_str(CATALOGUE)
        .map_err(|error| HubError::Source(format!("a bug: the catalogue is broken: {error}")))
}

/// The names, in their order.
pub(super) fn names() -> Result<Vec<String>, HubError> {
    Ok(read()?.models.into_iter().map(|entry| entry.name).collect())
}

/// What a name stands for.
pub(super) fn find(name: &str) -> Result<Option<Source>, HubError> {
    let entry = read()?.models.into_iter().find(|entry| entry.name == name);
    Ok(entry.map(|entry| Source {
        repo: entry.repo,
        revision: entry.revision,
        file: Some(entry.file),
        sha256: Some(entry.sha256),
        name: Some(entry.name),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::names::{is_commit, is_model_file, is_repo, is_sha256};
    use super::super::source::store_name;
    use super::*;

    #[test]
    fn the_catalogue_is_sound() {
        let names = names().unwrap();
        assert!(names.len() >= 8);
        for name in &names {
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1);
            assert_eq!(store_name(name), *name);
            let source = find(name).unwrap().unwrap();
            assert!(
                is_repo(&source.repo) && is_commit(&source.revision),
                "{name}"
            );
            assert!(is_model_file(&source.file.unwrap()), "{name}");
            assert!(is_sha256(&source.sha256.unwrap()), "{name}");
        }
        assert_eq!(find("no such").unwrap(), None);
    }
}
