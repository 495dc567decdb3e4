//! A forward reader over a file's header that checks every length before it allocates or reads.
//! Knows budgets and little-endian numbers; does not know what the fields mean.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::FormatError;
use crate::limits::{GGUF_HEADER_BYTES_MAX, GGUF_STRING_BYTES_MAX};

/// Longest piece of a name from a file that an error message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 80;

/// The header of one file, read from its start.
pub(super) struct Cursor<'a> {
    input: BufReader<&'a File>,
    at: u64,
    file_bytes: u64,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of a file of `file_bytes` bytes.
    pub(super) fn new(file: &'a File, file_bytes: u64) -> Result<Self, FormatError> {
        let mut input = BufReader::with_capacity(256 << 10, file);
        input
            .seek(SeekFrom::Start(0))
            .map_err(|source| FormatError::Io {
                what: "the file's start".to_owned(),
                source,
            })?;
        Ok(Self {
            input,
            at: 0,
            file_bytes,
        })
    }

    /// Bytes from the file's start.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Checks that `needed` bytes are left in the file and in the header's budget.
    pub(super) fn check_left(
        &self,
        needed: u64,
        field: &dyn Fn() -> String,
    ) -> Result<(), FormatError> {
        let left = self.file_bytes.saturating_sub(self.at);
        if needed > left {
            return Err(FormatError::Truncated {
                field: field(),
                needed,
                at: self.at,
                left,
            });
        }
        if self.at + needed > GGUF_HEADER_BYTES_MAX {
            return Err(FormatError::OverLimit {
                field: format!("header size, at {}", field()),
                value: self.at + needed,
                limit: GGUF_HEADER_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// Appends `length` bytes to `out`.
    pub(super) fn bytes(
        &mut self,
        length: u64,
        out: &mut Vec<u8>,
        field: &dyn Fn() -> String,
    ) -> Result<(), FormatError> {
        self.check_left(length, field)?;
        let before = out.len();
        // Within the header budget, so it fits a usize; saturation would fail the read below.
        out.resize(
            before.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)),
            0,
        );
        self.fill(out.get_mut(before..).unwrap_or_default(), field)
    }

    fn fill(&mut self, out: &mut [u8], field: &dyn Fn() -> String) -> Result<(), FormatError> {
        let length = u64::try_from(out.len()).unwrap_or(u64::MAX);
        self.check_left(length, field)?;
        self.input
            .read_exact(out)
            .map_err(|source| FormatError::Io {
                what: field(),
                source,
            })?;
        self.at += length;
        Ok(())
    }

    fn array<const N: usize>(
        &mut self,
        field: &dyn Fn() -> String,
    ) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }

    /// The four bytes of the magic.
    pub(super) fn magic(&mut self) -> Result<[u8; 4], FormatError> {
        self.array(&|| "magic".to_owned())
    }

    /// An unsigned 32-bit number.
    pub(super) fn u32(&mut self, field: &dyn Fn() -> String) -> Result<u32, FormatError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// An unsigned 64-bit number.
    pub(super) fn u64(&mut self, field: &dyn Fn() -> String) -> Result<u64, FormatError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Appends a string (64-bit length, UTF-8) to `out`.
    pub(super) fn string_into(
        &mut self,
        out: &mut String,
        field: &dyn Fn() -> String,
    ) -> Result<(), FormatError> {
        let length_field = || format!("length of {}", field());
        let length = self.u64(&length_field)?;
        if length > GGUF_STRING_BYTES_MAX {
            return Err(FormatError::OverLimit {
                field: length_field(),
                value: length,
                limit: GGUF_STRING_BYTES_MAX,
            });
        }
        self.check_left(length, field)?;
        let mut short = [0_u8; 64];
        let long;
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        // Vocabularies are tens of thousands of short strings: no allocation for each.
        let bytes = if let Some(bytes) = short.get_mut(..wanted) {
            self.fill(bytes, field)?;
            &*bytes
        } else {
            let mut buffer = Vec::new();
            self.bytes(length, &mut buffer, field)?;
            long = buffer;
            long.as_slice()
        };
        let text = std::str::from_utf8(bytes).map_err(|error| FormatError::NotUtf8 {
            field: field(),
            at: error.valid_up_to(),
        })?;
        out.push_str(text);
        Ok(())
    }

    /// A string (64-bit length, UTF-8).
    pub(super) fn string(&mut self, field: &dyn Fn() -> String) -> Result<String, FormatError> {
        let mut out = String::new();
        self.string_into(&mut out, field)?;
        Ok(out)
    }
}

/// A name from a file, cut to a length fit for an error message.
pub(super) fn clip(name: &str) -> String {
    match name.char_indices().nth(QUOTED_CHARS_MAX) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}...", name.get(..end).unwrap_or_default()),
    }
}
