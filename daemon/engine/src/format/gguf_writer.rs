//! Writes GGUF files: small models for tests, and whatever else must be a model file. It checks
//! nothing: it writes what it is told, sound or not; the reader judges.

use std::io;
use std::path::Path;

use super::metadata::Metadata;
use super::{TensorInfo, TensorType};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Unsigned, 64 bits.
    U64(u64),
    /// 32-bit float.
    F32(f32),
    /// 64-bit float.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// Text.
    Str(String),
    /// Texts.
    StrArray(Vec<String>),
    /// Signed 32-bit numbers.
    I32Array(Vec<i32>),
    /// 32-bit floats.
    F32Array(Vec<f32>),
}

impl From<&str> for MetaValue {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<u32> for MetaValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for MetaValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for MetaValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

struct PendingTensor {
    name: String,
    dims: Vec<u64>,
    tensor_type: TensorType,
    data: Vec<u8>,
}

/// A GGUF file in the making (version 3, alignment 32).
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<(String, MetaValue)>,
    tensors: Vec<PendingTensor>,
}

/// Alignment of tensor data, in bytes: the format's default.
const ALIGNMENT: usize = 32;

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata pair; a second one of the same key takes the first one's place.
    pub fn metadata(&mut self, key: &str, value: impl Into<MetaValue>) -> &mut Self {
        let value = value.into();
        match self.metadata.iter_mut().find(|(other, _)| other == key) {
            Some(pair) => pair.1 = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
        self
    }

    /// Removes a metadata pair if it is there.
    pub fn remove_metadata(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(other, _)| other != key);
        self
    }

    /// Adds a tensor; `dims` in the file's order (columns first); a second one of the same name
    /// takes the first one's place. `data` should have the size that type and dimensions give.
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        tensor_type: TensorType,
        data: Vec<u8>,
    ) -> &mut Self {
        self.remove_tensor(name);
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.tensors.push(PendingTensor {
            name,
            dims,
            tensor_type,
            data,
        });
        self
    }

    /// Removes a tensor if it is there.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        put_u32(&mut out, 3);
        put_len(&mut out, self.tensors.len());
        put_len(&mut out, self.metadata.len());
        for (key, value) in &self.metadata {
            put_str(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            put_str(&mut out, &tensor.name);
            put_u32(
                &mut out,
                u32::try_from(tensor.dims.len()).unwrap_or(u32::MAX),
            );
            for dim in &tensor.dims {
                put_u64(&mut out, *dim);
            }
            // A type without a number here has none in the format: no reader takes this one.
            put_u32(&mut out, tensor.tensor_type.gguf_id().unwrap_or(u32::MAX));
            put_len(&mut out, offset);
            offset = (offset + tensor.data.len()).next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend_from_slice(&tensor.data);
        }
        out
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As [`std::fs::write`].
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.to_bytes())
    }
}

/// The header of a file with those metadata and tensors, whose data follows at the next multiple of 32.
pub(super) fn header(metadata: &Metadata, tensors: &[(&TensorInfo, TensorType, u64)]) -> Vec<u8> {
    // These say how the files lie that the metadata came from.
    let gone = [
        "general.alignment",
        "split.no",
        "split.count",
        "split.tensors.count",
    ];
    let keys = || {
        metadata
            .keys()
            .iter()
            .filter(|key| !gone.contains(&key.as_str()))
    };
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, 3);
    put_len(&mut out, tensors.len());
    put_len(&mut out, keys().count());
    for key in keys() {
        put_str(&mut out, key);
        metadata.put(key, &mut out);
    }
    for (tensor, tensor_type, offset) in tensors {
        put_str(&mut out, &tensor.name);
        put_u32(
            &mut out,
            u32::try_from(tensor.dims.len()).unwrap_or(u32::MAX),
        );
        for dim in &tensor.dims {
            put_u64(&mut out, *dim);
        }
        put_u32(&mut out, tensor_type.gguf_id().unwrap_or(u32::MAX));
        put_u64(&mut out, *offset);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_len(out: &mut Vec<u8>, length: usize) {
    put_u64(out, u64::try_from(length).unwrap_or(u64::MAX));
}

pub(super) fn put_str(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    match value {
        MetaValue::U8(value) => {
            put_u32(out, 0);
            out.push(*value);
        }
        MetaValue::U32(value) => {
            put_u32(out, 4);
            put_u32(out, *value);
        }
        MetaValue::I32(value) => {
            put_u32(out, 5);
            out.extend_from_slice(&value.to_le_bytes());
        }
        MetaValue::F32(value) => {
            put_u32(out, 6);
            out.extend_from_slice(&value.to_le_bytes());
        }
        MetaValue::Bool(value) => {
            put_u32(out, 7);
            out.push(u8::from(*value));
        }
        MetaValue::Str(text) => {
            put_u32(out, 8);
            put_str(out, text);
        }
        MetaValue::U64(value) => {
            put_u32(out, 10);
            put_u64(out, *value);
        }
        MetaValue::F64(value) => {
            put_u32(out, 12);
            out.extend_from_slice(&value.to_le_bytes());
        }
        MetaValue::StrArray(texts) => {
            put_array_head(out, 8, texts.len());
            texts.iter().for_each(|text| put_str(out, text));
        }
        MetaValue::I32Array(values) => {
            put_array_head(out, 5, values.len());
            values
                .iter()
                .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
        MetaValue::F32Array(values) => {
            put_array_head(out, 6, values.len());
            values
                .iter()
                .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
    }
}

fn put_array_head(out: &mut Vec<u8>, element_type: u32, length: usize) {
    put_u32(out, 9);
    put_u32(out, element_type);
    put_len(out, length);
}
