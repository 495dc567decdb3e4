//! Where prefill's attention puts its results.

use crate::ActivationFormat;

/// Where prefill's attention puts its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowsOut {
    /// Straight to activations: where `head_dim` is a multiple of 32.
    Activations(ActivationFormat),
    /// To floats that `Combine` makes activations of.
    Partial,
}

impl RowsOut {
    /// Every output there is.
    pub const ALL: [Self; 4] = [
        Self::Activations(ActivationFormat::Float),
        Self::Activations(ActivationFormat::FloatImage),
        Self::Activations(ActivationFormat::Int8),
        Self::Partial,
    ];

    pub(crate) fn files(self) -> Vec<&'static str> {
        match self {
            Self::Activations(act) => {
                vec![include_str!("../common/rows_out_act.wgsl"), act.output()]
            }
            Self::Partial => vec![include_str!("../common/rows_out_partial.wgsl")],
        }
    }
}
