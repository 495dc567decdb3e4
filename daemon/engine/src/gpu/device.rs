//! Opens the adapter and the device, and remembers what the driver says went wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_shaders::{
    ActivationFormat, COOPERATIVE_BYTES, COOPERATIVE_SUBGROUP, COOPERATIVE_THREADS, Planes,
    Reduction,
};

use super::Timestamps;
use super::adapter::{self, Drivers, Identity};
use crate::engine::{AdapterInfo, AdapterKind};
use crate::error::EngineError;
use crate::limits::{GPU_WAIT_MAX, GPU_WAIT_SOFTWARE_MAX};
use crate::request::EngineConfig;

/// Storage buffers a kernel binds at most.
const STORAGE_BUFFERS_NEEDED: u32 = 8;
/// Kernels hand eight values round within a subgroup; smaller ones are not used.
const SUBGROUP_MIN: u32 = 8;
/// Workgroup memory, in bytes, that prefill attention by cooperative matrices uses.
const COOPERATIVE_ATTENTION_BYTES: u32 = 48 << 10;

/// The driver has no memory left to give.
pub(crate) struct OutOfMemory {
    /// What it had given by then, in bytes, where it tells.
    pub(crate) granted_bytes: Option<u64>,
}

/// What went wrong on a device.
struct Fault {
    message: String,
    /// The driver had no memory left.
    out_of_memory: bool,
}

/// An open device, with what kernels need to know of it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) reduction: Reduction,
    /// Threads that share a row pair: the smallest subgroup, or a safe guess without subgroups.
    pub(crate) threads_per_row: u32,
    /// The device runs products by cooperative matrices; whether rightly is `model::self_check`'s.
    pub(crate) cooperative_matrix: bool,
    pub(crate) checked_shaders: bool,
    /// Where the GPU's clock can be read.
    pub(crate) timestamps: Timestamps,
    /// The adapter, so that the same can be opened again.
    pub(crate) identity: Identity,
    /// Its driver, and the others.
    pub(crate) drivers: Drivers,
    fault: Arc<Mutex<Option<Fault>>>,
    /// Longest that submitted work may take.
    wait_max: Duration,
}

impl Gpu {
    /// Opens the adapter that `config` asks for.
    pub(crate) fn open(config: &EngineConfig) -> Result<Self, EngineError> {
        let drivers = Drivers::load();
        let adapter = adapter::choose(&drivers, &config.adapter)?;
        Self::on(adapter, drivers, config)
    }

    /// Opens an adapter that was open before, and no other: through the drivers as they are loaded, and if
    /// they fail, or there are none, through drivers loaded anew.
    pub(crate) fn reopen(
        identity: &Identity,
        drivers: Option<Drivers>,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        if let Some(drivers) = drivers
            && let Ok(adapter) = identity.find(&drivers)
            && let Ok(gpu) = Self::on(adapter, drivers, config)
        {
            return Ok(gpu);
        }
        let drivers = Drivers::load();
        Self::on(identity.find(&drivers)?, drivers, config)
    }

