//! Which apps are connected now, and with how many connections.
//!
//! It counts names; who may connect is decided before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Open connections by app. An app without any takes no memory here.
#[derive(Default)]
pub(crate) struct Presence {
    by_app: Mutex<BTreeMap<String, u32>>,
}

impl Presence {
    /// Counts a connection of `app` for as long as the result lives.
    pub(crate) fn enter(self: &Arc<Self>, app: &str) -> Present {
        *self.lock().entry(app.to_owned()).or_default() += 1;
        Present {
            presence: Arc::clone(self),
            app: app.to_owned(),
        }
    }

    /// Connections by app, in order of names; none is 0.
    pub(crate) fn by_app(&self) -> BTreeMap<String, u32> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.by_app.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted connection.
pub(crate) struct Present {
    presence: Arc<Presence>,
    app: String,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut by_app = self.presence.lock();
        if let Some(count) = by_app.get_mut(&self.app) {
            *count -= 1;
            if *count == 0 {
                by_app.remove(&self.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_app_and_forgotten() {
        let presence = Arc::new(Presence::default());
        let first = presence.enter("notes");
        let second = presence.enter("notes");
        let other = presence.enter("editor");
        let counts = |presence: &Presence| presence.by_app().into_iter().collect::<Vec<_>>();
        assert_eq!(
            counts(&presence),
            [("editor".to_owned(), 1), ("notes".to_owned(), 2)]
        );
        drop((first, other));
        assert_eq!(counts(&presence), [("notes".to_owned(), 1)]);
        drop(second);
        assert!(counts(&presence).is_empty());
    }
}
