//! Waiting for a file of the system to have something to tell, without polling it.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file that tells by itself.
pub(super) struct Events {
    file: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Events {
    /// Events that are read, as from a FIFO, a socket or inotify. The file must not block.
    ///
    /// # Errors
    /// The file cannot be waited for.
    pub(super) fn to_read(file: OwnedFd) -> io::Result<Self> {
        Self::new(file, Interest::READABLE)
    }

    /// Events that are news by themselves, as of the kernel's pressure files.
    ///
    /// # Errors
    /// The file cannot be waited for.
    pub(super) fn to_notice(file: OwnedFd) -> io::Result<Self> {
        Self::new(file, Interest::PRIORITY)
    }

    #[expect(
        unsafe_code,
        reason = "tokio has no safe way to wait for any descriptor"
    )]
    fn new(file: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and names the same file for as long as it lives, which is as
        // long as the `AsyncFd` that it moves into; nothing here takes it out or changes it.
        let file = unsafe { AsyncFd::register_with_interest(file, interest) };
        Ok(Self {
            file: file.map_err(io::Error::from)?,
            interest,
        })
    }

    /// Waits for an event, and takes what there is to read.
    ///
    /// # Errors
    /// There will be none any more.
    pub(super) async fn next(&self) -> io::Result<()> {
        loop {
            let mut guard = self.file.ready(self.interest).await?;
            if guard.ready().is_error() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if self.interest.is_priority() {
                guard.clear_ready();
                return Ok(());
            }
            let mut buffer = [0_u8; 1024];
            match guard.try_io(|file| Ok(rustix::io::read(file.get_ref(), &mut buffer)?)) {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // Nothing was there after all.
                Err(_would_block) => {}
            }
        }
    }
}
