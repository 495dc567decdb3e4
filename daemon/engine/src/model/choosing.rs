//! Settles which kernels a loaded model takes: from the cache, by measuring, and around what the driver
//! refuses.

use std::time::{Duration, Instant};

use hearth_shaders::{ActivationFormat, Epilogue};
use serde::Serialize;

use super::ModelConfig;
use super::choices::{Choices, Cut, Mapping};
use super::forward::{
    Builder, ForwardLimits, Layer, LayerFormats, Pass, head_product, layer_products, short_widths,
};
use super::recorder::{Product, Recorder, Width};
use super::scratch::Scratch;
use super::step::{Column, StepInput};
use super::tuning::{Bench, Stored, Track, Trial};
use super::tuning_cache::TuningCache;
use super::weights::Matrix;
use crate::engine::AdapterKind;
use crate::error::EngineError;
use crate::gpu::{self, Buffer, Extent, Gpu, Pipelines, Recording};
use crate::request::{EngineConfig, Tuning};

/// Weights that a timed run reads, within
const RUN_BYTES: u64 = 1 << 30;
/// so few matrices and
const RUN_MATRICES_MIN: u64 = 6;
/// so many.
const RUN_MATRICES_MAX: u64 = 48;

/// A matrix product of the model and how it is cut.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChosenKernel {
    /// Kernel, and the matrix's rows and columns.
    pub product: String,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Threads that share a row pair.
    pub lanes: u32,
    /// Row pairs that a run of threads does, one after the other.
    pub passes: u32,
    /// Whether a single column is normed by the product itself.
    pub own_norm: bool,
    /// Measured at this load, and not taken from the cache.
    pub measured: bool,
    /// Time by the time of the first guess, if measured.
    pub share_of_guess: Option<f64>,
}

impl ChosenKernel {
    fn new(product: &str, cut: Cut, share_of_guess: Option<f64>) -> Self {
        Self {
            product: product.to_owned(),
            threads: cut.plan.threads,
            lanes: cut.plan.lanes,
            passes: cut.plan.passes,
            own_norm: cut.own_norm,
            measured: share_of_guess.is_some(),
            share_of_guess,
        }
    }
}

/// The weights that passes are recorded over.
pub(super) struct Weights<'a> {
    pub(super) embedding: &'a Matrix,
    pub(super) layers: &'a [Layer],
    pub(super) final_norm: &'a Buffer,
    pub(super) head: &'a Matrix,
}

/// All recordings of a model.
pub(super) struct Passes {
    pub(super) long: Pass,
    pub(super) short: Vec<(u32, Pass)>,
    pub(super) sample: Recording,
}

