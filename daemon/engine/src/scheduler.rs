//! Who runs and who steps next: classes, fair shares of the GPU's time, slots. Pure bookkeeping: it
//! knows no GPU, no text and no KV, and is told the time.
//!
//! More urgent classes go first; a request that waits long is raised a class at a time. Within a class
//! apps share the GPU's time by deficit: each app's account is charged with what its steps took, and the
//! app that has used least goes first. A sequence that had its turn makes room for one of an
//! app that is behind, and so does one of an app that holds more slots than its share.

mod account;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::account::{Accounts, Bucket};
use crate::model::plan::DECODE_COLUMNS_MAX;
use crate::request::Class;

/// Waiting for so long raises a request by a class.
pub(crate) const AGEING: Duration = Duration::from_secs(20);
/// A sequence runs at least for so long before another of its class takes its slot,
pub(crate) const QUANTUM: Duration = Duration::from_secs(1);
/// and its app must have used so much more of the GPU's time than the other's.
pub(crate) const LAG: Duration = Duration::from_millis(250);

/// Names a sequence for the life of the engine. Later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// What the scheduler shares out, and how.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    /// Slots.
    pub(crate) slots: u32,
    /// Most slots of one app.
    pub(crate) app_slots_max: u32,
    /// Share of the GPU's time for background work beside more urgent work.
    pub(crate) background_share: f32,
}

/// What becomes of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// It gets the slot and may step.
    Run(SequenceId, u32),
    /// It loses its slot and waits.
    Pause(SequenceId),
}

/// What a running sequence can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing now.
    Nothing,
    /// A piece of its prompt, or of what it must compute again.
    Prefill,
    /// A token.
    Decode,
}

/// Who steps next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// One sequence goes on with its prompt.
    Prefill(SequenceId),
    /// These make a token each; who gives way to others when memory is short comes after them.
    Decode(Vec<SequenceId>),
}

/// A running sequence's hold on its slot.
#[derive(Debug, Clone, Copy)]
struct Grant {
    slot: u32,
    since: Duration,
    /// The class it was raised to; counts for a quantum.
    class: Class,
    /// When it stepped last, by the scheduler's own count.
    stepped: u64,
}

#[derive(Debug)]
struct Entry {
    app: Arc<str>,
    class: Class,
    waiting_since: Duration,
    grant: Option<Grant>,
    /// Its reader takes nothing: it can wait elsewhere than in a slot.
    stalled: bool,
}

impl Entry {
    /// Its class now.
    fn class_at(&self, now: Duration) -> Class {
        match &self.grant {
            Some(grant) if now.saturating_sub(grant.since) < QUANTUM => grant.class,
            Some(_) => self.class,
            None => raised(self.class, now.saturating_sub(self.waiting_since)),
        }
    }
}

