//! Which files make up a model, and finding them on disk. Knows names, not contents.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::FormatError;
use crate::limits::MODEL_FILES_MAX;

/// The files that a model of safetensors may have beside its weights.
pub const SIDE_FILES: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "quantize_config.json",
    "quant_config.json",
    "model.safetensors.index.json",
];

/// The files of one model: their names as published, and where each lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    files: Vec<(String, PathBuf)>,
}

impl ModelFiles {
    /// Files whose names and places are known.
    pub fn new(files: Vec<(String, PathBuf)>) -> Self {
        Self { files }
    }

    /// The model at a path: a GGUF file, with the other parts beside it if it is one of a split
    /// model, or a folder with GGUF or safetensors files.
    ///
    /// # Errors
    /// The path cannot be looked at, or there is no model.
    pub fn at(path: &Path) -> Result<Self, FormatError> {
        let failed = |source| FormatError::Io {
            what: path.display().to_string(),
            source,
        };
        let found = path.metadata().map_err(failed)?;
        if !found.is_dir() {
            return Ok(Self::of_file(path));
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_model_file(name)) {
                names.push(name.to_owned());
            }
            if names.len() > MODEL_FILES_MAX {
                return Err(FormatError::OverLimit {
                    field: "model files in the folder".to_owned(),
                    value: u64::try_from(names.len()).unwrap_or(u64::MAX),
                    limit: u64::try_from(MODEL_FILES_MAX).unwrap_or(u64::MAX),
                });
            }
        }
        // It says nothing that tokenizer.json does not.
        if names.iter().any(|name| name == "tokenizer.json") {
            names.retain(|name| name != "tokenizer.model");
        }
        names.sort();
        let has = |end: &str| names.iter().any(|name| name.ends_with(end));
        let keep = match (has(".safetensors"), has(".gguf")) {
            (true, _) => |name: &String| !name.ends_with(".gguf"),
            (false, true) => |name: &String| name.ends_with(".gguf"),
            (false, false) => return Err(FormatError::NoModel),
        };
        names.retain(keep);
        let place = |name: String| {
            let place = path.join(&name);
            (name, place)
        };
        Ok(Self::new(names.into_iter().map(place).collect()))
    }

    fn of_file(path: &Path) -> Self {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let Some(parts) = split_names(&name) else {
            return Self::new(vec![(name, path.to_owned())]);
        };
        let place = |part: String| {
            let place = path.with_file_name(&part);
            (part, place)
        };
        Self::new(parts.into_iter().map(place).collect())
    }

    /// Names and places.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files
            .iter()
            .map(|(name, place)| (name.as_str(), place.as_path()))
    }

    /// Opens all of them.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open(&self) -> Result<Vec<(String, File)>, FormatError> {
        self.iter()
            .map(|(name, place)| match open(place) {
                Ok(file) => Ok((name.to_owned(), file)),
                Err(source) => Err(FormatError::Io {
                    what: place.display().to_string(),
                    source,
                }),
            })
            .collect()
    }
}

/// Tells whether a file of this name can be part of a model: weights or known files beside them.
/// A name that leads elsewhere cannot.
pub fn is_model_file(name: &str) -> bool {
    if name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return false;
    }
    SIDE_FILES.contains(&name)
        || [".safetensors", ".gguf"]
            .iter()
            .any(|end| name.len() > end.len() && name.ends_with(end))
}

/// The names of all parts, if `name` is that of one: `BASE-00002-of-00003.gguf`.
pub fn split_names(name: &str) -> Option<Vec<String>> {
    let (rest, end) = name.rsplit_once('.')?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse::<usize>().ok())?;
    let (number, count) = (five(number)?, five(count)?);
    if !(1..=count).contains(&number) || count > MODEL_FILES_MAX {
        return None;
    }
    let part = |number: usize| format!("{base}-{number:05}-of-{count:05}.{end}");
    Some((1..=count).map(part).collect())
}

/// Opens a regular file; a pipe without a writer would hold us up.
fn open(path: &Path) -> io::Result<File> {
    if path.metadata()?.is_file() {
        File::open(path)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_model_files() {
        for name in ["config.json", "a.gguf", "model-00001-of-00002.safetensors"] {
            assert!(is_model_file(name), "{name}");
        }
        for name in [
            "../a.gguf",
            "a/b.gguf",
            "a\\b.gguf",
            ".gguf",
            ".a.gguf",
            "a.bin",
            "a\0.gguf",
        ] {
            assert!(!is_model_file(name), "{name:?}");
        }
    }

    #[test]
    fn parts_are_named_from_one() {
        let parts = split_names("m-00002-of-00003.gguf").unwrap();
        assert_eq!(parts[0], "m-00001-of-00003.gguf");
        assert_eq!(parts.len(), 3);
        for whole in [
            "m.gguf",
            "m-1-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00000.gguf",
        ] {
            assert_eq!(split_names(whole), None, "{whole}");
        }
    }
}
