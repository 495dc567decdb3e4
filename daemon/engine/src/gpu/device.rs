//! Opens the adapter and the device, and remembers what the driver says went wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_shaders::{
    ActivationFormat, COOPERATIVE_BYTES, COOPERATIVE_SUBGROUP, COOPERATIVE_THREADS, Planes,
    Reduction,
};

use super::Timestamps;
use crate::engine::{AdapterInfo, AdapterKind};
use crate::error::EngineError;
use crate::request::{AdapterChoice, EngineConfig};

/// Storage buffers a kernel binds at most.
const STORAGE_BUFFERS_NEEDED: u32 = 8;
/// Kernels hand eight values round within a subgroup; smaller ones are not used.
const SUBGROUP_MIN: u32 = 8;
/// Workgroup memory, in bytes, that prefill attention by cooperative matrices uses.
const COOPERATIVE_ATTENTION_BYTES: u32 = 48 << 10;
/// Longest that one submission may take before the device counts as hung.
const SUBMISSION_TIMEOUT: Duration = Duration::from_secs(120);

/// The driver has no memory left to give.
pub(crate) struct OutOfMemory;

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
    fault: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the adapter that `config` asks for.
    pub(crate) fn open(config: &EngineConfig) -> Result<Self, EngineError> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let adapter = choose(&instance, &config.adapter)?;
        let raw = adapter.get_info();
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
        if let Some(bytes) = config.binding_bytes_max {
            limits.max_storage_buffer_binding_size = limits
                .max_storage_buffer_binding_size
                .min(bytes.max(1 << 16));
        }
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
        let info = adapter_info(raw, config.software_as_gpu, subgroup_size, &limits);
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
                    latch(&fault, format!("device lost: {message}"));
                }
            });
        let fault = Arc::clone(&self.fault);
        self.device
            .on_uncaptured_error(Arc::new(move |error| latch(&fault, error.to_string())));
    }

    /// Runs `work`; tells whether the driver ran out of memory in it. Out of memory is no fault of
    /// the device, so it is not latched, nor is what follows from buffers that are not there.
    pub(crate) fn allocating<T>(&self, work: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let value = work();
        let memory = pollster::block_on(memory.pop());
        let validation = pollster::block_on(validation.pop());
        if memory.is_some() {
            return Err(OutOfMemory);
        }
        if let Some(error) = validation {
            latch(&self.fault, error.to_string());
        }
        Ok(value)
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
        self.fault.lock().ok().and_then(|f| f.clone())
    }

    /// Waits until `submission` (or, without one, everything submitted) is done.
    pub(crate) fn wait(
        &self,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Result<(), EngineError> {
        let wait = wgpu::PollType::Wait {
            submission_index: submission,
            timeout: Some(SUBMISSION_TIMEOUT),
        };
        if let Err(error) = self.device.poll(wait) {
            latch(&self.fault, format!("waiting for the GPU: {error}"));
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

fn latch(fault: &Mutex<Option<String>>, message: String) {
    if let Ok(mut first) = fault.lock() {
        tracing::error!(%message, "GPU fault");
        first.get_or_insert(message);
    }
}

fn adapter_info(
    raw: wgpu::AdapterInfo,
    software_as_gpu: bool,
    subgroup_size: u32,
    limits: &wgpu::Limits,
) -> AdapterInfo {
    AdapterInfo {
        name: raw.name,
        vendor_id: raw.vendor,
        device_id: raw.device,
        driver: format!("{} {}", raw.driver, raw.driver_info)
            .trim()
            .to_owned(),
        backend: raw.backend.to_string(),
        kind: match kind(raw.device_type) {
            AdapterKind::Software if software_as_gpu => AdapterKind::Other,
            kind => kind,
        },
        subgroup_size,
        binding_bytes_max: limits.max_storage_buffer_binding_size,
    }
}

fn kind(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

/// Integrated first: the service is a guest on a laptop, and the small GPU is the one that can stay
/// awake.
fn rank(kind: AdapterKind) -> u8 {
    match kind {
        AdapterKind::Integrated => 0,
        AdapterKind::Discrete => 1,
        AdapterKind::Virtual => 2,
        AdapterKind::Other => 3,
        AdapterKind::Software => 4,
    }
}

fn choose(instance: &wgpu::Instance, choice: &AdapterChoice) -> Result<wgpu::Adapter, EngineError> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    adapters.sort_by_key(|a| rank(kind(a.get_info().device_type)));
    let fits = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        match choice {
            AdapterChoice::Auto => true,
            AdapterChoice::Integrated => kind(info.device_type) == AdapterKind::Integrated,
            AdapterChoice::Discrete => kind(info.device_type) == AdapterKind::Discrete,
            AdapterChoice::Software => kind(info.device_type) == AdapterKind::Software,
            AdapterChoice::Named(part) => info.name.to_lowercase().contains(&part.to_lowercase()),
        }
    };
    let found: Vec<String> = adapters
        .iter()
        .map(|a| a.get_info())
        .map(|i| format!("{} ({:?}, {})", i.name, kind(i.device_type), i.backend))
        .collect();
    adapters
        .into_iter()
        .find(fits)
        .ok_or_else(|| EngineError::NoAdapter {
            wanted: choice.to_string(),
            found: if found.is_empty() {
                "none".to_owned()
            } else {
                found.join(", ")
            },
        })
}
