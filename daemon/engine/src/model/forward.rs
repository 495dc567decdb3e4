//! The Llama forward pass, in the paper's order, recorded once at load and replayed each step.
//!
//! Reads: a [`StepInput`]. Leaves: KV in the cache, logits and sampled tokens in their buffers. Knows
//! nothing of sequences, queues or text.

use hearth_shaders::params::attention_split_len;
use hearth_shaders::{ActivationFormat, Epilogue, TILE_COLUMNS_FEW};

use super::ModelConfig;
use super::choices::Choices;
use super::choosing::{ChosenKernel, Passes, Weights};
use super::plan::DECODE_COLUMNS_MAX;
use super::recorder::{Over, Product, Recorder, Width};
use super::scratch::{Scratch, splits_max};
use super::self_check::cooperative_matrix_works;
use super::step::StepInput;
use super::weights::{Matrix, WeightLoader, WeightSource};
use crate::engine::AdapterKind;
use crate::error::{EngineError, LoadError};
use crate::gpu::{self, Buffer, CommandEncoder, Extent, Gpu, Pipelines, Recording};
use crate::request::{Activations, EngineConfig};

/// A split as long as any history: prefill has enough columns to fill the GPU without splits.
const UNSPLIT: u32 = 1 << 30;

/// Narrowest hidden state for which `auto` takes int8 activations.
const INT8_HIDDEN_DIM_MIN: u32 = 1024;

/// Sizes that a forward pass is built for.
#[derive(Debug, Clone)]
pub(crate) struct ForwardLimits {
    /// Most columns of a step.
    pub(crate) columns_max: u32,
    /// Longest context, in tokens.
    pub(crate) context_len: u32,
    /// Attention splits of the longest context.
    pub(crate) splits_max: u32,
    /// Slots.
    pub(crate) slots: u32,
    /// KV blocks of a layer.
    pub(crate) kv_blocks: u32,
    /// Positions of a KV block.
    pub(crate) block_len: u32,
}

impl ForwardLimits {
    /// Bytes of one KV block in one layer's K buffer (and as many in its V buffer).
    pub(crate) fn kv_block_bytes(config: &ModelConfig, block_len: u32) -> u64 {
        u64::from(config.n_kv_heads) * u64::from(block_len) * u64::from(config.head_dim) * 2
    }

    /// Bytes of the KV cache over all layers.
    pub(crate) fn kv_bytes(&self, config: &ModelConfig) -> u64 {
        let block = Self::kv_block_bytes(config, self.block_len);
        2 * block * u64::from(self.kv_blocks) * u64::from(config.n_layers)
    }

    /// Derives the splits of `context_len`.
    pub(crate) fn with_context(mut self, context_len: u32) -> Self {
        self.context_len = context_len;
        self.splits_max = splits_max(context_len);
        self
    }
}

pub(super) struct Layer {
    attention_norm: Buffer,
    pub(super) qkv: Matrix,
    bias: Option<Buffer>,
    pub(super) output: Matrix,
    output_bias: Option<Buffer>,
    ffn_norm: Buffer,
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
    /// f16 `[block, n_kv_heads, slot, head_dim]`.
    pub(super) k: Buffer,
    /// f16 `[block, n_kv_heads, slot, head_dim]`.
    pub(super) v: Buffer,
}

/// The recordings of steps of few columns.
pub(super) struct ShortPass {
    /// The most columns of `body`, and output columns of `head`.
    pub(super) most: u32,
    /// Embedding and layers.
    pub(super) body: Recording,
    /// Final norm and logits.
    pub(super) head: Recording,
}

/// See the module.
pub(crate) struct Forward {
    limits: ForwardLimits,
    layers: Vec<Layer>,
    pub(crate) scratch: Scratch,
    frequencies: Vec<f64>,
    vocab_size: u32,
    /// Steps of few columns, the narrowest first.
    short: Vec<ShortPass>,
    /// Embedding and layers of prompts.
    long: Recording,
    sample: Recording,
    pub(crate) weights_bytes: u64,
    /// The activations that run: `Int8` where any product takes int8.
    pub(crate) activations: Activations,
    /// How products are cut, where that was chosen.
    pub(crate) chosen: Vec<ChosenKernel>,
    /// Descriptions of kernels that the driver refused.
    pub(crate) refused: Vec<String>,
}

