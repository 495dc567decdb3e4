//! A column's KV and logits are the same to the bit whoever is beside it in its step, and a prompt's
//! however it is cut: the same request gives the same text in company and alone.

use hearth_shaders::params::{Sampling, TOKEN_FROM_SLOT};

use super::{Column, Forward, ForwardLimits, ModelConfig, StepInput, WeightSource};
use crate::AdapterKind;
use crate::bench::{Format, Shape};
use crate::gpu::{Gpu, Readback};
use crate::request::{Activations, EngineConfig, Tuning};

const SEQUENCES: u32 = 16;
const BLOCK_LEN: u32 = 16;
/// KV blocks of a sequence.
const BLOCKS: u32 = 20;
/// Most columns of a step.
const COLUMNS_MAX: u32 = 128;

/// A model made up, and the memory of its sequences.
struct Rig {
    gpu: Gpu,
    forward: Forward,
    config: ModelConfig,
}

/// What a step leaves for its output columns: the bits of their logits, and the tokens sampled.
#[derive(Debug, Clone, PartialEq)]
struct Outputs {
    logits: Vec<Vec<u32>>,
    tokens: Vec<u32>,
}

/// Which kernels run.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    shape: Shape,
    format: &'static str,
    activations: Activations,
    /// Those of GPUs.
    gpu: bool,
}

fn kernels(shape: Shape, format: &'static str, activations: Activations, gpu: bool) -> Kernels {
    Kernels {
        shape,
        format,
        activations,
        gpu,
    }
}

impl Rig {
    fn new(kernels: Kernels) -> Self {
        let engine = EngineConfig {
            activations: kernels.activations,
            tuning: Tuning::Off,
            software_as_gpu: kernels.gpu,
            ..EngineConfig::default()
        };
        let gpu = Gpu::open(&engine).unwrap();
        let format = Format::named(kernels.format).unwrap();
        let config = kernels.shape.config(format);
        let weights = format.weights(&config);
        let limits = ForwardLimits {
            columns_max: COLUMNS_MAX,
            context_len: 0,
            splits_max: 0,
            slots: SEQUENCES,
            kv_blocks: SEQUENCES * BLOCKS,
            block_len: BLOCK_LEN,
        }
        .with_context(BLOCKS * BLOCK_LEN);
        let source = WeightSource::Random(&weights);
        let forward = Forward::load(&gpu, source, &config, limits, &engine, &mut |_| true).unwrap();
        Self {
            gpu,
            forward,
            config,
        }
    }

    /// Forgets all sequences.
    fn forget(&self) {
        let blocks: Vec<u32> = (0..SEQUENCES * BLOCKS).collect();
        self.forward.clear_blocks(&self.gpu, &self.config, &blocks);
        for slot in 0..SEQUENCES {
            self.forward.reset_slot(&self.gpu, slot, &Sampling::GREEDY);
        }
    }

    /// The step of `columns`: sequence, position, token.
    fn input(&self, columns: &[(u32, u32, u32)], outputs: u32) -> StepInput {
        let column = |&(sequence, position, token): &(u32, u32, u32)| Column {
            token,
            position,
            table: sequence * BLOCKS,
            slot: sequence,
        };
        StepInput {
            columns: columns.iter().map(column).collect(),
            prefill: false,
            // A sequence's blocks lie apart.
            tables: (0..SEQUENCES)
                .flat_map(|s| (0..BLOCKS).map(move |block| block * SEQUENCES + s))
                .collect(),
            output_first: u32::try_from(columns.len()).unwrap() - outputs.max(1),
            outputs,
            ring: 0,
        }
    }

