//! The exchange between the agents of a job: all-gather and letters, along a tree of encrypted links.
//!
//! Every agent makes an [`Exchange`] before it starts any process; one with children listens from then on
//! ([`Exchange::addresses`] go to the launcher, which hands them to the children). [`Exchange::start`] links up, in a
//! thread of its own, so that a busy agent is not taken for a dead one. Results are [`Event`]s, announced on
//! [`Exchange::wake_fd`] for the agent's poll(2). A job on one node opens no socket and starts no thread.
//!
//! Strangers: whoever does not hold the job's secret fails in the handshake, at the latest after
//! [`Timing::handshake`], and is not noticed by the job. The listener closes when all children are linked.

mod engine;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod link;
mod listener;
mod message;

use super::gather::{Gather, Step};
use super::tree::Tree;
use corebox_sys::Error;
use engine::{Command, Engine};
use listener::Listener;
use message::Letter;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub use super::gather::Parts;
pub use super::tree::ARITY;
pub use listener::local_addresses;

/// The job's secret, made by the launcher and given to every agent over its remote shell.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A fresh one from getrandom(2).
    ///
    /// # Errors
    /// If the kernel has no random bytes (before 3.17, or a seccomp filter).
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
    /// One that was made elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The bytes, for the way to an agent.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

/// How long the links wait.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A link that has said nothing for this long sends a heartbeat.
    pub heartbeat: Duration,
    /// A link that has heard nothing for this long is lost.
    pub silence: Duration,
    /// A handshake takes no longer than this.
    pub handshake: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(2), silence: Duration::from_secs(8), handshake: Duration::from_secs(5) }
    }
}

/// What an exchange is part of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The job's name; bound into every handshake.
    pub job: String,
    /// The job's secret.
    pub secret: Secret,
    /// This node's index.
    pub node: u32,
    /// Number of nodes.
    pub nodes: u32,
    /// Children per node: [`ARITY`], fewer in tests.
    pub arity: u32,
    /// Time limits.
    pub timing: Timing,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Parent and all children are linked.
    Ready,
    /// An all-gather is complete: the blob of each participant, in node order.
    Gathered {
        /// The key given to [`Exchange::allgather`].
        key: Vec<u8>,
        /// The participants, in order.
        participants: Vec<u32>,
        /// Node and blob, in node order.
        parts: Parts,
    },
    /// Another node asks; answer with [`Exchange::reply`].
    Request {
        /// Who asks.
        from: u32,
        /// Its number for the question.
        id: u64,
        /// The question.
        blob: Vec<u8>,
    },
    /// The answer to [`Exchange::request`].
    Reply {
        /// Who answers.
        from: u32,
        /// Our number for the question.
        id: u64,
        /// The answer.
        blob: Vec<u8>,
    },
    /// A neighbour in the tree is gone without good-bye.
    LinkLost {
        /// Its index.
        node: u32,
        /// What the link died of.
        cause: String,
    },
}

/// One agent's end of the exchange.
pub struct Exchange {
    config: Config,
    tree: Tree,
    wake: Arc<EventFd>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    state: State,
}

enum State {
    /// One node: everything is decided here.
    Alone(Gather),
    /// Several nodes, before [`Exchange::start`].
    Idle(Option<Listener>),
    /// Several nodes, the engine runs in its thread.
    Running(Running),
    /// After [`Exchange::close`].
    Closed,
}

struct Running {
    commands: Sender<Command>,
    nudge: Arc<EventFd>,
    ready: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Exchange {
    /// Prepares an exchange and, if this node will have children, listens. Starts no thread.
    ///
    /// # Errors
    /// If there are no descriptors or no port left.
    pub fn new(config: Config) -> Result<Self, Error> {
        let tree = Tree::new(config.node, config.nodes, config.arity);
        let state = if config.nodes <= 1 {
            State::Alone(Gather::new(tree))
        } else {
            let has_children = tree.children().next().is_some();
            State::Idle(has_children.then(Listener::open).transpose()?)
        };
        let (sender, events) = channel();
        Ok(Self { config, tree, wake: new_eventfd()?, events, sender, state })
    }

    /// The parent in the tree, whose [`Exchange::addresses`] this node needs; `None` for node 0.
    pub fn parent_of(node: u32, nodes: u32, arity: u32) -> Option<u32> {
        Tree::new(node, nodes, arity).parent()
    }

    /// Where our children reach us, best guess first; empty without children, and after [`Exchange::start`].
    ///
    /// # Errors
    /// If the interfaces cannot be listed.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let State::Idle(Some(listener)) = &self.state else { return Ok(Vec::new()) };
        Ok(local_addresses()?.into_iter().map(|ip| SocketAddr::new(ip, listener.port())).collect())
    }

