//! A node's PMIx server: the library's upcalls in, [`PmixEvent`]s for the agent out.

use super::acks::{self, Acks};
use super::ffi::{ERR_NOT_FOUND, OPERATION_SUCCEEDED, RANK_WILDCARD, SUCCESS, Status};
use super::info::{Infos, key, proc};
use super::upcalls_ffi::{self as upcalls, BlobAnswer, GroupAnswer, MODULE, MODULE_WITH_GROUPS, Name, Upcall};
use super::{Library, environment, registration};
use crate::wire::JobShape;
use crate::wire::exchange::Parts;
use corebox_spec::Failure;
use nix::sys::eventfd::EventFd;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// The first major version whose groups work with clients of the same version.
const GROUPS_SINCE: u32 = 5;

/// A rank that will be forked on this node.
#[derive(Clone, Debug)]
pub struct LocalRank {
    /// Its user id *inside its user namespace*: what it claims when it connects.
    pub uid: u32,
    /// Its group id inside its user namespace.
    pub gid: u32,
    /// The CPUs it is bound to, as an idset (`0-3,8`).
    pub cpuset: Option<String>,
    /// Where those are, as hwloc's logical indices: `hwloc:SK0:L30:L20:L10:CR0:HT0` (package, L3, L2, L1, core, PU).
    pub locality: Option<String>,
}

/// What a server is for.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The job, seen from this node.
    pub shape: JobShape,
    /// The nodes' host names, by node index.
    pub hostnames: Vec<String>,
    /// A directory of this server alone, at the same path for the ranks.
    pub tmpdir: PathBuf,
    /// This node's ranks, in local rank order.
    pub ranks: Vec<LocalRank>,
    /// Whether the image's Open MPI is older than 4.1.
    pub open_mpi_before_4_1: bool,
}

impl ServerConfig {
    pub(super) fn hostname(&self, node: u32) -> &str {
        self.hostnames.get(node as usize).map_or("", String::as_str)
    }
}

