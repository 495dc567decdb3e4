//! What a tensor of a checkpoint is: its name, its sizes, how its numbers are stored.

use super::Grouped;

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
    /// Whole numbers of four bits under scales for groups of columns, in tensors of their own.
    Grouped4,
    /// The same with eight bits.
    Grouped8,
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

    /// Its id in GGUF files; `None` where those have none.
    pub fn gguf_id(self) -> Option<u32> {
        Some(match self {
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
            Self::Grouped4 | Self::Grouped8 => return None,
            Self::Other(id) => id,
        })
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
        match self {
            Self::Grouped4 => "I4",
            Self::Grouped8 => "I8",
            _ => self.row().map_or("unknown", |row| row.1),
        }
    }

    /// Tells whether the engine runs weights of this type.
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    fn row(self) -> Option<&'static (u32, &'static str, u64, u64)> {
        let id = self.gguf_id()?;
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
    /// Where its numbers lie.
    pub stored: Stored,
    /// Which stored row each row is.
    pub row_order: RowOrder,
    /// Size in bytes, of all that it is stored in.
    pub bytes: u64,
}

/// Bytes of one of a checkpoint's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which file.
    pub file: usize,
    /// First byte, from the start of that file.
    pub offset: u64,
    /// How many; `offset + bytes` lies within the file.
    pub bytes: u64,
}

/// How a tensor's numbers lie in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Row after row, in blocks of the tensor's type.
    Rows(Place),
    /// As numbers, scales and zero points, in tensors of their own.
    Grouped(Box<Grouped>),
}

/// Which stored row each row of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    AsStored,
    /// Of heads of so many rows: rows 2 i and 2 i + 1 of a head are its stored rows i and
    /// i + half. Models turn either neighbours or values half a head apart; this makes neighbours
    /// of the latter.
    PairHalves(u64),
}

impl RowOrder {
    /// The stored row of `row`.
    pub fn stored(self, row: u64) -> u64 {
        match self {
            Self::AsStored => row,
            Self::PairHalves(head) => {
                let (first, within) = (row / head * head, row % head);
                first + within / 2 + within % 2 * (head / 2)
            }
        }
    }
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
