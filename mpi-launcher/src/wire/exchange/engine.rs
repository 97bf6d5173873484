//! The thread of an exchange: one poll(2) loop over the listener, the callers and the links.

use super::handshake::{self, Caller, Parties, Progress};
use super::link::{Link, LinkEnd};
use super::listener::Listener;
use super::message::{Letter, Message};
use super::{Config, Event, announce};
use crate::wire::gather::{Gather, Step};
use crate::wire::tree::Tree;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Callers under way at once; one more turns the oldest away.
const CALLERS_MAX: usize = 64;
/// How long a good-bye may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Between two rounds of trying the parent's addresses.
const RETRY: Duration = Duration::from_millis(100);

/// What the agent (or the thread that calls the parent) wants.
pub(super) enum Command {
    /// Contribute to a round.
    Contribute { key: Vec<u8>, participants: Vec<u32>, blob: Vec<u8> },
    /// Send a letter on its way.
    Send(Letter),
    /// The parent is reached; it has already said this.
    Parent(Box<Link>, Vec<Message>),
    /// Say good-bye and end.
    Close,
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) tree: Tree,
    pub(super) listener: Option<Listener>,
    pub(super) parent: Vec<SocketAddr>,
    pub(super) orders: Receiver<Command>,
    pub(super) own_orders: Sender<Command>,
    pub(super) nudge: Arc<EventFd>,
    pub(super) events: Sender<Event>,
    pub(super) wake: Arc<EventFd>,
    pub(super) ready: Arc<AtomicBool>,
}

/// A caller with whom keys are agreed.
struct Unproven {
    link: Link,
    since: Instant,
    /// It has said `Hello`, and so have we: it holds the secret.
    greeted: bool,
}

/// The state of the thread.
pub(super) struct Engine {
    parts: Parts,
    gather: Gather,
    callers: VecDeque<Caller>,
    /// Keyed, but not yet linked.
    unproven: Vec<Unproven>,
    links: HashMap<u32, Link>,
    /// Neighbours that have not been linked yet.
    missing: HashSet<u32>,
    /// What waits for a missing neighbour.
    held: HashMap<u32, Vec<Arc<[u8]>>>,
    closing: Option<Instant>,
}

impl Engine {
    /// An engine at rest.
    pub(super) fn new(parts: Parts) -> Self {
        let missing = parts.tree.children().chain(parts.tree.parent()).collect();
        let gather = Gather::new(parts.tree);
        let (callers, unproven, links, held) = Default::default();
        Self { parts, gather, callers, unproven, links, missing, held, closing: None }
    }

    /// Runs until told to close.
    pub(super) fn run(mut self) {
        let _stops_calling_when_dropped = self.call_parent();
        while self.closing.is_none_or(|deadline| Instant::now() < deadline && self.has_farewells()) {
            if let Err(errno) = self.wait() {
                self.lose_all(&errno.to_string());
                return;
            }
            self.take_orders();
            self.admit_callers();
            self.proceed_callers();
            self.prove();
            self.read_links();
            self.keep_alive();
            self.flush_links();
        }
    }

