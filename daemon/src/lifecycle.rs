//! Where the daemon is in its life, and what anyone may watch of it.
//!
//! It knows no model and no RPC: others move it along, [`Lifecycle::watch`] shows it.

use tokio::sync::watch;

/// The states, in order. `Ready` and `Loading` alternate; nothing follows `Stopped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The GPU is being opened.
    Starting,
    /// A model is being loaded.
    Loading,
    /// Serving, with a warm model or without.
    Ready,
    /// What runs may finish; nothing new is accepted.
    Draining,
    /// Over.
    Stopped,
}

/// A load in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadingNow {
    /// Name of the model.
    pub name: String,
    /// Bytes of weights in GPU memory.
    pub done_bytes: u64,
    /// Bytes of weights in all; 0: not yet known.
    pub total_bytes: u64,
}

impl LoadingNow {
    /// How far it is, from 0 to 1.
    pub fn fraction(&self) -> f32 {
        if self.total_bytes == 0 {
            return 0.0;
        }
        // Whole thousandths are exact in f32 and enough for a progress bar.
        let thousandths =
            self.done_bytes.min(self.total_bytes).saturating_mul(1000) / self.total_bytes.max(1);
        u16::try_from(thousandths).map_or(1.0, |n| f32::from(n) / 1000.0)
    }
}

/// What can be seen of the daemon's life at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The state.
    pub state: State,
    /// Why, in words, if there is something to say.
    pub reason: Option<String>,
    /// The load, in the state `Loading`.
    pub loading: Option<LoadingNow>,
}

/// The daemon's life. Once it drains it never serves again.
#[derive(Debug)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase {
                state: State::Starting,
                reason: None,
                loading: None,
            }),
        }
    }
}

impl Lifecycle {
    /// Watches it.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Tells the phase now.
    pub fn now(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Whether nothing new is accepted any more.
    pub fn is_draining(&self) -> bool {
        self.phase.borrow().state >= State::Draining
    }

    /// Tells how far a load is.
    pub fn loading(&self, loading: LoadingNow) {
        self.step(Phase {
            state: State::Loading,
            reason: None,
            loading: Some(loading),
        });
    }

    /// The start or a load is over; `reason` says what went wrong, if anything did.
    pub fn ready(&self, reason: Option<String>) {
        self.step(Phase {
            state: State::Ready,
            reason,
            loading: None,
        });
    }

    /// The GPU could not be opened.
    pub fn start_failed(&self, reason: String) {
        self.step(Phase {
            state: State::Starting,
            reason: Some(reason),
            loading: None,
        });
    }

    /// Nothing new is accepted from now on.
    pub fn drain(&self) {
        self.step(Phase {
            state: State::Draining,
            reason: None,
            loading: None,
        });
    }

    /// It is over.
    pub fn stop(&self) {
        self.phase.send_if_modified(|phase| {
            let changed = phase.state != State::Stopped;
            phase.state = State::Stopped;
            changed
        });
    }

    fn step(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let allowed = phase.state < State::Draining && *phase != next;
            if allowed {
                *phase = next;
            }
            allowed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loading(done_bytes: u64, total_bytes: u64) -> LoadingNow {
        LoadingNow {
            name: "m".to_owned(),
            done_bytes,
            total_bytes,
        }
    }

    #[test]
    fn it_goes_its_way_and_never_back_from_draining() {
        let life = Lifecycle::default();
        assert_eq!(life.now().state, State::Starting);
        life.loading(loading(0, 0));
        assert_eq!(life.now().state, State::Loading);
        life.ready(None);
        assert_eq!(life.now().state, State::Ready);
        life.drain();
        life.ready(None);
        life.loading(loading(1, 2));
        assert!(life.is_draining());
        assert_eq!(life.now().state, State::Draining);
        life.stop();
        assert_eq!(life.now().state, State::Stopped);
    }

    #[test]
    fn watchers_hear_of_changes_alone() {
        let life = Lifecycle::default();
        let mut watch = life.watch();
        life.ready(None);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        life.ready(None);
        assert!(!watch.has_changed().unwrap());
    }

    #[test]
    fn fractions_stay_within_0_and_1() {
        assert!(loading(0, 0).fraction() == 0.0);
        assert!(loading(1, 2).fraction() == 0.5);
        assert!(loading(9, 3).fraction() == 1.0);
        assert!(loading(u64::MAX, u64::MAX).fraction() <= 1.0);
    }
}
