//! What the process gives up for good: core files, privileges, system calls and places to write that
//! it has no use for. Only a daemon with a process of its own does this; `serve` does not.
//!
//! It happens twice: [`begin`] before other threads exist, and [`Protection::gpu_is_open`] once the
//! GPU's driver has no need of helper programs any more.

#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod syscalls;

use std::sync::{Mutex, PoisonError};

use crate::config::{Config, Hardening};

/// Forbids core files and `ptrace` by processes that are not root. Does what the system offers.
pub fn forbid_core_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        if let Err(error) = setrlimit(Resource::Core, none) {
            tracing::warn!(%error, "cannot forbid core files");
        }
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "cannot make the process undumpable");
        }
    }
}

/// What the process has given up so far. The default has given up nothing and never will.
#[derive(Debug, Default)]
pub struct Protection {
    is_on: bool,
    in_force: Mutex<Vec<String>>,
}

impl Protection {
    /// What is in force, in words.
    pub(crate) fn in_force(&self) -> Vec<String> {
        let words = self.in_force.lock();
        words.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives up running programs, for all threads: the driver may have needed one to open the GPU.
    pub(crate) fn gpu_is_open(&self) {
        if !self.is_on {
            return;
        }
        #[cfg(target_os = "linux")]
        self.note("running programs", syscalls::deny_programs());
    }

    #[cfg(target_os = "linux")]
    fn note(&self, what: &str, done: Result<String, Box<dyn std::error::Error>>) {
        match done {
            Ok(words) => {
                tracing::info!("{words}");
                let mut all = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(words);
            }
            Err(error) => {
                tracing::warn!(error = &*error, "cannot give up {what}");
            }
        }
    }
}

/// Gives up what a renderer of chat templates has no use for: as [`begin`], but it writes no file at all
/// and runs no program. Does what the system offers, and says nothing.
#[cfg(unix)]
pub(crate) fn confine_renderer() {
    forbid_core_files();
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::thread::set_no_new_privs(true);
        let _ = files::confine_wholly();
        let _ = syscalls::deny_needless();
        let _ = syscalls::deny_programs();
    }
}

/// Gives up, as far as the system offers it: new privileges, system calls that a local service has
/// no use for, and writing outside the daemon's own folders, which are made here if they are missing.
/// Must be called before the process has other threads. What fails is logged, and the daemon runs
/// without it.
pub fn begin(config: &Config) -> Protection {
    if config.hardening == Hardening::Off {
        tracing::warn!("hardening is off");
        return Protection::default();
    }
    let protection = Protection {
        is_on: true,
        in_force: Mutex::default(),
    };
    #[cfg(target_os = "linux")]
    {
        let done = rustix::thread::set_no_new_privs(true);
        let done = done.map(|()| "no new privileges".to_owned());
        protection.note("new privileges", done.map_err(Into::into));
        protection.note("writing elsewhere", files::confine(config));
        protection.note("system calls", syscalls::deny_needless());
    }
    protection
}
