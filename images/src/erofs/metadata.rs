//! The part of the file that is written when all contents are: directories and inodes.

use super::format::{self, BLOCK, FileType, Inode, Layout, NULL_BLOCK, SLOT, Superblock};
use super::layout::{Extent, Node, Nodes, Places, number};
use super::writer::{BlockFile, ErofsError, Stored};
use super::xattrs;
use crate::entry::{Time, show};
use crate::tree::{ContentAt, Tree, What};
use std::collections::HashMap;

type Contents = HashMap<ContentAt, Stored>;

/// Writes directories and inodes; gives what the superblock must say.
pub(crate) fn write(
    out: &mut BlockFile,
    tree: &Tree,
    contents: &Contents,
    epoch: Option<u32>,
) -> Result<Superblock, ErofsError> {
    let nodes = Nodes::of(tree)?;
    let epoch = epoch.map(|seconds| Time::seconds(seconds.into()));
    let common = epoch.unwrap_or_else(|| commonest_time(&nodes));
    let mut plan = Plan { nodes: &nodes, contents, epoch, common, order: nodes.order(), planned: Vec::new() };
    plan.decide()?;
    plan.write_blocks(out)?;
    let meta_block = out.next;
    plan.write_inodes(out)?;
    let chunked = contents.values().any(|stored| matches!(stored, Stored::Chunks { .. }));
    let root = number(plan.planned[0].place) as u16;
    Ok(Superblock { root, inodes: nodes.list.len() as u64, time: common, blocks: out.next, meta_block, chunked })
}

/// The time that most inodes have: those can be compact.
fn commonest_time(nodes: &Nodes) -> Time {
    let mut counts: HashMap<Time, usize> = HashMap::new();
    for inode in &nodes.list {
        *counts.entry(inode.meta.mtime).or_default() += 1;
    }
    counts.into_iter().max_by_key(|&(time, count)| (count, time)).map_or(Time::default(), |(time, _)| time)
}

/// What was decided about one inode.
#[derive(Clone, Copy)]
struct Planned {
    /// Bytes from the start of the inodes.
    place: usize,
    inode: Inode,
    compact: bool,
    extent: Extent,
}

struct Plan<'a> {
    nodes: &'a Nodes<'a>,
    contents: &'a Contents,
    epoch: Option<Time>,
    common: Time,
    /// The order on disk.
    order: Vec<Node>,
    /// By node.
    planned: Vec<Planned>,
}