/// What the agent has to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PmixEvent {
    /// A rank has connected; it must finalize before it exits.
    Connected {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank is done with MPI.
    Finalized {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank wants the job to end.
    Abort {
        /// The rank in the job.
        rank: u32,
        /// The exit code it asked for.
        status: i32,
        /// Its words, possibly empty.
        message: String,
    },
    /// Call `Exchange::allgather` with this; its result goes to [`PmixServer::gathered`].
    Gather {
        /// The key.
        key: Vec<u8>,
        /// The nodes that take part.
        participants: Vec<u32>,
        /// This node's contribution.
        blob: Vec<u8>,
    },
    /// Call `Exchange::request` with this; its result goes to [`PmixServer::on_reply`].
    Request {
        /// The node to ask.
        to: u32,
        /// The number of the question.
        id: u64,
        /// The question.
        blob: Vec<u8>,
    },
    /// Call `Exchange::reply` with this.
    Reply {
        /// The node that asked.
        to: u32,
        /// Its number of the question.
        id: u64,
        /// The answer.
        blob: Vec<u8>,
    },
    /// A rank's library has something to say to the user.
    Log {
        /// The rank in the job.
        rank: u32,
        /// What it says, possibly several lines.
        text: String,
    },
}

/// Who waits for the result of an all-gather.
enum Waiting {
    Fence(BlobAnswer),
    Group { construct: bool, members: Vec<Name>, answer: GroupAnswer },
}

/// The PMIx server of one node. One per process: libpmix knows no two.
///
/// It has no end of its own: `PMIx_server_finalize` blocks for ever after a client was rejected (libpmix 4.2 leaves a
/// mutex locked), and what it would do, the exit of the agent does.
pub struct PmixServer {
    library: Library,
    config: ServerConfig,
    upcalls: Receiver<Upcall>,
    wake: Arc<EventFd>,
    /// In the order of their rounds, since rounds of one kind end in the order they began.
    waiting: HashMap<(Vec<u8>, Vec<u32>), VecDeque<Waiting>>,
    questions: HashMap<u64, BlobAnswer>,
    next_question: u64,
    next_group: u32,
    acks: Option<Acks>,
}

impl PmixServer {
    /// Starts the library's server and registers the job and this node's ranks. Starts a thread, and sets variables of
    /// this process: call it when there are no other threads than the exchange's.
    ///
    /// # Errors
    /// If the library refuses, or there is already a server in this process.
    pub fn start(library: Library, config: ServerConfig) -> Result<Self, Failure> {
        let opened = upcalls::open_queue().map_err(|errno| refused("eventfd", &errno.to_string()))?;
        let (upcalls, wake) = opened.ok_or_else(|| refused("PMIx_server_init", "this process has a server already"))?;
        environment::prepare_process();
        let (waiting, questions) = Default::default();
        let mut server =
            Self { library, config, upcalls, wake, waiting, questions, next_question: 0, next_group: 0, acks: None };
        server.init()?;
        server.register()?;
        let first = server.config.shape.local_ranks().first().copied();
        let port = first.and_then(|rank| acks::port_in(&server.environment(rank).ok()?));
        // Without it, everything works, but slower.
        server.acks = port.and_then(|port| Acks::new(port).ok());
        Ok(server)
    }

    fn init(&self) -> Result<(), Failure> {
        let shape = &self.config.shape;
        let directory = self.config.tmpdir.to_string_lossy();
        let mut infos = Infos::default();
        infos.text(key::SERVER_NSPACE, &format!("{}-server", shape.name()));
        infos.rank(key::SERVER_RANK, shape.node());
        infos.text(key::SERVER_TMPDIR, &directory);
        infos.text(key::SYSTEM_TMPDIR, &directory);
        infos.text(key::HOSTNAME, self.config.hostname(shape.node()));
        infos.flag(key::SHARE_TOPOLOGY, true);
        let module = if self.library.major() >= GROUPS_SINCE { &MODULE_WITH_GROUPS } else { &MODULE };
        self.check("PMIx_server_init", self.library.functions.server_init(module, &infos))
    }

    fn register(&self) -> Result<(), Failure> {
        let shape = &self.config.shape;
        let functions = &self.library.functions;
        let infos = registration::job_infos(functions, &self.config);
        let name = super::info::c_string(shape.name());
        let status = functions.register_nspace(&name, shape.local_ranks().len(), infos);
        self.check("PMIx_server_register_nspace", status)?;
        for (rank, local) in shape.local_ranks().iter().zip(&self.config.ranks) {
            let status = functions.register_client(proc(shape.name(), *rank), local.uid, local.gid);
            self.check("PMIx_server_register_client", status)?;
        }
        Ok(())
    }

    /// Everything that a local rank needs in its environment, beside the user's own.
    ///
    /// # Errors
    /// If the library does not know the rank.
    pub fn environment(&self, rank: u32) -> Result<Vec<(String, String)>, Failure> {
        let proc = proc(self.config.shape.name(), rank);
        let strings = self.library.functions.setup_fork(proc);
        let strings = strings.map_err(|status| self.failure("PMIx_server_setup_fork", status))?;
        let mut variables: Vec<(String, String)> = strings
            .iter()
            .filter_map(|text| text.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for (name, value) in environment::of_rank(self.config.open_mpi_before_4_1) {
            variables.retain(|(other, _)| *other != name);
            variables.push((name, value));
        }
        Ok(variables)
    }

    /// The library in use.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// One of them is readable when [`PmixServer::events`] has something to do.
    pub fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.wake.as_fd()).chain(self.acks.as_ref().map(Acks::wake_fd)).collect()
    }

    /// What has happened since the last call. Never blocks.
    pub fn events(&mut self) -> Vec<PmixEvent> {
        // EAGAIN: nobody has signalled.
        let _ = self.wake.read();
        let upcalls: Vec<Upcall> = self.upcalls.try_iter().collect();
        if let Some(acks) = &self.acks {
            if upcalls.iter().any(|upcall| matches!(upcall, Upcall::Connected(_))) {
                acks.find();
            }
            acks.push();
        }
        upcalls.into_iter().filter_map(|upcall| self.event(upcall)).collect()
    }

    fn event(&mut self, upcall: Upcall) -> Option<PmixEvent> {
        match upcall {
            Upcall::Connected(name) => self.own(&name).map(|rank| PmixEvent::Connected { rank }),
            Upcall::Finalized(name) => self.own(&name).map(|rank| PmixEvent::Finalized { rank }),
            Upcall::Abort { by, status, message } => {
                self.own(&by).map(|rank| PmixEvent::Abort { rank, status, message })
            }
            Upcall::Fence { procs, blob, answer } => {
                let (key, participants) = (self.key_of(b"pmix-fence", &procs), self.nodes_of(&procs));
                self.wait_for(&key, &participants, Waiting::Fence(answer));
                Some(PmixEvent::Gather { key, participants, blob })
            }
            Upcall::Modex { wanted, answer } => self.ask(&wanted, answer),
            Upcall::Served { from, id, blob } => {
                // A leading byte tells an empty answer from none.
                let blob = blob.map_or_else(Vec::new, |blob| [vec![1], blob].concat());
                Some(PmixEvent::Reply { to: from, id, blob })
            }
            Upcall::Log { by, text, answer } => {
                answer.done();
                let rank = self.own(&by)?;
                (!text.is_empty()).then_some(PmixEvent::Log { rank, text })
            }
            Upcall::Group { name, construct, procs, endpoints, answer } => {
                let (key, participants) = (self.key_of(name.as_bytes(), &procs), self.nodes_of(&procs));
                // The group's number is the first participant's: its node and a counter, unique in the job.
                self.next_group += 1;
                let number = u64::from(self.config.shape.node()) << 32 | u64::from(self.next_group);
                let blob = [number.to_le_bytes().to_vec(), endpoints].concat();
                self.wait_for(&key, &participants, Waiting::Group { construct, members: procs, answer });
                Some(PmixEvent::Gather { key, participants, blob })
            }
        }
    }

    /// An all-gather is complete.
    pub fn gathered(&mut self, key: &[u8], participants: &[u32], parts: Parts) {
        let queue = self.waiting.get_mut(&(key.to_vec(), participants.to_vec()));
        match queue.and_then(VecDeque::pop_front) {
            Some(Waiting::Fence(answer)) => {
                answer.give(Ok(parts.into_iter().flat_map(|(_, blob)| blob).collect()));
            }
            Some(Waiting::Group { construct, members, answer }) => {
                answer.give(if construct { group_infos(&members, &parts) } else { Some(Infos::default()) });
            }
            None => {}
        }
    }

    fn wait_for(&mut self, key: &[u8], participants: &[u32], waiting: Waiting) {
        self.waiting.entry((key.to_vec(), participants.to_vec())).or_default().push_back(waiting);
    }

    fn ask(&mut self, wanted: &Name, answer: BlobAnswer) -> Option<PmixEvent> {
        let node = self.own(wanted).and_then(|rank| self.config.shape.node_of(rank));
        let Some(to) = node.filter(|node| *node != self.config.shape.node()) else {
            answer.give(Err(ERR_NOT_FOUND));
            return None;
        };
        self.next_question += 1;
        self.questions.insert(self.next_question, answer);
        let blob = wanted.rank.to_le_bytes().to_vec();
        Some(PmixEvent::Request { to, id: self.next_question, blob })
    }

    /// Another node asks for what a rank of ours has put; [`PmixEvent::Reply`] follows.
    pub fn on_request(&mut self, from: u32, id: u64, blob: &[u8]) {
        let rank = blob.try_into().map(u32::from_le_bytes).unwrap_or(RANK_WILDCARD);
        upcalls::serve(&self.library.functions, proc(self.config.shape.name(), rank), from, id);
    }

    /// The answer to a [`PmixEvent::Request`].
    pub fn on_reply(&mut self, id: u64, blob: &[u8]) {
        if let Some(answer) = self.questions.remove(&id) {
            answer.give(blob.split_first().map(|(_, blob)| blob.to_vec()).ok_or(ERR_NOT_FOUND));
        }
    }

    /// The rank, if it is of our job.
    fn own(&self, name: &Name) -> Option<u32> {
        (name.nspace == self.config.shape.name() && name.rank < self.config.shape.size()).then_some(name.rank)
    }

    fn nodes_of(&self, procs: &[Name]) -> Vec<u32> {
        let shape = &self.config.shape;
        if procs.iter().any(|name| name.rank == RANK_WILDCARD) {
            return shape.populated_nodes();
        }
        let mut nodes: Vec<u32> = procs.iter().filter_map(|name| shape.node_of(self.own(name)?)).collect();
        nodes.push(shape.node());
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// What all participants call this set of processes, in whatever order they name it.
    fn key_of(&self, kind: &[u8], procs: &[Name]) -> Vec<u8> {
        let mut ranks: Vec<u32> = procs.iter().map(|name| name.rank).collect();
        ranks.sort_unstable();
        let mut key = [kind, b"/"].concat();
        key.extend(ranks.iter().flat_map(|rank| rank.to_le_bytes()));
        key
    }

    fn check(&self, call: &str, status: Status) -> Result<(), Failure> {
        if matches!(status, SUCCESS | OPERATION_SUCCEEDED) { Ok(()) } else { Err(self.failure(call, status)) }
    }

    fn failure(&self, call: &str, status: Status) -> Failure {
        let text = self.library.functions.error_string(status);
        refused(call, &format!("{text} from {} ({})", self.library.path().display(), self.library.version()))
    }
}

fn refused(call: &str, cause: &str) -> Failure {
    Failure::new("cannot wire up an Open MPI job", format!("{call}: {cause}"))
        .during("starting the PMIx server", "pmix")
        .hint("`--pmi pmi1` runs MPICH images without PMIx; for Open MPI, another libpmix can be named in COREBOX_LIBPMIX.")
}

/// The answer to a group's construction: number, members, and everybody's endpoints.
fn group_infos(members: &[Name], parts: &Parts) -> Option<Infos> {
    let number = u64::from_le_bytes(*parts.first()?.1.first_chunk()?);
    let endpoints: Vec<u8> = parts.iter().filter_map(|(_, blob)| blob.get(8..)).flatten().copied().collect();
    let mut infos = Infos::default();
    infos.size(key::GROUP_CONTEXT_ID, number as usize);
    infos.procs(key::GROUP_MEMBERSHIP, members.iter().map(|name| proc(&name.nspace, name.rank)).collect());
    if !endpoints.is_empty() {
        infos.bytes_to_keep(key::GROUP_ENDPT_DATA, &endpoints);
    }
    Some(infos)
}
