//! Which sequence steps next: pure bookkeeping over slots, KV blocks, a queue and a turn order.
//!
//! Requests are admitted first come, first served, when a slot and enough KV blocks are free; admitted
//! sequences step in turn. It knows no GPU, no text and no clock.

use std::collections::VecDeque;

use crate::kv_cache::KvCache;

/// Names a sequence for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// What an admitted sequence holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) slot: u32,
    pub(crate) blocks: Vec<u32>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may step.
    Admitted(Lease),
    /// It waits behind this many.
    Queued {
        /// Requests before it.
        ahead: u32,
    },
    /// It needs more blocks than there are in all.
    Rejected,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scheduler {
    kv: KvCache,
    free_slots: Vec<u32>,
    waiting: VecDeque<(SequenceId, u32)>,
    /// Admitted sequences; the front steps next.
    turns: VecDeque<SequenceId>,
}

impl Scheduler {
    /// A scheduler over `slots` slots and `blocks` KV blocks.
    pub(crate) fn new(slots: u32, blocks: u32) -> Self {
        Self {
            kv: KvCache::new(blocks),
            free_slots: (0..slots).rev().collect(),
            waiting: VecDeque::new(),
            turns: VecDeque::new(),
        }
    }

    /// Takes a request that needs `blocks` KV blocks for its whole life.
    pub(crate) fn submit(&mut self, id: SequenceId, blocks: u32) -> Admission {
        if blocks > self.kv.total() {
            return Admission::Rejected;
        }
        if self.waiting.is_empty()
            && let Some(lease) = self.admit(id, blocks)
        {
            return Admission::Admitted(lease);
        }
        let ahead = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        self.waiting.push_back((id, blocks));
        Admission::Queued { ahead }
    }

    fn admit(&mut self, id: SequenceId, blocks: u32) -> Option<Lease> {
        let &slot = self.free_slots.last()?;
        let blocks = self.kv.allocate(blocks)?;
        self.free_slots.pop();
        self.turns.push_back(id);
        Some(Lease { slot, blocks })
    }

    /// Admits the longest-waiting request if it fits now. Call until it returns `None`.
    pub(crate) fn admit_waiting(&mut self) -> Option<(SequenceId, Lease)> {
        let &(id, blocks) = self.waiting.front()?;
        let lease = self.admit(id, blocks)?;
        self.waiting.pop_front();
        Some((id, lease))
    }

    /// The next sequence in turn that `can_step`; it goes to the back of the order.
    pub(crate) fn next(&mut self, can_step: impl Fn(SequenceId) -> bool) -> Option<SequenceId> {
        let at = self.turns.iter().position(|&id| can_step(id))?;
        let id = self.turns.remove(at)?;
        self.turns.push_back(id);
        Some(id)
    }

    /// Takes back what an admitted sequence holds.
    pub(crate) fn finish(&mut self, id: SequenceId, lease: &Lease) {
        self.turns.retain(|&other| other != id);
        self.kv.release(&lease.blocks);
        self.free_slots.push(lease.slot);
    }

    /// Forgets a waiting request.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.waiting.retain(|&(other, _)| other != id);
    }

    /// Requests waiting.
    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)
    }

    /// The KV pool.
    pub(crate) fn kv(&self) -> &KvCache {
        &self.kv
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(admission: Admission) -> Lease {
        match admission {
            Admission::Admitted(lease) => lease,
            other => panic!("not admitted: {other:?}"),
        }
    }

    #[test]
    fn admits_in_order_and_steps_in_turn() {
        let mut s = Scheduler::new(2, 4);
        let a = lease(s.submit(SequenceId(1), 2));
        lease(s.submit(SequenceId(2), 2));
        assert_eq!(s.submit(SequenceId(3), 1), Admission::Queued { ahead: 0 });
        assert_eq!(s.submit(SequenceId(4), 1), Admission::Queued { ahead: 1 });
        assert_eq!(s.submit(SequenceId(5), 5), Admission::Rejected);
        let order: Vec<_> = (0..4).filter_map(|_| s.next(|_| true)).collect();
        assert_eq!(order, [1, 2, 1, 2].map(SequenceId));
        assert_eq!(s.admit_waiting(), None);
        s.finish(SequenceId(1), &a);
        let (id, _) = s.admit_waiting().unwrap();
        assert_eq!(id, SequenceId(3));
        assert_eq!(s.admit_waiting(), None);
        assert_eq!(s.waiting(), 1);
    }

    #[test]
    fn a_large_request_is_not_overtaken() {
        let mut s = Scheduler::new(4, 4);
        let a = lease(s.submit(SequenceId(1), 3));
        assert_eq!(s.submit(SequenceId(2), 4), Admission::Queued { ahead: 0 });
        assert_eq!(s.submit(SequenceId(3), 1), Admission::Queued { ahead: 1 });
        assert_eq!(s.admit_waiting(), None);
        s.finish(SequenceId(1), &a);
        assert_eq!(s.admit_waiting().unwrap().0, SequenceId(2));
    }

    proptest! {
        #[test]
        fn everything_is_given_back(ops in prop::collection::vec((1u32..6, any::<bool>()), 1..200)) {
            let mut s = Scheduler::new(3, 8);
            let mut live = Vec::new();
            for (i, (blocks, end)) in ops.into_iter().enumerate() {
                let id = SequenceId(i as u64);
                if let Admission::Admitted(l) = s.submit(id, blocks) {
                    live.push((id, l));
                }
                if end && !live.is_empty() {
                    let (id, l) = live.remove(i % live.len());
                    s.finish(id, &l);
                }
                while let Some(admitted) = s.admit_waiting() {
                    live.push(admitted);
                }
                let held: usize = live.iter().map(|(_, l)| l.blocks.len()).sum();
                prop_assert_eq!(s.kv().used() as usize, held);
                prop_assert!(live.len() <= 3);
            }
            // Nobody starves: with everything given back, all that waits is admitted in the end.
            while !live.is_empty() || s.waiting() > 0 {
                for (id, l) in live.drain(..) {
                    s.finish(id, &l);
                }
                while let Some(admitted) = s.admit_waiting() {
                    live.push(admitted);
                }
            }
            prop_assert_eq!(s.kv().used(), 0);
        }
    }
}