impl Builder<'_> {
    /// Records every pass.
    pub(super) fn passes(&mut self, weights: &Weights<'_>) -> Result<Passes, EngineError> {
        self.persist(|builder| {
            let long = builder.pass(Width::Long, weights)?;
            let short = short_widths(builder.gpu)
                .into_iter()
                .map(|columns| Ok((columns, builder.pass(Width::Short(columns), weights)?)))
                .collect::<Result<Vec<_>, EngineError>>()?;
            Ok(Passes {
                long,
                short,
                sample: builder.sampling()?,
            })
        })
    }

    fn pass(&mut self, width: Width, weights: &Weights<'_>) -> Result<Pass, EngineError> {
        Ok(Pass {
            body: self.body(width, weights.embedding, weights.layers)?,
            head: self.head(width, weights.final_norm, weights.head)?,
        })
    }

    /// Records again from the start after each refusal, with the next kernel of its chain, so that one
    /// choice holds for all widths and layers.
    fn persist<T>(
        &mut self,
        record: impl Fn(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        loop {
            self.any_int8 = false;
            match record(self) {
                Err(error @ EngineError::KernelRefused { .. }) => {
                    let refused = self.pipelines.take_refused();
                    let goes_on =
                        refused.is_some_and(|(k, o)| self.choices.refuse(self.gpu, k, &o));
                    if !goes_on {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Takes the products' cuts from the cache, and measures those that it does not have.
    ///
    /// # Errors
    /// The device failed, or the driver refuses a kernel and all that could take its place.
    pub(super) fn choose(
        &mut self,
        engine: &EngineConfig,
        weights: &Weights<'_>,
    ) -> Result<Vec<ChosenKernel>, EngineError> {
        if self.gpu.info.kind == AdapterKind::Software || engine.tuning == Tuning::Off {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let mut cache = engine
            .cache_dir
            .as_deref()
            .map(|dir| TuningCache::open(dir, &self.gpu.info));
        let known = cache.as_ref().filter(|_| !engine.retune);
        let mut chosen = self.with_tuner(weights, |tuner, subjects| {
            tuner.recall(subjects, known);
            Ok(tuner.chosen.split_off(0))
        })?;
        if !self.with_tuner(weights, |tuner, subjects| Ok(tuner.knows(subjects)))? {
            // Which formats run is known once every kernel of a step has compiled.
            let step = self.persist(|builder| builder.pass(Width::Short(1), weights))?;
            let measured = self.with_tuner(weights, |tuner, subjects| {
                tuner.measure(subjects, &step, weights.layers, engine.tuning_budget)
            })?;
            chosen.extend(measured);
            let millis = started.elapsed().as_millis();
            tracing::info!("kernels tuned in {millis} ms");
            if let Some(cache) = &mut cache {
                remember(cache, &chosen);
            }
        } else {
            tracing::info!("kernel choices from the cache");
        }
        Ok(chosen)
    }

    fn with_tuner<T>(
        &mut self,
        weights: &Weights<'_>,
        work: impl FnOnce(&mut Tuner<'_>, &[Subject<'_>]) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let formats: Vec<LayerFormats> = weights
            .layers
            .iter()
            .map(|l| LayerFormats {
                qkv: self.format(&l.qkv),
                output: self.format(&l.output),
                gate_up: self.format(&l.gate_up),
                down: self.format(&l.down),
            })
            .collect();
        let head_format = self.format(weights.head);
        let (scratch, config) = (&self.scratch, self.config);
        let layers = weights.layers.iter().zip(&formats);
        let products = layers
            .flat_map(|(layer, format)| layer_products(scratch, config, layer, format))
            .chain([head_product(
                scratch,
                config,
                weights.final_norm,
                weights.head,
                head_format,
            )]);
        let mut subjects: Vec<Subject<'_>> = Vec::new();
        for product in products {
            let name = product.name();
            match subjects.iter_mut().find(|s| s.name == name) {
                Some(subject) => subject.products.push(product),
                None => subjects.push(Subject {
                    name,
                    products: vec![product],
                }),
            }
        }
        let mut tuner = Tuner {
            gpu: self.gpu,
            config,
            scratch,
            limits: &self.limits,
            pipelines: &mut self.pipelines,
            choices: &mut self.choices,
            chosen: Vec::new(),
        };
        work(&mut tuner, &subjects)
    }
}

fn remember(cache: &mut TuningCache, chosen: &[ChosenKernel]) {
    let entries = chosen.iter().map(|c| {
        let plan = super::plan::GemvPlan {
            threads: c.threads,
            lanes: c.lanes,
            passes: c.passes,
        };
        let own_norm = c.own_norm;
        (c.product.as_str(), Cut { plan, own_norm })
    });
    if let Err(error) = cache.store(entries) {
        tracing::warn!(%error, "kernel choices cannot be remembered");
    }
}

/// Products that are tuned as one: the same kernel and sizes, of several layers.
struct Subject<'a> {
    name: String,
    products: Vec<Product<'a>>,
}

/// What choosing works with.
struct Tuner<'a> {
    gpu: &'a Gpu,
    config: &'a ModelConfig,
    scratch: &'a Scratch,
    limits: &'a ForwardLimits,
    pipelines: &'a mut Pipelines,
    choices: &'a mut Choices,
    chosen: Vec<ChosenKernel>,
}

impl Tuner<'_> {
    /// Takes over what the cache has, as far as this engine still knows it.
    fn recall(&mut self, subjects: &[Subject<'_>], cache: Option<&TuningCache>) {
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

    fn knows(&self, subjects: &[Subject<'_>]) -> bool {
        subjects.iter().all(|s| self.choices.tuned(&s.name))
    }

    /// Races the cuts of each product that has none yet, those that read most first.
    fn measure(
        &mut self,
        subjects: &[Subject<'_>],
        step: &Pass,
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
        let way = self.choices.short(self.gpu, &subject.products[0]);
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
        let result = |i: usize, values: u32, stored: Stored| {
            let buffer: &Buffer = product.targets[i];
            (buffer.clone(), stored.bytes(values), stored)
        };
        let c = self.config;
        match product.epilogue {
            Epilogue::Store => vec![result(0, product.matrix.rows, Stored::Floats)],
            Epilogue::Residual => vec![result(0, c.hidden_dim, Stored::Floats)],
            Epilogue::Glu(ActivationFormat::Float) => vec![result(0, c.ffn_dim, Stored::Floats)],
            Epilogue::Glu(ActivationFormat::Int8) => vec![result(0, c.ffn_dim, Stored::Int8)],
            Epilogue::Glu(ActivationFormat::Half) => vec![result(0, c.ffn_dim, Stored::Halves)],
            Epilogue::Qkv => {
                // The block that `run_step` names.
                let block = c.n_kv_heads * self.limits.block_len * c.head_dim;
                vec![
                    result(0, c.n_heads * c.head_dim, Stored::Floats),
                    result(1, block, Stored::Halves),
                    result(2, block, Stored::Halves),
                ]
            }
        }
    }

    /// Runs a step of one column, so that every product has a sound input; returns the residual stream
    /// at its end.
    fn run_step(&self, step: &Pass) -> Buffer {
        let input = StepInput {
            columns: vec![Column {
                token: 0,
                position: 0,
                table: 0,
                slot: 0,
            }],
            tables: vec![0],
            output_first: 0,
            outputs: 1,
            ring: 0,
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
