//! What KV blocks hold, as trees of tokens: which of a prompt's blocks are there already, and which
//! kept block goes first when room is needed. Pure bookkeeping: it neither owns nor frees blocks.
//!
//! A node is a block and the tokens whose KV it holds; its parent is the block before it. So a block is
//! found by all the tokens up to its end, compared one by one: there is no hash that could collide.
//! Each [`Scope`] has a root of its own, and no way leads from one to another: a request finds
//! nothing of other scopes, so it cannot learn by its speed what they hold.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::kv_cache::BLOCK_LEN;

const LEN: usize = BLOCK_LEN as usize;
/// Stands where a block that is not full has no token. Above any vocabulary.
const NO_TOKEN: u32 = u32::MAX;

/// Scopes remembered that hold nothing.
const ROOTS_MAX: usize = 1024;

/// Who may find a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Requests of one app.
    App(Arc<str>),
    /// Requests of any app that asked for sharing.
    Shared,
}

/// Names a node. No name is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

#[derive(Debug)]
struct Node {
    key: (NodeId, [u32; LEN]),
    root: NodeId,
    block: u32,
    /// When it fell idle, by the cache's own count; `None`: a sequence uses its block.
    idle_since: Option<u64>,
    children: u32,
}

#[derive(Debug, Default)]
struct Root {
    /// Nodes under it that no sequence uses.
    idle: u32,
    nodes: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    roots: HashMap<Scope, NodeId>,
    root_facts: HashMap<NodeId, Root>,
    nodes: HashMap<NodeId, Node>,
    /// Children by parent and tokens, in order: the nearest relative of a list is its neighbour.
    by_tokens: BTreeMap<(NodeId, [u32; LEN]), NodeId>,
    /// Idle nodes, the longest idle first. A child always falls idle before its parent.
    idle: BTreeMap<u64, NodeId>,
    names: u64,
    clock: u64,
}

impl PrefixCache {
    /// The root of `scope`.
    pub(crate) fn root(&mut self, scope: &Scope) -> NodeId {
        if let Some(&root) = self.roots.get(scope) {
            return root;
        }
        if self.roots.len() >= ROOTS_MAX {
            // Apps come and go. A sequence that still has such a root keeps blocks that nobody finds.
            self.roots.retain(|_, root| self.root_facts[root].nodes > 0);
            let roots: HashSet<NodeId> = self.roots.values().copied().collect();
            self.root_facts.retain(|root, _| roots.contains(root));
        }
        let root = self.name();
        self.roots.insert(scope.clone(), root);
        self.root_facts.insert(root, Root::default());
        root
    }

    fn name(&mut self) -> NodeId {
        self.names += 1;
        NodeId(self.names)
    }

    /// The child of `parent` that holds just `tokens`, at most a block of them.
    pub(crate) fn child(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.by_tokens.get(&(parent, padded(tokens))).copied()
    }

    /// The child of `parent` that agrees with the first of `tokens` for longest, and how many tokens
    /// they agree in.
    pub(crate) fn nearest(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, u32)> {
        let key = (parent, padded(tokens));
        let before = self.by_tokens.range(..=&key).next_back();
        let after = self.by_tokens.range(&key..).next();
        [before, after]
            .into_iter()
            .flatten()
            .filter(|((of, _), _)| *of == parent)
            .map(|((_, held), &node)| {
                let pairs = held.iter().zip(tokens);
                let agreed = pairs.take_while(|(a, b)| a == b).count();
                (node, u32::try_from(agreed).unwrap_or(0))
            })
            .filter(|(_, agreed)| *agreed > 0)
            .max_by_key(|(_, agreed)| *agreed)
    }

    /// Adds a block, in use, under `parent`, which has no such child. `root`: that of `parent`.
    pub(crate) fn insert(
        &mut self,
        root: NodeId,
        parent: NodeId,
        tokens: &[u32],
        block: u32,
    ) -> NodeId {
        let id = self.name();
        let key = (parent, padded(tokens));
        let former = self.by_tokens.insert(key, id);
        assert!(former.is_none(), "a list of tokens is kept once");
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
        if let Some(facts) = self.root_facts.get_mut(&root) {
            facts.nodes += 1;
        }
        let node = Node {
            key,
            root,
            block,
            idle_since: None,
            children: 0,
        };
        self.nodes.insert(id, node);
        id
    }

    /// The block of `node`.
    pub(crate) fn block(&self, node: NodeId) -> u32 {
        self.nodes[&node].block
    }

    /// A sequence uses the block of `node`.
    pub(crate) fn used(&mut self, node: NodeId) {
        let Some(node) = self.nodes.get_mut(&node) else {
            return;
        };
        if let Some(since) = node.idle_since.take() {
            self.idle.remove(&since);
            if let Some(facts) = self.root_facts.get_mut(&node.root) {
                facts.idle -= 1;
            }
        }
    }

    /// No sequence uses the block of `node` any more. Children first.
    pub(crate) fn fell_idle(&mut self, id: NodeId) {
        self.clock += 1;
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        assert!(node.idle_since.is_none(), "a node falls idle once");
        node.idle_since = Some(self.clock);
        self.idle.insert(self.clock, id);
        if let Some(facts) = self.root_facts.get_mut(&node.root) {
            facts.idle += 1;
        }
    }

