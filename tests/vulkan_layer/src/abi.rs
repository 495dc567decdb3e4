//! What a layer needs of Vulkan's and its loader's C interface.

#![allow(
    unreachable_pub,
    reason = "types of the one function that the loader calls"
)]

use std::ffi::{c_char, c_void};

/// A dispatchable handle.
pub(crate) type Handle = *mut c_void;
pub(crate) type VkResult = i32;
pub(crate) type Function = Option<unsafe extern "system" fn()>;
pub(crate) type GetProcAddr = unsafe extern "system" fn(Handle, *const c_char) -> Function;
pub(crate) type CreateInstance =
    unsafe extern "system" fn(*const CreateInfo, *const c_void, *mut Handle) -> VkResult;
pub(crate) type CreateDevice =
    unsafe extern "system" fn(Handle, *const CreateInfo, *const c_void, *mut Handle) -> VkResult;
pub(crate) type DestroyDevice = unsafe extern "system" fn(Handle, *const c_void);

pub(crate) const SUCCESS: VkResult = 0;
pub(crate) const TIMEOUT: VkResult = 2;
pub(crate) const OUT_OF_DEVICE_MEMORY: VkResult = -2;
pub(crate) const INITIALIZATION_FAILED: VkResult = -3;
pub(crate) const DEVICE_LOST: VkResult = -4;

pub(crate) const LOADER_INSTANCE_CREATE_INFO: i32 = 47;
pub(crate) const LOADER_DEVICE_CREATE_INFO: i32 = 48;
/// The kind of loader information that holds a layer's link.
const LINK_INFO: i32 = 0;

/// The head of every structure in a chain.
#[repr(C)]
pub struct CreateInfo {
    kind: i32,
    next: *const CreateInfo,
}

#[repr(C)]
struct LayerCreateInfo<L> {
    head: CreateInfo,
    function: i32,
    link: *mut L,
}

#[repr(C)]
pub(crate) struct InstanceLink {
    pub(crate) next: *mut InstanceLink,
    pub(crate) get_instance_proc_addr: GetProcAddr,
    get_physical_device_proc_addr: Option<GetProcAddr>,
}

#[repr(C)]
pub(crate) struct DeviceLink {
    pub(crate) next: *mut DeviceLink,
    get_instance_proc_addr: GetProcAddr,
    pub(crate) get_device_proc_addr: GetProcAddr,
}

#[repr(C)]
pub(crate) struct MemoryAllocateInfo {
    kind: i32,
    next: *const c_void,
    pub(crate) allocation_size: u64,
    memory_type_index: u32,
}

/// What loader and layer tell each other first.
#[repr(C)]
pub struct NegotiateInterface {
    kind: i32,
    next: *mut c_void,
    pub(crate) version: u32,
    pub(crate) get_instance_proc_addr: Option<GetProcAddr>,
    pub(crate) get_device_proc_addr: Option<GetProcAddr>,
    pub(crate) get_physical_device_proc_addr: Option<GetProcAddr>,
}

/// The place in the chain from `info` that holds this layer's link.
///
/// # Safety
/// `info` is a chain that the loader made, and `L` is the link of structures of that `kind`.
pub(crate) unsafe fn link<L>(info: *const CreateInfo, kind: i32) -> Option<*mut *mut L> {
    let mut at = info;
    // SAFETY: the chain's structures all begin with the same head, and `kind` tells this one's type.
    unsafe {
        while !at.is_null() {
            if (*at).kind == kind {
                let found = at.cast::<LayerCreateInfo<L>>().cast_mut();
                if (*found).function == LINK_INFO && !(*found).link.is_null() {
                    return Some(&raw mut (*found).link);
                }
            }
            at = (*at).next;
        }
    }
    None
}