    /// Calls the parent in a thread of its own (its connect and handshake block), until the sender is dropped.
    fn call_parent(&self) -> Option<Sender<()>> {
        let parent = self.parts.tree.parent()?;
        let config = &self.parts.config;
        let parties = Parties { job: config.job.clone(), parent, child: config.node };
        let (secret, patience) = (config.secret.clone(), config.timing.handshake);
        let (addresses, orders, nudge) =
            (self.parts.parent.clone(), self.parts.own_orders.clone(), self.parts.nudge.clone());
        let (stop, stopped) = channel::<()>();
        let call = move || loop {
            for address in &addresses {
                if let Ok((link, early)) = handshake::call(*address, &parties, &secret, patience) {
                    let _ = orders.send(Command::Parent(Box::new(link), early));
                    let _ = nudge.write(1);
                    return;
                }
                if stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    return;
                }
            }
            if stopped.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        };
        match std::thread::Builder::new().name("exchange-call".into()).spawn(call) {
            Ok(_) => Some(stop),
            Err(error) => {
                self.tell(Event::LinkLost { node: parent, cause: format!("no thread to call it: {error}") });
                None
            }
        }
    }

    fn wait(&mut self) -> nix::Result<()> {
        let timeout = PollTimeout::try_from(self.patience()).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.parts.nudge.as_fd(), PollFlags::POLLIN)];
        if let Some(listener) = &self.parts.listener {
            fds.push(PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.callers.iter().map(|caller| PollFd::new(caller.stream.as_fd(), PollFlags::POLLIN)));
        for link in self.unproven.iter().map(|caller| &caller.link).chain(self.links.values()) {
            let writing = if link.has_outgoing() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(link.stream.as_fd(), PollFlags::POLLIN | writing));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// How long nothing needs to be done unless something arrives.
    fn patience(&self) -> Duration {
        let timing = &self.parts.config.timing;
        let links = self.links.values();
        let beats = links.clone().map(|link| link.spoke + timing.heartbeat);
        let silences = links.map(|link| link.heard + timing.silence);
        let callers = self.callers.iter().map(|caller| caller.since + timing.handshake);
        let unproven = self.unproven.iter().map(|caller| caller.since + timing.handshake);
        let next = beats.chain(silences).chain(callers).chain(unproven).chain(self.closing).min();
        // One millisecond more, since poll(2) counts in whole ones and would else be early.
        next.map_or(timing.silence, |next| next.saturating_duration_since(Instant::now())) + Duration::from_millis(1)
    }

    fn take_orders(&mut self) {
        // EAGAIN: nobody has signalled.
        let _ = self.parts.nudge.read();
        let orders: Vec<Command> = self.parts.orders.try_iter().collect();
        for order in orders {
            match order {
                Command::Contribute { key, participants, blob } => {
                    let steps = self.gather.contribute(key, participants, blob);
                    self.take_steps(steps);
                }
                Command::Send(letter) => self.forward(letter),
                Command::Parent(link, early) => {
                    let peer = link.peer;
                    self.connect(*link);
                    early.into_iter().for_each(|message| self.on_message(peer, message));
                }
                Command::Close => {
                    self.closing = Some(Instant::now() + FAREWELL);
                    self.parts.listener = None;
                    let peers: Vec<u32> = self.links.keys().copied().collect();
                    peers.into_iter().for_each(|peer| self.send(peer, Message::Bye.encode()));
                }
            }
        }
    }

    fn admit_callers(&mut self) {
        let Some(listener) = &self.parts.listener else { return };
        // An error is either "no more", or of one connection, or of descriptors running out, which the next try cures.
        while let Ok((stream, _)) = listener.socket.accept() {
            if self.callers.len() >= CALLERS_MAX {
                self.callers.pop_front();
            }
            self.callers.extend(Caller::new(stream));
        }
    }

    fn proceed_callers(&mut self) {
        let (config, tree) = (&self.parts.config, &self.parts.tree);
        let missing = &self.missing;
        let expects = |child: u32| missing.contains(&child) && tree.child_toward(child) == Some(child);
        let now = Instant::now();
        for caller in std::mem::take(&mut self.callers) {
            if now >= caller.since + config.timing.handshake {
                continue;
            }
            match caller.proceed(&config.job, config.node, &config.secret, expects) {
                Progress::Waiting(caller) => self.callers.push_back(caller),
                Progress::Keyed(link) => self.unproven.push(Unproven { link: *link, since: now, greeted: false }),
                Progress::Refused => {}
            }
        }
    }

    /// A keyed caller's `Hello` is answered; what it says next makes it a link. (One that had given up before our
    /// answer came calls again, and must not be taken for a lost link.)
    fn prove(&mut self) {
        let timing = self.parts.config.timing;
        for mut caller in std::mem::take(&mut self.unproven) {
            let mut messages = Vec::new();
            let read = caller.link.read(&mut messages);
            let mut messages = messages.into_iter().peekable();
            if !caller.greeted && messages.next_if_eq(&Message::Hello).is_some() {
                caller.greeted = true;
                caller.link.queue(Message::Hello.encode());
            }
            let peer = caller.link.peer;
            if !self.missing.contains(&peer) {
                continue;
            }
            if caller.greeted && messages.peek().is_some() {
                self.connect(caller.link);
                messages.for_each(|message| self.on_message(peer, message));
                continue;
            }
            let patience = if caller.greeted { timing.silence } else { timing.handshake };
            let is_foreign = messages.peek().is_some();
            if read.is_ok() && caller.link.flush().is_ok() && !is_foreign && caller.since.elapsed() < patience {
                self.unproven.push(caller);
            }
        }
    }

    fn connect(&mut self, link: Link) {
        let peer = link.peer;
        self.links.insert(peer, link);
        self.missing.remove(&peer);
        self.held.remove(&peer).into_iter().flatten().for_each(|message| self.send(peer, message));
        let parent = self.parts.tree.parent();
        if self.missing.iter().all(|node| Some(*node) == parent) {
            self.parts.listener = None;
            self.callers.clear();
            self.unproven.clear();
        }
        if self.missing.is_empty() {
            self.parts.ready.store(true, Ordering::Release);
            self.tell(Event::Ready);
        }
    }

    fn read_links(&mut self) {
        let peers: Vec<u32> = self.links.keys().copied().collect();
        for peer in peers {
            let mut messages = Vec::new();
            let Some(link) = self.links.get_mut(&peer) else { continue };
            let read = link.read(&mut messages);
            messages.into_iter().for_each(|message| self.on_message(peer, message));
            if let Err(end) = read {
                self.lose(peer, &end);
            }
        }
    }

    fn on_message(&mut self, peer: u32, message: Message) {
        match message {
            Message::Hello | Message::Heartbeat => {}
            Message::Bye => drop(self.links.remove(&peer)),
            Message::Up(round, parts) => {
                let steps = self.gather.on_child(round, parts);
                self.take_steps(steps);
            }
            Message::Down(round, parts) => {
                let steps = self.gather.on_parent(round, parts);
                self.take_steps(steps);
            }
            Message::Letter(letter) => self.forward(letter),
        }
    }

    fn take_steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Up(round, parts) => {
                    if let Some(parent) = self.parts.tree.parent() {
                        self.send(parent, Message::Up(round, parts).encode());
                    }
                }
                Step::Down(children, round, parts) => {
                    // Encoded once: with 32 children and much data, copies would count.
                    let message = Message::Down(round, parts).encode();
                    children.into_iter().for_each(|child| self.send(child, message.clone()));
                }
                Step::Done(round, parts) => {
                    self.tell(Event::Gathered { key: round.key, participants: round.participants, parts });
                }
            }
        }
    }

    fn forward(&mut self, letter: Letter) {
        if letter.to != self.parts.config.node {
            if let Some(next) = self.parts.tree.next_hop(letter.to) {
                self.send(next, Message::Letter(letter).encode());
            }
            return;
        }
        let Letter { from, id, blob, is_reply, .. } = letter;
        self.tell(if is_reply { Event::Reply { from, id, blob } } else { Event::Request { from, id, blob } });
    }

    fn send(&mut self, peer: u32, message: Arc<[u8]>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.queue(message);
        } else if self.missing.contains(&peer) {
            self.held.entry(peer).or_default().push(message);
        }
    }

    /// Reading comes first: a thread that was not scheduled for long must not blame its peers.
    fn keep_alive(&mut self) {
        let timing = self.parts.config.timing;
        let silent: Vec<u32> =
            self.links.values().filter(|link| link.heard.elapsed() >= timing.silence).map(|link| link.peer).collect();
        for peer in silent {
            let cause = format!("nothing was heard of it for {} s", timing.silence.as_secs_f32());
            self.links.remove(&peer);
            self.tell(Event::LinkLost { node: peer, cause });
        }
        let quiet: Vec<u32> =
            self.links.values().filter(|link| link.spoke.elapsed() >= timing.heartbeat).map(|link| link.peer).collect();
        quiet.into_iter().for_each(|peer| self.send(peer, Message::Heartbeat.encode()));
    }

    fn flush_links(&mut self) {
        let ends: Vec<(u32, LinkEnd)> =
            self.links.values_mut().filter_map(|link| link.flush().err().map(|end| (link.peer, end))).collect();
        ends.into_iter().for_each(|(peer, end)| self.lose(peer, &end));
    }

    fn lose(&mut self, peer: u32, end: &LinkEnd) {
        if self.links.remove(&peer).is_some() && self.closing.is_none() {
            self.tell(Event::LinkLost { node: peer, cause: end.to_string() });
        }
    }

    fn lose_all(&mut self, cause: &str) {
        for peer in self.parts.tree.children().chain(self.parts.tree.parent()) {
            self.tell(Event::LinkLost { node: peer, cause: cause.to_owned() });
        }
    }

    fn has_farewells(&self) -> bool {
        self.links.values().any(Link::has_outgoing)
    }

    fn tell(&self, event: Event) {
        announce(&self.parts.events, &self.parts.wake, event);
    }
}
