//! A Vulkan layer for tests: between wgpu and a real driver, it loses the device or refuses memory on
//! cue.
//!
//! The cue is the file that `HEARTH_TEST_LAYER_CUE` names, of one line: a number that is new for each cue,
//! what to do, and an amount. `1 submit 20` loses the device at the 20th submission from now; `2 wait 3`
//! does so at the third wait, `3 hang 3` lets that wait time out and loses the device with it, `4 memory 9`
//! finds no memory for the ninth submission, and `5 gone 9` loses the device there and hides all adapters;
//! `6 refuse 1000000` refuses every allocation of more bytes, and `7 refuse-after 7` all but the next 7.
//! A cue holds until the next; unknown words do nothing. A lost device stays lost.

#![expect(
    unsafe_code,
    reason = "a layer is called by the Vulkan loader, through its C interface"
)]

mod abi;
mod cue;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use abi::{
    CreateDevice, CreateInfo, CreateInstance, DestroyDevice, DeviceLink, Function, GetProcAddr,
    Handle, InstanceLink, MemoryAllocateInfo, NegotiateInterface, VkResult,
};
use cue::{Cues, Deed};

/// The next layer's functions of a device.
struct Device {
    get_proc_addr: GetProcAddr,
    /// The handle, as an address.
    handle: usize,
    lost: bool,
}

/// The next layer's functions of an instance, found when it was made: later the loader would find its
/// first layer's.
#[derive(Clone, Copy)]
struct Instance {
    get_proc_addr: GetProcAddr,
    enumerate: Function,
    create_device: Function,
}

#[derive(Default)]
struct Layer {
    /// By dispatch key.
    instances: HashMap<usize, Instance>,
    /// By dispatch key, which a device and its queues share.
    devices: HashMap<usize, Device>,
    cues: Cues,
}

static LAYER: LazyLock<Mutex<Layer>> = LazyLock::new(Mutex::default);

fn layer() -> MutexGuard<'static, Layer> {
    LAYER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a dispatchable handle and those made from it have in common.
///
/// # Safety
/// `handle` is a live dispatchable handle.
unsafe fn key(handle: Handle) -> usize {
    // SAFETY: the loader puts a pointer to its dispatch table at the start of each.
    unsafe { *handle.cast::<usize>() }
}

/// The next layer's function of a device or queue, and whether the device is lost.
///
/// # Safety
/// `handle` is a live device or queue.
unsafe fn next(handle: Handle, name: &CStr) -> (Function, bool) {
    // SAFETY: as the caller says.
    let key = unsafe { key(handle) };
    let (get, device, lost) = {
        let layer = layer();
        let device = &layer.devices[&key];
        (device.get_proc_addr, device.handle, device.lost)
    };
    let device = std::ptr::with_exposed_provenance_mut(device);
    // SAFETY: the device is live, as the handle is the device itself or one of its queues.
    let function = unsafe { get(device, name.as_ptr()) };
    (function, lost)
}

/// Notes that something happens to a device; tells what becomes of it.
///
/// # Safety
/// `handle` is a live device or queue.
unsafe fn happens(handle: Handle, deed: Deed) -> Option<VkResult> {
    // SAFETY: as the caller says.
    let key = unsafe { key(handle) };
    let mut layer = layer();
    let due = layer.cues.due(deed);
    let device = layer.devices.get_mut(&key)?;
    if device.lost {
        return Some(abi::DEVICE_LOST);
    }
    match (due, deed) {
        (None, _) => None,
        (Some(_), Deed::Allocate(_)) => Some(abi::OUT_OF_DEVICE_MEMORY),
        (Some(cue::Kind::Memory), _) => Some(abi::OUT_OF_DEVICE_MEMORY),
        (Some(cue::Kind::Hang), _) => {
            device.lost = true;
            Some(abi::TIMEOUT)
        }
        (Some(_), _) => {
            device.lost = true;
            Some(abi::DEVICE_LOST)
        }
    }
}

/// Defines a function of a device or queue: one that `$deed` can make fail.
macro_rules! hook {
    ($name:ident, $vulkan:literal, $deed:expr, ($($arg:ident: $kind:ty),*)) => {
        unsafe extern "system" fn $name(handle: Handle, $($arg: $kind),*) -> VkResult {
            type Next = unsafe extern "system" fn(Handle, $($kind),*) -> VkResult;
            // SAFETY: called by the loader with a live handle.
            if let Some(result) = unsafe { happens(handle, $deed) } {
                return result;
            }
            // SAFETY: the function found by this name has this type.
            unsafe {
                let (function, _) = next(handle, $vulkan);
                std::mem::transmute::<Function, Next>(function)(handle, $($arg),*)
            }
        }
    };
}

