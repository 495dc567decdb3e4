//! Who has used how much of the GPU's time, for fairness; and the token bucket of background work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::request::Class;

/// Most apps remembered that have nothing to do.
const IDLE_APPS_MAX: usize = 256;
/// Most time that background work can save up.
const BUCKET_MAX: Duration = Duration::from_millis(200);

/// Most that an app is behind others when it comes back.
const DEBT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Account {
    /// GPU time used, by class. Starts at what the others have, so that nobody saves up or owes.
    used: [Duration; 3],
    /// Sequences that run or wait, by class.
    entries: [u32; 3],
    slots: u32,
}

/// GPU time by app and class.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    apps: HashMap<Arc<str>, Account>,
}

impl Accounts {
    /// An app has one sequence more.
    pub(super) fn enter(&mut self, app: &Arc<str>, class: Class) {
        let at = class as usize;
        let least = self
            .apps
            .values()
            .filter(|account| account.entries[at] > 0)
            .map(|account| account.used[at])
            .min();
        let account = self.apps.entry(Arc::clone(app)).or_default();
        if account.entries[at] == 0 {
            // Time away earns nothing, and what was used while nobody else wanted it is no lasting debt.
            account.used[at] = match least {
                Some(least) => account.used[at].clamp(least, least + DEBT_MAX),
                None => Duration::ZERO,
            };
        }
        account.entries[at] += 1;
    }

    /// And one less.
    pub(super) fn leave(&mut self, app: &str, class: Class) {
        if let Some(account) = self.apps.get_mut(app) {
            account.entries[class as usize] -= 1;
        }
        if self.apps.values().all(|account| account.entries == [0; 3]) {
            self.apps.clear();
        } else if self.apps.len() > IDLE_APPS_MAX {
            self.apps.retain(|_, account| account.entries != [0; 3]);
        }
    }

    /// One of its sequences got a slot.
    pub(super) fn take_slot(&mut self, app: &str) {
        if let Some(account) = self.apps.get_mut(app) {
            account.slots += 1;
        }
    }

    /// One of its sequences gave a slot back.
    pub(super) fn give_slot_back(&mut self, app: &str) {
        if let Some(account) = self.apps.get_mut(app) {
            account.slots -= 1;
        }
    }

    /// Slots it has.
    pub(super) fn slots(&self, app: &str) -> u32 {
        self.apps.get(app).map_or(0, |account| account.slots)
    }

    /// Notes time used.
    pub(super) fn charge(&mut self, app: &str, class: Class, time: Duration) {
        if let Some(account) = self.apps.get_mut(app) {
            account.used[class as usize] += time;
        }
    }

    /// Time used.
    pub(super) fn used(&self, app: &str, class: Class) -> Duration {
        self.apps
            .get(app)
            .map_or(Duration::ZERO, |account| account.used[class as usize])
    }
}

/// How much of the GPU's time background work may take beside more urgent work.
#[derive(Debug)]
pub(super) struct Bucket {
    share: f64,
    /// Seconds left; below zero after a step that took more.
    level_s: f64,
    filled_at: Option<Duration>,
}

impl Bucket {
    /// A full bucket that fills by `share` seconds a second.
    pub(super) fn new(share: f32) -> Self {
        Self {
            share: f64::from(share),
            level_s: BUCKET_MAX.as_secs_f64(),
            filled_at: None,
        }
    }

    /// Lets time pass. `alone`: there is no more urgent work, and nothing to save for.
    pub(super) fn refill(&mut self, now: Duration, alone: bool) {
        let since = self.filled_at.replace(now).unwrap_or(now);
        let gain = now.saturating_sub(since).as_secs_f64() * self.share;
        let most = BUCKET_MAX.as_secs_f64();
        self.level_s = if alone {
            most
        } else {
            (self.level_s + gain).min(most)
        };
    }

    /// Takes time out.
    pub(super) fn take(&mut self, time: Duration) {
        self.level_s -= time.as_secs_f64();
    }

    /// Tells whether background work may go on.
    pub(super) fn has_some(&self) -> bool {
        self.level_s > 0.0
    }
}