impl Forward {
    /// Loads the weights and records the passes.
    pub(crate) fn load(
        gpu: &Gpu,
        source: WeightSource<'_>,
        config: &ModelConfig,
        limits: ForwardLimits,
        engine: &EngineConfig,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Self, LoadError> {
        let mut loader = WeightLoader::new(gpu, source, progress);
        let embedding = loader.stacked(&["token_embd.weight".to_owned()])?;
        let kv_bytes =
            u64::from(limits.kv_blocks) * ForwardLimits::kv_block_bytes(config, limits.block_len);
        let layers = (0..config.n_layers)
            .map(|n| {
                // Looked at after each layer: the rest of a file need not be read in vain.
                gpu.allocating(|| load_layer(gpu, &mut loader, config, n, kv_bytes))
                    .map_err(|refused| LoadError::OutOfMemory {
                        needed_bytes: 0,
                        granted_bytes: refused.granted_bytes,
                    })?
            })
            .collect::<Result<Vec<Layer>, LoadError>>()?;
        let final_norm = loader.vector(&["output_norm.weight".to_owned()])?;
        let output = if loader.has("output.weight") {
            Some(loader.stacked(&["output.weight".to_owned()])?)
        } else {
            None
        };
        let layer_bytes: u64 = layers.iter().map(Layer::weights_bytes).sum();
        let gathered_dim = layers
            .iter()
            .flat_map(Layer::matrices)
            .chain(&output)
            .map(Matrix::gathered_dim)
            .max();
        let scratch = Scratch::new(gpu, config, &limits, gathered_dim.unwrap_or(0));
        scratch.check_bindings(gpu)?;
        let mut builder = Builder::new(gpu, config, engine, scratch, limits);
        let weights = Weights {
            embedding: &embedding,
            layers: &layers,
            final_norm: &final_norm,
            head: output.as_ref().unwrap_or(&embedding),
        };
        let chosen = builder.choose(engine, &weights)?;
        let Passes {
            long,
            short,
            sample,
        } = builder.passes(&weights)?;
        gpu.wait(None)?;
        Ok(Self {
            frequencies: config.inverse_frequencies(),
            vocab_size: config.vocab_size,
            short,
            long,
            sample,
            weights_bytes: embedding.bytes + output.as_ref().map_or(0, |m| m.bytes) + layer_bytes,
            activations: if builder.any_int8 {
                Activations::Int8
            } else {
                Activations::Float
            },
            chosen,
            refused: builder.pipelines.refusals().to_vec(),
            limits: builder.limits,
            scratch: builder.scratch,
            layers,
        })
    }

    /// Sizes it was built for.
    pub(crate) fn limits(&self) -> &ForwardLimits {
        &self.limits
    }

    /// Uploads the step's input. Its effect is ordered before the next submission.
    pub(crate) fn write_step(&self, gpu: &Gpu, step: &StepInput) {
        let split_len = if is_short(step) { 0 } else { UNSPLIT };
        let words = step.words(split_len, &self.frequencies);
        gpu.queue
            .write_buffer(&self.scratch.step, 0, bytemuck::cast_slice(&words));
    }

    fn short(&self, columns: u32) -> &ShortPass {
        let fits = |pass: &&ShortPass| columns <= pass.most;
        let widest = &self.short[self.short.len() - 1];
        self.short.iter().find(fits).unwrap_or(widest)
    }

    fn body(&self, step: &StepInput) -> &Recording {
        if is_short(step) {
            &self
                .short(u32::try_from(step.columns.len()).unwrap_or(u32::MAX))
                .body
        } else {
            &self.long
        }
    }

    /// The numbers that resolve the grids of `step`.
    pub(crate) fn extent(&self, step: &StepInput) -> Extent {
        let splits = |position: u32| position / attention_split_len(position + 1) + 1;
        Extent {
            columns: u32::try_from(step.columns.len()).unwrap_or(u32::MAX),
            outputs: step.outputs,
            splits: if is_short(step) {
                step.columns
                    .iter()
                    .map(|c| splits(c.position))
                    .max()
                    .unwrap_or(1)
            } else {
                1
            },
        }
    }

    /// Encodes embedding and layers: the columns' KV and residual stream.
    pub(crate) fn encode_body(&self, encoder: &mut CommandEncoder, step: &StepInput) {
        self.body(step).encode(encoder, self.extent(step));
    }

    /// Encodes final norm and logits of the step's output columns.
    pub(crate) fn encode_head(&self, encoder: &mut CommandEncoder, step: &StepInput) {
        self.head(step).encode(encoder, self.extent(step));
    }

    /// By the output columns alone: logits are the same whatever pass they follow.
    fn head(&self, step: &StepInput) -> &Recording {
        &self.short(step.outputs).head
    }

    /// Encodes sampling of the step's output columns.
    pub(crate) fn encode_sample(&self, encoder: &mut CommandEncoder, step: &StepInput) {
        self.sample.encode(encoder, self.extent(step));
    }

    /// The recordings of `step`, in order, with its head and sampling.
    pub(crate) fn recordings(&self, step: &StepInput) -> Vec<&Recording> {
        let mut list = vec![self.body(step)];
        if step.outputs > 0 {
            list.extend([self.head(step), &self.sample]);
        }
        list
    }

    /// The KV buffers of all layers.
    pub(crate) fn kv_buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.layers.iter().flat_map(|l| [&l.k, &l.v])
    }