/// Defines a function that waits until a device or queue is idle. The driver below does what it was given
/// even if the device is lost up here: nothing of it may be freed before.
macro_rules! hook_idle {
    ($name:ident, $vulkan:literal) => {
        unsafe extern "system" fn $name(handle: Handle) -> VkResult {
            type Next = unsafe extern "system" fn(Handle) -> VkResult;
            // SAFETY: called by the loader with a live handle; the function found has this type.
            unsafe {
                let (function, lost) = next(handle, $vulkan);
                let result = std::mem::transmute::<Function, Next>(function)(handle);
                if lost { abi::DEVICE_LOST } else { result }
            }
        }
    };
}

hook!(queue_submit, c"vkQueueSubmit", Deed::Submit, (count: u32, submits: *const c_void, fence: u64));
hook!(queue_submit_2, c"vkQueueSubmit2", Deed::Submit, (count: u32, submits: *const c_void, fence: u64));
hook!(queue_submit_2_khr, c"vkQueueSubmit2KHR", Deed::Submit, (count: u32, submits: *const c_void, fence: u64));
hook!(wait_semaphores, c"vkWaitSemaphores", Deed::Wait, (info: *const c_void, timeout: u64));
hook!(wait_semaphores_khr, c"vkWaitSemaphoresKHR", Deed::Wait, (info: *const c_void, timeout: u64));
hook!(wait_for_fences, c"vkWaitForFences", Deed::Wait, (count: u32, fences: *const u64, all: u32, timeout: u64));
hook_idle!(queue_wait_idle, c"vkQueueWaitIdle");
hook_idle!(device_wait_idle, c"vkDeviceWaitIdle");

unsafe extern "system" fn allocate_memory(
    device: Handle,
    info: *const MemoryAllocateInfo,
    allocator: *const c_void,
    memory: *mut u64,
) -> VkResult {
    type Next = unsafe extern "system" fn(
        Handle,
        *const MemoryAllocateInfo,
        *const c_void,
        *mut u64,
    ) -> VkResult;
    // SAFETY: called by the loader with live arguments; the function found has this type.
    unsafe {
        if let Some(result) = happens(device, Deed::Allocate((*info).allocation_size)) {
            return result;
        }
        let (function, _) = next(device, c"vkAllocateMemory");
        std::mem::transmute::<Function, Next>(function)(device, info, allocator, memory)
    }
}

unsafe extern "system" fn enumerate_physical_devices(
    instance: Handle,
    count: *mut u32,
    devices: *mut Handle,
) -> VkResult {
    type Next = unsafe extern "system" fn(Handle, *mut u32, *mut Handle) -> VkResult;
    // SAFETY: called by the loader with live arguments; the function found has this type.
    unsafe {
        let function = {
            let mut layer = layer();
            if layer.cues.adapters_are_gone() {
                *count = 0;
                return abi::SUCCESS;
            }
            layer.instances[&key(instance)].enumerate
        };
        std::mem::transmute::<Function, Next>(function)(instance, count, devices)
    }
}

unsafe extern "system" fn create_instance(
    info: *const CreateInfo,
    allocator: *const c_void,
    instance: *mut Handle,
) -> VkResult {
    // SAFETY: called by the loader, which puts a link for this layer into the chain; the functions found
    // have these types.
    unsafe {
        let Some(link) = abi::link::<InstanceLink>(info, abi::LOADER_INSTANCE_CREATE_INFO) else {
            return abi::INITIALIZATION_FAILED;
        };
        let get = (**link).get_instance_proc_addr;
        // The next layer finds its own link.
        *link = (**link).next;
        let create = get(std::ptr::null_mut(), c"vkCreateInstance".as_ptr());
        let create = std::mem::transmute::<Function, CreateInstance>(create);
        let result = create(info, allocator, instance);
        if result == abi::SUCCESS {
            let made = *instance;
            let found = Instance {
                get_proc_addr: get,
                enumerate: get(made, c"vkEnumeratePhysicalDevices".as_ptr()),
                create_device: get(made, c"vkCreateDevice".as_ptr()),
            };
            layer().instances.insert(key(made), found);
        }
        result
    }
}

