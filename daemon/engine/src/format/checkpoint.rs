//! A checkpoint: the files of one model as one. Whatever the files are, it speaks the words of
//! GGUF: metadata keys such as `llama.block_count`, tensors such as `blk.0.attn_q.weight`.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use super::cursor::clip;
use super::files::ModelFiles;
use super::gguf::Header;
use super::metadata::{Metadata, StrArray};
use super::tensor::Place;
use super::{FormatError, RowOrder, Stored, TensorInfo, TensorType, folder, gguf_writer};
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
    quantization: Option<String>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// What a format's reader finds in the files.
pub(super) struct Parts {
    pub(super) files: Vec<File>,
    pub(super) file_bytes: u64,
    pub(super) format: &'static str,
    pub(super) quantization: Option<String>,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
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
        let safetensors = |(name, _): &(String, File)| name.ends_with(".safetensors");
        if files.iter().any(safetensors) {
            return Self::new(folder::read(files)?);
        }
        Self::from_parts(files)
    }

    /// One GGUF file.
    ///
    /// # Errors
    /// It cannot be read or is not sound.
    pub fn from_gguf(file: File) -> Result<Self, FormatError> {
        let (file_bytes, _, header) = read_part(&file, 1)?;
        Self::of_gguf(vec![file], file_bytes, header.metadata, header.tensors)
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
            tensors.extend(header.tensors.into_iter().map(|mut tensor| {
                if let Stored::Rows(place) = &mut tensor.stored {
                    place.file = index;
                }
                tensor
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
        Self::of_gguf(files, file_bytes, metadata, tensors)
    }

    fn of_gguf(
        files: Vec<File>,
        file_bytes: u64,
        metadata: Metadata,
        mut tensors: Vec<TensorInfo>,
    ) -> Result<Self, FormatError> {
        if metadata.str("general.architecture").ok().flatten() == Some("qwen2") {
            // Its converter leaves the rows as they were: values half a head apart turn together.
            let head = folder::head_dim(&metadata)?;
            for tensor in &mut tensors {
                if [".attn_q.", ".attn_k."]
                    .iter()
                    .any(|part| tensor.name.contains(part))
                {
                    tensor.row_order = RowOrder::PairHalves(head);
                }
            }
        }
        Self::new(Parts {
            files,
            file_bytes,
            format: "gguf",
            quantization: None,
            metadata,
            tensors,
        })
    }

    fn new(parts: Parts) -> Result<Self, FormatError> {
        let mut by_name = HashMap::with_capacity(parts.tensors.len());
        for (index, tensor) in parts.tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(FormatError::Duplicate {
                    what: "tensor",
                    name: clip(&tensor.name),
                });
            }
        }
        Ok(Self {
            files: parts.files,
            file_bytes: parts.file_bytes,
            format: parts.format,
            quantization: parts.quantization,
            metadata: parts.metadata,
            tensors: parts.tensors,
            by_name,
        })
    }

    /// A model without weights, by the contents of its json files.
    #[cfg(test)]
    pub(crate) fn of_hub(files: super::HubFiles) -> Result<Self, FormatError> {
        let found = super::hub::metadata(files)?;
        Self::new(Parts {
            files: Vec::new(),
            file_bytes: 0,
            format: "safetensors",
            quantization: None,
            metadata: Metadata::from_entries(found.entries)?,
            tensors: Vec::new(),
        })
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

    /// How its matrices are quantised, in a few words, where the files say it for all of them.
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_deref()
    }

    /// Reads rows `first .. first + count` of a tensor that is stored as rows, in its type's blocks.
    /// May be called from several threads.
    ///
    /// # Errors
    /// The rows are not there, or the file cannot be read (it may have shrunk since).
    pub fn read_rows(
        &self,
        tensor: &TensorInfo,
        first: u64,
        count: u64,
    ) -> Result<Vec<u8>, FormatError> {
        let Stored::Rows(place) = tensor.stored else {
            return Err(FormatError::NotRows {
                name: clip(&tensor.name),
            });
        };
        let row_bytes = place.bytes / tensor.rows().max(1);
        let stored = |row| tensor.row_order.stored(row);
        if tensor.row_order == RowOrder::AsStored {
            return self.read_place(place, first * row_bytes, count * row_bytes, &tensor.name);
        }
        let rows = || (first..first + count).map(stored);
        let low = rows().min().unwrap_or(0);
        let high = rows().max().map_or(0, |row| row + 1);
        let span = self.read_place(
            place,
            low * row_bytes,
            (high - low) * row_bytes,
            &tensor.name,
        )?;
        let size = usize::try_from(row_bytes).unwrap_or(0);
        let mut ordered = Vec::with_capacity(size * usize::try_from(count).unwrap_or(0));
        for row in rows() {
            let at = usize::try_from(row - low).unwrap_or(0) * size;
            ordered.extend_from_slice(&span[at..at + size]);
        }
        Ok(ordered)
    }

    /// Reads `bytes` bytes from `offset` within a place, of the tensor of that name.
    pub(super) fn read_place(
        &self,
        place: Place,
        offset: u64,
        bytes: u64,
        name: &str,
    ) -> Result<Vec<u8>, FormatError> {
        let outside = || FormatError::OutsideTensor {
            name: clip(name),
            offset,
            end: offset.saturating_add(bytes),
            bytes: place.bytes,
        };
        if bytes > place.bytes {
            return Err(outside());
        }
        let mut data = vec![0; usize::try_from(bytes).map_err(|_| outside())?];
        self.read_into(place, offset, &mut data, name)?;
        Ok(data)
    }

    /// Reads bytes of a tensor that is stored as rows, from `offset` within it, as many as `buf` holds.
    /// May be called from several threads.
    ///
    /// # Errors
    /// The range is outside the tensor, or the file cannot be read (it may have shrunk since).
    pub fn read(
        &self,
        tensor: &TensorInfo,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), FormatError> {
        match tensor.stored {
            Stored::Rows(place) => self.read_into(place, offset, buf, &tensor.name),
            Stored::Grouped(_) => Err(FormatError::NotRows {
                name: clip(&tensor.name),
            }),
        }
    }

    fn read_into(
        &self,
        place: Place,
        offset: u64,
        buf: &mut [u8],
        name: &str,
    ) -> Result<(), FormatError> {
        let end = u64::try_from(buf.len())
            .ok()
            .and_then(|length| offset.checked_add(length));
        match (end, self.files.get(place.file)) {
            (Some(end), Some(file)) if end <= place.bytes => {
                let at = place.offset + offset;
                read_exact_at(file, buf, at).map_err(|source| FormatError::Io {
                    what: format!("tensor {:?} at offset {at}", clip(name)),
                    source,
                })
            }
            (end, _) => Err(FormatError::OutsideTensor {
                name: clip(name),
                offset,
                end: end.unwrap_or(u64::MAX),
                bytes: place.bytes,
            }),
        }
    }

    /// The header of a GGUF file with this model's metadata and these tensors: each with its type there
    /// and its offset in the data, which begins at the next multiple of 32.
    pub(crate) fn gguf_header(&self, tensors: &[(&TensorInfo, TensorType, u64)]) -> Vec<u8> {
        gguf_writer::header(&self.metadata, tensors)
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
pub(super) fn size_of(file: &File) -> Result<u64, FormatError> {
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
pub(super) fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
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
