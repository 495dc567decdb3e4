//! The one thread that owns the GPU: takes commands, runs the warm model, and sleeps when there is
//! nothing to do.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::allowance::Allowance;
use crate::chat_template::ChatTemplate;
use crate::engine::{LoadProgress, LoadedModel, Shared};
use crate::error::LoadError;
use crate::event::{EventSink, FinishReason};
use crate::format::Gguf;
use crate::gpu::{Gpu, OutOfMemory};
use crate::kv_cache::BLOCK_LEN;
use crate::model::{Forward, ForwardLimits, ModelConfig, WeightSource};
use crate::prefill_pace::prefill_chunk;
use crate::queue::QueuePlace;
use crate::request::{EngineConfig, GenerateRequest};
use crate::running::Running;
use crate::sequence::Sequence;
use crate::tokenizer::Tokenizer;
use crate::usage::Usage;

/// How often a reader that stalls is looked at while nothing else goes on.
const STALL_POLL: Duration = Duration::from_millis(20);
/// How often callers that went away are looked for while nothing may run.
const WAITING_POLL: Duration = Duration::from_secs(1);
/// Most KV memory taken without being told for eight sequences of full context,
const KV_BYTES_FOR_EIGHT_MAX: u64 = 256 << 20;
/// for two,
const KV_BYTES_FOR_TWO_MAX: u64 = 1 << 30;
/// and for one.
const KV_BYTES_FOR_ONE_MAX: u64 = 2 << 30;

/// What the engine's thread is told.
pub(crate) enum Command {
    /// Load a model in the place of the present one.
    Load {
        path: PathBuf,
        progress: Sender<LoadProgress>,
        cancelled: Arc<AtomicBool>,
        reply: Sender<Result<Arc<LoadedModel>, LoadError>>,
    },
    /// Free the present model.
    Unload { reply: Sender<bool> },
    /// Run a request that was checked against `model` and `context_len`.
    Submit {
        request: Box<GenerateRequest>,
        model: Arc<LoadedModel>,
        context_len: u32,
        sink: Box<dyn EventSink>,
        place: QueuePlace,
    },
    /// Use no more than this.
    Allow(Allowance),
    /// Finish within `drain`, then stop.
    Shutdown { drain: Duration, reply: Sender<()> },
}

/// See the module.
pub(crate) struct EngineLoop {
    gpu: Gpu,
    config: EngineConfig,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    running: Option<Running>,
    allowance: Allowance,
    stopping: Option<(Instant, Sender<()>)>,
    /// The last turn found nothing to do: readers have to take their events first.
    stuck: bool,
}

