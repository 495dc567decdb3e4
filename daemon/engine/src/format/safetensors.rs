//! The headers of safetensors files: which tensors they hold, and where. Does not know what the tensors
//! mean.

use std::fs::File;
use std::io::Read as _;

use safetensors::tensor::{Dtype, Metadata};

use super::FormatError;
use super::cursor::clip;
use super::tensor::Place;
use crate::limits::{SAFETENSORS_HEADER_BYTES_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX};

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct RawTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// Rows first: as the file has them.
    pub(super) shape: Vec<u64>,
    pub(super) place: Place,
}

/// Reads the header of file number `file`, of `file_bytes` bytes. The library proves that every tensor's
/// size fits its shape, and that they fill the data without holes.
pub(super) fn read(
    input: &File,
    file: usize,
    file_bytes: u64,
) -> Result<Vec<RawTensor>, FormatError> {
    let header = header(input, file_bytes)?;
    let data_start = 8 + header.len() as u64;
    let bad = |value: String, allowed| FormatError::Invalid {
        field: "header".to_owned(),
        value: clip(&value),
        allowed,
    };
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| bad(error.to_string(), "a sound safetensors header is needed"))?;
    drop(header);
    let data = u64::try_from(metadata.data_len()).unwrap_or(u64::MAX);
    if data_start.checked_add(data) != Some(file_bytes) {
        return Err(bad(
            format!("{data} bytes of tensors"),
            "they must fill the file behind the header",
        ));
    }
    let tensors = metadata.tensors();
    if tensors.len() > TENSORS_MAX {
        return Err(FormatError::OverLimit {
            field: "tensor count".to_owned(),
            value: tensors.len() as u64,
            limit: TENSORS_MAX as u64,
        });
    }
    let mut list = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
            return Err(bad(name, "a tensor's name has 1 to 1024 bytes"));
        }
        let (begin, end) = info.data_offsets;
        list.push(RawTensor {
            name,
            dtype: info.dtype,
            shape: info.shape.iter().map(|n| *n as u64).collect(),
            place: Place {
                file,
                offset: data_start + begin as u64,
                bytes: (end - begin) as u64,
            },
        });
    }
    list.sort_by_key(|tensor| tensor.place.offset);
    Ok(list)
}

/// The header's bytes.
fn header(mut input: &File, file_bytes: u64) -> Result<Vec<u8>, FormatError> {
    let failed = |source| FormatError::Io {
        what: "the header".to_owned(),
        source,
    };
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(FormatError::Truncated {
            field: "header length".to_owned(),
            needed: 8,
            at: 0,
            left: file_bytes,
        });
    }
    std::io::Seek::rewind(&mut input).map_err(failed)?;
    input.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > SAFETENSORS_HEADER_BYTES_MAX {
        return Err(FormatError::OverLimit {
            field: "header length".to_owned(),
            value: length,
            limit: SAFETENSORS_HEADER_BYTES_MAX,
        });
    }
    if length > file_bytes - 8 {
        return Err(FormatError::Truncated {
            field: "header".to_owned(),
            needed: length,
            at: 8,
            left: file_bytes - 8,
        });
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
    input.read_exact(&mut header).map_err(failed)?;
    Ok(header)
}
