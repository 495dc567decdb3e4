//! Compiles kernels and keeps the pipelines, one a kernel and set of override values; remembers those
//! that the driver refused.

use std::collections::HashMap;
use std::sync::Arc;

use hearth_shaders::{BindingKind, Kernel, Reduction};

use super::image::texel_format;
use super::{Gpu, Image};
use crate::error::EngineError;

/// What a kernel binds.
#[derive(Clone, Copy)]
pub(crate) enum Bound<'a> {
    /// A whole buffer.
    Buffer(&'a wgpu::Buffer),
    /// An image.
    Image(&'a Image),
}

impl<'a> From<&'a wgpu::Buffer> for Bound<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl<'a> From<&'a Image> for Bound<'a> {
    fn from(image: &'a Image) -> Self {
        Self::Image(image)
    }
}

impl<'a> Bound<'a> {
    fn resource(self) -> wgpu::BindingResource<'a> {
        match self {
            Self::Buffer(buffer) => buffer.as_entire_binding(),
            Self::Image(image) => wgpu::BindingResource::TextureView(&image.view),
        }
    }
}

/// A compiled kernel.
pub(crate) struct Pipeline {
    pub(crate) name: String,
    pub(crate) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    bindings: Vec<u32>,
}

impl Pipeline {
    /// Binds `bound`, in the order of the kernel's bindings.
    pub(crate) fn bind<'a, B: Copy + Into<Bound<'a>>>(
        &self,
        gpu: &Gpu,
        bound: &[B],
    ) -> wgpu::BindGroup {
        assert_eq!(
            bound.len(),
            self.bindings.len(),
            "{} binds as many",
            self.name
        );
        let entries: Vec<wgpu::BindGroupEntry<'_>> = self
            .bindings
            .iter()
            .zip(bound)
            .map(|(&binding, &bound)| wgpu::BindGroupEntry {
                binding,
                resource: bound.into().resource(),
            })
            .collect();
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&self.name),
            layout: &self.layout,
            entries: &entries,
        })
    }
}

