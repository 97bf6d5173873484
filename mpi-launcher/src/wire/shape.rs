//! The shape of a job as every wire-up protocol needs it: which ranks live on which node.

use std::fmt;

/// Which ranks of one job live on which node, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobShape {
    name: String,
    node: u32,
    ranks_of_node: Vec<Vec<u32>>,
    place_of_rank: Vec<(u32, u32)>,
    app_of_rank: Vec<u32>,
    universe: u32,
}

/// Why a [`JobShape`] is impossible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// The job name is empty, longer than 200 bytes, or has characters other than `A-Za-z0-9._-`.
    Name(String),
    /// This node's index is not one of the nodes.
    Node(u32),
    /// This rank is missing, doubled, or beyond the number of ranks.
    Rank(u32),
    /// The list of application numbers is not as long as the job.
    Apps,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}` cannot name a job's key space"),
            Self::Node(node) => write!(f, "node {node} is not part of the job"),
            Self::Rank(rank) => write!(f, "rank {rank} is missing, doubled or out of range"),
            Self::Apps => write!(f, "not every rank has an application number"),
        }
    }
}

impl std::error::Error for ShapeError {}

impl JobShape {
    /// Checks and indexes a shape.
    ///
    /// `name` becomes the PMI key space and PMIx namespace; `node` is this node's index; `ranks_of_node` lists each
    /// node's ranks in local rank order; `app_of_rank` is the number of each rank's program (MPMD), by rank;
    /// `universe` is the number of slots (at least the number of ranks).
    ///
    /// # Errors
    /// If the ranks are not exactly 0..size, or a name or index is impossible.
    pub fn new(
        name: impl Into<String>,
        node: u32,
        ranks_of_node: Vec<Vec<u32>>,
        app_of_rank: Vec<u32>,
        universe: u32,
    ) -> Result<Self, ShapeError> {
        let name = name.into();
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 200 || !name.bytes().all(plain) {
            return Err(ShapeError::Name(name));
        }
        if node as usize >= ranks_of_node.len() {
            return Err(ShapeError::Node(node));
        }
        let size: usize = ranks_of_node.iter().map(Vec::len).sum();
        let mut places = vec![None; size];
        for (node, ranks) in (0_u32..).zip(&ranks_of_node) {
            for (local, &rank) in (0_u32..).zip(ranks) {
                match places.get_mut(rank as usize) {
                    Some(place @ None) => *place = Some((node, local)),
                    _ => return Err(ShapeError::Rank(rank)),
                }
            }
        }
        if app_of_rank.len() != size {
            return Err(ShapeError::Apps);
        }
        // As many ranks as places and none doubled: every place is taken.
        let place_of_rank = places.into_iter().flatten().collect();
        Ok(Self { name, node, ranks_of_node, place_of_rank, app_of_rank, universe: universe.max(size as u32) })
    }

    /// The PMI key space and PMIx namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// This node's index.
    pub fn node(&self) -> u32 {
        self.node
    }
    /// Number of nodes.
    pub fn nodes(&self) -> u32 {
        self.ranks_of_node.len() as u32
    }
    /// Number of ranks.
    pub fn size(&self) -> u32 {
        self.place_of_rank.len() as u32
    }
    /// Number of slots of the job.
    pub fn universe(&self) -> u32 {
        self.universe
    }
    /// All nodes' ranks in local rank order.
    pub fn ranks_of_node(&self) -> &[Vec<u32>] {
        &self.ranks_of_node
    }
    /// This node's ranks in local rank order.
    pub fn local_ranks(&self) -> &[u32] {
        &self.ranks_of_node[self.node as usize]
    }
    /// The nodes that hold at least one rank, in order: who takes part in a job-wide barrier.
    pub fn populated_nodes(&self) -> Vec<u32> {
        (0..).zip(&self.ranks_of_node).filter(|(_, ranks)| !ranks.is_empty()).map(|(node, _)| node).collect()
    }
    /// The node of a rank, or `None` beyond the job.
    pub fn node_of(&self, rank: u32) -> Option<u32> {
        self.place_of_rank.get(rank as usize).map(|place| place.0)
    }
    /// The index of a rank among its node's ranks, or `None` beyond the job.
    pub fn local_rank_of(&self, rank: u32) -> Option<u32> {
        self.place_of_rank.get(rank as usize).map(|place| place.1)
    }
    /// The number of a rank's program, or `None` beyond the job.
    pub fn app_of(&self, rank: u32) -> Option<u32> {
        self.app_of_rank.get(rank as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_and_refuses() {
        let shape = JobShape::new("job.1", 1, vec![vec![0, 2], vec![3, 1]], vec![0, 0, 1, 1], 0).unwrap();
        assert_eq!((shape.size(), shape.nodes(), shape.universe()), (4, 2, 4));
        assert_eq!(shape.local_ranks(), [3, 1]);
        assert_eq!((shape.node_of(1), shape.local_rank_of(1), shape.app_of(2)), (Some(1), Some(1), Some(1)));
        assert_eq!(shape.node_of(4), None);
        let bad = |node, ranks: Vec<Vec<u32>>, apps| JobShape::new("j", node, ranks, apps, 0).unwrap_err();
        assert_eq!(bad(0, vec![vec![0, 0]], vec![0, 0]), ShapeError::Rank(0));
        assert_eq!(bad(0, vec![vec![0, 2]], vec![0, 0]), ShapeError::Rank(2));
        assert_eq!(bad(1, vec![vec![0]], vec![0]), ShapeError::Node(1));
        assert_eq!(bad(0, vec![vec![0]], vec![]), ShapeError::Apps);
        assert!(matches!(JobShape::new("a b", 0, vec![vec![0]], vec![0], 0), Err(ShapeError::Name(_))));
    }
}
