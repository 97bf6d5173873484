//! `PMI_process_mapping`: which rank lives on which node, as MPICH and its family read it.
//!
//! Format (MPICH `src/mpl/src/misc/mpl_rankmap.c`): `(vector,(FIRST_NODE,NODES,RANKS_PER_NODE),…)`, ranks dealt in
//! the order of the blocks; at the end of the list a reader starts over with its first block.

use super::JobShape;
use std::fmt::Write as _;

/// Longest value we hand out: MPICH 4 reads a whole reply into 1024 bytes (`PMIU_MAXLINE`).
const LIMIT: usize = 900;

/// A run of ranks: `nodes` nodes from `first`, `ranks` consecutive ranks on each.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Block {
    first: u32,
    nodes: u32,
    ranks: u32,
}

/// The mapping of a job, or `None` if it is too irregular for one line: the MPI library then compares host names,
/// as it does under launchers that have no mapping.
pub fn process_mapping(shape: &JobShape) -> Option<String> {
    let mut blocks = blocks(shape);
    if let Some(period) = period(&blocks) {
        blocks.truncate(period);
    }
    let mut text = String::from("(vector");
    for block in blocks {
        // Writing to a String cannot fail.
        let _ = write!(text, ",({},{},{})", block.first, block.nodes, block.ranks);
        if text.len() >= LIMIT {
            return None;
        }
    }
    text.push(')');
    Some(text)
}

fn blocks(shape: &JobShape) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for node in (0..shape.size()).filter_map(|rank| shape.node_of(rank)) {
        match runs.last_mut() {
            Some((last, count)) if *last == node => *count += 1,
            _ => runs.push((node, 1)),
        }
    }
    for (node, ranks) in runs {
        match blocks.last_mut() {
            Some(block) if block.first + block.nodes == node && block.ranks == ranks => block.nodes += 1,
            _ => blocks.push(Block { first: node, nodes: 1, ranks }),
        }
    }
    blocks
}

/// The shortest prefix that repeats to the whole list (`--map-by node`: one block, over and over).
fn period(blocks: &[Block]) -> Option<usize> {
    let repeats = |p: usize| blocks.iter().zip(blocks.iter().cycle().skip(p)).all(|(a, b)| a == b);
    (1..=blocks.len()).find(|&p| blocks.len().is_multiple_of(p) && repeats(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What MPICH does with the text: deal ranks block by block, again from the start when the list ends.
    fn read(text: &str, size: usize) -> Vec<u32> {
        let numbers: Vec<u32> = text
            .trim_start_matches("(vector,")
            .split([',', '(', ')'])
            .filter(|s| !s.is_empty())
            .map(|s| s.parse().unwrap())
            .collect();
        let mut nodes = Vec::new();
        while nodes.len() < size {
            for block in numbers.chunks(3) {
                for node in block[0]..block[0] + block[1] {
                    nodes.extend(std::iter::repeat_n(node, block[2] as usize));
                }
            }
        }
        nodes.truncate(size);
        nodes
    }

    fn shape(node_of_rank: &[u32]) -> JobShape {
        let nodes = node_of_rank.iter().max().unwrap() + 1;
        let ranks = (0..nodes)
            .map(|n| (0..node_of_rank.len() as u32).filter(|r| node_of_rank[*r as usize] == n).collect())
            .collect();
        JobShape::new("j", 0, ranks, vec![0; node_of_rank.len()], 0).unwrap()
    }

    #[test]
    fn reads_back_as_it_was() {
        let cases: [(&[u32], &str); 6] = [
            (&[0, 0, 1, 1], "(vector,(0,2,2))"),
            (&[0, 1, 0, 1, 0, 1], "(vector,(0,2,1))"),
            (&[0, 0, 0, 1], "(vector,(0,1,3),(1,1,1))"),
            (&[1, 0], "(vector,(1,1,1),(0,1,1))"),
            (&[0, 1, 2, 0, 1], "(vector,(0,3,1),(0,2,1))"),
            (&[0], "(vector,(0,1,1))"),
        ];
        for (nodes, text) in cases {
            assert_eq!(process_mapping(&shape(nodes)).unwrap(), text);
            assert_eq!(read(text, nodes.len()), nodes);
        }
    }

    #[test]
    fn too_irregular_for_a_line_is_none() {
        // A fixed pseudo-random deal of 2000 ranks to 7 nodes.
        let mut state = 1_u32;
        let nodes: Vec<u32> = (0..2000)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                (state >> 16) % 7
            })
            .collect();
        assert_eq!(process_mapping(&shape(&nodes)), None);
        let regular: Vec<u32> = (0..4000).map(|r| r / 64).collect();
        assert_eq!(process_mapping(&shape(&regular)).unwrap(), "(vector,(0,62,64),(62,1,32))");
    }
}