impl Plan<'_> {
    /// Decides form, layout and place of every inode. Blocks have no numbers yet.
    fn decide(&mut self) -> Result<(), ErofsError> {
        let mut places = Places::new();
        let mut planned: Vec<Option<Planned>> = vec![None; self.nodes.list.len()];
        for (count, &node) in self.order.iter().enumerate() {
            let mut decided = self.form(node, count as u32 + 1)?;
            decided.place = places.take(decided.extent);
            planned[node as usize] = Some(decided);
        }
        // the order has every node once
        self.planned = planned.into_iter().flatten().collect();
        Ok(())
    }

    /// Form and layout of an inode.
    fn form(&self, node: Node, count: u32) -> Result<Planned, ErofsError> {
        let source = &self.nodes.list[node as usize];
        let meta = source.meta;
        let too_large = |(_, value): &(Vec<u8>, Vec<u8>)| value.len() > xattrs::LONGEST_VALUE;
        let xattr_bytes = xattrs::length(&meta.xattrs);
        if xattr_bytes > xattrs::MOST || meta.xattrs.iter().any(too_large) {
            return Err(ErofsError::Attributes(show(source.path)));
        }
        let mut inode = Inode {
            layout: Layout::Plain,
            file_type: file_type(source.what),
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            links: source.links,
            size: 0,
            mtime: self.epoch.unwrap_or(meta.mtime),
            union: 0,
            xattr_bytes,
            number: count,
        };
        inode.size = match source.what {
            What::Directory => self.nodes.listing(node).size() as u64,
            What::File { size, .. } => *size,
            What::Symlink(target) => target.len() as u64,
            What::Device(_) | What::Fifo => 0,
        };
        let compact = inode.is_compact(self.common);
        let mut extent =
            Extent { inode: if compact { format::COMPACT } else { format::EXTENDED }, body: xattr_bytes, inline: 0 };
        let rest = (inode.size % BLOCK as u64) as usize;
        match source.what {
            What::Directory | What::Symlink(_) if extent.may_inline(rest) => {
                (inode.layout, extent.inline) = (Layout::Inline, rest);
            }
            What::Directory | What::Symlink(_) => {}
            What::Device(device) => inode.union = format::device_number(*device),
            What::Fifo => {}
            What::File { at, .. } => match self.stored(*at, source.path)? {
                Stored::Inline(bytes) if extent.may_inline(bytes.len()) => {
                    (inode.layout, extent.inline) = (Layout::Inline, bytes.len());
                }
                Stored::Inline(_) => {}
                Stored::Blocks(first) => inode.union = *first,
                Stored::Chunks { bits, map } => {
                    inode.layout = Layout::Chunks;
                    inode.union = u32::from(*bits);
                    extent.body += map.len() * 4;
                }
            },
        }
        Ok(Planned { place: 0, inode, compact, extent })
    }

    fn stored(&self, at: ContentAt, path: &[u8]) -> Result<&Stored, ErofsError> {
        self.contents.get(&at).ok_or_else(|| ErofsError::Changed(show(path)))
    }

    /// What stands beside an inode, or did not fit there.
    fn small(&self, node: Node) -> Result<Vec<u8>, ErofsError> {
        let source = &self.nodes.list[node as usize];
        Ok(match source.what {
            What::Directory => self.nodes.listing(node).encode(|entry| {
                let planned = &self.planned[entry as usize];
                (number(planned.place), planned.inode.file_type)
            }),
            What::Symlink(target) => target.clone(),
            What::File { at, .. } => match self.stored(*at, source.path)? {
                Stored::Inline(bytes) => bytes.clone(),
                _ => Vec::new(),
            },
            What::Device(_) | What::Fifo => Vec::new(),
        })
    }

    /// Writes the blocks of directories and of what did not fit beside its inode.
    fn write_blocks(&mut self, out: &mut BlockFile) -> Result<(), ErofsError> {
        for index in 0..self.order.len() {
            let node = self.order[index];
            let planned = self.planned[node as usize];
            let is_special = matches!(self.nodes.list[node as usize].what, What::Device(_) | What::Fifo);
            // contents have their blocks already
            if is_special || planned.inode.union != 0 || planned.inode.layout == Layout::Chunks {
                continue;
            }
            let blocks = planned.inode.size as usize - planned.extent.inline;
            let first = if blocks == 0 { NULL_BLOCK } else { out.blocks(&self.small(node)?[..blocks])? };
            self.planned[node as usize].inode.union = first;
        }
        Ok(())
    }

    fn write_inodes(&self, out: &mut BlockFile) -> Result<(), ErofsError> {
        // a block at a time, as it is filled
        let mut bytes = Vec::with_capacity(4 * BLOCK);
        let mut written = 0;
        for &node in &self.order {
            let source = &self.nodes.list[node as usize];
            let planned = &self.planned[node as usize];
            bytes.resize(planned.place - written, 0);
            bytes.extend(planned.inode.encode(planned.compact));
            bytes.extend(xattrs::encode(&source.meta.xattrs));
            if let What::File { at, .. } = source.what
                && let Stored::Chunks { map, .. } = self.stored(*at, source.path)?
            {
                map.iter().for_each(|block| bytes.extend(block.to_le_bytes()));
            }
            if planned.extent.inline > 0 {
                let small = self.small(node)?;
                bytes.extend_from_slice(&small[small.len() - planned.extent.inline..]);
            }
            let whole = bytes.len() / BLOCK * BLOCK;
            out.blocks(&bytes[..whole])?;
            bytes.drain(..whole);
            written += whole;
        }
        // the last inode's slot is whole
        bytes.resize(bytes.len().next_multiple_of(SLOT), 0);
        out.blocks(&bytes)?;
        Ok(())
    }
}

fn file_type(what: &What) -> FileType {
    match what {
        What::Directory => FileType::Directory,
        What::File { .. } => FileType::Regular,
        What::Symlink(_) => FileType::Symlink,
        What::Device(device) if device.block => FileType::Block,
        What::Device(_) => FileType::Character,
        What::Fifo => FileType::Fifo,
    }
}
