//! The wire-up service of this node, whichever protocol it speaks.

use super::pmi1::Pmi1;
use super::pmix::Pmix;
use crate::protocol::{Hello, Pmi};
use crate::wire::JobShape;
use crate::wire::pmix::library::Library;
use corebox_spec::Failure;
use std::os::fd::{BorrowedFd, RawFd};

/// What a wire-up protocol wants of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireEvent {
    /// Exchange this once per node, then call [`WireUp::gathered`].
    Gather {
        /// Key of the exchange.
        key: Vec<u8>,
        /// Nodes that take part.
        participants: Vec<u32>,
        /// Our part.
        blob: Vec<u8>,
    },
    /// Ask another node, then call [`WireUp::replied`].
    Ask {
        /// The node.
        node: u32,
        /// Number of the question.
        id: u64,
        /// The question.
        blob: Vec<u8>,
    },
    /// Answer another node's question.
    Answer {
        /// The node.
        node: u32,
        /// Its number of the question.
        id: u64,
        /// The answer.
        blob: Vec<u8>,
    },
    /// A rank wants the job to end.
    Abort {
        /// Rank in the job.
        rank: u32,
        /// Its code.
        code: i32,
        /// Its words.
        message: String,
    },
    /// A rank called MPI_Init.
    Connected(u32),
    /// A rank called MPI_Finalize.
    Finalized(u32),
    /// Text for the user from the MPI library.
    Log(String),
    /// The protocol was broken; the job cannot go on.
    Broken(String),
}

/// The service.
pub enum WireUp {
    /// No wire-up.
    None,
    /// PMI-1 and PMI-2.
    Pmi1(Box<Pmi1>),
    /// PMIx.
    Pmix(Box<Pmix>),
}

impl WireUp {
    /// Prepares the service before the container is made: descriptors that its init inherits, no threads yet.
    ///
    /// # Errors
    /// When descriptors or a directory cannot be made.
    pub fn open(hello: &Hello, shape: &JobShape, libpmix: Option<Library>) -> Result<Self, Failure> {
        match (hello.pmi, libpmix) {
            (Pmi::Pmi1, _) => {
                let service = Pmi1::open(shape).map_err(|e| super::starting("opening PMI", "wire-up", e))?;
                Ok(Self::Pmi1(Box::new(service)))
            }
            (Pmi::Pmix, Some(library)) => Ok(Self::Pmix(Box::new(Pmix::open(library, shape)?))),
            (Pmi::None, _) | (Pmi::Pmix, None) => Ok(Self::None),
        }
    }

    /// Descriptors that the ranks inherit, by local rank.
    pub fn rank_descriptor(&self, local: usize) -> Option<RawFd> {
        match self {
            Self::Pmi1(service) => Some(service.rank(local).0),
            Self::Pmix(_) | Self::None => None,
        }
    }

    /// A host directory that the container must see at the same path.
    pub fn directory(&self) -> Option<&str> {
        match self {
            Self::Pmix(service) => Some(service.directory()),
            Self::Pmi1(_) | Self::None => None,
        }
    }

    /// Starts what needs threads.
    ///
    /// # Errors
    /// When libpmix refuses.
    pub fn start(&mut self, locals: &[crate::protocol::RankPlan], nodes: &[String], user: (u32, u32)) -> Result<(), Failure> {
        match self {
            Self::Pmix(service) => service.start(locals, nodes, user),
            Self::Pmi1(_) | Self::None => Ok(()),
        }
    }

    /// The variables by which a rank finds the service.
    ///
    /// # Errors
    /// When libpmix refuses.
    pub fn environment(&mut self, local: usize) -> Result<Vec<(String, String)>, Failure> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Pmi1(service) => Ok(service.rank(local).1),
            Self::Pmix(service) => service.environment(local),
        }
    }

    /// Closes what only the ranks need from now on.
    pub fn started(&mut self) {
        if let Self::Pmi1(service) = self {
            service.started();
        }
    }

    /// For poll(2): a number for [`Self::attend`], the descriptor, whether something waits to be written.
    pub fn descriptors(&self) -> Vec<(usize, BorrowedFd<'_>, bool)> {
        match self {
            Self::None => Vec::new(),
            Self::Pmi1(service) => service.descriptors().collect(),
            Self::Pmix(service) => service.wake().map(|fd| (0, fd, false)).into_iter().collect(),
        }
    }

    /// Does what a descriptor allows.
    pub fn attend(&mut self, number: usize) -> Vec<WireEvent> {
        match self {
            Self::None => Vec::new(),
            Self::Pmi1(service) => service.attend(number),
            Self::Pmix(service) => service.attend(),
        }
    }

    /// A rank exited: what it said last must be heard before its exit is judged.
    pub fn last_words(&mut self, local: usize) -> Vec<WireEvent> {
        match self {
            Self::None => Vec::new(),
            Self::Pmi1(service) => service.attend(local),
            Self::Pmix(service) => service.attend(),
        }
    }

    /// An exchange is complete.
    pub fn gathered(&mut self, key: &[u8], parts: &[(u32, Vec<u8>)]) -> Vec<WireEvent> {
        match self {
            Self::None => Vec::new(),
            Self::Pmi1(service) => service.gathered(parts),
            Self::Pmix(service) => service.gathered(key, parts),
        }
    }

    /// Another node asks.
    pub fn asked(&mut self, node: u32, id: u64, blob: &[u8]) -> Vec<WireEvent> {
        match self {
            Self::Pmix(service) => service.asked(node, id, blob),
            Self::Pmi1(_) | Self::None => Vec::new(),
        }
    }

    /// Another node answered.
    pub fn replied(&mut self, id: u64, blob: &[u8]) {
        if let Self::Pmix(service) = self {
            service.replied(id, blob);
        }
    }
}
