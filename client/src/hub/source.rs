//! What a person writes to name a model of a hub: `REPO[@REVISION][:FILE]`, or a name of the catalogue.

use super::catalogue;
use super::error::HubError;
use super::names::{is_repo, is_revision};

/// Where a model is to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The repository, `ORG/NAME`.
    pub(crate) repo: String,
    /// The branch, tag or commit.
    pub(crate) revision: String,
    /// The file, or a part of its name that says which.
    pub(crate) file: Option<String>,
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
            name: None,
        })
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
        assert_eq!(store_name("SmolLM2-Q4_K_M.gguf"), "smollm2-q4_k_m");
        assert_eq!(store_name("A B-00001-of-00003.gguf"), "a-b");
        assert_eq!(store_name("--"), "model");
    }
}
