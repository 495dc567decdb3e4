//! What a person writes to name a model of a hub: `REPO[@REVISION][:FILE]`, or a name of the catalogue.

use super::catalogue;
use super::error::HubError;
use super::names::{is_repo, is_revision};
use super::published::{Hash, Published};

/// Where a model is to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The repository, `ORG/NAME`.
    pub(crate) repo: String,
    /// The branch, tag or commit.
    pub(crate) revision: String,
    /// The file, or a part of its name that says which.
    pub(crate) file: Option<String>,
    /// The SHA-256 that this file has to have, if it is of the catalogue.
    pub(crate) sha256: Option<String>,
    /// The name in the catalogue, if it is from there.
    pub(crate) name: Option<String>,
}

impl Source {
    /// Understands what was written.
    ///
    /// # Errors
    /// It is neither of the two.
    pub(crate) fn parse(text: &str) -> Result<Self, HubError> {
        if !text.contains('/') {
            return catalogue::find(text)?.ok_or_else(|| {
                HubError::Source(format!(
                    "`{}` is not in the catalogue; there are: {}. Of any other model give the \
                     repository, ORG/NAME",
                    super::names::shown(text),
                    catalogue::names().unwrap_or_default().join(", ")
                ))
            });
        }
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file.to_owned())),
            None => (text, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        if !is_repo(repo) || !is_revision(revision) || file.as_deref() == Some("") {
            return Err(HubError::Source(format!(
                "`{}` is not ORG/NAME[@REVISION][:FILE]",
                super::names::shown(text)
            )));
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file,
            sha256: None,
            name: None,
        })
    }

    /// Holds a file that is published to what the catalogue says of its bytes.
    ///
    /// # Errors
    /// The hub offers others.
    pub(super) fn hold(&self, file: &mut Published) -> Result<(), HubError> {
        let (Some(sha256), true) = (&self.sha256, self.file.as_ref() == Some(&file.name)) else {
            return Ok(());
        };
        if let Some(Hash::Sha256(other)) = &file.hash
            && other != sha256
        {
            return Err(HubError::Answer(format!(
                "{} is not the one that the catalogue knows: its SHA-256 is {other}, and there {sha256}",
                file.name
            )));
        }
        file.hash = Some(Hash::Sha256(sha256.clone()));
        Ok(())
    }
}

/// A name for the store, made from what the model is called elsewhere: lower-case letters, digits and
/// `._-`, at most 100, beginning with a letter or digit.
pub(crate) fn store_name(published: &str) -> String {
    let stem = published.strip_suffix(".gguf").unwrap_or(published);
    let stem = match stem.split_once("-00001-of-") {
        Some((stem, _)) => stem,
        None => stem,
    };
    let name: String = stem
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' | '.' | '_' | '-' => letter,
            _ => '-',
        })
        .skip_while(|letter| matches!(letter, '.' | '_' | '-'))
        .take(100)
        .collect();
    match name.as_str() {
        "" => "model".to_owned(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_understood() {
        let source = Source::parse("Org/Name-1B@refs/pr/2:Q4_K_M").unwrap();
        assert_eq!(
            (
                source.repo.as_str(),
                source.revision.as_str(),
                source.file.as_deref()
            ),
            ("Org/Name-1B", "refs/pr/2", Some("Q4_K_M"))
        );
        assert_eq!(Source::parse("a/b").unwrap().revision, "main");
        for bad in [
            "", "unknown", "a/b/c", "a/b@", "a/b:", "../b", "a/b@../x", "a/b c", "\u{1b}",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_of_the_catalogue_stands_for_one_content() {
        let source = Source::parse("tinyllama-1.1b-chat").unwrap();
        let file = |name: &str, hash| Published {
            name: name.to_owned(),
            bytes: 1,
            hash,
        };
        let name = source.file.clone().unwrap();
        let right = Some(Hash::Sha256(source.sha256.clone().unwrap()));
        let (sha256, git) = (
            Hash::Sha256("0".repeat(64)),
            Some(Hash::Git("0".repeat(40))),
        );
        // Whatever else the hub tells, what is fetched has to have this hash.
        for told in [None, git, right.clone()] {
            let mut told = file(&name, told);
            source.hold(&mut told).unwrap();
            assert_eq!(told.hash, right);
        }
        let refused = source.hold(&mut file(&name, Some(sha256.clone())));
        assert!(refused.unwrap_err().to_string().contains(&"0".repeat(64)));
        let mut other = file("config.json", Some(sha256.clone()));
        source.hold(&mut other).unwrap();
        assert_eq!(other.hash, Some(sha256));
    }

    #[test]
    fn names_for_the_store_are_made() {
        assert_eq!(store_name("SmolLM2-Q4_K_M.gguf"), "smollm2-q4_k_m");
        assert_eq!(store_name("A B-00001-of-00003.gguf"), "a-b");
        assert_eq!(store_name("--"), "model");
    }
}
