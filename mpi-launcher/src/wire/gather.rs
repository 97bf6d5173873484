//! All-gather on the tree, as a pure state machine: contributions go up once per subtree, the result goes down once.
//!
//! Only nodes between the participants and their lowest common ancestor see anything of it.

use super::tree::Tree;
use std::collections::HashMap;

/// Blobs by node.
pub type Parts = Vec<(u32, Vec<u8>)>;

/// One all-gather: what it is about, who takes part (sorted), and the how-manieth of that kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Round {
    /// The caller's key.
    pub key: Vec<u8>,
    /// The nodes that contribute and get the result.
    pub participants: Vec<u32>,
    /// Counts the rounds with this key and these participants.
    pub number: u64,
}

/// What follows from a contribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the parts of this subtree to the parent.
    Up(Round, Parts),
    /// Send the result to these children.
    Down(Vec<u32>, Round, Parts),
    /// This node takes part: here is the result.
    Done(Round, Parts),
}

/// All rounds under way at one node.
#[derive(Debug)]
pub struct Gather {
    tree: Tree,
    started: HashMap<(Vec<u8>, Vec<u32>), u64>,
    open: HashMap<Round, Parts>,
}

impl Gather {
    /// No rounds yet.
    pub fn new(tree: Tree) -> Self {
        Self { tree, started: HashMap::new(), open: HashMap::new() }
    }

    /// This node's own contribution to the next round of this kind.
    pub fn contribute(&mut self, key: Vec<u8>, mut participants: Vec<u32>, blob: Vec<u8>) -> Vec<Step> {
        participants.sort_unstable();
        participants.dedup();
        let count = self.started.entry((key.clone(), participants.clone())).or_default();
        let round = Round { key, participants, number: *count };
        *count += 1;
        self.add(round, vec![(self.tree.node(), blob)])
    }

    /// A child's subtree has contributed.
    pub fn on_child(&mut self, round: Round, parts: Parts) -> Vec<Step> {
        self.add(round, parts)
    }

    /// The parent sent the result.
    pub fn on_parent(&mut self, round: Round, parts: Parts) -> Vec<Step> {
        self.spread(round, parts)
    }

    fn add(&mut self, round: Round, parts: Parts) -> Vec<Step> {
        let below = round.participants.iter().filter(|node| self.tree.covers(**node)).count();
        let have = self.open.entry(round.clone()).or_default();
        have.extend(parts);
        if have.len() < below {
            return Vec::new();
        }
        let Some(mut parts) = self.open.remove(&round) else { return Vec::new() };
        if below < round.participants.len() {
            return vec![Step::Up(round, parts)];
        }
        parts.sort_by_key(|part| part.0);
        self.spread(round, parts)
    }

    fn spread(&self, round: Round, parts: Parts) -> Vec<Step> {
        let mut toward: Vec<u32> = round.participants.iter().filter_map(|node| self.tree.child_toward(*node)).collect();
        toward.sort_unstable();
        toward.dedup();
        let mut steps = Vec::new();
        if round.participants.binary_search(&self.tree.node()).is_ok() {
            steps.push(Step::Done(round.clone(), parts.clone()));
        }
        if !toward.is_empty() {
            steps.push(Step::Down(toward, round, parts));
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one round on a whole tree of state machines; returns who got what and how many messages it took.
    fn run(gathers: &mut [Gather], participants: &[u32], tag: u8) -> (Vec<(u32, Parts)>, usize) {
        let mut queue = Vec::new();
        for &node in participants {
            let steps = gathers[node as usize].contribute(b"k".to_vec(), participants.to_vec(), vec![tag, node as u8]);
            queue.extend(steps.into_iter().map(|step| (node, step)));
        }
        let (mut done, mut messages) = (Vec::new(), 0);
        while let Some((node, step)) = queue.pop() {
            match step {
                Step::Up(round, parts) => {
                    let parent = gathers[node as usize].tree.parent().unwrap();
                    let steps = gathers[parent as usize].on_child(round, parts);
                    queue.extend(steps.into_iter().map(|step| (parent, step)));
                    messages += 1;
                }
                Step::Down(children, round, parts) => {
                    for child in children {
                        let steps = gathers[child as usize].on_parent(round.clone(), parts.clone());
                        queue.extend(steps.into_iter().map(|step| (child, step)));
                        messages += 1;
                    }
                }
                Step::Done(_, parts) => done.push((node, parts)),
            }
        }
        done.sort();
        (done, messages)
    }

    #[test]
    fn everyone_gets_everything_once() {
        let mut gathers: Vec<Gather> = (0..8).map(|node| Gather::new(Tree::new(node, 8, 2))).collect();
        for (tag, participants) in [vec![0, 1, 2, 3, 4, 5, 6, 7], vec![3, 4], vec![7, 2], vec![5]].iter().enumerate() {
            for _ in 0..2 {
                let (done, messages) = run(&mut gathers, participants, tag as u8);
                let mut sorted = participants.clone();
                sorted.sort_unstable();
                let expected: Parts = sorted.iter().map(|&n| (n, vec![tag as u8, n as u8])).collect();
                let all: Vec<_> = sorted.iter().map(|&n| (n, expected.clone())).collect();
                assert_eq!(done, all);
                // 8 nodes: 7 links up and down; 3 and 4 meet at 1; 7 and 2 meet at the root (3 + 1 links); 5 alone.
                assert_eq!(messages, [14, 4, 8, 0][tag]);
            }
        }
        assert!(gathers.iter().all(|gather| gather.open.is_empty()));
    }
}
