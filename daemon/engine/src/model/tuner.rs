//! Chooses how a model's decode products are cut: which products there are, what they are raced on,
//! and what the races leave.

use std::time::{Duration, Instant};

use hearth_shaders::{ActivationFormat, Epilogue};

use super::ModelConfig;
use super::choices::{Choices, Cut, Mapping};
use super::choosing::ChosenKernel;
use super::forward::{ForwardLimits, Layer, ShortPass};
use super::recorder::{Product, Recorder, Width};
use super::scratch::Scratch;
use super::step::{Column, StepInput};
use super::tuning::{Bench, Stored, Track, Trial};
use super::tuning_cache::TuningCache;
use crate::error::EngineError;
use crate::gpu::{self, Bound, Buffer, Extent, Gpu, Pipelines, Recording};

/// Weights that a timed run reads, within
const RUN_BYTES: u64 = 1 << 30;
/// so few matrices and
const RUN_MATRICES_MIN: u64 = 6;
/// so many.
const RUN_MATRICES_MAX: u64 = 48;

/// Products that are tuned as one: the same kernel and sizes, of several layers.
pub(super) struct Subject<'a> {
    pub(super) name: String,
    pub(super) products: Vec<Product<'a>>,
}

/// What choosing works with.
pub(super) struct Tuner<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) config: &'a ModelConfig,
    pub(super) scratch: &'a Scratch,
    pub(super) limits: &'a ForwardLimits,
    pub(super) pipelines: &'a mut Pipelines,
    pub(super) choices: &'a mut Choices,
    pub(super) chosen: Vec<ChosenKernel>,
}