    /// Bytes of one output column's logits.
    pub(crate) fn logits_bytes(&self) -> u64 {
        u64::from(self.vocab_size) * 4
    }

    /// Bytes of the KV cache.
    pub(crate) fn kv_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.k.size() + l.v.size()).sum()
    }
}

fn is_short(step: &StepInput) -> bool {
    !step.prefill && step.columns.len() <= DECODE_COLUMNS_MAX as usize
}

/// The most columns of each recording of decode kernels, in order. Software adapters have kernels of
/// one, of few and of eight columns.
pub(super) fn short_widths(gpu: &Gpu) -> Vec<u32> {
    if gpu.info.kind == AdapterKind::Software {
        return vec![1, TILE_COLUMNS_FEW, DECODE_COLUMNS_MAX];
    }
    std::iter::successors(Some(1), |n| Some(2 * n))
        .take_while(|n| *n <= DECODE_COLUMNS_MAX)
        .collect()
}

impl Layer {
    fn matrices(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }

    fn weights_bytes(&self) -> u64 {
        self.matrices().iter().map(|m| m.bytes).sum()
    }
}

fn load_layer(
    gpu: &Gpu,
    loader: &mut WeightLoader<'_>,
    config: &ModelConfig,
    n: u32,
    kv_bytes: u64,
) -> Result<Layer, LoadError> {
    let name = |part: &str| format!("blk.{n}.{part}");
    let three = |kind: &str| ["q", "k", "v"].map(|p| name(&format!("attn_{p}.{kind}")));
    Ok(Layer {
        attention_norm: loader.vector(&[name("attn_norm.weight")])?,
        qkv: loader.stacked(&three("weight"))?,
        bias: if config.attention_bias {
            Some(loader.vector(&three("bias"))?)
        } else {
            None
        },
        output: loader.stacked(&[name("attn_output.weight")])?,
        output_bias: if config.output_bias {
            Some(loader.vector(&[name("attn_output.bias")])?)
        } else {
            None
        },
        ffn_norm: loader.vector(&[name("ffn_norm.weight")])?,
        gate_up: loader.alternating(&[name("ffn_gate.weight"), name("ffn_up.weight")])?,
        down: loader.stacked(&[name("ffn_down.weight")])?,
        k: gpu::storage(gpu, &name("k"), kv_bytes),
        v: gpu::storage(gpu, &name("v"), kv_bytes),
    })
}