    fn on(
        adapter: wgpu::Adapter,
        drivers: Drivers,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let raw = adapter.get_info();
        let identity = Identity::of(&raw);
        let subgroups = adapter.features().contains(wgpu::Features::SUBGROUP)
            && !config.no_subgroups
            && raw.subgroup_min_size >= SUBGROUP_MIN
            && raw.subgroup_min_size.is_power_of_two();
        let mut limits = adapter.limits();
        if limits.max_storage_buffers_per_shader_stage < STORAGE_BUFFERS_NEEDED {
            return Err(EngineError::AdapterLacks {
                adapter: raw.name,
                what: format!(
                    "storage buffers: {} a kernel, {STORAGE_BUFFERS_NEEDED} are needed",
                    limits.max_storage_buffers_per_shader_stage
                ),
            });
        }
        let most = config
            .binding_bytes_max
            .map_or(u64::MAX, |bytes| bytes.max(1 << 16));
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(most);
        let mut features = adapter.features()
            & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);
        if subgroups {
            features |= wgpu::Features::SUBGROUP;
        }
        let cooperative_matrix =
            config.cooperative_matrix && !config.no_subgroups && offers_cooperative(&adapter);
        if cooperative_matrix {
            features |= COOPERATIVE_FEATURES;
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("hearth"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: experimental(cooperative_matrix),
            ..Default::default()
        }))
        .map_err(|e| EngineError::Device(e.to_string()))?;
        let subgroup_size = if subgroups { raw.subgroup_min_size } else { 0 };
        let info = adapter::describe(raw, config.software_as_gpu, subgroup_size, &limits);
        let gpu = Self {
            device,
            queue,
            reduction: if subgroups {
                Reduction::Subgroup
            } else {
                Reduction::Shared
            },
            threads_per_row: if subgroups { subgroup_size.min(32) } else { 8 },
            cooperative_matrix,
            checked_shaders: config.checked_shaders,
            timestamps: Timestamps::of(features),
            fault: Arc::default(),
            wait_max: match identity.kind() {
                AdapterKind::Software => GPU_WAIT_SOFTWARE_MAX,
                _ => GPU_WAIT_MAX,
            },
            identity,
            drivers,
            info,
        };
        gpu.watch();
        Ok(gpu)
    }

    /// Without these two, a lost device or a driver's complaint would panic.
    fn watch(&self) {
        let fault = Arc::clone(&self.fault);
        self.device
            .set_device_lost_callback(move |reason, message| {
                if reason != wgpu::DeviceLostReason::Destroyed {
                    // wgpu takes some refusals of memory for a loss, and says so only here.
                    let out_of_memory = message.to_lowercase().contains("out of memory");
                    latch(&fault, format!("device lost: {message}"), out_of_memory);
                }
            });
        let fault = Arc::clone(&self.fault);
        self.device.on_uncaptured_error(Arc::new(move |error| {
            let out_of_memory = matches!(error, wgpu::Error::OutOfMemory { .. });
            latch(&fault, error.to_string(), out_of_memory);
        }));
    }

    /// Runs `work`; tells whether the driver ran out of memory in it. Out of memory is no fault of
    /// the device, so it is not latched, nor is what follows from buffers that are not there.
    pub(crate) fn allocating<T>(&self, work: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let value = work();
        let memory = pollster::block_on(memory.pop());
        let validation = pollster::block_on(validation.pop());
        if memory.is_some() || self.is_out_of_memory() {
            let report = self.device.generate_allocator_report();
            return Err(OutOfMemory {
                granted_bytes: report.map(|report| report.total_reserved_bytes),
            });
        }
        if let Some(error) = validation {
            latch(&self.fault, error.to_string(), false);
        }
        Ok(value)
    }

    /// Tells whether the driver ran out of memory where nobody was prepared for it.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.as_ref().is_some_and(|fault| fault.out_of_memory)
    }

    /// Where weight matrices lie on this adapter.
    pub(crate) fn planes(&self) -> Planes {
        match self.info.kind {
            AdapterKind::Software => Planes::Images,
            _ => Planes::Buffers,
        }
    }

    /// How float activations are stored on this adapter.
    pub(crate) fn float_format(&self) -> ActivationFormat {
        match self.planes() {
            Planes::Images => ActivationFormat::FloatImage,
            Planes::Buffers => ActivationFormat::Float,
        }
    }

    /// Largest buffer that can also be bound whole.
    pub(crate) fn buffer_bytes_max(&self) -> u64 {
        self.device
            .limits()
            .max_buffer_size
            .min(self.info.binding_bytes_max)
    }

    /// The first thing that went wrong on this device, if anything did.
    pub(crate) fn fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.as_ref().map(|fault| fault.message.clone())
    }

    /// Waits until `submission` (or, without one, everything submitted) is done.
    pub(crate) fn wait(
        &self,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Result<(), EngineError> {
        // A device that is lost never finishes anything.
        self.check()?;
        let wait = wgpu::PollType::Wait {
            submission_index: submission,
            timeout: Some(self.wait_max),
        };
        // wgpu panics if the device is lost in the meantime.
        let waited = catch_unwind(AssertUnwindSafe(|| self.device.poll(wait)));
        let failed = |what: &dyn std::fmt::Display| {
            latch(&self.fault, format!("waiting for the GPU: {what}"), false);
        };
        match waited {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => failed(&error),
            Err(_) => failed(&"the device is lost"),
        }
        self.check()
    }

    /// An error if anything went wrong on this device so far.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.fault().map_or(Ok(()), |f| Err(EngineError::Device(f)))
    }
}

/// What products by cooperative matrices need.
const COOPERATIVE_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Tells whether the adapter multiplies matrices of 16 by 16 f16 into f32 in the way that the kernel is
/// written for.
fn offers_cooperative(adapter: &wgpu::Adapter) -> bool {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let subgroup = [info.subgroup_min_size, info.subgroup_max_size];
    adapter.features().contains(COOPERATIVE_FEATURES)
        && subgroup == [COOPERATIVE_SUBGROUP; 2]
        && limits.max_compute_invocations_per_workgroup >= COOPERATIVE_THREADS
        && limits.max_compute_workgroup_storage_size
            >= COOPERATIVE_BYTES.max(COOPERATIVE_ATTENTION_BYTES)
        && adapter.cooperative_matrix_properties().iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [16; 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
                && !p.saturating_accumulation
        })
}

#[expect(
    unsafe_code,
    reason = "wgpu counts cooperative matrices as experimental"
)]
fn experimental(wanted: bool) -> wgpu::ExperimentalFeatures {
    if !wanted {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the one experimental feature is used by two kernels, whose loads and stores of matrices are
    // within workgroup memory by constant sizes. A product is checked before a model relies on them.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

fn latch(fault: &Mutex<Option<Fault>>, message: String, out_of_memory: bool) {
    tracing::error!(%message, "GPU fault");
    let mut first = fault.lock().unwrap_or_else(PoisonError::into_inner);
    first.get_or_insert(Fault {
        message,
        out_of_memory,
    });
}
