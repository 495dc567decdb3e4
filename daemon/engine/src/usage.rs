//! Who runs what, and who has used how much: the engine's accounts as others see them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::request::Class;

/// One app's account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppUsage {
    /// The app.
    pub app: Arc<str>,
    /// Its sequences that run now.
    pub active_now: u32,
    /// Its requests that wait now, paused sequences included.
    pub waiting_now: u32,
    /// KV blocks that its sequences hold now; one shared by two counts for both.
    pub kv_blocks_now: u32,
    /// KV blocks kept for its later prompts, which it alone can use.
    pub kv_blocks_cached_now: u32,
    /// Requests accepted.
    pub requests: u64,
    /// Prompt tokens, those whose KV was reused included.
    pub prompt_tokens: u64,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Its share of the GPU's time.
    pub gpu_time: Duration,
    /// Its share of the energy, in microjoules; 0 without a meter.
    pub energy_uj: u64,
}

/// One sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceUsage {
    /// Its number, unlike any other's since the engine's start.
    pub id: u64,
    /// Number of the model that it runs on.
    pub model: u64,
    /// Whose it is.
    pub app: Arc<str>,
    /// The caller's process, where it is known.
    pub pid: Option<u32>,
    /// How urgent it is.
    pub class: Class,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was reused.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// KV blocks it holds.
    pub kv_blocks: u32,
    /// Requests ahead of it; `None`: it runs.
    pub ahead: Option<u32>,
    /// Whether KV that it had is being computed again.
    pub replays: bool,
    /// Its share of the GPU's time.
    pub gpu_time: Duration,
}

/// All accounts at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// By app, in order of names. Accounts of apps long gone may be merged in one named `(others)`.
    pub apps: Vec<AppUsage>,
    /// Sequences that run or wait, oldest first.
    pub sequences: Vec<SequenceUsage>,
}

/// Most apps with an account of their own.
const APPS_MAX: usize = 256;
/// Whose account takes those of apps that are long gone.
const OTHERS: &str = "(others)";

/// What each app has used since the engine's start.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    apps: BTreeMap<Arc<str>, (AppUsage, u64)>,
    clock: u64,
}

impl Ledger {
    /// Changes the account of `app`.
    pub(crate) fn change(&mut self, app: &Arc<str>, change: impl FnOnce(&mut AppUsage)) {
        self.clock += 1;
        if !self.apps.contains_key(app) {
            self.make_room();
            let account = AppUsage {
                app: Arc::clone(app),
                ..AppUsage::default()
            };
            self.apps.insert(Arc::clone(app), (account, 0));
        }
        if let Some((account, at)) = self.apps.get_mut(app) {
            *at = self.clock;
            change(account);
        }
    }

    /// Merges the account that has not changed for longest into that of the others.
    fn make_room(&mut self) {
        if self.apps.len() < APPS_MAX {
            return;
        }
        let others: Arc<str> = OTHERS.into();
        let oldest = self
            .apps
            .iter()
            .filter(|(app, _)| **app != others)
            .min_by_key(|(_, (_, at))| *at)
            .map(|(app, _)| Arc::clone(app));
        let Some((old, _)) = oldest.and_then(|app| self.apps.remove(&app)) else {
            return;
        };
        let (account, _) = self.apps.entry(Arc::clone(&others)).or_default();
        account.app = others;
        account.requests += old.requests;
        account.prompt_tokens += old.prompt_tokens;
        account.cached_tokens += old.cached_tokens;
        account.generated_tokens += old.generated_tokens;
        account.gpu_time += old.gpu_time;
        account.energy_uj += old.energy_uj;
    }

    /// Apps with an account, in order.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.apps.keys().cloned().collect()
    }

    /// All accounts in order of names, without what is so only now.
    pub(crate) fn accounts(&self) -> Vec<AppUsage> {
        self.apps
            .values()
            .map(|(account, _)| account.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_accounts_are_merged_and_nothing_is_lost() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.change(&format!("app{n}").into(), |account| account.requests += 1);
            ledger.change(&"busy".into(), |account| account.requests += 1);
        }
        let accounts = ledger.accounts();
        assert!(accounts.len() <= APPS_MAX + 1);
        let of = |app: &str| accounts.iter().find(|a| *a.app == *app).unwrap().requests;
        assert_eq!(of("busy"), 1000);
        assert_eq!(of("app999"), 1);
        assert_eq!(accounts.iter().map(|a| a.requests).sum::<u64>(), 2000);
        assert!(of(OTHERS) > 700);
    }
}
