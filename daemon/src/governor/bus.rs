//! The system's message bus: connecting to it, and following one service on it through its changes,
//! its absence and its restarts.

use std::collections::HashMap;
use std::time::Duration;

use tokio_stream::{StreamExt as _, StreamMap};
use zbus::message::Type;
use zbus::zvariant::OwnedValue;
use zbus::{Connection, MatchRule, MessageStream};

use crate::limits::{BUS_CALL_MAX, BUS_TRIES_MAX};

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The first wait before a service that came up is asked again; it doubles.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Properties of an object, by name.
pub(super) type Properties = HashMap<String, OwnedValue>;

/// Connects to the system's bus, which `DBUS_SYSTEM_BUS_ADDRESS` may name.
///
/// # Errors
/// There is none.
pub(super) async fn connect() -> zbus::Result<Connection> {
    let builder = zbus::connection::Builder::system()?;
    builder.method_timeout(BUS_CALL_MAX).build().await
}

/// Reads all properties of an object.
///
/// # Errors
/// The service, the object or the interface is not there.
pub(super) async fn properties(
    bus: &Connection,
    service: &str,
    path: &str,
    interface: &str,
) -> zbus::Result<Properties> {
    let reply = bus
        .call_method(Some(service), path, Some(PROPERTIES), "GetAll", &interface)
        .await?;
    reply.body().deserialize()
}

/// A property of this type, if it is there.
pub(super) fn property<T: TryFrom<OwnedValue>>(properties: &Properties, name: &str) -> Option<T> {
    let value = properties.get(name)?.try_clone().ok()?;
    T::try_from(value).ok()
}

/// What happened to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It said something.
    Changed,
    /// It came, or another came in its place.
    Appeared,
    /// It went.
    Gone,
}

/// A service's changes.
pub(super) struct Follower {
    streams: StreamMap<bool, MessageStream>,
}

impl Follower {
    /// Follows `service`, and what it says by `member` of `interface` on the objects below `path`.
    ///
    /// # Errors
    /// The bus is gone.
    pub(super) async fn new(
        bus: &Connection,
        service: &'static str,
        path: &'static str,
        (interface, member): (&'static str, &'static str),
    ) -> zbus::Result<Self> {
        let said = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(service)?
            .interface(interface)?
            .member(member)?
            .path_namespace(path)?
            .build();
        let owner = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.freedesktop.DBus")?
            .interface("org.freedesktop.DBus")?
            .member("NameOwnerChanged")?
            .arg(0, service)?
            .build();
        let mut streams = StreamMap::new();
        for (is_owner, rule) in [(true, owner), (false, said)] {
            let stream = MessageStream::for_match_rule(rule, bus, None).await?;
            streams.insert(is_owner, stream);
        }
        Ok(Self { streams })
    }

    /// Follows the properties of a service.
    ///
    /// # Errors
    /// The bus is gone.
    pub(super) async fn of_properties(
        bus: &Connection,
        service: &'static str,
        path: &'static str,
    ) -> zbus::Result<Self> {
        Self::new(bus, service, path, (PROPERTIES, "PropertiesChanged")).await
    }

    /// Waits for news, and for the message that brought them. `None`: the bus is gone.
    pub(super) async fn next(&mut self) -> Option<(News, zbus::Message)> {
        let (is_owner, message) = self.streams.next().await?;
        let message = message.ok()?;
        if !is_owner {
            return Some((News::Changed, message));
        }
        let names: Option<(String, String, String)> = message.body().deserialize().ok();
        match names {
            Some((_, _, owner)) if owner.is_empty() => Some((News::Gone, message)),
            _ => Some((News::Appeared, message)),
        }
    }
}

/// Asks a service until it answers: one that has just come up may not be complete. `None`: it is not
/// there, or does not answer.
pub(super) async fn until_answered<T, F>(ask: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = zbus::Result<T>>,
{
    let mut wait = TRY_AGAIN;
    for _ in 0..BUS_TRIES_MAX {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(error) if is_absence(&error) => return None,
            Err(error) => tracing::debug!(%error, "a system service does not answer"),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    None
}

/// Whether the error says that nobody has the name.
fn is_absence(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else {
        // The bus is gone, which asking again does not change.
        return matches!(error, zbus::Error::InputOutput(_));
    };
    matches!(
        name.as_str(),
        "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner"
            | "org.freedesktop.DBus.Error.AccessDenied"
    )
}
