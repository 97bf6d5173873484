//! The tree of nodes: node `i`'s parent is `(i - 1) / arity`; node 0 is the root.

/// Children per node unless a test wants it otherwise: one level for 33 nodes, two for 1057.
pub const ARITY: u32 = 32;

/// One node's place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    node: u32,
    nodes: u32,
    arity: u32,
}

impl Tree {
    /// The place of `node` among `nodes` (at least 1) with `arity` (at least 1) children each.
    pub fn new(node: u32, nodes: u32, arity: u32) -> Self {
        Self { node, nodes: nodes.max(1), arity: arity.max(1) }
    }
    /// This node.
    pub fn node(&self) -> u32 {
        self.node
    }
    /// The parent; the root has none.
    pub fn parent(&self) -> Option<u32> {
        self.parent_of(self.node)
    }
    fn parent_of(&self, node: u32) -> Option<u32> {
        node.checked_sub(1).map(|above| above / self.arity)
    }
    /// The children, in order.
    pub fn children(&self) -> impl Iterator<Item = u32> + use<> {
        let first = u64::from(self.node) * u64::from(self.arity) + 1;
        let last = (first + u64::from(self.arity)).min(u64::from(self.nodes));
        // Below `nodes`, hence a u32.
        (first..last).map(|child| child as u32)
    }
    /// The child through which `node` is reached, `None` if it is not below this node (or is this node).
    pub fn child_toward(&self, node: u32) -> Option<u32> {
        let mut below = node;
        while let Some(above) = self.parent_of(below) {
            if above == self.node {
                return Some(below);
            }
            below = above;
        }
        None
    }
    /// Whether `node` is this node or below it.
    pub fn covers(&self, node: u32) -> bool {
        node == self.node || self.child_toward(node).is_some()
    }
    /// The neighbour on the way to another node.
    pub fn next_hop(&self, node: u32) -> Option<u32> {
        if node == self.node || node >= self.nodes {
            return None;
        }
        self.child_toward(node).or_else(|| self.parent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_connected() {
        for (nodes, arity) in [(1, 2), (2, 2), (3, 1), (8, 2), (40, 3), (70, 32)] {
            for from in 0..nodes {
                let tree = Tree::new(from, nodes, arity);
                for child in tree.children() {
                    assert_eq!(Tree::new(child, nodes, arity).parent(), Some(from));
                }
                for to in 0..nodes {
                    let (mut at, mut hops) = (from, 0);
                    while let Some(next) = Tree::new(at, nodes, arity).next_hop(to) {
                        at = next;
                        hops += 1;
                        assert!(hops <= 2 * nodes);
                    }
                    assert_eq!(at, to);
                }
            }
        }
    }
}
