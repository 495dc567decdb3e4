//! How many connections each app has open, so that no app takes them all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::APP_CONNECTIONS_MAX;

/// Connections open now, by app. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<BTreeMap<String, usize>>>);

/// One open connection's place; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    app: String,
}

impl Places {
    /// Takes a place for a connection of this app; `None` if it has as many as it may.
    pub(crate) fn take(&self, app: &str) -> Option<Place> {
        let mut open = self.lock();
        let count = open.entry(app.to_owned()).or_default();
        if *count >= APP_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Place {
            places: self.clone(),
            app: app.to_owned(),
        })
    }

    /// Connections of each app that has any, in order of names.
    pub(crate) fn by_app(&self) -> BTreeMap<String, u32> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let open = self.lock();
        open.iter()
            .map(|(app, open)| (app.clone(), count(*open)))
            .collect()
    }

    /// Connections of this app.
    pub(crate) fn of(&self, app: &str) -> u32 {
        let count = self.lock().get(app).copied().unwrap_or_default();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.lock();
        if let Some(count) = open.get_mut(&self.app) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_its_share_and_others_theirs() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..APP_CONNECTIONS_MAX)
            .map(|_| places.take("a").unwrap())
            .collect();
        assert!(places.take("a").is_none());
        let other = places.take("b").unwrap();
        assert_eq!((places.of("a"), places.of("b"), places.of("c")), (64, 1, 0));
        let by_app: Vec<_> = places.by_app().into_iter().collect();
        assert_eq!(by_app, [("a".to_owned(), 64), ("b".to_owned(), 1)]);
        held.pop();
        held.push(places.take("a").unwrap());
        assert!(places.take("a").is_none());
        drop((held, other));
        assert!(places.lock().is_empty(), "no app is remembered for ever");
    }
}
