//! What a person chose for power, kept in a small file so that it survives the daemon.

use std::fs;
use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::signals::PowerMode;

const FILE: &str = "power-mode";
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 64;

impl PowerMode {
    /// Its word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::Saver => "saver",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        let all = [Self::Auto, Self::Full, Self::Saver];
        all.into_iter().find(|mode| mode.word() == word)
    }
}

/// The file in the folder for state.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// What was chosen last. Without a choice, or with one that cannot be read: as the machine tells.
pub(super) fn read(path: &Path) -> PowerMode {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        io::Read::read_to_string(
            &mut io::Read::take(fs::File::open(path)?, BYTES_MAX),
            &mut text,
        )?;
        Ok(text)
    };
    let problem = match read() {
        Ok(text) => match PowerMode::of_word(text.trim()) {
            Some(mode) => return mode,
            None => "it says none of auto, full and saver".to_owned(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return PowerMode::Auto,
        Err(error) => error.to_string(),
    };
    tracing::warn!(path = %path.display(), problem, "the choice of power cannot be read");
    PowerMode::Auto
}

/// Keeps a choice: whole, or not at all.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, mode: PowerMode) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir)?;
    }
    if mode == PowerMode::Auto {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let part = path.with_extension("part");
    let written = fs::File::create(&part)
        .and_then(|mut file| writeln!(file, "{}", mode.word()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir.path().join("a/b"));
        assert_eq!(read(&path), PowerMode::Auto);
        for mode in [
            PowerMode::Full,
            PowerMode::Saver,
            PowerMode::Auto,
            PowerMode::Auto,
        ] {
            write(&path, mode).unwrap();
            assert_eq!(read(&path), mode);
        }
        assert!(!path.exists(), "no choice, no file");
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn what_is_no_choice_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        for text in ["", "fast\n", "\u{0}\u{ff}", &"full".repeat(1000)] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path), PowerMode::Auto, "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(read(&path), PowerMode::Auto);
        assert!(write(&path, PowerMode::Full).is_err());
        assert!(!dir.path().join("power-mode.part").exists());
    }
}
