//! The PMI server of one node: bytes from the ranks' descriptors in, [`Action`]s for the agent out. No I/O here.
//!
//! Each rank holds one end of a stream socket pair (`PMI_FD`, not close-on-exec). A client starts in PMI-1 text; one
//! that asks for version 2 in its first line goes on in PMI-2 frames. Sources: MPICH `src/pm/hydra/proxy/pmip_pmi_v1.c`
//! and `pmip_pmi_v2.c`, `src/pmi/src/pmi_v1.c` and `pmi_v2.c`, and transcripts of real jobs.
//!
//! A rank is not trusted: whatever it writes, the server neither panics nor grows without bound; a client that breaks
//! the protocol is reported once ([`Action::Violation`]) and not listened to any more.

use super::kvs::Kvs;
use super::{JobShape, mapping, pmi1, pmi2};

/// Most bytes of an unfinished line or frame.
const UNREAD_MAX: usize = 64 << 10;

/// The key of the job-wide exchange that a barrier is.
pub const BARRIER_KEY: &[u8] = b"pmi-barrier";

/// What the agent has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes to the rank with this local index.
    Reply {
        /// Index among this node's ranks.
        local: usize,
        /// What to write, whole.
        bytes: Vec<u8>,
    },
    /// All ranks of this node are in the barrier: exchange this blob with [`JobShape::populated_nodes`] under
    /// [`BARRIER_KEY`], then call [`PmiServer::barrier_done`].
    Barrier {
        /// The pairs put since the last barrier.
        blob: Vec<u8>,
    },
    /// A rank wants the job to end.
    Abort {
        /// The rank in the job.
        rank: u32,
        /// The exit code it asked for.
        code: i32,
        /// Its words, possibly empty.
        message: String,
    },
    /// A rank said that it is done with MPI; it may exit now.
    Finalized {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank said its first words: it is a PMI client, and must finalize before it exits.
    Connected {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank broke the protocol. Its descriptor should be closed; it will be ignored.
    Violation {
        /// The rank in the job.
        rank: u32,
        /// What was wrong.
        message: String,
    },
}

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Nothing heard yet, or PMI-1.
    #[default]
    Text,
    /// PMI-2.
    Frames,
}

/// One rank's conversation.
#[derive(Debug, Default)]
pub(super) struct Client {
    unread: Vec<u8>,
    pub(super) dialect: Dialect,
    pub(super) greeted: bool,
    /// Between `mcmd=` and `endcmd` of PMI-1.
    pub(super) in_multi_line: bool,
    /// In the barrier; the thread id to echo, for PMI-2.
    pub(super) waiting: Option<String>,
    ignored: bool,
}

/// The PMI-1 and PMI-2 server of one node's ranks.
#[derive(Debug)]
pub struct PmiServer {
    pub(super) shape: JobShape,
    pub(super) mapping: Option<String>,
    pub(super) kvs: Kvs,
    pub(super) clients: Vec<Client>,
    pub(super) node: pmi2::NodeAttributes,
    pub(super) names: pmi1::Names,
}

impl PmiServer {
    /// A server for this node's ranks.
    pub fn new(shape: JobShape) -> Self {
        let clients = shape.local_ranks().iter().map(|_| Client::default()).collect();
        let mapping = mapping::process_mapping(&shape);
        let (node, names) = Default::default();
        Self { shape, mapping, kvs: Kvs::default(), clients, node, names }
    }