/// Override values by name.
pub(crate) type Overrides = Vec<(&'static str, u32)>;

/// The pipelines compiled so far.
#[derive(Default)]
pub(crate) struct Pipelines {
    compiled: HashMap<(Kernel, Overrides), Arc<Pipeline>>,
    /// What the driver said of those that did not compile.
    refused: HashMap<(Kernel, Overrides), String>,
    /// Descriptions of those, in the order they were tried.
    refusals: Vec<String>,
    /// What `get` refused last.
    last_refused: Option<(Kernel, Overrides)>,
    /// Starts of descriptions to refuse: `EngineConfig::refused_kernels`.
    refuse: Vec<String>,
}

impl Pipelines {
    /// None yet; kernels whose description starts with one of `refuse` will not compile.
    pub(crate) fn refusing(refuse: &[String]) -> Self {
        Self {
            refuse: refuse.to_vec(),
            ..Self::default()
        }
    }

    /// Descriptions of the kernels that did not compile.
    pub(crate) fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// The kernel that [`EngineError::KernelRefused`] was last about.
    pub(crate) fn take_refused(&mut self) -> Option<(Kernel, Overrides)> {
        self.last_refused.take()
    }

    /// The pipeline of `kernel` with these override values, compiled at first use. One that was refused
    /// once is not tried again.
    ///
    /// # Errors
    /// [`EngineError::KernelRefused`].
    pub(crate) fn get(
        &mut self,
        gpu: &Gpu,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
    ) -> Result<Arc<Pipeline>, EngineError> {
        let key = (kernel, overrides.to_vec());
        if let Some(pipeline) = self.compiled.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let message = match self.refused.get(&key) {
            Some(message) => message.clone(),
            None => match self.compile(gpu, kernel, overrides) {
                Ok(pipeline) => {
                    let pipeline = Arc::new(pipeline);
                    self.compiled.insert(key, Arc::clone(&pipeline));
                    return Ok(pipeline);
                }
                Err(message) => {
                    let description = description(kernel, overrides);
                    tracing::warn!(kernel = %description, %message, "the driver refuses a kernel");
                    self.refusals.push(description);
                    self.refused.insert(key.clone(), message.clone());
                    message
                }
            },
        };
        self.last_refused = Some(key);
        Err(EngineError::KernelRefused {
            adapter: gpu.info.name.clone(),
            driver: gpu.info.driver.clone(),
            kernel: kernel.name(),
            message,
        })
    }

    /// The error is what the driver says, in one line.
    fn compile(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
    ) -> Result<Pipeline, String> {
        if !self.refuse.is_empty() {
            let description = description(kernel, overrides);
            if self.refuse.iter().any(|r| description.starts_with(r)) {
                return Err("refused by configuration".to_owned());
            }
        }
        compile(gpu, kernel, overrides).map_err(|error| gist(&error.to_string()))
    }
}

/// The call that failed and its first cause, of a message of many lines.
fn gist(message: &str) -> String {
    let telling = |line: &&str| !matches!(*line, "" | "Validation Error" | "Caused by:");
    let lines: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(telling)
        .take(2)
        .collect();
    lines.join(": ")
}

/// What tells a pipeline from the others, in words.
fn description(kernel: Kernel, overrides: &[(&'static str, u32)]) -> String {
    let mut text = kernel.name();
    let reduction = match kernel {
        Kernel::GemvRows(_, r) | Kernel::GemmRows(_, r, ..) => Some(r),
        _ => kernel.reduction(),
    };
    match reduction {
        Some(Reduction::Shared) => text += " shared",
        Some(Reduction::Subgroup) => text += " subgroup",
        None => {}
    }
    match kernel {
        Kernel::Attention(k, _) => text += &format!(" HEADS={} AHEAD={}", k.heads, k.ahead),
        Kernel::Gemm(_, tile) => text += &format!(" {}x{}", 2 * tile.pairs(), tile.columns()),
        _ => {}
    }
    for (name, value) in overrides {
        text += &format!(" {name}={value}");
    }
    text
}

fn compile(
    gpu: &Gpu,
    kernel: Kernel,
    overrides: &[(&'static str, u32)],
) -> Result<Pipeline, wgpu::Error> {
    let name = kernel.name();
    let internal = gpu.device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let module = shader_module(gpu, kernel, &name);
    let kinds = kernel.bindings();
    let entries: Vec<wgpu::BindGroupLayoutEntry> = kinds
        .iter()
        .map(|&(binding, kind)| layout_entry(binding, kind))
        .collect();
    let layout = gpu
        .device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&name),
            entries: &entries,
        });
    let pipeline_layout = gpu
        .device
        .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
    let constants: Vec<(&str, f64)> = overrides
        .iter()
        .map(|&(key, value)| (key, f64::from(value)))
        .collect();
    let pipeline = gpu
        .device
        .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
    let validation = pollster::block_on(validation.pop());
    let internal = pollster::block_on(internal.pop());
    if let Some(error) = internal.or(validation) {
        return Err(error);
    }
    Ok(Pipeline {
        name,
        pipeline,
        layout,
        bindings: kinds.iter().map(|&(b, _)| b).collect(),
    })
}

fn layout_entry(binding: u32, kind: BindingKind) -> wgpu::BindGroupLayoutEntry {
    let buffer = |ty| wgpu::BindingType::Buffer {
        ty,
        has_dynamic_offset: false,
        min_binding_size: None,
    };
    let image = |access, words| wgpu::BindingType::StorageTexture {
        access,
        format: texel_format(words),
        view_dimension: wgpu::TextureViewDimension::D2,
    };
    let ty = match kind {
        BindingKind::Uniform => buffer(wgpu::BufferBindingType::Uniform),
        BindingKind::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }),
        BindingKind::Write => buffer(wgpu::BufferBindingType::Storage { read_only: false }),
        BindingKind::Image { words } => image(wgpu::StorageTextureAccess::ReadOnly, words),
        BindingKind::WriteImage => image(wgpu::StorageTextureAccess::WriteOnly, 4),
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty,
        count: None,
    }
}

#[allow(
    unsafe_code,
    reason = "the kernels are our own and are tested against checked builds"
)]
fn shader_module(gpu: &Gpu, kernel: Kernel, name: &str) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(name),
        source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
    };
    if gpu.checked_shaders {
        return gpu.device.create_shader_module(descriptor);
    }
    // SAFETY: every index is bounded by the parameter blocks, which the forward pass derives from
    // the same sizes as the buffers; loops are bounded by the same numbers; divisors are sizes that
    // `ModelConfig` holds above zero. Tests run every kernel with guard words and against its
    // checked build.
    unsafe {
        gpu.device
            .create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}
