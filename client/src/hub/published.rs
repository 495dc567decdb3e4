//! A file as a hub publishes it, and the check that what was fetched is it.

use std::io::Read;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::error::HubError;
use super::names::{is_commit, is_sha256};

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 18;

/// A file that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// Its name.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// Its hash; `None`: the listing did not tell.
    pub(crate) hash: Option<Hash>,
}

/// How a hub names the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hash {
    /// SHA-256 of the bytes: files of large file storage.
    Sha256(String),
    /// The hash of a git blob: SHA-1 of `blob LENGTH`, a zero byte, and the bytes.
    Git(String),
}

impl Hash {
    /// The hash that a text, such as an ETag, is: 64 or 40 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        match () {
            () if is_sha256(text) => Some(Self::Sha256(text.to_owned())),
            () if is_commit(text) => Some(Self::Git(text.to_owned())),
            () => None,
        }
    }

    /// Its digits.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }
}

/// A file that was fetched and found to be what was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Its name.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// Its SHA-256.
    pub(crate) sha256: String,
}

/// The hashes of bytes as they come.
#[derive(Debug, Clone)]
pub(super) struct Hashing {
    sha256: Sha256,
    git: Sha1,
    bytes: u64,
}

impl Hashing {
    /// Of a file that will have so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let mut git = Sha1::new();
        git.update(format!("blob {bytes}\0"));
        Self {
            sha256: Sha256::new(),
            git,
            bytes: 0,
        }
    }

    pub(super) fn update(&mut self, piece: &[u8], file: &Published) {
        self.sha256.update(piece);
        if matches!(file.hash, Some(Hash::Git(_))) {
            self.git.update(piece);
        }
        self.bytes += piece.len() as u64;
    }

    /// Takes in all that is left of a reader, but not more than the file may have.
    pub(super) fn read(
        &mut self,
        reader: &mut dyn Read,
        file: &Published,
        on_bytes: &mut dyn FnMut(u64),
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 || self.bytes > file.bytes {
                return Ok(());
            }
            self.update(&buffer[..n], file);
            on_bytes(self.bytes.min(file.bytes));
        }
    }

    /// Checks that they are those of the file.
    pub(super) fn check(self, file: &Published) -> Result<Fetched, HubError> {
        let damaged = |why: String| HubError::Damaged {
            file: file.name.clone(),
            why,
        };
        if self.bytes != file.bytes {
            let why = format!("it has {} bytes, not {}", self.bytes, file.bytes);
            return Err(damaged(why));
        }
        let sha256 = hex(&self.sha256.finalize());
        let (found, wanted) = match &file.hash {
            Some(Hash::Sha256(wanted)) => (sha256.clone(), wanted),
            Some(Hash::Git(wanted)) => (hex(&self.git.finalize()), wanted),
            None => return Err(damaged("its hash is not known".to_owned())),
        };
        if found != *wanted {
            return Err(damaged(format!("its hash is {found}, not {wanted}")));
        }
        Ok(Fetched {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256,
        })
    }
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_blob_is_hashed_as_git_does() {
        let mut file = Published {
            name: "a".to_owned(),
            bytes: 6,
            // As `printf 'hello\n' | git hash-object --stdin` prints.
            hash: Hash::parse("\"ce013625030ba8dba906f756967f9e9ca394464a\""),
        };
        let hashed = |file: &Published, bytes: &[u8]| {
            let mut hashing = Hashing::new(file.bytes);
            hashing.update(bytes, file);
            hashing.check(file)
        };
        let fetched = hashed(&file, b"hello\n").unwrap();
        assert!(fetched.sha256.starts_with("5891b5b5"), "{fetched:?}");
        assert!(hashed(&file, b"hellO\n").is_err());
        assert!(hashed(&file, b"hello").is_err());
        file.hash = Hash::parse(&fetched.sha256);
        assert!(hashed(&file, b"hello\n").is_ok());
        assert_eq!(Hash::parse("../../x"), None);
        assert_eq!(Hash::parse(&"A".repeat(40)), None);
    }
}
