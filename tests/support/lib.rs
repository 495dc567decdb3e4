//! What the tests of the whole share: a tiny model, a daemon in a temporary folder, clients of it.
//!
//! It asserts nothing about the daemon; tests do.

#![allow(
    clippy::unwrap_used,
    reason = "tests' own scaffolding: a failure here is a failed test"
)]
#![allow(missing_docs, reason = "nobody outside the tests reads it")]

mod daemon;
pub mod hub;
mod layer;
mod process;
mod sink;
pub mod tiny_model;

pub use daemon::{Clients, Daemon, Setup, Text, default_model, reason, text_of};
pub use layer::{Layer, resident_bytes};
pub use process::{Process, command, hearth_binary, hearthd_binary};
/// Whether the long forms of tests are asked for.
pub fn long_tests() -> bool {
    std::env::var_os("HEARTH_LONG_TESTS").is_some_and(|value| value == "1")
}

pub use sink::{ChannelSink, Reply, replies, reply, request, started, submit};
