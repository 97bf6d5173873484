//! One node's wire-up: the protocol server that the ranks need, joined to the exchange.

use super::exchange::{Event, Exchange};
use super::pmix::{PmixEvent, PmixServer};
use super::{Action, BARRIER_KEY, PmiServer};
use std::os::fd::BorrowedFd;

/// What serves this node's ranks.
pub enum Protocol {
    /// PMI-1 and PMI-2, for MPICH and its family.
    Pmi(Box<PmiServer>),
    /// PMIx, for Open MPI.
    Pmix(Box<PmixServer>),
    /// Nothing: independent processes.
    None,
}

/// What the agent has to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireEvent {
    /// All agents are linked.
    Ready,
    /// Write these bytes to the PMI descriptor of the rank with this local index.
    Write {
        /// Index among this node's ranks.
        local: usize,
        /// What to write, whole.
        bytes: Vec<u8>,
    },
    /// A rank has begun with MPI; if it exits without [`WireEvent::Finalized`], the job has failed.
    Connected {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank is done with MPI.
    Finalized {
        /// The rank in the job.
        rank: u32,
    },
    /// A rank wants the job to end (`MPI_Abort`).
    Abort {
        /// The rank in the job.
        rank: u32,
        /// The exit code it asked for.
        code: i32,
        /// Its words, possibly empty.
        message: String,
    },
    /// A rank broke the protocol, and is ignored from now on: the job has failed.
    Violation {
        /// The rank in the job.
        rank: u32,
        /// What was wrong.
        message: String,
    },
    /// A rank's MPI library has something to say to the user.
    Log {
        /// The rank in the job.
        rank: u32,
        /// What it says, possibly several lines.
        text: String,
    },
    /// A neighbour in the tree of agents is gone without good-bye: the job has failed.
    LinkLost {
        /// Its index.
        node: u32,
        /// What the link died of; empty words are never used.
        cause: String,
    },
}

/// One node's wire-up.
pub struct WireUp {
    exchange: Exchange,
    protocol: Protocol,
}

impl WireUp {
    /// Joins the two.
    pub fn new(exchange: Exchange, protocol: Protocol) -> Self {
        Self { exchange, protocol }
    }

    /// To wait for, for reading; then call [`WireUp::dispatch`].
    pub fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.exchange.wake_fd()];
        if let Protocol::Pmix(server) = &self.protocol {
            fds.extend(server.wake_fds());
        }
        fds
    }

    /// The exchange, to start it or to ask whether it is ready.
    pub fn exchange(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// Takes what was read from a rank's PMI descriptor.
    pub fn on_pmi_bytes(&mut self, local: usize, bytes: &[u8]) -> Vec<WireEvent> {
        let mut out = Vec::new();
        if let Protocol::Pmi(server) = &mut self.protocol {
            let actions = server.on_bytes(local, bytes);
            self.act(actions, &mut out);
        }
        // On a single node a barrier is complete at once.
        out.extend(self.dispatch());
        out
    }

    /// Moves everything on that has happened. Never blocks.
    pub fn dispatch(&mut self) -> Vec<WireEvent> {
        let mut out = Vec::new();
        loop {
            let upcalls = match &mut self.protocol {
                Protocol::Pmix(server) => server.events(),
                Protocol::Pmi(_) | Protocol::None => Vec::new(),
            };
            let events = self.exchange.events();
            if upcalls.is_empty() && events.is_empty() {
                return out;
            }
            upcalls.into_iter().for_each(|event| self.on_pmix(event, &mut out));
            events.into_iter().for_each(|event| self.on_exchange(event, &mut out));
        }
    }

    /// Ends the links in good order: every rank of the job, on all nodes, has exited.
    pub fn close(mut self) {
        self.exchange.close();
    }

    fn act(&mut self, actions: Vec<Action>, out: &mut Vec<WireEvent>) {
        for action in actions {
            match action {
                Action::Reply { local, bytes } => out.push(WireEvent::Write { local, bytes }),
                Action::Barrier { blob } => {
                    if let Protocol::Pmi(server) = &self.protocol {
                        self.exchange.allgather(BARRIER_KEY.to_vec(), server.shape().populated_nodes(), blob);
                    }
                }
                Action::Abort { rank, code, message } => out.push(WireEvent::Abort { rank, code, message }),
                Action::Connected { rank } => out.push(WireEvent::Connected { rank }),
                Action::Finalized { rank } => out.push(WireEvent::Finalized { rank }),
                Action::Violation { rank, message } => out.push(WireEvent::Violation { rank, message }),
            }
        }
    }

    fn on_pmix(&mut self, event: PmixEvent, out: &mut Vec<WireEvent>) {
        match event {
            PmixEvent::Gather { key, participants, blob } => self.exchange.allgather(key, participants, blob),
            PmixEvent::Request { to, id, blob } => self.exchange.request(to, id, blob),
            PmixEvent::Reply { to, id, blob } => self.exchange.reply(to, id, blob),
            PmixEvent::Connected { rank } => out.push(WireEvent::Connected { rank }),
            PmixEvent::Finalized { rank } => out.push(WireEvent::Finalized { rank }),
            PmixEvent::Abort { rank, status, message } => out.push(WireEvent::Abort { rank, code: status, message }),
            PmixEvent::Log { rank, text } => out.push(WireEvent::Log { rank, text }),
        }
    }

    fn on_exchange(&mut self, event: Event, out: &mut Vec<WireEvent>) {
        match (event, &mut self.protocol) {
            (Event::Ready, _) => out.push(WireEvent::Ready),
            (Event::LinkLost { node, cause }, _) => out.push(WireEvent::LinkLost { node, cause }),
            (Event::Gathered { parts, .. }, Protocol::Pmi(server)) => match server.barrier_done(&parts) {
                Ok(actions) => self.act(actions, out),
                Err(node) => {
                    let cause = "its barrier data are not of this version of corebox".to_owned();
                    out.push(WireEvent::LinkLost { node, cause });
                }
            },
            (Event::Gathered { key, participants, parts }, Protocol::Pmix(server)) => {
                server.gathered(&key, &participants, parts);
            }
            (Event::Request { from, id, blob }, Protocol::Pmix(server)) => server.on_request(from, id, &blob),
            (Event::Reply { id, blob, .. }, Protocol::Pmix(server)) => server.on_reply(id, &blob),
            // No protocol of ours asks for these.
            (Event::Gathered { .. } | Event::Request { .. } | Event::Reply { .. }, _) => {}
        }
    }
}
