//! The agent's one loop: launcher, container, wire-up, exchange and the ranks' streams.

use super::link::LauncherLink;
use super::ranks::Ranks;
use super::service::Service;
use super::{End, core_file};
use crate::protocol::{self, AGENT_PATIENCE, Frame, FromAgent, HEARTBEAT, LAUNCHER_PATIENCE, RankStarted, ToAgent};
use crate::wire::WireEvent;
use corebox_runtime::{Container, Event};
use corebox_spec::{Failure, Outcome};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::Instant;

/// What a descriptor of the loop belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    LauncherIn,
    LauncherOut,
    Container,
    Pmi(usize),
    Wire,
    Output(usize),
    Input,
}

/// What the loop knows beside the things it attends to.
struct Loop<'a> {
    link: &'a mut LauncherLink,
    ranks: &'a mut Ranks,
    container: &'a mut Container,
    service: &'a mut Service,
    started: Vec<RankStarted>,
    /// Between MPI_Init and MPI_Finalize.
    in_mpi: BTreeSet<u32>,
    /// When SIGKILL follows SIGTERM.
    kill_at: Option<Instant>,
    /// The launcher stopped the ranks and perhaps itself.
    paused: bool,
    finished: bool,
    container_gone: bool,
    buffer: Vec<u8>,
}

/// Attends to the job until the launcher says that it is over.
pub fn attend(
    link: &mut LauncherLink,
    ranks: &mut Ranks,
    container: &mut Container,
    service: &mut Service,
) -> Result<(), End> {
    let mut state = Loop {
        link,
        ranks,
        container,
        service,
        started: Vec::new(),
        in_mpi: BTreeSet::new(),
        kill_at: None,
        paused: false,
        finished: false,
        container_gone: false,
        buffer: vec![0; 256 << 10],
    };
    while !state.finished {
        if state.ranks.running.is_empty() {
            return state.close();
        }
        let ready = state.wait();
        // wire-up first: what a rank said before it exited must be known when its exit is judged
        for source in ready {
            state.on_ready(source)?;
        }
        state.on_time()?;
        state.link.flush()?;
    }
    Ok(())
}