impl Tuner<'_> {
    /// Takes over what the cache has, as far as this engine still knows it.
    pub(super) fn recall(&mut self, subjects: &[Subject<'_>], cache: Option<&TuningCache>) {
        for subject in subjects {
            let known = cache.and_then(|cache| cache.get(&subject.name));
            let cuts = self.choices.cuts(self.gpu, &subject.products[0]);
            if let Some(cut) = known.filter(|cut| cuts.contains(cut)) {
                self.choices.tune(&subject.name, Some(cut));
                self.chosen
                    .push(ChosenKernel::new(&subject.name, cut, None));
            }
        }
    }

    pub(super) fn knows(&self, subjects: &[Subject<'_>]) -> bool {
        subjects.iter().all(|s| self.choices.tuned(&s.name))
    }

    /// Races the cuts of each product that has none yet, those that read most first.
    pub(super) fn measure(
        &mut self,
        subjects: &[Subject<'_>],
        step: &ShortPass,
        layers: &[Layer],
        budget: Duration,
    ) -> Result<Vec<ChosenKernel>, EngineError> {
        let started = Instant::now();
        let mut subjects: Vec<&Subject<'_>> = subjects
            .iter()
            .filter(|s| !self.choices.tuned(&s.name))
            .collect();
        subjects.sort_by_key(|s| {
            std::cmp::Reverse(s.products.iter().map(|p| p.matrix.bytes).sum::<u64>())
        });
        let before = self.run_step(step);
        let mut track = Track::new(self.gpu)?;
        for (n, subject) in subjects.iter().enumerate() {
            let left = budget.saturating_sub(started.elapsed());
            let share = left / u32::try_from(subjects.len() - n).unwrap_or(u32::MAX);
            self.race(&mut track, subject, &before, share)?;
        }
        self.forget_step(layers);
        self.gpu.wait(None)?;
        Ok(self.chosen.split_off(0))
    }

    fn race(
        &mut self,
        track: &mut Track<'_>,
        subject: &Subject<'_>,
        before: &Buffer,
        budget: Duration,
    ) -> Result<(), EngineError> {
        let product = &subject.products[0];
        let residual = product.epilogue == Epilogue::Residual;
        let bench = Bench {
            x: self.scratch.x.clone(),
            before: (!residual).then(|| before.clone()),
            results: self.results(product),
        };
        let cuts = self.choices.cuts(self.gpu, product);
        let outcome = track.race(&subject.name, &bench, &cuts, budget, |cut| {
            self.trial(subject, cut)
        })?;
        let cut = outcome.as_ref().map(|o| o.cut);
        self.choices.tune(&subject.name, cut);
        if let Some(o) = outcome {
            let share = o.seconds / o.guess_seconds;
            tracing::debug!(product = %subject.name, cut = ?o.cut, share, "tuned");
            self.chosen
                .push(ChosenKernel::new(&subject.name, o.cut, Some(share)));
        }
        Ok(())
    }

    /// `None`: the driver refuses it.
    fn trial(&mut self, subject: &Subject<'_>, cut: Cut) -> Result<Option<Trial>, EngineError> {
        self.choices.tune(&subject.name, Some(cut));
        let way = self.choices.short(self.gpu, &subject.products[0], 1);
        if way.mapping != Mapping::Runs || way.cut != cut {
            return Ok(None);
        }
        let bytes = subject.products[0].matrix.bytes.max(1);
        let count = (RUN_BYTES / bytes).clamp(RUN_MATRICES_MIN, RUN_MATRICES_MAX);
        let many = subject.products.iter().cycle();
        let many = many.take(usize::try_from(count).unwrap_or(1));
        let recorded = self
            .record(&subject.products[..1])
            .and_then(|once| Ok((once, self.record(many)?)));
        match recorded {
            Ok((once, many)) => Ok(Some(Trial { cut, once, many })),
            Err(error @ EngineError::KernelRefused { .. }) => match self.pipelines.take_refused() {
                Some((kernel, overrides)) => {
                    self.choices.refuse(self.gpu, kernel, &overrides);
                    Ok(None)
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    fn record<'p>(
        &mut self,
        products: impl IntoIterator<Item = &'p Product<'p>>,
    ) -> Result<Recording, EngineError> {
        let mut recorder = Recorder {
            gpu: self.gpu,
            pipelines: self.pipelines,
            choices: self.choices,
            config: self.config,
            scratch: self.scratch,
            block_len: self.limits.block_len,
            splits_max: self.limits.splits_max,
            width: Width::Short(1),
            cooperative_matrix: false,
            recording: Recording::default(),
        };
        for product in products {
            recorder.product(product)?;
        }
        Ok(recorder.recording)
    }

    /// What a product leaves of one column at position 0.
    fn results(&self, product: &Product<'_>) -> Vec<(Buffer, u64, Stored)> {
        // Software adapters alone keep activations in images, and they are not tuned.
        let result = |i: usize, values: u32, stored: Stored| match product.targets[i] {
            Bound::Buffer(buffer) => Some((buffer.clone(), stored.bytes(values), stored)),
            Bound::Image(_) => None,
        };
        let c = self.config;
        let results = match product.epilogue {
            Epilogue::Store => vec![result(0, product.matrix.rows, Stored::Floats)],
            Epilogue::Residual => vec![result(0, c.hidden_dim, Stored::Floats)],
            Epilogue::Glu(format) => {
                let stored = match format {
                    ActivationFormat::Int8 => Stored::Int8,
                    ActivationFormat::Half => Stored::Halves,
                    ActivationFormat::Float | ActivationFormat::FloatImage => Stored::Floats,
                };
                vec![result(0, c.ffn_dim, stored)]
            }
            Epilogue::Qkv => {
                // The block that `run_step` names.
                let block = c.n_kv_heads * self.limits.block_len * c.head_dim;
                vec![
                    result(0, c.n_heads * c.head_dim, Stored::Floats),
                    result(1, block, Stored::Halves),
                    result(2, block, Stored::Halves),
                ]
            }
        };
        results.into_iter().flatten().collect()
    }

    /// Runs a step of one column, so that every product has a sound input; returns the residual stream
    /// at its end.
    fn run_step(&self, step: &ShortPass) -> Buffer {
        let input = StepInput {
            columns: vec![Column {
                token: 0,
                position: 0,
                table: 0,
                slot: 0,
            }],
            tables: vec![0],
            outputs: 1,
            ..StepInput::default()
        };
        let words = input.words(0, &self.config.inverse_frequencies());
        let queue = &self.gpu.queue;
        queue.write_buffer(&self.scratch.step, 0, bytemuck::cast_slice(&words));
        let bytes = 4 * u64::from(self.config.hidden_dim);
        let before = gpu::storage(self.gpu, "x of a step", bytes);
        let extent = Extent {
            columns: 1,
            outputs: 1,
            splits: 1,
        };
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        step.body.encode(&mut encoder, extent);
        step.head.encode(&mut encoder, extent);
        encoder.copy_buffer_to_buffer(&self.scratch.x, 0, &before, 0, bytes);
        queue.submit([encoder.finish()]);
        before
    }

    /// Leaves the KV cache and the slots' histories as if there had been no step.
    fn forget_step(&self, layers: &[Layer]) {
        let block = ForwardLimits::kv_block_bytes(self.config, self.limits.block_len);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for buffer in layers.iter().flat_map(|l| [&l.k, &l.v]) {
            encoder.clear_buffer(buffer, 0, Some(block));
        }
        encoder.clear_buffer(&self.scratch.history, 0, None);
        self.gpu.queue.submit([encoder.finish()]);
    }
}
