//! Brings a model onto the GPU: from its file for the first time, and from the same file again.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use super::EngineLoop;
use super::recovery::Away;
use crate::chat_template::ChatTemplate;
use crate::condition::Condition;
use crate::engine::{AdapterInfo, LoadProgress, LoadedModel};
use crate::error::{EngineError, LoadError};
use crate::format::{Checkpoint, FormatError, ModelFiles};
use crate::gpu::OutOfMemory;
use crate::kv_cache::BLOCK_LEN;
use crate::limits::{KV_TOKENS_MIN, LOAD_TRIES_MAX};
use crate::model::{Canary, Forward, ForwardLimits, ModelConfig, WeightSource};
use crate::prefill_pace::prefill_chunk;
use crate::request::EngineConfig;
use crate::running::Running;
use crate::survival::Verdict;
use crate::tokenizer::Tokenizer;

/// Most KV memory taken without being told for eight sequences of full context,
const KV_BYTES_FOR_EIGHT_MAX: u64 = 256 << 20;
/// for two,
const KV_BYTES_FOR_TWO_MAX: u64 = 1 << 30;
/// and for one.
const KV_BYTES_FOR_ONE_MAX: u64 = 2 << 30;
/// How often a load that waits for the device looks whether it is still wanted.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// Where a warm model came from, and what must be the same when it is loaded again.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) files: ModelFiles,
    pub(super) marks: Vec<FileMark>,
    /// Sizes that it was built for; less KV if memory was short later.
    pub(super) limits: ForwardLimits,
    pub(super) canary: Canary,
}

/// What tells a file from another one at the same place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMark {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are such.
    node: Option<(u64, u64)>,
}

impl FileMark {
    fn of(file: &File) -> std::io::Result<Self> {
        let facts = file.metadata()?;
        #[cfg(unix)]
        let node = {
            use std::os::unix::fs::MetadataExt as _;
            Some((facts.dev(), facts.ino()))
        };
        #[cfg(not(unix))]
        let node = None;
        Ok(Self {
            bytes: facts.len(),
            modified: facts.modified().ok(),
            node,
        })
    }
}

/// Opens a model's files.
pub(super) fn open_files(files: &ModelFiles) -> Result<(Checkpoint, Vec<FileMark>), FormatError> {
    let checkpoint = Checkpoint::open(files)?;
    let marks = checkpoint
        .files()
        .iter()
        .map(FileMark::of)
        .collect::<Result<_, _>>();
    match marks {
        Ok(marks) => Ok((checkpoint, marks)),
        Err(source) => Err(FormatError::Io {
            what: "the model's files".to_owned(),
            source,
        }),
    }
}

/// A load's caller: hears of its progress, and can cancel it.
pub(super) struct Watcher<'a> {
    pub(super) progress: &'a Sender<LoadProgress>,
    pub(super) cancelled: &'a AtomicBool,
}

