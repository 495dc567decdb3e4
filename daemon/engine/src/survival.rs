//! What to do when the GPU's device is lost: how soon to open it again, when to go easy on it, and when
//! to give up. Pure bookkeeping: it is told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::limits::{LOSSES_CAREFUL, LOSSES_GIVE_UP, LOSSES_RECENT, LOSSES_WINDOW, RETRY_DELAYS};

/// How an engine deals with lost devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// How long to wait before the device is opened again: after a first failure, after one more within
    /// a minute, and so on; the last holds for all that follow.
    pub delays: Vec<Duration>,
    /// Failures within this time count together.
    pub window: Duration,
    /// So many, and steps become smaller, until the time has passed.
    pub careful_after: usize,
    /// So many, and the engine gives the model up.
    pub give_up_after: usize,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            delays: RETRY_DELAYS.to_vec(),
            window: LOSSES_WINDOW,
            careful_after: LOSSES_CAREFUL,
            give_up_after: LOSSES_GIVE_UP,
        }
    }
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Open the device again after this time.
    Again(Duration),
    /// It does not help.
    GiveUp,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Survival {
    rules: Recovery,
    /// When the device was lost, or could not be opened again.
    failures: VecDeque<Instant>,
}

impl Survival {
    /// Nothing has failed yet.
    pub(crate) fn new(rules: Recovery) -> Self {
        Self {
            rules,
            failures: VecDeque::new(),
        }
    }

    /// Notes a failure.
    pub(crate) fn failed(&mut self, now: Instant) -> Verdict {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        let window = self.rules.window;
        self.failures.retain(|at| since(at) < window);
        let recent = self.failures.iter().filter(|at| since(at) < LOSSES_RECENT);
        let delay = self.rules.delays.get(recent.count());
        let delay = delay.or(self.rules.delays.last()).copied();
        // More of them would change nothing.
        if self.failures.len() >= self.rules.give_up_after {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        if self.failures.len() >= self.rules.give_up_after {
            return Verdict::GiveUp;
        }
        Verdict::Again(delay.unwrap_or_default())
    }

    /// Tells whether steps should be small.
    pub(crate) fn is_careful(&self, now: Instant) -> bool {
        let window = self.rules.window;
        let within = |at: &&Instant| now.saturating_duration_since(**at) < window;
        self.failures.iter().filter(within).count() >= self.rules.careful_after
    }

    /// Begins anew.
    pub(crate) fn forget(&mut self) {
        self.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_device_that_stays_lost_is_tried_ever_later_and_then_given_up() {
        let mut survival = Survival::new(Recovery::default());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        while let Verdict::Again(delay) = survival.failed(now) {
            waits.push(delay.as_secs());
            assert_eq!(survival.is_careful(now), waits.len() >= 3);
            now += delay;
        }
        assert_eq!(waits, [0, 1, 4, 16, 16]);
        survival.forget();
        assert_eq!(survival.failed(now), Verdict::Again(Duration::ZERO));
        assert!(!survival.is_careful(now));
    }

    #[test]
    fn rare_losses_cost_no_wait_and_no_speed() {
        let mut survival = Survival::new(Recovery::default());
        let mut now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(survival.failed(now), Verdict::Again(Duration::ZERO));
            assert!(!survival.is_careful(now));
            now += 301 * SECOND;
        }
    }

    #[test]
    fn small_steps_end_when_the_losses_are_long_ago() {
        let mut survival = Survival::new(Recovery::default());
        let start = Instant::now();
        for n in 0..3 {
            survival.failed(start + 70 * n * SECOND);
        }
        let last = start + 140 * SECOND;
        assert!(survival.is_careful(last + 459 * SECOND));
        assert!(!survival.is_careful(last + 461 * SECOND));
    }
}