    fn step(&self, input: &StepInput) -> Outputs {
        self.forward.write_step(&self.gpu, input);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.forward.encode_body(&mut encoder, input);
        let scratch = &self.forward.scratch;
        let outputs = u64::from(input.outputs);
        let logits = outputs * self.forward.logits_bytes();
        let mut readback = Readback::new(&self.gpu, logits + 4 * outputs);
        if outputs > 0 {
            self.forward.encode_head(&mut encoder, input);
            readback.copy_from(&mut encoder, &scratch.logits, 0, 0, logits);
            self.forward.encode_sample(&mut encoder, input);
            readback.copy_from(&mut encoder, &scratch.ring, 0, logits, 4 * outputs);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        readback.request();
        let read = |bytes: &[u8]| bytemuck::cast_slice::<u8, u32>(bytes).to_vec();
        let words = readback.read(&self.gpu, submission, read).unwrap();
        let vocab = self.config.vocab_size as usize;
        let count = input.outputs as usize;
        Outputs {
            logits: words
                .chunks(vocab)
                .take(count)
                .map(<[u32]>::to_vec)
                .collect(),
            tokens: words[count * vocab..][..count].to_vec(),
        }
    }

    /// Every word of the KV cache.
    fn kv(&self) -> Vec<Vec<u32>> {
        let read = |buffer: &crate::gpu::Buffer| {
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            let mut readback = Readback::new(&self.gpu, buffer.size());
            readback.copy_from(&mut encoder, buffer, 0, 0, buffer.size());
            let submission = self.gpu.queue.submit([encoder.finish()]);
            readback.request();
            let words = |bytes: &[u8]| bytemuck::cast_slice(bytes).to_vec();
            readback.read(&self.gpu, submission, words).unwrap()
        };
        self.forward.kv_buffers().map(read).collect()
    }

    /// Some token of the vocabulary for each position of each sequence.
    fn token(&self, sequence: u32, position: u32) -> u32 {
        (sequence * 7919 + position).wrapping_mul(2_654_435_761) % self.config.vocab_size
    }

    /// Runs the first `len` positions of a sequence in chunks; returns what the last one left.
    fn prefill(&self, sequence: u32, len: u32, chunk: u32) -> Outputs {
        let mut first = 0;
        loop {
            let end = len.min(first + chunk);
            let columns: Vec<_> = (first..end)
                .map(|p| (sequence, p, self.token(sequence, p)))
                .collect();
            let mut input = self.input(&columns, u32::from(end == len));
            input.prefill = true;
            let outputs = self.step(&input);
            if end == len {
                return outputs;
            }
            first = end;
        }
    }

    /// Prompts of all sequences, and a few steps of them in groups of `together`; then drafts of one
    /// sequence, as many columns a step.
    fn in_company(&self, together: u32) -> (Vec<Outputs>, Vec<Vec<u32>>) {
        self.forget();
        let len = |sequence: u32| match sequence {
            // Beyond one split of attention.
            3 | 11 => 270 + sequence,
            _ => 2 + 5 * sequence,
        };
        for sequence in 0..SEQUENCES {
            self.prefill(sequence, len(sequence), COLUMNS_MAX);
        }
        let sequences: Vec<u32> = (0..SEQUENCES).collect();
        let mut results = Vec::new();
        let mut step =
            |columns: &[(u32, u32, u32)]| {
                let all = self.step(&self.input(columns, u32::try_from(columns.len()).unwrap()));
                results.extend(all.logits.iter().zip(&all.tokens).map(|(logits, &token)| {
                    Outputs {
                        logits: vec![logits.clone()],
                        tokens: vec![token],
                    }
                }));
            };
        for turn in 0..2 {
            for group in sequences.chunks(together as usize) {
                let columns: Vec<_> = group
                    .iter()
                    .map(|&s| (s, len(s) + turn, TOKEN_FROM_SLOT))
                    .collect();
                step(&columns);
            }
        }
        let drafts: Vec<_> = (0..SEQUENCES)
            .map(|n| (5, len(5) + 2 + n, self.token(5, 300 + n)))
            .collect();
        for group in drafts.chunks(together as usize) {
            step(group);
        }
        (results, self.kv())
    }
}

/// Tells whether an adapter's compiler is known to make the same of one expression in two kernels.
fn is_software() -> bool {
    Gpu::open(&EngineConfig::default()).unwrap().info.kind == AdapterKind::Software
}

fn check_company(kernels: Kernels) {
    if !is_software() {
        return;
    }
    let rig = Rig::new(kernels);
    let (alone, kv) = rig.in_company(1);
    let tokens: std::collections::BTreeSet<u32> =
        alone.iter().flat_map(|o| o.tokens.clone()).collect();
    assert!(tokens.len() > 3, "{kernels:?}: always the same tokens");
    for together in [2, 3, 4, 5, 8, 9, 16] {
        let (outputs, kv_then) = rig.in_company(together);
        let differs = outputs.iter().zip(&alone).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{kernels:?}, {together} columns: outputs");
        assert!(kv_then == kv, "{kernels:?}, {together} columns: KV");
    }
}

fn check_chunks(kernels: Kernels) {
    let rig = Rig::new(kernels);
    rig.forget();
    let len = 117;
    let whole = rig.prefill(1, len, len);
    let kv = rig.kv();
    assert!(kv.iter().all(|words| words.iter().any(|&w| w != 0)));
    for chunk in [1, 2, 7, 16, 17, 33, 64] {
        rig.forget();
        let outputs = rig.prefill(1, len, chunk);
        assert!(outputs == whole, "{kernels:?}, chunks of {chunk}: logits");
        assert!(rig.kv() == kv, "{kernels:?}, chunks of {chunk}: KV");
    }
}

#[test]
fn company_changes_nothing() {
    check_company(kernels(Shape::SMALL, "q4_1", Activations::Float, false));
}

#[test]
fn company_changes_nothing_in_super_blocks() {
    check_company(kernels(Shape::SMALL, "q4_k", Activations::Float, false));
}

#[test]
fn company_changes_nothing_in_f16() {
    check_company(kernels(Shape::TINY, "f16", Activations::Float, false));
}

#[test]
fn company_changes_nothing_in_int8() {
    check_company(kernels(Shape::SMALL, "q8_0", Activations::Int8, false));
}

#[test]
fn company_changes_nothing_to_the_kernels_of_gpus() {
    check_company(kernels(Shape::TINY, "q4_0", Activations::Int8, true));
}

#[test]
fn cuts_of_a_prompt_change_nothing() {
    check_chunks(kernels(Shape::SMALL, "q4_1", Activations::Float, false));
    check_chunks(kernels(Shape::TINY, "q4_1", Activations::Int8, false));
}

#[test]
fn cuts_of_a_prompt_change_nothing_to_the_kernels_of_gpus() {
    // By cooperative matrices, where there are some.
    check_chunks(kernels(Shape::SMALL, "q4_1", Activations::Auto, true));
    check_chunks(kernels(Shape::SMALL, "q4_0", Activations::Int8, true));
}
