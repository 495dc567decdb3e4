//! The header of GGUF files, versions 2 and 3, checked before use. Does not know what metadata
//! keys or tensors mean, except `general.alignment`.

use std::fs::File;

use super::cursor::{Cursor, clip};
use super::metadata::Metadata;
use super::tensor::Place;
use super::{FormatError, RowOrder, Stored, TensorInfo, TensorType};
use crate::limits::{GGUF_ALIGNMENT_MAX, GGUF_DIMS_MAX, GGUF_TENSORS_MAX};

const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u64 = 32;
/// Fewest bytes of a tensor's entry: name length, dimension count, a dimension, type, offset.
const TENSOR_ENTRY_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// What the header of a GGUF file says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// In the file's order. Offsets count from the file's start; data lies within the file.
    pub(super) tensors: Vec<TensorInfo>,
}

impl Header {
    /// Reads the header of a file of `file_bytes` bytes and proves it sound. Two tensors of one name
    /// are the caller's to refuse: it may have other files.
    pub(super) fn read(file: &File, file_bytes: u64) -> Result<Self, FormatError> {
        let mut cursor = Cursor::new(file, file_bytes)?;
        read_version(&mut cursor)?;
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
        let mut tensors = (0..tensor_count)
            .map(|index| read_tensor(&mut cursor, index, alignment))
            .collect::<Result<Vec<_>, _>>()?;
        let data_start = cursor.at().next_multiple_of(alignment);
        place_tensors(&mut tensors, data_start, file_bytes)?;
        Ok(Self { metadata, tensors })
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
        stored: Stored::Rows(Place {
            file: 0,
            offset,
            bytes,
        }),
        row_order: RowOrder::AsStored,
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
    let mut order: Vec<(u64, u64, &str)> = Vec::with_capacity(tensors.len());
    for tensor in tensors.iter_mut() {
        let Stored::Rows(place) = &mut tensor.stored else {
            unreachable!("this file's reader makes rows");
        };
        let begin = place.offset.checked_add(data_start);
        let end = begin.and_then(|begin| begin.checked_add(tensor.bytes));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= file_bytes)) else {
            let at = begin.unwrap_or(u64::MAX);
            return Err(FormatError::Truncated {
                field: format!("data of tensor {:?}", clip(&tensor.name)),
                needed: tensor.bytes,
                at,
                left: file_bytes.saturating_sub(at),
            });
        };
        place.offset = begin;
        order.push((begin, end, &tensor.name));
    }
    order.sort_unstable();
    for ((_, end, first), (offset, _, second)) in order.iter().zip(order.iter().skip(1)) {
        if offset < end {
            return Err(FormatError::Overlap {
                first: clip(first),
                end: *end,
                second: clip(second),
                offset: *offset,
            });
        }
    }
    Ok(())
}
