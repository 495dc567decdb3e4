//! Which adapter is opened: the best that fits the setting, and later the same and no other.

use crate::engine::{AdapterInfo, AdapterKind};
use crate::error::EngineError;
use crate::request::AdapterChoice;

/// What tells an adapter from all others, as long as the machine is not rebuilt. The driver is no part of
/// it: a new version of it runs the same adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    name: String,
    vendor: u32,
    device: u32,
    device_type: wgpu::DeviceType,
    /// Tells two of a kind apart; empty where there is none.
    bus_id: String,
    backend: wgpu::Backend,
}

impl Identity {
    pub(super) fn of(info: &wgpu::AdapterInfo) -> Self {
        Self {
            name: info.name.clone(),
            vendor: info.vendor,
            device: info.device,
            device_type: info.device_type,
            bus_id: info.device_pci_bus_id.clone(),
            backend: info.backend,
        }
    }

    pub(super) fn kind(&self) -> AdapterKind {
        kind(self.device_type)
    }

    /// The adapter, as these drivers show it.
    ///
    /// # Errors
    /// It is not there, whatever others are.
    pub(super) fn find(&self, drivers: &Drivers) -> Result<wgpu::Adapter, EngineError> {
        let adapters = drivers.adapters();
        let found = names(&adapters);
        adapters
            .into_iter()
            .find(|adapter| Self::of(&adapter.get_info()) == *self)
            .ok_or_else(|| EngineError::AdapterGone {
                adapter: self.name.clone(),
                found,
            })
    }
}

/// An adapter as others see it.
pub(super) fn describe(
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

/// The machine's GPU drivers, loaded. Clones are the same.
#[derive(Clone)]
pub(crate) struct Drivers(wgpu::Instance);

impl Drivers {
    /// Loads them.
    pub(super) fn load() -> Self {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        descriptor.flags = wgpu::InstanceFlags::empty();
        Self(wgpu::Instance::new(descriptor))
    }

    fn adapters(&self) -> Vec<wgpu::Adapter> {
        pollster::block_on(self.0.enumerate_adapters(wgpu::Backends::PRIMARY))
    }
}

/// The adapters in words.
fn names(adapters: &[wgpu::Adapter]) -> String {
    if adapters.is_empty() {
        return "none".to_owned();
    }
    let name = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        let kind = kind(info.device_type);
        format!("{} ({kind:?}, {})", info.name, info.backend)
    };
    adapters.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The best adapter that fits the setting.
pub(super) fn choose(
    drivers: &Drivers,
    choice: &AdapterChoice,
) -> Result<wgpu::Adapter, EngineError> {
    let mut adapters = drivers.adapters();
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
    let found = names(&adapters);
    adapters
        .into_iter()
        .find(fits)
        .ok_or_else(|| EngineError::NoAdapter {
            wanted: choice.to_string(),
            found,
        })
}