    /// The port that we listen on, if we do and before [`Exchange::start`].
    pub fn port(&self) -> Option<u16> {
        match &self.state {
            State::Idle(Some(listener)) => Some(listener.port()),
            _ => None,
        }
    }

    /// Links up with the parent (tried at these addresses, in order, again and again) and the children, in a thread.
    /// Nothing happens on one node, or the second time.
    ///
    /// # Errors
    /// If there are no descriptors or threads left.
    pub fn start(&mut self, parent: Vec<SocketAddr>) -> Result<(), Error> {
        let State::Idle(listener) = &mut self.state else { return Ok(()) };
        let listener = listener.take();
        let (commands, orders) = channel();
        let (nudge, ready) = (new_eventfd()?, Arc::new(AtomicBool::new(false)));
        let engine = Engine::new(engine::Parts {
            config: self.config.clone(),
            tree: self.tree,
            listener,
            parent,
            orders,
            own_orders: commands.clone(),
            nudge: nudge.clone(),
            events: self.sender.clone(),
            wake: self.wake.clone(),
            ready: ready.clone(),
        });
        let thread = std::thread::Builder::new()
            .name("exchange".into())
            .spawn(move || engine.run())
            .map_err(|e| Error::io("clone", "the exchange's thread", &e))?;
        self.state = State::Running(Running { commands, nudge, ready, thread });
        Ok(())
    }

    /// Whether parent and all children are linked. Also told by [`Event::Ready`].
    pub fn ready(&self) -> bool {
        match &self.state {
            State::Alone(_) => true,
            State::Running(running) => running.ready.load(Ordering::Acquire),
            State::Idle(_) | State::Closed => false,
        }
    }

    /// Readable when [`Exchange::events`] has something.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What has happened since the last call. Never blocks.
    pub fn events(&mut self) -> Vec<Event> {
        // EAGAIN: nobody has signalled, and then nothing is queued but what comes while we look.
        let _ = self.wake.read();
        self.events.try_iter().collect()
    }

    /// Contributes to an all-gather; [`Event::Gathered`] follows when all `participants` (this node among them) have.
    /// The same key may be used again and again; each participant's n-th use belongs to the others' n-th.
    pub fn allgather(&mut self, key: Vec<u8>, participants: Vec<u32>, blob: Vec<u8>) {
        match &mut self.state {
            State::Alone(gather) => {
                for step in gather.contribute(key, participants, blob) {
                    if let Step::Done(round, parts) = step {
                        let event = Event::Gathered { key: round.key, participants: round.participants, parts };
                        announce(&self.sender, &self.wake, event);
                    }
                }
            }
            _ => self.order(Command::Contribute { key, participants, blob }),
        }
    }

    /// Asks another node; [`Event::Reply`] with the same `id` follows.
    pub fn request(&mut self, to: u32, id: u64, blob: Vec<u8>) {
        self.order(Command::Send(Letter { from: self.config.node, to, is_reply: false, id, blob }));
    }

    /// Answers a request.
    pub fn reply(&mut self, to: u32, id: u64, blob: Vec<u8>) {
        self.order(Command::Send(Letter { from: self.config.node, to, is_reply: true, id, blob }));
    }

    /// Says good-bye to the neighbours and ends the thread, within about a second. For when the launcher says that the
    /// job is over: other nodes' messages no longer pass through here.
    pub fn close(&mut self) {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Closed) {
            // Either can fail only if the engine is gone already.
            let _ = running.commands.send(Command::Close);
            let _ = running.nudge.write(1);
            let _ = running.thread.join();
        }
    }

    fn order(&self, command: Command) {
        if let State::Running(running) = &self.state {
            // Fails only if the engine is gone, which it has told (LinkLost).
            let _ = running.commands.send(command);
            let _ = running.nudge.write(1);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.close();
    }
}

/// Queues an event and wakes the agent.
fn announce(sender: &Sender<Event>, wake: &EventFd, event: Event) {
    // The receiver lives as long as the exchange; the counter cannot overflow by ones.
    let _ = sender.send(event);
    let _ = wake.write(1);
}

fn new_eventfd() -> Result<Arc<EventFd>, Error> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    EventFd::from_flags(flags).map(Arc::new).map_err(|errno| Error::new("eventfd", "for the exchange", errno))
}