impl Watcher<'_> {
    fn is_gone(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl EngineLoop {
    pub(super) fn load(
        &mut self,
        files: &ModelFiles,
        progress: &Sender<LoadProgress>,
        cancelled: &AtomicBool,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        let watcher = Watcher {
            progress,
            cancelled,
        };
        if self.models.is_empty() {
            // Somebody wants it tried anew.
            self.survival.forget();
            self.set_careful(false);
            self.shared.set_condition(Condition::Well);
        } else if let Some(away) = self.away {
            match away {
                Away::Suspended => self.bring_back(&watcher)?,
                Away::Lost { .. } => self.rebuild(),
            }
            if self.away.is_some() {
                let problem = "it is lost, and what was on it comes first".to_owned();
                return Err(EngineError::Device(problem).into());
            }
        }
        let (checkpoint, marks) = open_files(files)?;
        let config = ModelConfig::of(&checkpoint)?;
        let tokenizer = Tokenizer::of(&checkpoint)?;
        let chat_template = ChatTemplate::of(&checkpoint)?;
        let engine = self.config.clone();
        let wanted = limits(&self.open()?.info, &engine, &config);
        let floor = match self.models.is_empty() {
            true => KV_TOKENS_MIN.min(wanted.context_len),
            // Whoever loads it beside others can have one of them make room.
            false => u32::MAX,
        };
        let (forward, canary, chunk) =
            self.bring_up_patiently(&checkpoint, &config, (wanted, floor), &engine, &watcher)?;
        let limits = forward.limits().clone();
        self.loaded += 1;
        let model = Arc::new(LoadedModel {
            id: self.loaded,
            tokenizer,
            chat_template,
            context_len: limits.context_len,
            prefill_chunk: chunk,
            activations: forward.activations,
            weights_bytes: forward.weights_bytes,
            kv_bytes: forward.kv_bytes(),
            scratch_bytes: forward.scratch.bytes(),
            chosen_kernels: forward.chosen.clone(),
            refused_kernels: forward.refused.clone(),
            config,
        });
        tracing::info!(
            name = %model.config.name,
            weights_bytes = model.weights_bytes,
            kv_bytes = model.kv_bytes,
            context_len = model.context_len,
            "model loaded"
        );
        let origin = Origin {
            files: files.clone(),
            marks,
            limits,
            canary,
        };
        let energy = self.energy.clone();
        let running = Running::new(Arc::clone(&model), forward, &self.config, energy);
        self.models.add(running, origin);
        Ok(model)
    }

    /// A pass over the weights with its canary and prefill chunk; where the device is lost meanwhile it is
    /// tried again.
    fn bring_up_patiently(
        &mut self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        (wanted, floor): (ForwardLimits, u32),
        engine: &EngineConfig,
        watcher: &Watcher<'_>,
    ) -> Result<(Forward, Canary, u32), LoadError> {
        let mut tries = 0;
        loop {
            let loaded = self
                .bring_up(checkpoint, config, (wanted.clone(), floor), engine, watcher)
                .and_then(|forward| self.prove(forward, config));
            let Err(LoadError::Engine(error @ EngineError::Device(_))) = loaded else {
                return loaded;
            };
            if !self.models.is_empty() {
                // The others come back first, by themselves.
                if self.is_at_work() {
                    self.lost(&error);
                }
                return Err(error.into());
            }
            self.close(());
            tries += 1;
            match self.survival.failed(Instant::now()) {
                Verdict::Again(delay) if tries < LOAD_TRIES_MAX => wait(delay, watcher)?,
                _ => return Err(error.into()),
            }
        }
    }

    /// A fresh pass's canary and prefill chunk.
    fn prove(
        &mut self,
        forward: Forward,
        config: &ModelConfig,
    ) -> Result<(Forward, Canary, u32), LoadError> {
        let most = self.config.prefill_chunk;
        self.open()?;
        let Some(gpu) = &self.gpu else {
            unreachable!("it was opened just now");
        };
        // What is timed is not to wait for the steps of others.
        self.models.finish(gpu)?;
        super::recovery::sound(move || {
            let chunk = prefill_chunk(gpu, &forward, config, most)?;
            let canary = Canary::compute(gpu, &forward, config, 0)?;
            forward.clear_blocks(gpu, config, &[0]);
            gpu.wait(None)?;
            Ok((forward, canary, chunk))
        })?
    }

    /// Loads the weights and records the passes. If memory is short, the KV cache is halved until it
    /// holds no more than `floor` tokens.
    fn bring_up(
        &mut self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        (mut limits, floor): (ForwardLimits, u32),
        engine: &EngineConfig,
        watcher: &Watcher<'_>,
    ) -> Result<Forward, LoadError> {
        loop {
            let loaded = self.try_up(checkpoint, config, limits.clone(), engine, watcher);
            let Err(refused @ LoadError::OutOfMemory { .. }) = loaded else {
                return loaded;
            };
            // Whatever the attempt has taken goes before the next.
            self.give_room();
            let kv_bytes = limits.kv_bytes(config);
            let Some(smaller) = smaller(&limits, floor) else {
                return Err(refused);
            };
            limits = smaller;
            tracing::warn!(
                kv_bytes,
                kv_bytes_next = limits.kv_bytes(config),
                "GPU memory is short: trying a smaller KV cache"
            );
        }
    }

    /// Gives back what a load left that did not find room: the device itself, unless models are at work on
    /// it. These survive the load's want of memory, and if the device does not, they come back.
    fn give_room(&mut self) {
        if !self.is_at_work() {
            self.close(());
            return;
        }
        let Some(gpu) = &self.gpu else { return };
        if let Err(error) = gpu.wait(None) {
            self.leave_device(&error, false);
        }
        crate::memory::give_back();
    }

    /// One attempt. Models at work go on meanwhile.
    pub(super) fn try_up(
        &mut self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        limits: ForwardLimits,
        engine: &EngineConfig,
        watcher: &Watcher<'_>,
    ) -> Result<Forward, LoadError> {
        let total_bytes: u64 = checkpoint.tensors().iter().map(|t| t.bytes).sum();
        let needed_bytes = total_bytes + limits.kv_bytes(config);
        self.open()?;
        let others = self.is_at_work() && !self.quiet;
        let Some(gpu) = &self.gpu else {
            unreachable!("it was opened just now");
        };
        let (models, inbox, shared) = (&mut self.models, &mut self.inbox, &self.shared);
        let mut trouble = None;
        let mut report = |done_bytes| {
            shared.set_busy_since(Some(Instant::now()));
            // Nobody may be listening to the progress any more; the flag alone cancels.
            let _ = watcher.progress.send(LoadProgress {
                done_bytes,
                total_bytes,
            });
            if others {
                let turn = super::recovery::sound(|| {
                    inbox.serve(models);
                    models.turn(gpu)
                });
                trouble = match turn {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some((error, false)),
                    Err(panicked) => Some((panicked, true)),
                };
            }
            !watcher.is_gone() && trouble.is_none()
        };
        let load = || {
            let source = WeightSource::File(checkpoint);
            Forward::load(gpu, source, config, limits, engine, &mut report)
        };
        let loaded = super::recovery::sound(|| gpu.allocating(load));
        if let Some((error, panicked)) = trouble {
            if panicked {
                self.panicked();
            }
            return Err(error.into());
        }
        let granted_bytes = match loaded {
            Ok(Ok(Ok(forward))) => {
                gpu.check()?;
                return Ok(forward);
            }
            Ok(Err(OutOfMemory { granted_bytes })) => granted_bytes,
            Ok(Ok(Err(LoadError::OutOfMemory { granted_bytes, .. }))) => granted_bytes,
            Ok(Ok(Err(_))) | Err(_) if gpu.is_out_of_memory() => None,
            Ok(Ok(Err(error))) => return Err(error),
            Err(error) => return Err(error.into()),
        };
        Err(LoadError::OutOfMemory {
            needed_bytes,
            granted_bytes,
        })
    }
}

/// Waits, as long as the load is wanted.
fn wait(delay: Duration, watcher: &Watcher<'_>) -> Result<(), LoadError> {
    let until = Instant::now() + delay;
    loop {
        if watcher.is_gone() {
            return Err(LoadError::Cancelled);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(CANCEL_POLL));
    }
}

/// The same with half the KV cache, but no less than `floor` tokens of it; `None`: it has no more.
pub(super) fn smaller(limits: &ForwardLimits, floor: u32) -> Option<ForwardLimits> {
    let least = floor.div_ceil(BLOCK_LEN).max(1);
    let kv_blocks = (limits.kv_blocks / 2).max(least);
    (kv_blocks < limits.kv_blocks).then(|| {
        let context_len = limits.context_len.min(kv_blocks.saturating_mul(BLOCK_LEN));
        ForwardLimits {
            kv_blocks,
            ..limits.clone()
        }
        .with_context(context_len)
    })
}

/// Sizes for this model on this adapter under this configuration.
pub(crate) fn limits(
    adapter: &AdapterInfo,
    engine: &EngineConfig,
    model: &ModelConfig,
) -> ForwardLimits {
    let block_bytes = ForwardLimits::kv_block_bytes(model, BLOCK_LEN);
    let layer_bytes = 2 * block_bytes * u64::from(model.n_layers);
    let context = model.context_len.min(engine.context_len_max).max(1);
    let context_blocks = u64::from(context.div_ceil(BLOCK_LEN));
    let wanted = match engine.kv_bytes_max {
        Some(bytes) => bytes / layer_bytes,
        None => {
            let most =
                |contexts: u64, bytes: u64| (contexts * context_blocks).min(bytes / layer_bytes);
            most(8, KV_BYTES_FOR_EIGHT_MAX)
                .max(most(2, KV_BYTES_FOR_TWO_MAX))
                .max(most(1, KV_BYTES_FOR_ONE_MAX))
        }
    };
    let blocks = wanted.min(adapter.binding_bytes_max / block_bytes).max(1);
    let kv_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    ForwardLimits {
        columns_max: engine.prefill_chunk.max(1),
        context_len: 0,
        splits_max: 0,
        slots: engine.slots.max(1),
        kv_blocks,
        block_len: BLOCK_LEN,
    }
    .with_context(context.min(kv_blocks.saturating_mul(BLOCK_LEN)))
}
