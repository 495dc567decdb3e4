//! One step's input, and its words for the GPU's step buffer (common/step.wgsl).

use hearth_shaders::params::STEP_HEADER_WORDS;

/// A token to process: one column of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    /// Token id, or `TOKEN_FROM_SLOT`.
    pub(crate) token: u32,
    /// Its position in its sequence.
    pub(crate) position: u32,
    /// Where its sequence's block table starts in `StepInput::tables`.
    pub(crate) table: u32,
    /// Its sequence's slot.
    pub(crate) slot: u32,
}

/// What one step processes.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepInput {
    pub(crate) columns: Vec<Column>,
    /// The columns are a prompt's: they go through prefill's kernels however few they are, so that what
    /// they leave does not depend on how the prompt is cut.
    pub(crate) prefill: bool,
    /// Block tables of the step's sequences, one after the other.
    pub(crate) tables: Vec<u32>,
    /// First column whose logits are wanted.
    pub(crate) output_first: u32,
    /// How many columns' logits are wanted; 0 for none.
    pub(crate) outputs: u32,
    /// Where sampled tokens go in the token ring.
    pub(crate) ring: u32,
}

impl StepInput {
    /// The step buffer's words.
    /// `split_len` forces the length of attention's splits; 0 leaves it to the rule.
    pub(crate) fn words(&self, split_len: u32, frequencies: &[f64]) -> Vec<u32> {
        let columns = self.columns.len();
        let tables_at = STEP_HEADER_WORDS + 4 * columns + 2 * columns * frequencies.len();
        let mut words = Vec::with_capacity(tables_at + self.tables.len());
        words.extend([
            split_len,
            0,
            self.output_first,
            self.ring,
            u32_len(columns),
            u32_len(tables_at),
            0,
            0,
        ]);
        for c in &self.columns {
            words.extend([c.token, c.position, c.table, c.slot]);
        }
        for c in &self.columns {
            // In f64: a product of a large position and a frequency loses the angle in f32.
            words.extend(frequencies.iter().flat_map(|f| {
                let (sin, cos) = (f64::from(c.position) * f).sin_cos();
                [single(cos).to_bits(), single(sin).to_bits()]
            }));
        }
        words.extend(&self.tables);
        words
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is the point"
)]
fn single(v: f64) -> f32 {
    v as f32
}

fn u32_len(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| unreachable!("a step buffer is far below 4 Gi words"))
}
