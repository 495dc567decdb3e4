//! Model files: which tensors and metadata they hold, and where. No GPU here, and no knowledge of
//! what a model does with them.

mod checkpoint;
mod cursor;
mod files;
mod folder;
#[cfg(test)]
mod folder_hostile_tests;
mod gguf;
#[cfg(test)]
mod gguf_hostile_tests;
pub mod gguf_writer;
mod grouped;
#[cfg(test)]
mod grouped_tests;
mod hub;
mod metadata;
mod safetensors;
mod tensor;

use std::io;

use cursor::clip;

pub use checkpoint::Checkpoint;
pub use files::{ModelFiles, SIDE_FILES, is_model_file, split_names};
pub use grouped::Grouped;
#[cfg(test)]
pub(crate) use hub::HubFiles;
pub use metadata::StrArray;
pub use tensor::{RowOrder, Stored, TensorInfo, TensorType};

/// A file that is not a sound model file. Every variant names the field and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file could not be read.
    #[error("cannot read {what}")]
    Io {
        /// What was being read.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a regular file.
    #[error("the model file is not a regular file")]
    NotAFile,
    /// No file of a model.
    #[error("there is no model file: a GGUF file, or a folder with *.safetensors and config.json")]
    NoModel,
    /// Something is wrong in one of several files.
    #[error("{file}")]
    InFile {
        /// Its name.
        file: String,
        /// What.
        #[source]
        error: Box<FormatError>,
    },
    /// A split model that is not whole, or files that do not belong together.
    #[error("the file is one of {parts} parts; {given} files were given")]
    PartsMissing {
        /// Parts that it was split into.
        parts: u64,
        /// Files at hand.
        given: usize,
    },
    /// Another kind of file.
    #[error("magic: the file begins with {found:02x?}, a GGUF file with 47 47 55 46 (\"GGUF\")")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A GGUF version that is not read.
    #[error("version: {found}; versions 2 and 3 are read{hint}")]
    Version {
        /// The version, read as little-endian.
        found: u32,
        /// What this version is, if known.
        hint: &'static str,
    },
    /// The file ends too early.
    #[error("{field}: needs {needed} bytes at offset {at}, the file has {left} left")]
    Truncated {
        /// The field.
        field: String,
        /// Bytes needed.
        needed: u64,
        /// Offset in the file.
        at: u64,
        /// Bytes left from there.
        left: u64,
    },
    /// A number above its limit.
    #[error("{field}: {value} is over the limit of {limit}")]
    OverLimit {
        /// The field.
        field: String,
        /// What the file says.
        value: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A value outside what is allowed.
    #[error("{field}: {value}; {allowed}")]
    Invalid {
        /// The field.
        field: String,
        /// What the file says.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A file beside the weights that cannot be parsed.
    #[error("not valid: {problem}")]
    Unsound {
        /// What is wrong, and where.
        problem: String,
    },
    /// A field of a json file that is needed and not there.
    #[error("{field} is missing")]
    MissingField {
        /// The field.
        field: String,
    },
    /// A string that is not UTF-8.
    #[error("{field}: not valid UTF-8 at byte {at}")]
    NotUtf8 {
        /// The field.
        field: String,
        /// Offset of the first bad byte within the string.
        at: usize,
    },
    /// Two entries of one name.
    #[error("{what} {name:?} appears twice")]
    Duplicate {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Tensor data that overlaps.
    #[error("tensor {second:?} at offset {offset} overlaps tensor {first:?}, which ends at {end}")]
    Overlap {
        /// The tensor that comes first.
        first: String,
        /// Where it ends, from the start of the file.
        end: u64,
        /// The tensor that begins within it.
        second: String,
        /// Where that begins, from the start of the file.
        offset: u64,
    },
    /// A metadata value of another type than asked for.
    #[error("metadata {key:?} is {found}, not {wanted}")]
    WrongType {
        /// The key.
        key: String,
        /// The type in the file.
        found: String,
        /// The type needed.
        wanted: &'static str,
    },
    /// Rows of a tensor that has no stored rows: a mistake of the caller.
    #[error("tensor {name:?} is not stored as rows")]
    NotRows {
        /// The tensor.
        name: String,
    },
    /// A read outside a tensor: a mistake of the caller.
    #[error("tensor {name:?}: bytes {offset}..{end} are outside its {bytes} bytes")]
    OutsideTensor {
        /// The tensor.
        name: String,
        /// First byte asked for.
        offset: u64,
        /// Byte after the last.
        end: u64,
        /// The tensor's size.
        bytes: u64,
    },
}

impl FormatError {
    /// The same, told to be in the file of that name.
    fn in_file(self, name: &str) -> Self {
        Self::InFile {
            file: clip(name),
            error: Box::new(self),
        }
    }
}