impl Loop<'_> {
    /// Waits for a descriptor; what is ready comes in the order in which it must be attended to.
    fn wait(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        for (local, fd, writes) in self.service.lines.descriptors() {
            let flags = if writes { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            add(Source::Pmi(local), fd, flags);
        }
        for fd in self.service.wake_fds() {
            add(Source::Wire, fd, PollFlags::POLLIN);
        }
        if !self.container_gone {
            add(Source::Container, self.container.control_fd(), PollFlags::POLLIN);
        }
        add(Source::LauncherIn, self.link.input(), PollFlags::POLLIN);
        if self.link.has_unsent() {
            add(Source::LauncherOut, self.link.output(), PollFlags::POLLOUT);
        }
        if !self.link.is_behind() {
            for (number, pipe) in self.ranks.outputs.iter().enumerate() {
                if let Some(fd) = pipe.readable() {
                    add(Source::Output(number), fd, PollFlags::POLLIN);
                }
            }
        }
        if let Some(fd) = self.ranks.input.as_ref().and_then(|input| input.writable()) {
            add(Source::Input, fd, PollFlags::POLLOUT);
        }
        // EINTR and a time-out look the same: nothing is ready
        let _ = poll(&mut fds, self.timeout());
        let ready = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        fds.iter().zip(sources).filter(|(fd, _)| ready(fd)).map(|(_, source)| source).collect()
    }

    fn timeout(&self) -> PollTimeout {
        let until_kill =
            self.kill_at.map(|at| at.saturating_duration_since(Instant::now()) + std::time::Duration::from_millis(1));
        let wait = until_kill.map_or(HEARTBEAT, |kill| kill.min(HEARTBEAT));
        PollTimeout::try_from(wait.as_millis() as i32).unwrap_or(PollTimeout::ZERO)
    }

    fn on_ready(&mut self, source: Source) -> Result<(), End> {
        match source {
            Source::Pmi(local) => {
                let events = self.service.attend(local);
                self.on_wire(events)?;
            }
            Source::Wire => {
                let events = self.service.dispatch();
                self.on_wire(events)?;
            }
            Source::Container => self.on_container()?,
            Source::LauncherIn => self.on_launcher()?,
            Source::LauncherOut => self.link.flush()?,
            Source::Output(number) => {
                let link = &mut *self.link;
                self.ranks.outputs[number].forward(&mut self.buffer, |frame| link.send_raw(frame));
            }
            Source::Input => self.forward_input(),
        }
        Ok(())
    }

    fn forward_input(&mut self) {
        let taken = self.ranks.input.as_mut().map_or(0, |input| input.forward());
        if taken > 0 {
            self.link.send(&FromAgent::StdinTaken(taken));
        }
    }

    fn on_wire(&mut self, events: Vec<WireEvent>) -> Result<(), End> {
        for event in events {
            match event {
                WireEvent::Abort { rank, code, message } => self.link.send(&FromAgent::Abort { rank, code, message }),
                WireEvent::Connected { rank } => drop(self.in_mpi.insert(rank)),
                WireEvent::Finalized { rank } => drop(self.in_mpi.remove(&rank)),
                WireEvent::Log { rank, text } => {
                    self.link.send_raw(&protocol::encode_output(rank, protocol::Stream::Err, text.as_bytes()));
                }
                WireEvent::Violation { rank, message } => {
                    let cause = format!("rank {rank} broke the PMI protocol: {message}");
                    return Err(Failure::new("cannot go on with the wire-up of the ranks", cause).into());
                }
                WireEvent::LinkLost { node, .. } => self.link.send(&FromAgent::LinkLost { node }),
                WireEvent::Ready | WireEvent::Write { .. } => {} // writes are done by the service
            }
        }
        Ok(())
    }

    fn on_container(&mut self) -> Result<(), End> {
        while let Some(event) = self.container.next_event()? {
            match event {
                Event::Ready => {}
                Event::Started { id, pid, cpus, mems } => {
                    self.ranks.pids.insert(id, pid);
                    self.started.push(RankStarted { rank: id, pid, cpus, mems });
                    if self.started.len() == self.ranks.outputs.len() / 2 {
                        self.link.send(&FromAgent::Started(std::mem::take(&mut self.started)));
                    }
                }
                Event::Failed(failure) | Event::ExecFailed { failure, .. } => return Err(failure.into()),
                Event::Exited { id, outcome } => self.on_exit(id, outcome)?,
                Event::Gone if self.kill_at.is_none() => {
                    return Err(Failure::new("cannot go on with the job", "the container's init was killed")
                        .hint("look for the kernel's out-of-memory killer in its log (`dmesg`).")
                        .into());
                }
                Event::Gone => {
                    self.all_killed();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn on_exit(&mut self, rank: u32, outcome: Outcome) -> Result<(), End> {
        if let Some(local) = self.ranks.local(rank) {
            let mut last_words = self.service.attend(local);
            last_words.extend(self.service.dispatch());
            self.on_wire(last_words)?;
        }
        if self.ranks.running.remove(&rank) {
            self.report(rank, outcome);
        }
        Ok(())
    }

    fn report(&mut self, rank: u32, outcome: Outcome) {
        let pid = self.ranks.pids.get(&rank).copied().unwrap_or_default();
        let dumped = matches!(outcome, Outcome::Signaled { core: true, .. });
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let core = dumped.then(|| core_file::location(pid, &self.ranks.directory(rank), &host));
        self.link.send(&FromAgent::Exited { rank, outcome, unfinished: self.in_mpi.contains(&rank), core });
    }

    /// The container was killed with its ranks.
    fn all_killed(&mut self) {
        for rank in std::mem::take(&mut self.ranks.running) {
            self.report(rank, Outcome::Signaled { signal: Signal::SIGKILL as i32, core: false });
        }
    }

    fn on_launcher(&mut self) -> Result<(), End> {
        let received = self.link.receive();
        while let Some(frame) = self.link.next_frame()? {
            match frame {
                Frame::Message(ToAgent::Signal(signal)) => {
                    self.paused = match Signal::try_from(signal) {
                        Ok(Signal::SIGSTOP) => true,
                        Ok(Signal::SIGCONT) => false,
                        _ => self.paused,
                    };
                    self.signal(signal);
                }
                Frame::Message(ToAgent::Stop { grace }) => {
                    self.signal(Signal::SIGTERM as i32);
                    // a stopped process takes SIGTERM only when it goes on
                    self.signal(Signal::SIGCONT as i32);
                    self.kill_at.get_or_insert(Instant::now() + grace);
                }
                Frame::Message(ToAgent::Kill) => self.kill(),
                Frame::Message(ToAgent::StdinEnd) => {
                    self.ranks.input.iter_mut().for_each(|input| input.end());
                    self.forward_input();
                }
                Frame::Input(bytes) => {
                    self.ranks.input.iter_mut().for_each(|input| input.push(&bytes));
                    self.forward_input();
                }
                Frame::Message(ToAgent::Ping) => self.link.send(&FromAgent::Pong),
                Frame::Message(ToAgent::Finish) => self.finished = true,
                Frame::Message(ToAgent::Hello(_) | ToAgent::Plan(_)) | Frame::Output { .. } => {}
            }
        }
        if self.finished { Ok(()) } else { received.map_err(End::from) }
    }

    fn signal(&mut self, signal: i32) {
        let _ = self.container.signal(None, signal); // fails only without an init, which is an event of its own
    }

    fn on_time(&mut self) -> Result<(), End> {
        if self.kill_at.is_some_and(|at| Instant::now() >= at) && !self.ranks.running.is_empty() {
            self.kill();
        }
        if self.paused {
            self.link.forgive();
        }
        if self.link.silence() > LAUNCHER_PATIENCE { Err(End::LauncherGone) } else { Ok(()) }
    }

    fn kill(&mut self) {
        self.kill_at.get_or_insert_with(Instant::now);
        self.container.kill();
        self.container_gone = true;
        self.all_killed();
    }

    /// All ranks ended: ends what they left running, sends the rest of their output, and waits for the launcher's leave,
    /// because other nodes' messages may still pass through here.
    fn close(mut self) -> Result<(), End> {
        self.container.kill();
        self.container_gone = true;
        let link = &mut *self.link;
        for pipe in &mut self.ranks.outputs {
            while pipe.readable().is_some() {
                pipe.forward(&mut self.buffer, |frame| link.send_raw(frame));
                if link.is_behind() {
                    link.drain()?;
                }
            }
        }
        self.link.send(&FromAgent::Done);
        self.link.drain()?;
        while !self.finished && self.link.silence() < AGENT_PATIENCE.max(LAUNCHER_PATIENCE) {
            for source in self.wait() {
                self.on_ready(source)?;
            }
            self.link.flush()?;
        }
        Ok(())
    }
}
