//! The facade: start an engine, load a model, submit requests, read its numbers.

mod shared;
mod standby;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::allowance::Allowance;
use crate::chat_template::ChatTemplate;
use crate::engine_loop::{Command, EngineLoop, Submission, limits};
use crate::error::{EngineError, LoadError, SubmitError};
use crate::event::EventSink;
use crate::format::ModelFiles;
use crate::gpu::Gpu;
use crate::limits::{LOGPROBS_TOP_MAX, STOP_TEXT_BYTES_MAX, STOP_TEXTS_MAX};
use crate::model::{ChosenKernel, ModelConfig};
use crate::request::{Activations, EngineConfig, GenerateRequest};
use crate::tokenizer::Tokenizer;
use crate::usage::Usage;

pub(crate) use self::shared::Shared;
pub use self::shared::{EngineStats, ModelStats};

/// What kind of adapter runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// Shares memory with the CPU.
    Integrated,
    /// Has memory of its own.
    Discrete,
    /// A virtual machine's.
    Virtual,
    /// A software rasteriser: correct, slow.
    Software,
    /// Unknown.
    Other,
}

/// The adapter in use.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// Name, as the driver gives it.
    pub name: String,
    /// Vendor's number on its bus, 0 where there is none.
    pub vendor_id: u32,
    /// Device's number at that vendor, 0 where there is none.
    pub device_id: u32,
    /// Driver and its version.
    pub driver: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Kind.
    pub kind: AdapterKind,
    /// Smallest subgroup size, or 0 where subgroup operations are not used.
    pub subgroup_size: u32,
    /// Binding limit in force, in bytes.
    pub binding_bytes_max: u64,
}

/// A warm model: everything that can be asked without the GPU.
pub struct LoadedModel {
    /// Its number, unlike any other's since the engine's start.
    pub id: u64,
    /// Architecture and sizes.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Longest context of a sequence here, in tokens.
    pub context_len: u32,
    /// Prompt tokens of a prefill step.
    pub prefill_chunk: u32,
    /// The activations that run, never `Auto`.
    pub activations: Activations,
    /// Bytes of GPU memory of weights, KV cache and scratch.
    pub weights_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of all other buffers.
    pub scratch_bytes: u64,
    /// How its matrix products are cut on this adapter, where that was chosen by measuring.
    pub chosen_kernels: Vec<ChosenKernel>,
    /// Descriptions of kernels that the driver refused and that others took the place of.
    pub refused_kernels: Vec<String>,
}

/// What a model's KV cache takes when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvNeed {
    /// Longest context of a sequence, in tokens.
    pub context_len: u32,
    /// Bytes of the KV cache, less if memory is short then.
    pub kv_bytes: u64,
}

impl KvNeed {
    /// That of `model` on `adapter` with these settings.
    pub fn of(adapter: &AdapterInfo, config: &EngineConfig, model: &ModelConfig) -> Self {
        let limits = limits(adapter, config, model);
        Self {
            context_len: limits.context_len,
            kv_bytes: limits.kv_bytes(model),
        }
    }
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    /// Bytes of weights in GPU memory.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A running engine. Dropping it stops its thread; streams still alive end with `Shutdown`.
pub struct Engine {
    adapter: AdapterInfo,
    queue_max: u32,
    app_queue_max: u32,
    commands: Mutex<Sender<Command>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Opens the adapter and starts the engine's thread. Blocks until the device is open.
    ///
    /// # Errors
    /// No adapter fits, it lacks something needed, or the driver failed.
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let (commands, inbox) = mpsc::channel();
        let (opened, open) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let (queue_max, app_queue_max) = (config.queue_max, config.app_queue_max);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || match Gpu::open(&config) {
                Ok(gpu) => {
                    if opened.send(Ok(gpu.info.clone())).is_ok() {
                        EngineLoop::new(gpu, config, inbox, theirs).run();
                    }
                }
                Err(error) => {
                    // The caller waits for just this.
                    let _ = opened.send(Err(error));
                }
            })
            .map_err(EngineError::Thread)?;
        let adapter = open.recv().map_err(|_| EngineError::Stopped)??;
        Ok(Self {
            adapter,
            queue_max,
            app_queue_max,
            commands: Mutex::new(commands),
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.adapter
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.send(command).map_err(|_| EngineError::Stopped)
    }

    /// Loads a model beside those that are loaded. Blocks; `progress` is called on the calling thread and
    /// cancels the load by returning false. Sequences of other models go on meanwhile; models that are away
    /// from the GPU are brought back first. The first model has its KV cache made smaller where memory is
    /// short; one beside others is loaded as a whole or not at all.
    ///
    /// # Errors
    /// See [`LoadError`]. After an error the models are loaded that were before.
    pub fn load(
        &self,
        files: &ModelFiles,
        progress: &mut dyn FnMut(LoadProgress) -> bool,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        self.watched(progress, |progress, cancelled, reply| Command::Load {
            files: files.clone(),
            progress,
            cancelled,
            reply,
        })
    }

    /// Unloads all models and frees their memory; sequences end with `Shutdown`. False: none was loaded.
    pub fn unload(&self) -> bool {
        self.unload_some(None)
    }

    /// Unloads one model and frees its memory; its sequences end with `Shutdown`. False: it was not loaded.
    pub fn unload_model(&self, model: &LoadedModel) -> bool {
        self.unload_some(Some(model.id))
    }

    fn unload_some(&self, model: Option<u64>) -> bool {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Unload { model, reply }).is_ok() && answer.recv().unwrap_or(false)
    }