    /// What a rank needs in its environment: `descriptor` is the number its end of the socket pair will have.
    pub fn environment(shape: &JobShape, local: usize, descriptor: i32) -> Vec<(String, String)> {
        let rank = shape.local_ranks().get(local).copied().unwrap_or_default();
        [
            ("PMI_FD", descriptor.to_string()),
            ("PMI_RANK", rank.to_string()),
            ("PMI_SIZE", shape.size().to_string()),
            ("MPI_LOCALRANKID", local.to_string()),
            ("MPI_LOCALNRANKS", shape.local_ranks().len().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Takes what was read from the rank with this local index (any split of the stream).
    pub fn on_bytes(&mut self, local: usize, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(client) = self.clients.get_mut(local) else { return actions };
        if client.ignored {
            return actions;
        }
        client.unread.extend_from_slice(bytes);
        loop {
            match self.next_message(local) {
                Ok(Some(message)) => {
                    if let Err(violation) = self.on_message(local, &message, &mut actions) {
                        self.ignore(local, violation, &mut actions);
                        break;
                    }
                }
                Ok(None) => break,
                Err(violation) => {
                    self.ignore(local, violation, &mut actions);
                    break;
                }
            }
        }
        actions
    }

    /// The barrier's exchange is complete: `parts` are all nodes' blobs (this node's own included).
    ///
    /// # Errors
    /// The node whose blob is not one of ours (an agent of another version).
    pub fn barrier_done(&mut self, parts: &[(u32, Vec<u8>)]) -> Result<Vec<Action>, u32> {
        let own = self.shape.node();
        for (node, blob) in parts.iter().filter(|(node, _)| *node != own) {
            self.kvs.merge(blob).ok_or(*node)?;
        }
        let mut actions = Vec::new();
        for (local, client) in self.clients.iter_mut().enumerate() {
            if let Some(thread) = client.waiting.take() {
                let bytes = match client.dialect {
                    Dialect::Text => b"cmd=barrier_out\n".to_vec(),
                    Dialect::Frames => pmi2::fence_reply(&thread),
                };
                actions.push(Action::Reply { local, bytes });
            }
        }
        Ok(actions)
    }

    /// The job that is served.
    pub fn shape(&self) -> &JobShape {
        &self.shape
    }

    /// The rank in the job of a local index that is known to be one.
    pub(super) fn rank(&self, local: usize) -> u32 {
        self.shape.local_ranks()[local]
    }

    /// Notes that a rank waits in the barrier; the last one starts the exchange.
    pub(super) fn enter_barrier(
        &mut self,
        local: usize,
        thread: String,
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.clients[local].waiting.replace(thread).is_some() {
            return Err("entered a barrier twice".into());
        }
        if self.clients.iter().all(|client| client.waiting.is_some()) {
            actions.push(Action::Barrier { blob: self.kvs.take_fresh() });
        }
        Ok(())
    }

    fn next_message(&mut self, local: usize) -> Result<Option<Vec<u8>>, String> {
        let client = &mut self.clients[local];
        let message = match client.dialect {
            Dialect::Text => take_line(&mut client.unread),
            Dialect::Frames => pmi2::take_frame(&mut client.unread)?,
        };
        if message.is_none() && client.unread.len() > UNREAD_MAX {
            return Err(format!("sent {} bytes without an end", client.unread.len()));
        }
        Ok(message)
    }

    fn on_message(&mut self, local: usize, message: &[u8], actions: &mut Vec<Action>) -> Result<(), String> {
        let text = std::str::from_utf8(message).map_err(|_| "sent bytes that are not text".to_owned())?;
        if !std::mem::replace(&mut self.clients[local].greeted, true) {
            actions.push(Action::Connected { rank: self.rank(local) });
        }
        match self.clients[local].dialect {
            Dialect::Text => self.on_line(local, text, actions),
            Dialect::Frames => self.on_frame(local, text, actions),
        }
    }

    fn ignore(&mut self, local: usize, message: String, actions: &mut Vec<Action>) {
        let client = &mut self.clients[local];
        client.ignored = true;
        client.unread = Vec::new();
        actions.push(Action::Violation { rank: self.rank(local), message });
    }
}

/// Takes one line, without its end, off the front of what was read.
fn take_line(unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = unread.iter().position(|&byte| byte == b'\n')?;
    let mut line: Vec<u8> = unread.drain(..=end).collect();
    line.pop();
    Some(line)
}
