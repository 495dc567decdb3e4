//! Where the products of few columns take their activations from, and how many together.

/// Where a `gemv` takes its activations from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemvInput {
    /// RMSNorm of one column of the residual stream, by each workgroup for itself.
    Normed,
    /// Stored activations of this many columns together.
    Stored {
        /// A power of two, at most 16.
        columns: u32,
    },
    /// The same, four or more, with the results dealt out among the threads.
    Wide {
        /// A power of two from four to 16.
        columns: u32,
        /// Row pairs that a thread does together: one or two.
        pairs: u32,
    },
}

impl GemvInput {
    /// Every input there is.
    pub const ALL: [Self; 12] = [
        Self::Normed,
        Self::Stored { columns: 1 },
        Self::Stored { columns: 2 },
        Self::Stored { columns: 4 },
        Self::Stored { columns: 8 },
        Self::Stored { columns: 16 },
        Self::wide(4, 1),
        Self::wide(8, 1),
        Self::wide(16, 1),
        Self::wide(4, 2),
        Self::wide(8, 2),
        Self::wide(16, 2),
    ];

    const fn wide(columns: u32, pairs: u32) -> Self {
        Self::Wide { columns, pairs }
    }

    /// Columns that a workgroup does together.
    pub fn columns(self) -> u32 {
        match self {
            Self::Normed => 1,
            Self::Stored { columns } | Self::Wide { columns, .. } => columns,
        }
    }

    /// Row pairs that a thread does together.
    pub fn pairs(self) -> u32 {
        match self {
            Self::Wide { pairs, .. } => pairs,
            _ => 1,
        }
    }

    pub(crate) fn constants(self) -> String {
        let columns = format!("const COLUMNS: u32 = {}u;\n", self.columns());
        match self {
            Self::Wide { pairs, .. } => format!("{columns}const EACH: u32 = {pairs}u;\n"),
            _ => columns,
        }
    }
}
