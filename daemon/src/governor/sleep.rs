//! The machine's sleep, by logind: a delay inhibitor is held, so that the GPU can come to rest before
//! the machine does, and let go within `SLEEP_DELAY_MAX`.

use std::future::Future;

use zbus::Connection;
use zbus::zvariant::OwnedFd;

use super::bus::{self, Follower, News};
use crate::limits::SLEEP_DELAY_MAX;

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// What is delayed, who delays it, why, and that it is no more than a delay.
const INHIBITOR: (&str, &str, &str, &str) = (
    "sleep",
    "Hearth",
    "lets the GPU finish what it was given",
    "delay",
);

/// Who is told of sleep.
pub(crate) trait Sleeper: Send + 'static {
    /// The machine is about to sleep. It waits, but not for long.
    fn before(&self) -> impl Future<Output = ()> + Send;

    /// The machine is awake again.
    fn after(&self) -> impl Future<Output = ()> + Send;
}

/// Tells `sleeper` of every sleep, as long as there is a bus.
pub(crate) async fn follow(bus: Connection, sleeper: impl Sleeper) {
    let signal = (MANAGER, "PrepareForSleep");
    let Ok(mut follower) = Follower::new(&bus, SERVICE, PATH, signal).await else {
        return;
    };
    let mut inhibitor = inhibit(&bus).await;
    let mut asleep = false;
    while let Some((news, message)) = follower.next().await {
        let prepares = match news {
            News::Gone => {
                inhibitor = None;
                Some(false)
            }
            // Its inhibitors went with its predecessor.
            News::Appeared => Some(false),
            News::Changed => message.body().deserialize::<bool>().ok(),
        };
        match prepares {
            Some(true) => {
                tracing::info!("the machine goes to sleep");
                asleep = true;
                let rest = tokio::time::timeout(SLEEP_DELAY_MAX, sleeper.before());
                if rest.await.is_err() {
                    tracing::warn!("the GPU did not come to rest before the machine sleeps");
                }
                // Closing it lets the machine go.
                drop(inhibitor.take());
            }
            Some(false) => {
                if news != News::Gone {
                    inhibitor = inhibit(&bus).await;
                }
                // Without logind nobody would tell: the machine is awake, since this runs.
                if std::mem::take(&mut asleep) {
                    tracing::info!("the machine is awake again");
                    sleeper.after().await;
                }
            }
            None => {}
        }
    }
    if asleep {
        sleeper.after().await;
    }
    drop(inhibitor);
}

/// Takes a delay inhibitor. `None`: nobody grants one, and the machine sleeps unannounced.
async fn inhibit(bus: &Connection) -> Option<OwnedFd> {
    let ask = || async {
        let call = bus.call_method(Some(SERVICE), PATH, Some(MANAGER), "Inhibit", &INHIBITOR);
        call.await?.body().deserialize::<OwnedFd>()
    };
    bus::until_answered(ask).await
}
