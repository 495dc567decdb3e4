//! The contract `hearth.v1` as Rust types, clients and servers, and where its socket lives.
//!
//! It knows no other crate of Hearth and no transport. The meaning of every message is in the
//! comments of `proto/hearth/v1/*.proto`, which the generated items carry along.

pub mod endpoint;

/// The package `hearth.v1`, generated from `proto/hearth/v1/*.proto`.
///
/// Messages that hold a user's text have no contents in their `Debug` form.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("hearth.v1");
}

mod redacted;

/// The compiled contract, for server reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth.v1.bin"));

/// The domain of every `google.rpc.ErrorInfo` that the daemon sends.
pub const ERROR_DOMAIN: &str = "hearth.v1";

#[cfg(test)]
mod golden_tests;
