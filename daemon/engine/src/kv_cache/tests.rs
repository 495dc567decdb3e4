//! Random lives of sequences over a small pool, against a plain record of what every block holds.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use proptest::prelude::*;

use super::*;

const APPS: u64 = 3;

/// Numbers that do not repeat for long.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    fn count(&mut self, n: u64) -> u32 {
        u32::try_from(self.below(n)).unwrap()
    }
}

/// What a block holds: whose tokens, from its first position on, with all that came before them.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    app: u64,
    history: Vec<u32>,
}

struct Life {
    app: u64,
    tokens: Vec<u32>,
    computed: usize,
    table: Vec<u32>,
    /// `None`: it keeps nothing any more.
    chain: Option<Chain>,
    /// Places in the table of blocks that it gave back.
    shed: Range<usize>,
}

struct World {
    kv: KvCache,
    lives: Vec<Life>,
    content: HashMap<u32, Content>,
    random: Random,
}

fn scope(app: u64) -> Scope {
    if app == 0 {
        Scope::Shared
    } else {
        Scope::App(app.to_string().into())
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let blocks = 1 + random.count(24);
        Self {
            kv: KvCache::new(blocks),
            lives: Vec::new(),
            content: HashMap::new(),
            random,
        }
    }

    /// Few different tokens and few forks: prompts that share long beginnings.
    fn tokens(&mut self) -> Vec<u32> {
        let len = 1 + self.random.count(70);
        let fork = self.random.count(70);
        let after = self.random.count(2);
        (0..len)
            .map(|at| if at < fork { at % 5 } else { 7 + after })
            .collect()
    }

    fn clean(&mut self) {
        for block in self.kv.take_unclean() {
            self.content.remove(&block);
        }
    }

    fn start(&mut self) {
        let app = self.random.below(APPS);
        let tokens = self.tokens();
        let known = tokens.len() - 1;
        let found = self.kv.find(&scope(app), &tokens[..known]);
        let positions = found.positions() as usize;
        assert!(positions <= known);
        for (block, end) in found.blocks.iter().zip((1..).map(|n| n * 16)) {
            let wanted = Content {
                app,
                history: tokens[..end].to_vec(),
            };
            assert_eq!(self.content[block], wanted, "a block of another prompt");
        }
        let mut life = Life {
            app,
            table: found.blocks.clone(),
            computed: positions,
            chain: Some(found.chain),
            shed: 0..0,
            tokens,
        };
        if let Some((from, len)) = found.tail {
            let held = &self.content[&from];
            assert_eq!(held.app, app);
            assert_eq!(held.history[..positions], life.tokens[..positions]);
            assert!(len > 0 && len <= 16);
            let own = self.kv.allocate(1);
            self.clean();
            match own {
                Some(own) => {
                    assert_ne!(own[0], from, "the source stays while it is copied");
                    let history = life.tokens[..positions].to_vec();
                    self.content.insert(own[0], Content { app, history });
                    life.table.push(own[0]);
                }
                None => life.computed -= len as usize,
            }
            self.kv.release(&[from]);
        }
        self.lives.push(life);
    }

    /// Computes the next tokens of a sequence, in as far as there are blocks.
    fn grow(&mut self, at: usize) {
        let more = 1 + self.random.count(40) as usize;
        let life = &mut self.lives[at];
        if life.computed == life.tokens.len() {
            life.tokens.push(self.random.count(3));
        }
        let end = life.tokens.len().min(life.computed + more);
        let missing = end.div_ceil(16).saturating_sub(life.table.len());
        let Some(blocks) = self.kv.allocate(u32::try_from(missing).unwrap()) else {
            let missing = u32::try_from(missing).unwrap();
            assert!(
                missing > self.kv.available(),
                "refused though there is room"
            );
            return;
        };
        for block in self.kv.take_unclean() {
            self.content.remove(&block);
        }
        life.table.extend(blocks);
        for block in life.computed / 16..end.div_ceil(16) {
            let id = life.table[block];
            assert_eq!(
                self.kv.blocks[id as usize].users, 1,
                "only its own blocks are written"
            );
            let history = life.tokens[..end.min(block * 16 + 16)].to_vec();
            let app = life.app;
            self.content.insert(id, Content { app, history });
        }
        life.computed = end;
        let tokens = &life.tokens[..end];
        if let Some(chain) = &mut life.chain {
            self.kv.keep(chain, tokens, &mut life.table, false);
        }
    }

    /// A sequence needs its first blocks no more.
    fn shed(&mut self, at: usize) {
        let first = self.random.index(4);
        let life = &mut self.lives[at];
        let end = (life.computed / 16).min(life.shed.end + first);
        if end <= life.shed.end {
            return;
        }
        if let Some(chain) = life.chain.take() {
            let shared = self.kv.leave(&chain, &life.table);
            assert!(shared <= chain.len);
            let own = |id: u32| {
                let state = &self.kv.blocks[id as usize];
                state.users == 1 && state.kept.is_none()
            };
            assert!(life.table[shared..].iter().all(|&id| own(id)));
            life.shed = shared..shared;
        }
        let from = life.shed.end;
        if from < end {
            self.kv.release(&life.table[from..end]);
            life.shed.end = end;
        }
    }

    fn end(&mut self, at: usize) {
        let mut life = self.lives.swap_remove(at);
        let tokens = &life.tokens[..life.computed];
        if let Some(chain) = &mut life.chain {
            self.kv.keep(chain, tokens, &mut life.table, true);
        }
        self.kv.release(&life.table[life.shed.end..]);
        self.kv.release(&life.table[..life.shed.start]);
    }

    fn check(&self) {
        let mut users = vec![0; self.kv.blocks.len()];
        for life in &self.lives {
            let held = |n: &usize| !life.shed.contains(n);
            for n in (0..life.table.len()).filter(held) {
                users[life.table[n] as usize] += 1;
            }
            for n in (0..life.computed / 16).filter(held) {
                let block = life.table[n];
                let content = &self.content[&block];
                assert_eq!(content.app, life.app, "a block of another app");
                assert_eq!(
                    content.history,
                    life.tokens[..n * 16 + 16],
                    "another's tokens"
                );
            }
        }
        let free: HashSet<u32> = self.kv.free.iter().copied().collect();
        assert_eq!(free.len(), self.kv.free.len(), "a block is free once");
        let mut idle = 0;
        for (id, state) in (0..).zip(&self.kv.blocks) {
            assert_eq!(state.users, users[id as usize], "users of block {id}");
            let nobody = state.users == 0;
            idle += u32::from(nobody && state.kept.is_some());
            assert_eq!(free.contains(&id), nobody && state.kept.is_none());
        }
        assert_eq!(idle, self.kv.cached());
        assert!(idle <= self.kv.kept_max, "{idle} are kept");
        let in_use = users.iter().filter(|n| **n > 0).count();
        assert_eq!(self.kv.used() as usize, in_use);
        assert!(self.kv.unclean.iter().all(|block| free.contains(block)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn no_block_is_lost_shared_wrongly_or_freed_twice(seed: u64) {
        let mut world = World::new(seed);
        for _ in 0..30 {
            let lives = world.lives.len();
            match world.random.below(9) {
                0 | 1 => world.start(),
                6 => {
                    let most = world.random.count(20);
                    world.kv.keep_at_most(most);
                    world.clean();
                }
                7 if lives > 0 => {
                    let at = world.random.index(lives);
                    world.shed(at);
                    world.clean();
                }
                2..=4 | 8 if lives > 0 => {
                    let at = world.random.index(lives);
                    world.grow(at);
                }
                _ if lives > 0 => {
                    let at = world.random.index(lives);
                    world.end(at);
                }
                _ => {}
            }
            world.check();
        }
        while !world.lives.is_empty() {
            world.end(0);
        }
        world.check();
        assert_eq!(world.kv.used(), 0, "everything is given back");
        // All that is kept makes room for one that needs everything.
        let total = world.kv.total();
        let all = world.kv.allocate(total).unwrap();
        assert_eq!(all.len(), total as usize);
        world.check_unused(&all);
    }
}

impl World {
    fn check_unused(&self, all: &[u32]) {
        let distinct: HashSet<&u32> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!((self.kv.available(), self.kv.cached()), (0, 0));
    }
}

#[test]
fn a_conversation_finds_its_history() {
    let mut kv = KvCache::new(32);
    let scope = Scope::App("a".into());
    let first: Vec<u32> = (0..40).collect();
    let mut found = kv.find(&scope, &first[..39]);
    assert_eq!(found.positions(), 0);
    let mut table = kv.allocate(3).unwrap();
    kv.keep(&mut found.chain, &first, &mut table, true);
    kv.release(&table);
    assert_eq!((kv.used(), kv.cached(), kv.cached_of(&scope)), (0, 3, 3));
    // The next turn: the same, and more.
    let second: Vec<u32> = (0..60).collect();
    let again = kv.find(&scope, &second[..59]);
    assert_eq!(again.positions(), 40);
    assert_eq!(again.tail.unwrap().1, 8);
    // Another app finds nothing.
    let other = kv.find(&Scope::App("b".into()), &second[..59]);
    assert_eq!(other.positions(), 0);
    assert_eq!(kv.find(&Scope::Shared, &second[..59]).positions(), 0);
    // The same prompt again is known but for its last token, which is to be computed.
    let same = kv.find(&scope, &first[..39]);
    assert_eq!(same.positions(), 39);
}

#[test]
#[should_panic(expected = "given back by a user")]
fn refuses_a_double_release() {
    let mut kv = KvCache::new(2);
    let blocks = kv.allocate(1).unwrap();
    kv.release(&blocks);
    kv.release(&blocks);
}

#[test]
fn takes_all_or_nothing() {
    let mut kv = KvCache::new(4);
    assert_eq!(kv.allocate(3), Some(vec![0, 1, 2]));
    assert_eq!(kv.allocate(2), None);
    assert_eq!(kv.used(), 3);
    kv.release(&[0, 1, 2]);
    assert_eq!(kv.allocate(4), Some(vec![0, 1, 2, 3]));
}
