//! The matrix products: what they multiply, what becomes of the results, and which files that takes.

use crate::{ActivationFormat, Planes, WeightFormat};

const MATRIX: &str = include_str!("../common/matrix.wgsl");

/// What a matrix product does with its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Writes them: logits.
    Store,
    /// Adds them to the residual stream.
    Residual,
    /// Bias, rotation, q out, k and v to the cache.
    Qkv,
    /// silu(gate) * up, stored as activations of this format.
    Glu(ActivationFormat),
}

impl Epilogue {
    /// The file of an epilogue that stores no activations.
    fn plain(self) -> &'static str {
        match self {
            Self::Store => include_str!("../common/epilogue_store.wgsl"),
            Self::Residual => include_str!("../common/epilogue_residual.wgsl"),
            Self::Qkv => include_str!("../common/epilogue_qkv.wgsl"),
            Self::Glu(_) => "",
        }
    }
}

/// A matrix product kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixKernel {
    /// Stored weights.
    pub weights: WeightFormat,
    /// Stored activations: `Int8` only with integer weights.
    pub activations: ActivationFormat,
    /// What becomes of the results.
    pub epilogue: Epilogue,
}

impl MatrixKernel {
    pub(crate) fn files(self, place: Planes) -> Vec<&'static str> {
        let mut files = self.input_files(place);
        match self.epilogue {
            Epilogue::Glu(out) => {
                files.extend([include_str!("../common/epilogue_glu.wgsl"), out.output()]);
            }
            other => files.push(other.plain()),
        }
        files
    }

    pub(crate) fn tile_files(self) -> Vec<&'static str> {
        let mut files = self.input_files(Planes::Buffers);
        files.extend([self.activations.input(), self.activations.tile()]);
        match self.epilogue {
            Epilogue::Glu(out) => {
                files.extend([
                    include_str!("../common/epilogue_glu_tile.wgsl"),
                    out.output(),
                ]);
            }
            other => files.push(other.plain()),
        }
        files
    }

    pub(crate) fn cooperative_files(self) -> Vec<&'static str> {
        let mut files = self.input_files(Planes::Buffers);
        match self.epilogue {
            Epilogue::Glu(out) => files.extend([
                include_str!("../common/epilogue_glu_value.wgsl"),
                match out {
                    ActivationFormat::Half => include_str!("../common/value_out_half.wgsl"),
                    _ => include_str!("../common/value_out_float.wgsl"),
                },
            ]),
            other => files.push(other.plain()),
        }
        files
    }

    /// All but the epilogue.
    pub(crate) fn input_files(self, place: Planes) -> Vec<&'static str> {
        let mut files = vec![MATRIX, super::kernel::STEP, super::kernel::IMAGE];
        files.push(self.activations.block());
        files.extend(self.weights.files(place));
        match self.activations {
            ActivationFormat::FloatImage => files.push(self.weights.raw()),
            ActivationFormat::Int8 => files.push(self.weights.dot()),
            ActivationFormat::Float | ActivationFormat::Half => {}
        }
        files
    }

    /// Every product by cooperative matrices: weights that f16 holds; what follows one takes f16 too, or
    /// floats.
    pub(crate) fn all_cooperative() -> impl Iterator<Item = Self> {
        let epilogues = [
            Epilogue::Store,
            Epilogue::Residual,
            Epilogue::Qkv,
            Epilogue::Glu(ActivationFormat::Half),
            Epilogue::Glu(ActivationFormat::Float),
        ];
        let halves = WeightFormat::ALL
            .into_iter()
            .filter(|w| *w != WeightFormat::F32);
        halves.flat_map(move |weights| {
            epilogues.map(|epilogue| Self {
                weights,
                activations: ActivationFormat::Half,
                epilogue,
            })
        })
    }

    fn touches(self, activations: ActivationFormat) -> bool {
        self.activations == activations || self.epilogue == Epilogue::Glu(activations)
    }

    /// Tells whether GPUs run it: float activations lie in buffers there.
    pub(crate) fn on_gpu(self) -> bool {
        !self.touches(ActivationFormat::FloatImage)
    }

    /// Tells whether software adapters run it: float activations lie in images there.
    pub(crate) fn on_software(self) -> bool {
        !self.touches(ActivationFormat::Float)
    }

    /// Tells whether many columns of it may be dealt out among threads: its rows are many and its
    /// activations small.
    pub fn goes_wide(self) -> bool {
        self.activations == ActivationFormat::Int8
            && matches!(self.epilogue, Epilogue::Qkv | Epilogue::Glu(_))
    }

    /// Every matrix product there is but those by cooperative matrices.
    pub fn all() -> Vec<Self> {
        let mut list = Vec::new();
        for weights in WeightFormat::ALL {
            for activations in [
                ActivationFormat::Float,
                ActivationFormat::FloatImage,
                ActivationFormat::Int8,
            ] {
                if activations == ActivationFormat::Int8 && !weights.is_integer() {
                    continue;
                }
                for epilogue in [
                    Epilogue::Store,
                    Epilogue::Residual,
                    Epilogue::Qkv,
                    Epilogue::Glu(ActivationFormat::Float),
                    Epilogue::Glu(ActivationFormat::FloatImage),
                    Epilogue::Glu(ActivationFormat::Int8),
                ] {
                    list.push(Self {
                        weights,
                        activations,
                        epilogue,
                    });
                }
            }
        }
        list
    }
}