    /// The models that are loaded, those loaded last at the end.
    pub fn models(&self) -> Vec<Arc<LoadedModel>> {
        self.shared.models()
    }

    /// The model that was loaded last.
    pub fn model(&self) -> Option<Arc<LoadedModel>> {
        self.shared.models().pop()
    }

    /// Longest context of a request of `model` that is submitted now, in tokens: the model's own, or
    /// less if less is allowed.
    pub fn context_len(&self, model: &LoadedModel) -> u32 {
        let allowed = self.shared.context_len_max.load(Ordering::Relaxed);
        model.context_len.min(allowed).max(1)
    }

    /// Queues one request to the model that was loaded last; see [`Engine::submit_to`].
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was queued then and the sink is dropped unused.
    pub fn submit(
        &self,
        request: GenerateRequest,
        sink: Box<dyn EventSink>,
    ) -> Result<u32, SubmitError> {
        let model = self.model().ok_or(SubmitError::NoModel)?;
        self.submit_to(&model, request, sink)
    }

    /// Queues one request to a model. Events go to `sink`, from the engine's thread, until `Event::End`.
    /// Returns how many requests are ahead of it, whatever their model.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was queued then and the sink is dropped unused.
    pub fn submit_to(
        &self,
        model: &Arc<LoadedModel>,
        request: GenerateRequest,
        sink: Box<dyn EventSink>,
    ) -> Result<u32, SubmitError> {
        if !self.models().iter().any(|loaded| loaded.id == model.id) {
            return Err(SubmitError::NoModel);
        }
        let model = Arc::clone(model);
        let context_len = self.context_len(&model);
        check(&request, &model, context_len)?;
        let app = &request.caller.app;
        let queue = &self.shared.queue;
        let (place, before) = queue.join(app, self.queue_max, self.app_queue_max)?;
        self.send(Command::Submit(Box::new(Submission {
            request,
            model,
            context_len,
            sink,
            place,
        })))
        .map_err(|_| SubmitError::Stopped)?;
        Ok(before)
    }

    /// Says what the engine may use from now on. Without a call it may use everything.
    pub fn allow(&self, allowance: Allowance) {
        self.shared
            .context_len_max
            .store(allowance.context_len_max, Ordering::Relaxed);
        // A stopped engine uses nothing anyway.
        let _ = self.send(Command::Allow(allowance));
    }

    /// The counters now, over all models.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// A model's part of what is so now; nothing if it is not loaded.
    pub fn stats_of(&self, model: &LoadedModel) -> ModelStats {
        self.shared.stats_of(model.id)
    }

    /// Since when the engine's thread is at its present turn or command; `None` while it sleeps. A
    /// thread that hangs in the driver shows by this. Loads are long commands, not hangs.
    pub fn busy_since(&self) -> Option<Instant> {
        self.shared.busy_since()
    }

    /// Who runs what now, as of at most a step ago.
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }

    /// Stops admitting, lets live sequences finish for at most `drain`, ends the rest with
    /// `Shutdown`, frees the GPU and joins the thread. Blocks. Later calls do nothing.
    pub fn shutdown(&self, drain: Duration) {
        let Some(thread) = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let (reply, answer) = mpsc::channel();
        if self.send(Command::Shutdown { drain, reply }).is_ok() {
            // An error means that the thread has ended, which is what is waited for.
            let _ = answer.recv();
        }
        if thread.join().is_err() {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// Checks a request against the model, the context that is allowed and the limits.
fn check(
    request: &GenerateRequest,
    model: &LoadedModel,
    context_len: u32,
) -> Result<(), SubmitError> {
    request.sampling.check()?;
    let vocab_size = model.config.vocab_size;
    if request.prompt.is_empty() {
        return Err(SubmitError::EmptyPrompt);
    }
    let bad = request.prompt.iter().position(|&id| id >= vocab_size);
    if let Some(position) = bad {
        let id = request.prompt[position];
        return Err(SubmitError::TokenOutOfRange {
            id,
            position,
            vocab_size,
        });
    }
    let prompt_tokens = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
    let wants_tokens = u32::from(request.max_tokens != Some(0));
    if prompt_tokens.saturating_add(wants_tokens) > context_len {
        return Err(SubmitError::ContextOverflow {
            prompt_tokens,
            context_len,
            model_context_len: model.context_len,
        });
    }
    let field = |field, problem: String| Err(SubmitError::Field { field, problem });
    if request.stop.len() > STOP_TEXTS_MAX {
        return field(
            "stop",
            format!("has {} texts, at most {STOP_TEXTS_MAX}", request.stop.len()),
        );
    }
    for stop in &request.stop {
        if stop.is_empty() || stop.len() > STOP_TEXT_BYTES_MAX {
            return field(
                "stop",
                format!(
                    "has a text of {} bytes; allowed are 1 to {STOP_TEXT_BYTES_MAX}",
                    stop.len()
                ),
            );
        }
    }
    if let Some(id) = request.stop_tokens.iter().find(|&&id| id >= vocab_size) {
        return field(
            "stop_tokens",
            format!("has {id}; the vocabulary has {vocab_size} tokens"),
        );
    }
    if let Some(top) = request.logprobs.filter(|&top| top > LOGPROBS_TOP_MAX) {
        return field("logprobs", format!("is {top}; at most {LOGPROBS_TOP_MAX}"));
    }
    Ok(())
}