impl EngineLoop {
    /// A loop without a model.
    pub(crate) fn new(
        gpu: Gpu,
        config: EngineConfig,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            gpu,
            config,
            commands,
            shared,
            running: None,
            allowance: Allowance::default(),
            stopping: None,
            stuck: false,
        }
    }

    /// Runs until shutdown, or until every handle is gone.
    pub(crate) fn run(mut self) {
        while self.take_commands() && !self.is_drained() {
            self.turn();
        }
        self.drop_model(FinishReason::Shutdown);
        if let Some((_, reply)) = self.stopping.take() {
            // The caller may have stopped waiting.
            let _ = reply.send(());
        }
    }

    fn turn(&mut self) {
        self.shared.set_busy_since(Some(Instant::now()));
        let Some(running) = &mut self.running else {
            return;
        };
        match running.turn(&self.gpu, &self.shared) {
            Ok(done) => self.stuck = !done,
            Err(error) => {
                tracing::error!(%error, "the GPU failed; the model is unloaded");
                self.shared.set_fault(error.to_string());
                self.drop_model(FinishReason::Fault);
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.stopping.as_ref().is_some_and(|(until, _)| {
            self.running.as_ref().is_none_or(Running::is_idle) || Instant::now() >= *until
        })
    }

    /// Takes the commands that wait; sleeps for one if there is no work. False: no handle is left.
    fn take_commands(&mut self) -> bool {
        let idle = self.running.as_ref().is_none_or(Running::is_idle) && self.stopping.is_none();
        if idle {
            self.shared.set_busy_since(None);
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(mpsc::RecvError) => return false,
            }
        } else if let Some(pause) = self.pause() {
            match self.commands.recv_timeout(pause) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// How long the thread may sleep though there are sequences: it rests between steps, or readers have
    /// to take their events first, or nothing that waits may run now.
    fn pause(&self) -> Option<Duration> {
        let running = self.running.as_ref()?;
        let now = Instant::now();
        match running.rest(now) {
            Some(rest) => Some(rest),
            None if !self.stuck => None,
            None if running.nobody_runs() => Some(running.next_deadline(now).min(WAITING_POLL)),
            None => Some(STALL_POLL),
        }
    }

    fn obey(&mut self, command: Command) {
        self.shared.set_busy_since(Some(Instant::now()));
        match command {
            Command::Load {
                path,
                progress,
                cancelled,
                reply,
            } => {
                let result = self.load(&path, &progress, &cancelled);
                let _ = reply.send(result);
            }
            Command::Unload { reply } => {
                let loaded = self.running.is_some();
                self.drop_model(FinishReason::Shutdown);
                let _ = reply.send(loaded);
            }
            Command::Submit {
                request,
                model,
                context_len,
                sink,
                place,
            } => self.submit(*request, &model, context_len, sink, place),
            Command::Allow(allowance) => {
                self.allowance = allowance;
                if let Some(running) = &mut self.running {
                    running.allow(allowance);
                }
            }
            Command::Shutdown { drain, reply } => {
                if let Some(running) = &mut self.running {
                    running.end_waiting(FinishReason::Shutdown);
                }
                self.stopping = Some((Instant::now() + drain, reply));
            }
        }
    }

    fn submit(
        &mut self,
        request: GenerateRequest,
        model: &Arc<LoadedModel>,
        context_len: u32,
        sink: Box<dyn EventSink>,
        place: QueuePlace,
    ) {
        match &mut self.running {
            Some(running) if Arc::ptr_eq(&running.model, model) && self.stopping.is_none() => {
                self.shared.update(|stats| stats.requests += 1);
                running.submit(request, context_len, sink, place, &self.shared);
                self.stuck = false;
            }
            // The model went away between the check and now.
            _ => {
                let model = Arc::clone(model);
                let mut sequence = Sequence::new(request, model, context_len, sink, place);
                sequence.end(FinishReason::Shutdown, None);
            }
        }
    }

    /// Ends all sequences and frees the model's GPU memory.
    fn drop_model(&mut self, reason: FinishReason) {
        self.shared.set_model(None);
        if let Some(mut running) = self.running.take() {
            running.end_all(reason);
            drop(running);
            // Buffers are freed when the GPU is done with them and the device is polled.
            if let Err(error) = self.gpu.wait(None) {
                tracing::warn!(%error, "while freeing the model");
            }
            self.shared.update(|stats| {
                stats.active_now = 0;
                stats.paused_now = 0;
                stats.kv_blocks_used_now = 0;
                stats.kv_blocks_cached_now = 0;
                stats.kv_blocks_total = 0;
            });
            self.shared.set_usage(Usage {
                apps: self.shared.accounts(),
                sequences: Vec::new(),
            });
        }
    }

    fn load(
        &mut self,
        path: &Path,
        progress: &Sender<LoadProgress>,
        cancelled: &AtomicBool,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        self.drop_model(FinishReason::Shutdown);
        self.gpu.check()?;
        let gguf = Gguf::open(path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let chat_template = ChatTemplate::from_gguf(&gguf)?;
        let limits = limits(&self.gpu, &self.config, &config);
        let total_bytes: u64 = gguf.tensors().iter().map(|t| t.bytes).sum();
        let mut report = |done_bytes| {
            // Nobody may be listening to the progress any more; the flag alone cancels.
            let _ = progress.send(LoadProgress {
                done_bytes,
                total_bytes,
            });
            !cancelled.load(Ordering::Relaxed)
        };
        let load = || {
            Forward::load(
                &self.gpu,
                WeightSource::File(&gguf),
                &config,
                limits.clone(),
                &self.config,
                &mut report,
            )
        };
        let forward = match self.gpu.allocating(load) {
            Ok(forward) => forward?,
            Err(OutOfMemory) => {
                let needed_bytes = total_bytes + limits.kv_bytes(&config);
                return Err(LoadError::OutOfMemory { needed_bytes });
            }
        };
        let chunk = prefill_chunk(&self.gpu, &forward, &config, self.config.prefill_chunk)?;
        self.gpu.check()?;
        let model = Arc::new(LoadedModel {
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
        self.shared
            .update(|stats| stats.kv_blocks_total = limits.kv_blocks);
        let mut running = Running::new(Arc::clone(&model), forward, &self.config);
        running.allow(self.allowance);
        self.running = Some(running);
        self.shared.set_model(Some(Arc::clone(&model)));
        Ok(model)
    }
}

/// Sizes for this model on this adapter under this configuration.
pub(crate) fn limits(gpu: &Gpu, engine: &EngineConfig, model: &ModelConfig) -> ForwardLimits {
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
    let blocks = wanted.min(gpu.info.binding_bytes_max / block_bytes).max(1);
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
