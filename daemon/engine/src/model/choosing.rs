//! Settles which kernels a loaded model takes: from the cache, by measuring, and around what the driver
//! refuses.

use std::time::Instant;

use serde::Serialize;

use super::choices::Cut;
use super::forward::{
    Builder, Layer, LayerFormats, ShortPass, head_product, layer_products, short_widths,
};
use super::recorder::Width;
use super::tuner::{Subject, Tuner};
use super::tuning_cache::TuningCache;
use super::weights::Matrix;
use crate::engine::AdapterKind;
use crate::error::EngineError;
use crate::gpu::{Buffer, Recording};
use crate::request::{EngineConfig, Tuning};

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
    pub(super) fn new(product: &str, cut: Cut, share_of_guess: Option<f64>) -> Self {
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
    pub(super) long: Recording,
    pub(super) short: Vec<ShortPass>,
    pub(super) sample: Recording,
}

impl Builder<'_> {
    /// Records every pass.
    pub(super) fn passes(&mut self, weights: &Weights<'_>) -> Result<Passes, EngineError> {
        self.persist(|builder| {
            let long = builder.body(Width::Long, weights.embedding, weights.layers)?;
            let short = short_widths(builder.gpu)
                .into_iter()
                .map(|most| builder.short(most, weights))
                .collect::<Result<Vec<_>, EngineError>>()?;
            Ok(Passes {
                long,
                short,
                sample: builder.sampling()?,
            })
        })
    }

    fn short(&mut self, most: u32, weights: &Weights<'_>) -> Result<ShortPass, EngineError> {
        let width = Width::Short(most);
        Ok(ShortPass {
            most,
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
        let cache = engine
            .cache_dir
            .as_deref()
            .map(|dir| TuningCache::open(dir, &self.gpu.info));
        let settled = engine.settled_kernels.as_deref();
        let settled = settled.map(|chosen| TuningCache::of(&self.gpu.info, &cuts(chosen)));
        let known = settled
            .as_ref()
            .or(cache.as_ref().filter(|_| !engine.retune));
        let mut chosen = self.with_tuner(weights, |tuner, subjects| {
            tuner.recall(subjects, known);
            Ok(tuner.chosen.split_off(0))
        })?;
        let known_all = self.with_tuner(weights, |tuner, subjects| Ok(tuner.knows(subjects)))?;
        if settled.is_none() && !known_all {
            // Which formats run is known once every kernel of a step has compiled.
            let step = self.persist(|builder| builder.short(1, weights))?;
            chosen = self.with_tuner(weights, |tuner, subjects| {
                tuner.recall(subjects, known);
                Ok(tuner.chosen.split_off(0))
            })?;
            let measured = self.with_tuner(weights, |tuner, subjects| {
                tuner.measure(subjects, &step, weights.layers, engine.tuning_budget)
            })?;
            chosen.extend(measured);
            let millis = started.elapsed().as_millis();
            tracing::info!("kernels tuned in {millis} ms");
            if let Some(mut cache) = cache {
                remember(&mut cache, &chosen);
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

fn cuts(chosen: &[ChosenKernel]) -> Vec<(&str, Cut)> {
    let cut = |c: &ChosenKernel| Cut {
        plan: super::plan::GemvPlan {
            threads: c.threads,
            lanes: c.lanes,
            passes: c.passes,
        },
        own_norm: c.own_norm,
    };
    chosen
        .iter()
        .map(|c| (c.product.as_str(), cut(c)))
        .collect()
}

fn remember(cache: &mut TuningCache, chosen: &[ChosenKernel]) {
    if let Err(error) = cache.store(cuts(chosen).into_iter()) {
        tracing::warn!(%error, "kernel choices cannot be remembered");
    }
}
