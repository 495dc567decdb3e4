//! Drops what was on a device that is given up. A driver that hangs, or a panic in between, must not take the
//! engine's thread with it: it happens on a thread of its own, and is waited for only so long.

use std::sync::mpsc::{self, RecvTimeoutError};

use crate::limits::BURIAL_MAX;

/// Drops `objects`; nobody else uses them, or what is on their device, any more.
pub(crate) fn bury<T: Send + 'static>(objects: T) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("engine-burial".to_owned())
        .spawn(move || {
            drop(objects);
            // Whoever waited may have gone on.
            let _ = done.send(());
        });
    let Ok(thread) = thread else {
        // Then they were dropped here.
        return;
    };
    match ended.recv_timeout(BURIAL_MAX) {
        Ok(()) => {
            let _ = thread.join();
        }
        Err(RecvTimeoutError::Timeout) => {
            tracing::warn!("the driver does not give back what the lost device held");
        }
        Err(RecvTimeoutError::Disconnected) => {
            tracing::warn!("the driver failed to give back all that the device held");
        }
    }
}
