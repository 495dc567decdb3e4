//! Model files: which tensors and metadata they hold, and where. No GPU here, and no knowledge of
//! what a model does with them.

mod checkpoint;
mod cursor;
mod files;
mod gguf;
#[cfg(test)]
mod gguf_hostile_tests;
pub mod gguf_writer;
mod hub;
mod metadata;

use std::io;

use cursor::clip;

pub use checkpoint::Checkpoint;
pub use files::{ModelFiles, SIDE_FILES, is_model_file, split_names};
#[cfg(test)]
pub(crate) use hub::HubFiles;
pub use metadata::StrArray;

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
    /// A json file that cannot be parsed.
    #[error("not valid: {problem}")]
    Json {
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

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TensorType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Blocks of 32: f16 scale, 4-bit values.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: f16 scale, 5-bit values.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// Blocks of 32: f16 scale, 8-bit values.
    Q8_0,
    /// Blocks of 256: two f16, 4-bit scales and minimums per 16, 2-bit values.
    Q2K,
    /// Blocks of 256: f16, 6-bit scales per 16, 3-bit values.
    Q3K,
    /// Blocks of 256: two f16, 6-bit scales and minimums per 32, 4-bit values.
    Q4K,
    /// Blocks of 256: two f16, 6-bit scales and minimums per 32, 5-bit values.
    Q5K,
    /// Blocks of 256: f16, 8-bit scales per 16, 6-bit values.
    Q6K,
    /// Blocks of 32: f16 scale, 4-bit places in a table of values.
    Iq4Nl,
    /// The upper half of a 32-bit float.
    Bf16,
    /// A type whose layout is known, by its GGUF id, but that the engine does not run yet.
    Other(u32),
}

/// GGUF id, name, values of a block, bytes of a block. All types of the format in use today.
const TYPES: [(u32, &str, u64, u64); 33] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

impl TensorType {
    /// The type of a GGUF id; `None` for ids without a known layout.
    pub fn from_gguf(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.0 == id)?;
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            20 => Self::Iq4Nl,
            30 => Self::Bf16,
            other => Self::Other(other),
        })
    }

    /// Its id in GGUF files.
    pub fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Bf16 => 30,
            Self::Other(id) => id,
        }
    }

    /// Values in a block; 1 for plain types. 1 too for an `Other` that `from_gguf` never gives.
    pub fn block_len(self) -> u64 {
        self.row().map_or(1, |row| row.2)
    }

    /// Bytes of a block. 0 for an `Other` that `from_gguf` never gives.
    pub fn block_bytes(self) -> u64 {
        self.row().map_or(0, |row| row.3)
    }

    /// Its name, such as `Q4_1`.
    pub fn name(self) -> &'static str {
        self.row().map_or("unknown", |row| row.1)
    }

    /// Tells whether the engine runs weights of this type.
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    fn row(self) -> Option<&'static (u32, &'static str, u64, u64)> {
        let id = self.gguf_id();
        TYPES.iter().find(|row| row.0 == id)
    }
}

/// Where a tensor lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Sizes in the file's order: `dims[0]` varies fastest (columns). One to four, none zero.
    pub dims: Vec<u64>,
    /// How the numbers are stored.
    pub tensor_type: TensorType,
    /// Which of the checkpoint's files it lies in.
    pub file: usize,
    /// First byte, from the start of that file.
    pub offset: u64,
    /// Size in bytes; `offset + bytes` lies within the file.
    pub bytes: u64,
}

impl TensorInfo {
    /// Values in a row: `dims[0]`.
    pub fn columns(&self) -> u64 {
        self.dims.first().copied().unwrap_or(0)
    }

    /// Rows: the product of all dimensions but the first. Checked when the file was opened.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }
}
