//! The tests of the whole, in one binary. Each file says what it holds the product to.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, a failure where none may be is a failed test"
)]

mod activation;
mod allowance;
mod app_sockets;
mod beside;
mod cancel;
mod deferral;
mod energy;
mod formats;
#[cfg(target_os = "linux")]
mod governor;
mod hardening;
mod kernels;
mod killed;
mod lost_device;
mod metrics;
mod model;
mod models;
mod params;
mod privacy;
mod pull;
mod readers;
mod service;
mod several;
mod socket;
mod speculation;
mod standby;
mod store;
#[cfg(target_os = "linux")]
mod templates;
mod tidy;
mod together;
mod units;
mod warmth;
mod watchdog;
mod who;
