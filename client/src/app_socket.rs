//! A socket for one sandboxed app, held open by the program that launches the app.

use std::path::{Path, PathBuf};

use tonic::Streaming;

use crate::{Client, Error, v1};

/// A socket for one sandboxed app: whatever connects to it is that app for the daemon, and may ask
/// the model but not manage it. It lives as long as this value.
#[derive(Debug)]
pub struct AppSocket {
    path: PathBuf,
    stream: Streaming<v1::OpenAppSocketResponse>,
}

impl AppSocket {
    /// Where it is. Nothing else lies in its folder, which can be shown to a sandbox as a whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the daemon closes it, and says why: the daemon stops, or is gone.
    pub async fn closed(&mut self) -> Error {
        loop {
            match self.stream.message().await {
                // Messages of a later contract.
                Ok(Some(_)) => {}
                Ok(None) => return Error::Protocol("an app socket's stream ends with a status"),
                Err(status) => return status.into(),
            }
        }
    }
}

impl Client {
    /// Opens a socket for the sandboxed app of this name, such as `org.example.App`. `instance`
    /// tells several of its instances apart in the daemon's status.
    ///
    /// Dropping the socket closes it: connections through it end, and their generations stop.
    ///
    /// # Errors
    /// [`Error::Rpc`]: the name cannot be one, too many sockets are open, this client itself came
    /// through an app socket.
    pub async fn open_app_socket(
        &self,
        app: impl Into<String>,
        instance: Option<String>,
    ) -> Result<AppSocket, Error> {
        let app = app.into();
        let request = v1::OpenAppSocketRequest { app, instance };
        let mut stream = self.daemon().open_app_socket(request).await?.into_inner();
        let first = stream.message().await?;
        let path = first
            .map(|first| PathBuf::from(first.socket_path))
            .filter(|path| path.is_absolute())
            .ok_or(Error::Protocol("OpenAppSocketResponse.socket_path is set"))?;
        Ok(AppSocket { path, stream })
    }
}