/// Records the passes.
pub(super) struct Builder<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) config: &'a ModelConfig,
    activations: Activations,
    pub(super) pipelines: Pipelines,
    pub(super) choices: Choices,
    pub(super) scratch: Scratch,
    pub(super) limits: ForwardLimits,
    pub(super) any_int8: bool,
    /// Products of many columns go through cooperative matrices.
    cooperative_matrix: bool,
}

impl<'a> Builder<'a> {
    fn new(
        gpu: &'a Gpu,
        config: &'a ModelConfig,
        engine: &EngineConfig,
        scratch: Scratch,
        limits: ForwardLimits,
    ) -> Self {
        let mut pipelines = Pipelines::refusing(&engine.refused_kernels);
        // Float activations are the reference: f16 ones are not taken in their place.
        let cooperative_matrix = gpu.cooperative_matrix
            && engine.activations != Activations::Float
            && cooperative_matrix_works(gpu, &mut pipelines);
        Self {
            gpu,
            config,
            activations: engine.activations,
            pipelines,
            choices: Choices::default(),
            scratch,
            limits,
            any_int8: false,
            cooperative_matrix,
        }
    }

    /// The activations that `matrix` takes in a layer of a pass of that width.
    fn layer_format(&mut self, width: Width, matrix: &Matrix) -> ActivationFormat {
        if width == Width::Long && self.cooperative_matrix() && matrix.fits_half() {
            return ActivationFormat::Half;
        }
        self.format(matrix)
    }

    fn cooperative_matrix(&self) -> bool {
        self.cooperative_matrix && !self.choices.no_cooperative
    }

    /// The activations that `matrix` takes, cooperative matrices apart.
    pub(super) fn format(&mut self, matrix: &Matrix) -> ActivationFormat {
        let float = match self.activations {
            Activations::Float => true,
            Activations::Int8 => false,
            // int8 gains too little for its precision on software adapters, which have no int8 dot
            // product, and on small models, which lose the most by it.
            Activations::Auto => {
                self.gpu.info.kind == AdapterKind::Software
                    || self.config.hidden_dim < INT8_HIDDEN_DIM_MIN
            }
        };
        if float || self.choices.float || !matrix.is_integer() {
            return self.gpu.float_format();
        }
        self.any_int8 = true;
        ActivationFormat::Int8
    }