unsafe extern "system" fn create_device(
    physical: Handle,
    info: *const CreateInfo,
    allocator: *const c_void,
    device: *mut Handle,
) -> VkResult {
    // SAFETY: as above; a physical device shares its instance's key.
    unsafe {
        let Some(link) = abi::link::<DeviceLink>(info, abi::LOADER_DEVICE_CREATE_INFO) else {
            return abi::INITIALIZATION_FAILED;
        };
        let get_device = (**link).get_device_proc_addr;
        *link = (**link).next;
        let Some(instance) = layer().instances.get(&key(physical)).copied() else {
            return abi::INITIALIZATION_FAILED;
        };
        let create = std::mem::transmute::<Function, CreateDevice>(instance.create_device);
        let result = create(physical, info, allocator, device);
        if result == abi::SUCCESS {
            let made = Device {
                get_proc_addr: get_device,
                handle: (*device).expose_provenance(),
                lost: false,
            };
            layer().devices.insert(key(*device), made);
        }
        result
    }
}

unsafe extern "system" fn destroy_device(device: Handle, allocator: *const c_void) {
    if device.is_null() {
        return;
    }
    // SAFETY: called by the loader with a live device; the function found has this type.
    unsafe {
        let key = key(device);
        let (destroy, _) = next(device, c"vkDestroyDevice");
        layer().devices.remove(&key);
        std::mem::transmute::<Function, DestroyDevice>(destroy)(device, allocator);
    }
}

/// This layer's own function of that name.
fn own(name: &CStr) -> Function {
    let address = match name.to_bytes() {
        b"vkGetInstanceProcAddr" => get_instance_proc_addr as *const c_void,
        b"vkGetDeviceProcAddr" => get_device_proc_addr as *const c_void,
        b"vkCreateInstance" => create_instance as *const c_void,
        b"vkEnumeratePhysicalDevices" => enumerate_physical_devices as *const c_void,
        b"vkCreateDevice" => create_device as *const c_void,
        b"vkDestroyDevice" => destroy_device as *const c_void,
        b"vkAllocateMemory" => allocate_memory as *const c_void,
        b"vkQueueSubmit" => queue_submit as *const c_void,
        b"vkQueueSubmit2" => queue_submit_2 as *const c_void,
        b"vkQueueSubmit2KHR" => queue_submit_2_khr as *const c_void,
        b"vkWaitSemaphores" => wait_semaphores as *const c_void,
        b"vkWaitSemaphoresKHR" => wait_semaphores_khr as *const c_void,
        b"vkWaitForFences" => wait_for_fences as *const c_void,
        b"vkQueueWaitIdle" => queue_wait_idle as *const c_void,
        b"vkDeviceWaitIdle" => device_wait_idle as *const c_void,
        _ => return None,
    };
    // SAFETY: a function's address is a function pointer; callers cast it to its own type.
    unsafe { std::mem::transmute::<*const c_void, Function>(address) }
}

unsafe extern "system" fn get_device_proc_addr(device: Handle, name: *const c_char) -> Function {
    // SAFETY: called with a live device and a C string. A function that the driver does not have is
    // not to be had from here either.
    unsafe {
        let name = CStr::from_ptr(name);
        let (theirs, _) = next(device, name);
        theirs?;
        own(name).or(theirs)
    }
}

unsafe extern "system" fn get_instance_proc_addr(
    instance: Handle,
    name: *const c_char,
) -> Function {
    // SAFETY: called with a live instance or none, and a C string.
    unsafe {
        if let Some(function) = own(CStr::from_ptr(name)) {
            return Some(function);
        }
        if instance.is_null() {
            return None;
        }
        let found = layer().instances.get(&key(instance)).copied()?;
        (found.get_proc_addr)(instance, name)
    }
}

/// The loader's first call.
///
/// # Safety
/// `interface` is the loader's.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn vkNegotiateLoaderLayerInterfaceVersion(
    interface: *mut NegotiateInterface,
) -> VkResult {
    // SAFETY: as the loader promises.
    let interface = unsafe { &mut *interface };
    interface.version = interface.version.min(2);
    interface.get_instance_proc_addr = Some(get_instance_proc_addr);
    interface.get_device_proc_addr = Some(get_device_proc_addr);
    interface.get_physical_device_proc_addr = None;
    abi::SUCCESS
}
