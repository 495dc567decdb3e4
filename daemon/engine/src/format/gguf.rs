//! GGUF files, versions 2 and 3: opened once and checked before use. Does not know what
//! metadata keys or tensors mean, except `general.alignment`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::cursor::{Cursor, clip};
use super::metadata::Metadata;
pub use super::metadata::StrArray;
use super::{FormatError, TensorInfo, TensorType};
use crate::limits::{GGUF_ALIGNMENT_MAX, GGUF_DIMS_MAX, GGUF_TENSORS_MAX};

const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u64 = 32;
/// Fewest bytes of a tensor's entry: name length, dimension count, a dimension, type, offset.
const TENSOR_ENTRY_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// An open GGUF file whose header was read and found sound.
#[derive(Debug)]
pub struct Gguf {
    file: File,
    file_bytes: u64,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, or is not sound.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let file = File::open(path).map_err(|source| FormatError::Io {
            what: path.display().to_string(),
            source,
        })?;
        Self::from_file(file)
    }

    /// Reads the header of an open file. The file stays open and is never opened again, so what
    /// was checked is what is read later.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_file(file: File) -> Result<Self, FormatError> {
        let facts = file.metadata().map_err(|source| FormatError::Io {
            what: "the file's size".to_owned(),
            source,
        })?;
        if !facts.is_file() {
            return Err(FormatError::NotAFile);
        }
        let file_bytes = facts.len();
        let mut cursor = Cursor::new(&file, file_bytes)?;
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.u64(&|| "tensor count".to_owned())?;
        let key_count = cursor.u64(&|| "metadata key count".to_owned())?;
        if tensor_count > GGUF_TENSORS_MAX {
            return Err(FormatError::OverLimit {
                field: "tensor count".to_owned(),
                value: tensor_count,
                limit: GGUF_TENSORS_MAX,
            });
        }
        let metadata = Metadata::read(&mut cursor, key_count)?;
        let alignment = read_alignment(&metadata)?;
        cursor.check_left(tensor_count * TENSOR_ENTRY_BYTES_MIN, &|| {
            "tensor list".to_owned()
        })?;

        let mut tensors = Vec::new();
        let mut by_name = HashMap::new();
        for index in 0..tensor_count {
            let tensor = read_tensor(&mut cursor, index, alignment)?;
            if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(FormatError::Duplicate {
                    what: "tensor",
                    name: clip(&tensor.name),
                });
            }
            tensors.push(tensor);
        }
        place_tensors(
            &mut tensors,
            cursor.at().next_multiple_of(alignment),
            file_bytes,
        )?;
        Ok(Self {
            file,
            file_bytes,
            version,
            metadata,
            tensors,
            by_name,
        })
    }

    /// The format's version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Size of the file when it was opened.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
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
        match (end, tensor.offset.checked_add(offset)) {
            (Some(end), Some(at)) if end <= tensor.bytes => read_exact_at(&self.file, buf, at)
                .map_err(|source| FormatError::Io {
                    what: format!("tensor {:?} at offset {at}", clip(&tensor.name)),
                    source,
                }),
            (end, _) => Err(FormatError::OutsideTensor {
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

    /// As [`Gguf::get_u32`], for values of 64 bits.
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

    /// As [`Gguf::get_i32_array`], of f32.
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

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, FormatError> {
    let found = cursor.magic()?;
    if found != *b"GGUF" {
        return Err(FormatError::Magic { found });
    }
    let version = cursor.u32(&|| "version".to_owned())?;
    let hint = match version {
        2 | 3 => return Ok(version),
        1 => " (version 1 is from 2023; convert the model again)",
        other if matches!(other.swap_bytes(), 1..=3) => " (this file is big-endian)",
        _ => "",
    };
    Err(FormatError::Version {
        found: version,
        hint,
    })
}

fn read_alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    let alignment = metadata
        .int::<u64>(ALIGNMENT_KEY, "u32")?
        .unwrap_or(ALIGNMENT_DEFAULT);
    if alignment.is_power_of_two() && alignment <= GGUF_ALIGNMENT_MAX {
        return Ok(alignment);
    }
    Err(FormatError::Invalid {
        field: format!("metadata {ALIGNMENT_KEY:?}"),
        value: alignment.to_string(),
        allowed: "a power of two up to 65536 is allowed",
    })
}

/// Reads one entry of the tensor list. Its `offset` still counts from the start of the data.
fn read_tensor(
    cursor: &mut Cursor<'_>,
    index: u64,
    alignment: u64,
) -> Result<TensorInfo, FormatError> {
    let name = cursor.string(&|| format!("name of tensor {index}"))?;
    let field = |what: &str| format!("{what} of tensor {:?}", clip(&name));
    let invalid = |what: &str, value: String, allowed: &'static str| FormatError::Invalid {
        field: field(what),
        value,
        allowed,
    };
    if name.is_empty() {
        return Err(invalid("name", "empty".to_owned(), "a tensor needs a name"));
    }
    let dim_count = cursor.u32(&|| field("dimension count"))?;
    if dim_count == 0 || dim_count > GGUF_DIMS_MAX {
        return Err(invalid(
            "dimension count",
            dim_count.to_string(),
            "1 to 4 are allowed",
        ));
    }
    let mut dims = Vec::with_capacity(4);
    for number in 0..dim_count {
        let dim = cursor.u64(&|| field(&format!("dimension {number}")))?;
        if dim == 0 {
            let what = format!("dimension {number}");
            return Err(invalid(&what, "0".to_owned(), "at least 1 is needed"));
        }
        dims.push(dim);
    }
    let type_id = cursor.u32(&|| field("type"))?;
    let tensor_type = TensorType::from_gguf(type_id).ok_or_else(|| {
        invalid(
            "type",
            type_id.to_string(),
            "no type of this number is known",
        )
    })?;
    let bytes = tensor_bytes(&dims, tensor_type).map_err(|allowed| {
        invalid(
            "size",
            format!("{dims:?} of {}", tensor_type.name()),
            allowed,
        )
    })?;
    let offset = cursor.u64(&|| field("offset"))?;
    if !offset.is_multiple_of(alignment) {
        return Err(invalid(
            "offset",
            offset.to_string(),
            "a multiple of the alignment is needed",
        ));
    }
    Ok(TensorInfo {
        name,
        dims,
        tensor_type,
        offset,
        bytes,
    })
}

/// Size of a tensor in bytes, or what its dimensions break.
fn tensor_bytes(dims: &[u64], tensor_type: TensorType) -> Result<u64, &'static str> {
    let columns = dims.first().copied().unwrap_or(0);
    if !columns.is_multiple_of(tensor_type.block_len()) {
        return Err("the first dimension must be a multiple of the type's block");
    }
    let row_bytes = (columns / tensor_type.block_len()).checked_mul(tensor_type.block_bytes());
    dims.iter()
        .skip(1)
        .try_fold(1_u64, |rows, dim| rows.checked_mul(*dim))
        // The number of values must fit as well: parameters are counted later.
        .filter(|rows| rows.checked_mul(columns).is_some())
        .and_then(|rows| row_bytes?.checked_mul(rows))
        .ok_or("the product must fit 64 bits")
}

/// Makes offsets count from the file's start; checks that data lies within the file and that no
/// two tensors share a byte.
fn place_tensors(
    tensors: &mut [TensorInfo],
    data_start: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    for tensor in tensors.iter_mut() {
        let begin = tensor.offset.checked_add(data_start);
        let end = begin.and_then(|begin| begin.checked_add(tensor.bytes));
        let (Some(begin), Some(_)) = (begin, end.filter(|end| *end <= file_bytes)) else {
            let at = begin.unwrap_or(u64::MAX);
            return Err(FormatError::Truncated {
                field: format!("data of tensor {:?}", clip(&tensor.name)),
                needed: tensor.bytes,
                at,
                left: file_bytes.saturating_sub(at),
            });
        };
        tensor.offset = begin;
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for (first, second) in order.iter().zip(order.iter().skip(1)) {
        let end = first.offset + first.bytes;
        if second.offset < end {
            return Err(FormatError::Overlap {
                first: clip(&first.name),
                end,
                second: clip(&second.name),
                offset: second.offset,
            });
        }
    }
    Ok(())
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