    fn record(
        &mut self,
        width: Width,
        steps: impl FnOnce(&mut Recorder<'_>) -> Result<(), EngineError>,
    ) -> Result<Recording, EngineError> {
        let cooperative_matrix = self.cooperative_matrix();
        let mut recorder = Recorder {
            gpu: self.gpu,
            pipelines: &mut self.pipelines,
            choices: &self.choices,
            config: self.config,
            scratch: &self.scratch,
            block_len: self.limits.block_len,
            splits_max: self.limits.splits_max,
            width,
            cooperative_matrix,
            recording: Recording::default(),
        };
        steps(&mut recorder)?;
        Ok(recorder.recording)
    }

    pub(super) fn body(
        &mut self,
        width: Width,
        embedding: &Matrix,
        layers: &[Layer],
    ) -> Result<Recording, EngineError> {
        let formats: Vec<LayerFormats> = layers
            .iter()
            .map(|l| LayerFormats {
                qkv: self.layer_format(width, &l.qkv),
                output: self.layer_format(width, &l.output),
                gate_up: self.layer_format(width, &l.gate_up),
                down: self.layer_format(width, &l.down),
            })
            .collect();
        self.record(width, |r| {
            r.embed(embedding)?;
            for (layer, format) in layers.iter().zip(&formats) {
                record_layer(r, layer, format)?;
            }
            Ok(())
        })
    }

    pub(super) fn head(
        &mut self,
        width: Width,
        norm: &Buffer,
        output: &Matrix,
    ) -> Result<Recording, EngineError> {
        let format = self.format(output);
        self.record(width, |r| {
            r.product(&head_product(r.scratch, r.config, norm, output, format))
        })
    }

    pub(super) fn sampling(&mut self) -> Result<Recording, EngineError> {
        self.record(Width::Short(1), |r| r.sample())
    }
}

/// The activations that each product of a layer takes.
pub(super) struct LayerFormats {
    pub(super) qkv: ActivationFormat,
    pub(super) output: ActivationFormat,
    pub(super) gate_up: ActivationFormat,
    pub(super) down: ActivationFormat,
}

fn record_layer(
    r: &mut Recorder<'_>,
    layer: &Layer,
    format: &LayerFormats,
) -> Result<(), EngineError> {
    let [qkv, output, gate_up, down] = layer_products(r.scratch, r.config, layer, format);
    r.product(&qkv)?;
    // a = attention(q, K, V)
    r.attention(&layer.k, &layer.v, layer.output.left_as(format.output))?;
    r.product(&output)?;
    if let Some(bias) = &layer.output_bias {
        r.add_bias(bias)?;
    }
    r.product(&gate_up)?;
    r.product(&down)
}

/// logits = W norm(x)
pub(super) fn head_product<'a>(
    s: &'a Scratch,
    config: &ModelConfig,
    norm: &'a Buffer,
    matrix: &'a Matrix,
    format: ActivationFormat,
) -> Product<'a> {
    Product {
        matrix,
        input: &s.outputs,
        norm: Some(norm),
        input_format: format,
        epilogue: Epilogue::Store,
        targets: vec![(&s.logits).into()],
        out_stride: config.vocab_size,
        over: Over::Outputs,
        has_bias: false,
    }
}

/// A layer's products, in order.
pub(super) fn layer_products<'a>(
    s: &'a Scratch,
    config: &ModelConfig,
    layer: &'a Layer,
    format: &LayerFormats,
) -> [Product<'a>; 4] {
    let hidden_dim = config.hidden_dim;
    let ffn_format = layer.down.left_as(format.down);
    // h = norm(x); q, k, v = W h, rotated; k and v into the cache
    let qkv = Product {
        matrix: &layer.qkv,
        input: &s.hidden,
        norm: Some(&layer.attention_norm),
        input_format: format.qkv,
        epilogue: Epilogue::Qkv,
        // Without a bias the binding still needs a buffer; the kernel does not read it.
        targets: vec![
            (&s.q).into(),
            (&layer.k).into(),
            (&layer.v).into(),
            layer.bias.as_ref().unwrap_or(&layer.ffn_norm).into(),
        ],
        out_stride: 0,
        over: Over::Columns,
        has_bias: layer.bias.is_some(),
    };
    // x += W a
    let output = Product {
        matrix: &layer.output,
        input: &s.attended,
        norm: None,
        input_format: format.output,
        epilogue: Epilogue::Residual,
        targets: vec![(&s.x).into()],
        out_stride: hidden_dim,
        over: Over::Columns,
        has_bias: false,
    };
    // h = norm(x); f = silu(W_gate h) * (W_up h); x += W_down f
    let gate_up = Product {
        matrix: &layer.gate_up,
        input: &s.hidden,
        norm: Some(&layer.ffn_norm),
        input_format: format.gate_up,
        epilogue: Epilogue::Glu(ffn_format),
        targets: vec![s.ffn.bound(ffn_format)],
        out_stride: config.ffn_dim,
        over: Over::Columns,
        has_bias: false,
    };
    let down = Product {
        matrix: &layer.down,
        input: &s.ffn,
        norm: None,
        input_format: format.down,
        epilogue: Epilogue::Residual,
        targets: vec![(&s.x).into()],
        out_stride: hidden_dim,
        over: Over::Columns,
        has_bias: false,
    };
    [qkv, output, gate_up, down]
}
