//! Well-known models by their published sizes, and the formats that their weights can be made up in.

use hearth_shaders::WeightFormat;

use crate::model::{ModelConfig, RandomWeights, RopeConfig, RopeScaling};

/// A model's sizes, without its weights.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Lower-case name.
    pub name: &'static str,
    n_layers: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    hidden_dim: u32,
    ffn_dim: u32,
    vocab_size: u32,
    context_len: u32,
    rope_theta: f64,
    tied_output: bool,
}

const fn shape(
    name: &'static str,
    [n_layers, n_heads, n_kv_heads, head_dim]: [u32; 4],
    [hidden_dim, ffn_dim, vocab_size, context_len]: [u32; 4],
    rope_theta: f64,
    tied_output: bool,
) -> Shape {
    Shape {
        name,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        hidden_dim,
        ffn_dim,
        vocab_size,
        context_len,
        rope_theta,
        tied_output,
    }
}

impl Shape {
    /// Every shape.
    #[rustfmt::skip]
    pub const ALL: [Self; 7] = [
        shape("llama-7b",       [32, 32, 32, 128], [4096, 11_008,  32_000,    4096],  10_000.0, false),
        shape("llama-13b",      [40, 40, 40, 128], [5120, 13_824,  32_000,    4096],  10_000.0, false),
        shape("llama3-8b",      [32, 32,  8, 128], [4096, 14_336, 128_256,    8192], 500_000.0, false),
        shape("llama3.2-1b",    [16, 32,  8,  64], [2048,   8192, 128_256, 131_072], 500_000.0, true),
        shape("llama3.2-3b",    [28, 24,  8, 128], [3072,   8192, 128_256, 131_072], 500_000.0, true),
        shape("tinyllama-1.1b", [22, 32,  4,  64], [2048,   5632,  32_000,    2048],  10_000.0, false),
        shape("smollm2-135m",   [30,  9,  3,  64], [ 576,   1536,  49_152,    8192], 100_000.0, true),
    ];

    /// A model of a few thousand weights, for tests.
    #[cfg(test)]
    pub(crate) const TINY: Self = shape("tiny", [2, 4, 2, 16], [64, 96, 320, 256], 1e4, false);

    /// Another, with heads of whole blocks in groups of three, and rows of odd lengths.
    #[cfg(test)]
    pub(crate) const SMALL: Self = shape("small", [2, 3, 1, 64], [288, 352, 320, 512], 1e4, true);

    /// The shape of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }

    /// The model that has these sizes, with its layers in `format`.
    pub(crate) fn config(&self, format: Format) -> ModelConfig {
        let [vocab, hidden, ffn] = [self.vocab_size, self.hidden_dim, self.ffn_dim].map(u64::from);
        let queries = u64::from(self.n_heads * self.head_dim);
        let keys = u64::from(self.n_kv_heads * self.head_dim);
        let layer = hidden * (2 * queries + 2 * keys + 3 * ffn + 2);
        let tables = if self.tied_output { vocab } else { 2 * vocab };
        ModelConfig {
            format: "none",
            architecture: "llama".to_owned(),
            name: self.name.to_owned(),
            license: None,
            quantization: format.name.to_owned(),
            parameter_count: u64::from(self.n_layers) * layer + (tables + 1) * hidden,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            hidden_dim: self.hidden_dim,
            ffn_dim: self.ffn_dim,
            vocab_size: self.vocab_size,
            context_len: self.context_len,
            rms_eps: 1e-5,
            rope: RopeConfig {
                theta: self.rope_theta,
                dim: self.head_dim,
                scaling: RopeScaling::None,
            },
            tied_output: self.tied_output,
            sliding_window: None,
            attention_bias: false,
            output_bias: false,
        }
    }
}

/// What the matrices of a made-up model are stored in.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Lower-case name.
    pub name: &'static str,
    layers: WeightFormat,
    /// An embedding that is no output matrix.
    embedding: WeightFormat,
    /// The output matrix, tied or not.
    output: WeightFormat,
}

impl Format {
    /// Every format. Files of 4-bit models keep more bits in the output matrix; here it is q8_0, or
    /// q6_k as files of the K types have it.
    pub const ALL: [Self; 10] = {
        use WeightFormat::{F16, Q4_0, Q4_1, Q4G128, Q4K, Q4Z128, Q5_0, Q5K, Q6K, Q8_0};
        [
            Self::new("q4_0", Q4_0, Q4_0, Q8_0),
            Self::new("q4_1", Q4_1, Q4_1, Q8_0),
            Self::new("q4_k", Q4K, Q4K, Q6K),
            Self::new("q5_0", Q5_0, Q5_0, Q8_0),
            Self::new("q5_k", Q5K, Q5K, Q6K),
            Self::new("q6_k", Q6K, Q6K, Q6K),
            Self::new("gptq-g128", Q4G128, F16, Q8_0),
            Self::new("awq-g128", Q4Z128, F16, Q8_0),
            Self::new("q8_0", Q8_0, Q8_0, Q8_0),
            Self::new("f16", F16, F16, F16),
        ]
    };

    const fn new(
        name: &'static str,
        layers: WeightFormat,
        embedding: WeightFormat,
        output: WeightFormat,
    ) -> Self {
        Self {
            name,
            layers,
            embedding,
            output,
        }
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name == name)
    }

    /// Weights of `config`'s sizes in this format.
    pub(crate) fn weights(self, config: &ModelConfig) -> RandomWeights<'_> {
        RandomWeights {
            config,
            layers: self.layers,
            embedding: if config.tied_output {
                self.output
            } else {
                self.embedding
            },
            output: self.output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_add_up_to_the_published_counts() {
        let count = |name| {
            let shape = Shape::named(name).unwrap();
            shape.config(Format::ALL[0]).parameter_count
        };
        assert_eq!(count("llama-7b"), 6_738_415_616);
        assert_eq!(count("llama-13b"), 13_015_864_320);
        assert_eq!(count("llama3-8b"), 8_030_261_248);
        assert_eq!(count("llama3.2-1b"), 1_235_814_400);
        assert_eq!(count("llama3.2-3b"), 3_212_749_824);
        assert_eq!(count("tinyllama-1.1b"), 1_100_048_384);
        assert_eq!(count("smollm2-135m"), 134_515_008);
        assert!(Shape::named("llama-8b").is_none());
    }
}
