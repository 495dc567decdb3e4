//! A checkpoint: the files of one model as one. Whatever the files are, it speaks the words of
//! GGUF: metadata keys such as `llama.block_count`, tensors such as `blk.0.attn_q.weight`.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use super::cursor::clip;
use super::files::ModelFiles;
use super::gguf::Header;
use super::metadata::{Metadata, StrArray};
use super::{FormatError, TensorInfo};
use crate::limits::GGUF_TENSORS_MAX;

/// How many files a GGUF model was split into.
const SPLIT_COUNT: &str = "split.count";

/// An open model whose headers were read and found sound. Its files stay open and are never opened
/// again, so what was checked is what is read later.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<File>,
    file_bytes: u64,
    format: &'static str,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens a model's files and reads their headers.
    ///
    /// # Errors
    /// A file cannot be read or is not sound, or they do not make one model.
    pub fn open(files: &ModelFiles) -> Result<Self, FormatError> {
        Self::from_files(files.open()?)
    }

    /// As [`Checkpoint::open`], of files that are open: their names as published, and they.
    ///
    /// # Errors
    /// As there.
    pub fn from_files(files: Vec<(String, File)>) -> Result<Self, FormatError> {
        if files.is_empty() {
            return Err(FormatError::NoModel);
        }
        Self::from_parts(files)
    }

    /// One GGUF file.
    ///
    /// # Errors
    /// It cannot be read or is not sound.
    pub fn from_gguf(file: File) -> Result<Self, FormatError> {
        let file_bytes = size_of(&file)?;
        let Header { metadata, tensors } = Header::read(&file, file_bytes)?;
        match metadata.int::<u64>(SPLIT_COUNT, "u64")? {
            Some(parts) if parts > 1 => Err(FormatError::PartsMissing { parts, given: 1 }),
            _ => Self::new(vec![file], file_bytes, "gguf", metadata, tensors),
        }
    }

    /// A GGUF file, or all parts of a split one, in whatever order. The first part's metadata are the
    /// model's.
    fn from_parts(parts: Vec<(String, File)>) -> Result<Self, FormatError> {
        let count = parts.len();
        let mut slots: Vec<Option<(File, Header)>> = (0..count).map(|_| None).collect();
        let mut file_bytes = 0_u64;
        for (name, file) in parts {
            let part = read_part(&file, count).map_err(|error| error.in_file(&name))?;
            file_bytes = file_bytes.saturating_add(part.0);
            match slots.get_mut(part.1) {
                Some(slot @ None) => *slot = Some((file, part.2)),
                _ => {
                    return Err(FormatError::Duplicate {
                        what: "part",
                        name: clip(&name),
                    });
                }
            }
        }
        let mut files = Vec::with_capacity(count);
        let mut metadata = None;
        let mut tensors = Vec::new();
        for (index, (file, header)) in slots.into_iter().flatten().enumerate() {
            files.push(file);
            metadata.get_or_insert(header.metadata);
            tensors.extend(header.tensors.into_iter().map(|tensor| TensorInfo {
                file: index,
                ..tensor
            }));
        }
        if u64::try_from(tensors.len()).unwrap_or(u64::MAX) > GGUF_TENSORS_MAX {
            return Err(FormatError::OverLimit {
                field: "tensors of all parts".to_owned(),
                value: u64::try_from(tensors.len()).unwrap_or(u64::MAX),
                limit: GGUF_TENSORS_MAX,
            });
        }
        let metadata = metadata.ok_or(FormatError::NoModel)?;
        Self::new(files, file_bytes, "gguf", metadata, tensors)
    }

    fn new(
        files: Vec<File>,
        file_bytes: u64,
        format: &'static str,
        metadata: Metadata,
        tensors: Vec<TensorInfo>,
    ) -> Result<Self, FormatError> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (index, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(FormatError::Duplicate {
                    what: "tensor",
                    name: clip(&tensor.name),
                });
            }
        }
        Ok(Self {
            files,
            file_bytes,
            format,
            metadata,
            tensors,
            by_name,
        })
    }

    /// A model without weights, by the contents of its json files.
    #[cfg(test)]
    pub(crate) fn of_hub(files: super::HubFiles) -> Result<Self, FormatError> {
        let found = super::hub::metadata(files)?;
        let metadata = Metadata::from_entries(found.entries)?;
        Self::new(Vec::new(), 0, "safetensors", metadata, Vec::new())
    }

    /// The files' format: `gguf` or `safetensors`.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Size of all files when they were opened.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The open files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// Reads bytes of a tensor from `offset` within it, as many as `buf` holds. May be called from
    /// several threads.
    ///
    /// # Errors
    /// The range is outside the tensor, or the file cannot be read (it may have shrunk since).
    pub fn read(
        &self,
        tensor: &TensorInfo,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), FormatError> {
        let end = u64::try_from(buf.len())
            .ok()
            .and_then(|length| offset.checked_add(length));
        let at = tensor.offset.checked_add(offset);
        match (end, at, self.files.get(tensor.file)) {
            (Some(end), Some(at), Some(file)) if end <= tensor.bytes => {
                read_exact_at(file, buf, at).map_err(|source| FormatError::Io {
                    what: format!("tensor {:?} at offset {at}", clip(&tensor.name)),
                    source,
                })
            }
            (end, ..) => Err(FormatError::OutsideTensor {
                name: clip(&tensor.name),
                offset,
                end: end.unwrap_or(u64::MAX),
                bytes: tensor.bytes,
            }),
        }
    }

    /// Metadata keys in the file's order.
    pub fn keys(&self) -> &[String] {
        self.metadata.keys()
    }

    /// A string; `None` without the key.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.metadata.str(key)
    }

    /// An integer of any width whose value fits; `None` without the key.
    ///
    /// # Errors
    /// The value is of another type or does not fit.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.metadata.int(key, "u32")
    }

    /// As [`Checkpoint::get_u32`], for values of 64 bits.
    ///
    /// # Errors
    /// As there.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.metadata.int(key, "u64")
    }

    /// A float (f64 is rounded); `None` without the key.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, FormatError> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding is what is asked for"
        )]
        let narrow = |wide: f64| wide as f32;
        Ok(self.metadata.float(key)?.map(narrow))
    }

    /// A bool; `None` without the key.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.metadata.bool(key)
    }

    /// An array of strings; `None` without the key.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn get_str_array(&self, key: &str) -> Result<Option<&StrArray>, FormatError> {
        self.metadata.str_array(key)
    }

    /// An array of i32; `None` without the key.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn get_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, FormatError> {
        self.metadata.i32_array(key)
    }

    /// As [`Checkpoint::get_i32_array`], of f32.
    ///
    /// # Errors
    /// As there.
    pub fn get_f32_array(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        self.metadata.f32_array(key)
    }

    /// Elements of an array of any type; `None` without the key or if it is no array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        self.metadata.array_len(key)
    }
}

/// A part's size, its number from 0, and its header. A file that is not split is part 0 of 1.
fn read_part(file: &File, given: usize) -> Result<(u64, usize, Header), FormatError> {
    let bytes = size_of(file)?;
    let header = Header::read(file, bytes)?;
    let parts = header.metadata.int::<u64>(SPLIT_COUNT, "u64")?.unwrap_or(0);
    if usize::try_from(parts.max(1)) != Ok(given) {
        return Err(FormatError::PartsMissing { parts, given });
    }
    let number = header
        .metadata
        .int::<u64>("split.no", "u64")?
        .and_then(|number| usize::try_from(number).ok())
        .unwrap_or(0);
    Ok((bytes, number, header))
}

/// The size of a regular file.
fn size_of(file: &File) -> Result<u64, FormatError> {
    let facts = file.metadata().map_err(|source| FormatError::Io {
        what: "the file's size".to_owned(),
        source,
    })?;
    if facts.is_file() {
        Ok(facts.len())
    } else {
        Err(FormatError::NotAFile)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = buf.get_mut(count..).unwrap_or_default();
                at += u64::try_from(count).unwrap_or(u64::MAX);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