    /// Nodes that no sequence uses.
    pub(crate) fn idle_count(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX)
    }

    /// Idle nodes under the root of `scope`.
    pub(crate) fn idle_count_of(&self, scope: &Scope) -> u32 {
        let root = self.roots.get(scope);
        root.and_then(|root| self.root_facts.get(root))
            .map_or(0, |facts| facts.idle)
    }

    /// Forgets the node that has been idle for longest; returns its block.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, &id) = self.idle.first_key_value()?;
        Some(self.remove(id))
    }

    /// Tells whether nothing follows a node.
    pub(crate) fn is_last(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.children == 0)
    }

    /// Forgets a node that nothing follows, though a sequence uses its block.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.remove(id);
    }

    /// Forgets the idle child of `parent` that holds a part of a block which `tokens` begin with:
    /// another block has taken its place. Returns its block.
    pub(crate) fn supersede(&mut self, parent: NodeId, tokens: &[u32]) -> Option<u32> {
        let key = (parent, padded(tokens));
        // A shorter list is padded with the largest number: it comes after those that go on from it.
        let (&(of, held), &id) = self.by_tokens.range(key..).find(|(k, _)| **k != key)?;
        let len = held.iter().take_while(|&&t| t != NO_TOKEN).count();
        let part = of == parent && len < tokens.len() && held[..len] == tokens[..len];
        (part && self.nodes[&id].idle_since.is_some()).then(|| self.remove(id))
    }

    fn remove(&mut self, id: NodeId) -> u32 {
        let Some(node) = self.nodes.remove(&id) else {
            unreachable!("only nodes that are there are removed");
        };
        assert_eq!(node.children, 0, "a block goes before the one it follows");
        self.by_tokens.remove(&node.key);
        if let Some(since) = node.idle_since {
            self.idle.remove(&since);
        }
        if let Some(parent) = self.nodes.get_mut(&node.key.0) {
            parent.children -= 1;
        }
        if let Some(facts) = self.root_facts.get_mut(&node.root) {
            facts.nodes -= 1;
            facts.idle -= u32::from(node.idle_since.is_some());
        }
        node.block
    }
}

fn padded(tokens: &[u32]) -> [u32; LEN] {
    let mut key = [NO_TOKEN; LEN];
    let len = tokens.len().min(LEN);
    key[..len].copy_from_slice(&tokens[..len]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> Scope {
        Scope::App(name.into())
    }

    #[test]
    fn the_nearest_child_agrees_for_longest() {
        let mut cache = PrefixCache::default();
        let root = cache.root(&Scope::Shared);
        let full: Vec<u32> = (0..16).collect();
        let a = cache.insert(root, root, &full, 1);
        let b = cache.insert(root, root, &[0, 1, 9], 2);
        assert_eq!(cache.nearest(root, &full), Some((a, 16)));
        assert_eq!(cache.nearest(root, &[0, 1, 2, 3, 8]), Some((a, 4)));
        assert_eq!(cache.nearest(root, &[0, 1, 9, 7]), Some((b, 3)));
        assert_eq!(cache.nearest(root, &[5]), None);
        assert_eq!(cache.nearest(a, &full), None, "another parent's children");
        assert_eq!(cache.child(root, &full), Some(a));
        assert_eq!(cache.child(root, &full[..15]), None);
        let other = cache.root(&app("x"));
        assert_eq!(cache.nearest(other, &full), None, "another scope");
    }

    #[test]
    fn the_longest_idle_goes_first_and_children_before_parents() {
        let mut cache = PrefixCache::default();
        let root = cache.root(&app("x"));
        let a = cache.insert(root, root, &[1; 16], 10);
        let b = cache.insert(root, a, &[2; 16], 11);
        let c = cache.insert(root, root, &[3; 16], 12);
        for node in [b, a, c] {
            cache.fell_idle(node);
        }
        assert_eq!(cache.idle_count_of(&app("x")), 3);
        cache.used(a);
        cache.used(b);
        cache.fell_idle(b);
        cache.fell_idle(a);
        assert_eq!(cache.evict(), Some(12));
        assert_eq!(cache.evict(), Some(11));
        assert_eq!(cache.evict(), Some(10));
        assert_eq!(cache.evict(), None);
        for n in 0..3 * ROOTS_MAX {
            cache.root(&app(&n.to_string()));
        }
        assert!(cache.roots.len() <= ROOTS_MAX && cache.root_facts.len() <= ROOTS_MAX);
    }

    #[test]
    fn a_part_of_a_block_makes_way_for_the_whole() {
        let mut cache = PrefixCache::default();
        let root = cache.root(&Scope::Shared);
        let part = cache.insert(root, root, &[1, 2, 3], 5);
        let full: Vec<u32> = (1..17).collect();
        cache.insert(root, root, &full, 6);
        assert_eq!(cache.supersede(root, &full), None, "it is in use");
        cache.fell_idle(part);
        assert_eq!(cache.supersede(root, &full), Some(5));
        assert_eq!(cache.supersede(root, &full), None);
    }
}