fn raised(class: Class, waited: Duration) -> Class {
    let steps = waited.as_millis() / AGEING.as_millis();
    let at = class as usize;
    Class::ALL[at.saturating_sub(usize::try_from(steps).unwrap_or(at))]
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scheduler {
    shares: Shares,
    free_slots: Vec<u32>,
    /// Slots that may be taken now.
    slots_allowed: u32,
    /// The least urgent class that may run now.
    least_class: Class,
    /// Equals take slots from each other.
    takes_turns: bool,
    entries: BTreeMap<SequenceId, Entry>,
    accounts: Accounts,
    bucket: Bucket,
    /// The last turn was a prefill.
    prefilled_last: bool,
    turns: u64,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub(crate) fn new(shares: Shares) -> Self {
        Self {
            free_slots: (0..shares.slots).rev().collect(),
            slots_allowed: shares.slots,
            least_class: Class::Background,
            takes_turns: true,
            bucket: Bucket::new(shares.background_share),
            shares,
            entries: BTreeMap::new(),
            accounts: Accounts::default(),
            prefilled_last: false,
            turns: 0,
        }
    }

    /// From now on at most `slots` sequences run, at least one, and none of a class less urgent than
    /// `least_class`, however long it waits. The next [`Scheduler::arrange`] pauses the others. Without
    /// `takes_turns` nobody loses its slot to its equal: where a pause costs the KV, two could take it from
    /// each other for ever.
    pub(crate) fn allow(&mut self, slots: u32, least_class: Class, takes_turns: bool) {
        self.slots_allowed = slots.clamp(1, self.shares.slots);
        self.least_class = least_class;
        self.takes_turns = takes_turns;
    }

    /// Takes a request; it waits.
    pub(crate) fn submit(&mut self, id: SequenceId, app: Arc<str>, class: Class, now: Duration) {
        self.accounts.enter(&app, class);
        let entry = Entry {
            app,
            class,
            waiting_since: now,
            grant: None,
            stalled: false,
        };
        let former = self.entries.insert(id, entry);
        assert!(former.is_none(), "a sequence is submitted once");
    }

    /// Forgets a sequence; its slot is free.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(entry) = self.entries.remove(&id) {
            if let Some(grant) = entry.grant {
                self.free_slots.push(grant.slot);
                self.accounts.give_slot_back(&entry.app);
            }
            self.accounts.leave(&entry.app, entry.class);
        }
    }

    /// Notes whether a sequence waits for its reader.
    pub(crate) fn set_stalled(&mut self, id: SequenceId, stalled: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stalled = stalled;
        }
    }

    /// Charges an app with time of the GPU.
    pub(crate) fn charge(&mut self, app: &str, class: Class, time: Duration) {
        self.accounts.charge(app, class, time);
        if class == Class::Background {
            self.bucket.take(time);
        }
    }

    /// Takes the slot of a sequence, which then waits.
    pub(crate) fn pause(&mut self, id: SequenceId, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Some(grant) = entry.grant.take()
        {
            entry.waiting_since = now;
            self.free_slots.push(grant.slot);
            self.accounts.give_slot_back(&entry.app);
        }
    }

    /// Hands out slots. `fits` tells whether a waiting sequence could go on if it got one; while
    /// the first in line does not fit, nobody overtakes it.
    pub(crate) fn arrange(
        &mut self,
        now: Duration,
        mut fits: impl FnMut(&Self, SequenceId) -> bool,
    ) -> Vec<Move> {
        let mut moves = self.pause_excess(now);
        // Each gets at most one slot a call, so that this ends.
        while moves.len() <= 2 * self.shares.slots as usize
            && let Some(next) = self.first_waiting(now)
        {
            let victim = match self.slots_taken() < self.slots_allowed {
                true => None,
                false => match self.victim(next, now) {
                    Some(victim) => Some(victim),
                    None => break,
                },
            };
            if !fits(self, next) {
                break;
            }
            if let Some(victim) = victim {
                self.pause(victim, now);
                moves.push(Move::Pause(victim));
            }
            let Some(slot) = self.free_slots.pop() else {
                break;
            };
            self.turns += 1;
            let stepped = self.turns;
            if let Some(entry) = self.entries.get_mut(&next) {
                self.accounts.take_slot(&entry.app);
                entry.grant = Some(Grant {
                    slot,
                    since: now,
                    class: raised(entry.class, now.saturating_sub(entry.waiting_since)),
                    stepped,
                });
            }
            moves.push(Move::Run(next, slot));
        }
        moves
    }

    fn slots_taken(&self) -> u32 {
        self.shares.slots - u32::try_from(self.free_slots.len()).unwrap_or(0)
    }

    /// Pauses those that run though they may not any more: first those whose class may not, then the least
    /// urgent, of several the latest.
    fn pause_excess(&mut self, now: Duration) -> Vec<Move> {
        let mut running: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, e)| e.grant.is_some())
            .map(|(id, e)| (e.class > self.least_class, e.class_at(now), *id))
            .collect();
        running.sort_unstable();
        let mut moves = Vec::new();
        while let Some((forbidden, _, id)) = running.pop()
            && (forbidden || self.slots_taken() > self.slots_allowed)
        {
            self.pause(id, now);
            moves.push(Move::Pause(id));
        }
        moves
    }

    /// The waiting sequence that is next in line.
    fn first_waiting(&self, now: Duration) -> Option<SequenceId> {
        self.entries
            .iter()
            .filter(|(_, e)| e.grant.is_none() && !e.stalled && e.class <= self.least_class)
            .filter(|(_, e)| self.slots_of(&e.app) < self.shares.app_slots_max)
            .min_by_key(|(id, e)| self.rank(**id, e, now))
            .map(|(id, _)| *id)
    }

    /// Smaller goes first.
    fn rank(&self, id: SequenceId, e: &Entry, now: Duration) -> (Class, Duration, u32, SequenceId) {
        let used = self.accounts.used(&e.app, e.class);
        (e.class_at(now), used, self.slots_of(&e.app), id)
    }

    fn slots_of(&self, app: &str) -> u32 {
        self.accounts.slots(app)
    }

    /// The running sequence whose slot `next` may take, if there is one.
    fn victim(&self, next: SequenceId, now: Duration) -> Option<SequenceId> {
        let next = self.entries.get(&next)?;
        let (class, slots) = (next.class_at(now), self.slots_of(&next.app));
        let used = self.accounts.used(&next.app, next.class);
        let running = || {
            let entries = self.entries.iter();
            entries.filter_map(|(id, e)| e.grant.map(|grant| (*id, e, grant)))
        };
        // Of several the latest, which has the least to lose.
        let stalled = running().filter(|(_, e, _)| e.stalled).map(|(id, ..)| id);
        let less_urgent = running()
            .filter(|(_, e, _)| e.class_at(now) > class)
            .max_by_key(|(id, e, _)| (e.class_at(now), *id));
        let same = || {
            let equals =
                running().filter(|(_, e, _)| e.class_at(now) == class && e.app != next.app);
            equals.filter(|_| self.takes_turns)
        };
        let more_slots = same()
            .filter(|(_, e, _)| self.slots_of(&e.app) >= slots + 2)
            .max_by_key(|(id, e, _)| (self.slots_of(&e.app), *id));
        let had_its_turn = same()
            .filter(|(_, _, grant)| now.saturating_sub(grant.since) >= QUANTUM)
            .map(|(id, e, _)| (self.accounts.used(&e.app, e.class), id))
            .filter(|(theirs, _)| *theirs > used + LAG)
            .max();
        stalled
            .max()
            .or(less_urgent.map(|(id, ..)| id))
            .or(more_slots.map(|(id, ..)| id))
            .or(had_its_turn.map(|(_, id)| id))
    }

    /// Chooses who steps next among those that run.
    pub(crate) fn turn(
        &mut self,
        now: Duration,
        work: impl Fn(SequenceId) -> Work,
    ) -> Option<Turn> {
        let mut able: Vec<(SequenceId, Work, Class, u64)> = Vec::new();
        for (&id, e) in &self.entries {
            if let Some(grant) = e.grant
                && let work = work(id)
                && work != Work::Nothing
            {
                able.push((id, work, e.class_at(now), grant.stepped));
            }
        }
        let urgent = able.iter().map(|(_, _, class, _)| *class).min()?;
        self.bucket.refill(now, urgent == Class::Background);
        if urgent != Class::Background && !self.bucket.has_some() {
            able.retain(|(_, _, class, _)| *class != Class::Background);
        }
        let prefill = able
            .iter()
            .filter(|(_, work, ..)| *work == Work::Prefill)
            .filter_map(|(id, _, class, _)| {
                let e = self.entries.get(id)?;
                Some((*class, self.accounts.used(&e.app, e.class), *id))
            })
            .min();
        let mut decode: Vec<(u64, SequenceId, Class)> = able
            .iter()
            .filter(|(_, work, ..)| *work == Work::Decode)
            .map(|(id, _, class, stepped)| (*stepped, *id, *class))
            .collect();
        let decode_class = decode.iter().map(|(_, _, class)| *class).min();
        // A prompt more urgent than all that decode goes first; else they take turns.
        let prefills = match (prefill, decode_class) {
            (Some((class, ..)), Some(decoding)) => class < decoding || !self.prefilled_last,
            (prefill, _) => prefill.is_some(),
        };
        self.prefilled_last = prefills;
        let chosen = match prefill {
            Some((_, _, id)) if prefills => Turn::Prefill(id),
            _ => {
                // Those that have not stepped for longest, if not all fit.
                decode.sort_unstable();
                decode.truncate(DECODE_COLUMNS_MAX as usize);
                let mut ids: Vec<_> = decode
                    .into_iter()
                    .map(|(_, id, class)| (class, id))
                    .collect();
                ids.sort_unstable();
                let ids = ids.into_iter().map(|(_, id)| id).collect();
                Turn::Decode(ids)
            }
        };
        self.note_step(&chosen);
        Some(chosen)
    }

    fn note_step(&mut self, turn: &Turn) {
        self.turns += 1;
        let ids = match turn {
            Turn::Prefill(id) => std::slice::from_ref(id),
            Turn::Decode(ids) => ids,
        };
        for id in ids {
            if let Some(grant) = self.entries.get_mut(id).and_then(|e| e.grant.as_mut()) {
                grant.stepped = self.turns;
            }
        }
    }

    /// Sequences that must give way to `id` when memory is short, those that go first first: the
    /// paused before the running, the less urgent before the more urgent, the later before the earlier.
    pub(crate) fn giving_way_to(&self, id: SequenceId, now: Duration) -> Vec<SequenceId> {
        let Some(own) = self.entries.get(&id) else {
            return Vec::new();
        };
        // Those that run give way to more urgent ones only; among those that run, age counts too, so
        // that one of them always comes to its end.
        let own_rank = (own.class_at(now), own.grant.map(|_| id));
        let mut list: Vec<_> = self
            .entries
            .iter()
            .filter(|(other, _)| **other != id)
            .map(|(other, e)| (e.grant.is_some(), Reverse((e.class_at(now), *other))))
            .filter(|(runs, Reverse((class, other)))| {
                let later = own_rank
                    .1
                    .is_some_and(|id| *class == own_rank.0 && *other > id);
                !runs || *class > own_rank.0 || later
            })
            .collect();
        list.sort_unstable();
        list.into_iter().map(|(_, Reverse((_, id)))| id).collect()
    }

    /// The waiting sequences, the next in line first.
    pub(crate) fn line(&self, now: Duration) -> Vec<SequenceId> {
        // An app's n-th request comes after the first n - 1 of the others.
        let mut nth: BTreeMap<(&str, Class), u32> = BTreeMap::new();
        let mut line: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, e)| e.grant.is_none())
            .map(|(id, e)| {
                let nth = nth.entry((&e.app, e.class_at(now))).or_default();
                *nth += 1;
                let (class, used, slots, id) = self.rank(*id, e, now);
                (class, *nth + slots, used, id)
            })
            .collect();
        line.sort_unstable();
        line.into_iter().map(|(.., id)| id).collect()
    }

    /// Sequences that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = SequenceId> {
        let running = self.entries.iter().filter(|(_, e)| e.grant.is_some());
        running.map(|(id, _)| *id)
    }
}
