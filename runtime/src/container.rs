//! A container as its maker holds it.

use crate::create::{Created, create};
use crate::message::{self, Order, Report};
use crate::plan::ContainerPlan;
use crate::process::ProcessPlan;
use crate::reaper::silent_end;
use corebox_spec::{Failure, IdSet, Outcome};
use corebox_sys::control::{Received, Socket};
use corebox_sys::{Error, fd};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;

/// What happened in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It stands: processes may be started.
    Ready,
    /// It does not stand, or not any more; [`Event::Gone`] follows.
    Failed(Failure),
    /// A process is bound and executes its program.
    Started {
        /// As in [`ProcessPlan::id`].
        id: u32,
        /// Its pid as the host numbers it.
        pid: i32,
        /// The CPUs it is bound to, read back from the kernel.
        cpus: IdSet,
        /// The NUMA nodes its memory comes from, read back from the kernel.
        mems: IdSet,
    },
    /// A process could not be executed. No `Exited` follows.
    ExecFailed {
        /// As in [`ProcessPlan::id`].
        id: u32,
        /// Why; its code is 126 or 127 where a shell's would be.
        failure: Failure,
    },
    /// A process ended.
    Exited {
        /// As in [`ProcessPlan::id`].
        id: u32,
        /// How.
        outcome: Outcome,
    },
    /// Init is dead, and with it every process of the container. Nothing follows.
    Gone,
}

/// One container. Dropping it kills it and removes what it left.
///
/// Its init is a forked copy of this process, so [`Container::create`] must be called while there is one thread; all
/// else may be done from any thread. Do not reap its init with `waitpid(-1)`.
#[derive(Debug)]
pub struct Container {
    name: String,
    created: Option<Created>,
    socket: Socket,
    keep_fds: Vec<RawFd>,
    cleanup_paths: Vec<PathBuf>,
    queue: VecDeque<Event>,
    /// Processes that could not exec: init's word of their end is not passed on.
    unexecuted: BTreeSet<u32>,
    ready: bool,
    failed: bool,
    gone: bool,
    killed: bool,
    out_of_memory: bool,
    steps: Vec<(String, u64)>,
}

impl Container {
    /// Creates it as planned and returns at once: [`Event::Ready`] or [`Event::Failed`] comes.
    ///
    /// `keep_fds` are descriptors that processes started later shall have ([`ProcessPlan::stdio`],
    /// [`ProcessPlan::keep_fds`]). All others but 0, 1 and 2 are closed in the container, so that this process's pipes
    /// end when it closes them.
    ///
    /// # Errors
    /// EBUSY where this process has more than one thread, and whatever the parent's steps meet; nothing is left then.
    pub fn create(plan: &ContainerPlan, keep_fds: &[RawFd]) -> Result<Self, Failure> {
        let (created, socket) = create(plan, keep_fds)?;
        let steps = created.times.iter().map(|(name, time)| (format!("parent: {name}"), *time)).collect();
        Ok(Self {
            name: plan.name.clone(),
            created: Some(created),
            socket,
            keep_fds: keep_fds.to_vec(),
            cleanup_paths: plan.cleanup_paths.clone(),
            queue: VecDeque::new(),
            unexecuted: BTreeSet::new(),
            ready: false,
            failed: false,
            gone: false,
            killed: false,
            out_of_memory: false,
            steps,
        })
    }

    /// Waits until it stands.
    ///
    /// # Errors
    /// Its failure.
    pub fn wait_ready(&mut self) -> Result<(), Failure> {
        while !self.ready {
            match self.next_event()? {
                Some(Event::Failed(failure)) => return Err(failure),
                Some(Event::Gone) => return Err(silent_end(&self.name, false, None, false)),
                Some(_) => {}
                None => {
                    fd::poll_readable(&[self.control_fd()], None).map_err(|e| self.lost(&e))?;
                }
            }
        }
        Ok(())
    }

    /// Starts processes, side by side. Events tell what becomes of each.
    ///
    /// Kept descriptors that they name are handed over: the container holds no other copy, so a pipe ends with the
    /// processes that have it. (Close your own copy.) A later `start` cannot name them again.
    ///
    /// # Errors
    /// A descriptor that was not kept at create, or a container that is gone.
    pub fn start(&mut self, processes: &[ProcessPlan]) -> Result<(), Failure> {
        for process in processes {
            if let Some(fd) = process.handed_over().find(|fd| !self.keep_fds.contains(fd)) {
                let cause = format!("descriptor {fd} was not kept when the container was created, or was handed over");
                return Err(Failure::new(format!("cannot start process {}", process.id), cause));
            }
        }
        self.keep_fds.retain(|kept| !processes.iter().any(|process| process.handed_over().any(|fd| fd == *kept)));
        self.order(&Order::Start(processes.to_vec()))
    }

    /// Sends a signal to a process (its group, if it leads one), or to all started ones.
    ///
    /// # Errors
    /// A container that is gone. A process that is gone is no error.
    pub fn signal(&mut self, id: Option<u32>, signal: i32) -> Result<(), Failure> {
        self.order(&Order::Signal { id, signal })
    }

    /// Readable when [`Container::next_event`] has something. Once [`Event::Gone`] was taken it stays readable: poll it
    /// no more.
    pub fn control_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The pid of its init, as the host numbers it; `None` once it is killed.
    pub fn init_pid(&self) -> Option<i32> {
        self.created.as_ref().map(|created| created.pid)
    }

    /// Names and microseconds of the steps so far, the parent's and (once ready) init's.
    pub fn steps(&self) -> &[(String, u64)] {
        &self.steps
    }

    /// The next event, if there is one; never waits.
    ///
    /// # Errors
    /// A control socket that is broken.
    pub fn next_event(&mut self) -> Result<Option<Event>, Failure> {
        if self.queue.is_empty() && !self.gone {
            self.receive()?;
        }
        Ok(self.queue.pop_front())
    }

    /// Kills it, with every process in it, waits for its end and removes what it left on the host. Does nothing the
    /// second time.
    pub fn kill(&mut self) {
        self.killed = true;
        self.end();
    }

    /// Whether its memory limit made the kernel kill a process of it.
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory || self.created.as_ref().is_some_and(|created| created.cgroups.out_of_memory())
    }

    fn end(&mut self) -> Option<Outcome> {
        self.out_of_memory = self.out_of_memory();
        let status = self.created.take()?.destroy(&self.cleanup_paths);
        status.map(Outcome::from_wait_status)
    }

    fn lost(&self, error: &Error) -> Failure {
        Failure::new(format!("container `{}` is lost", self.name), error)
    }

    /// Takes one message from the socket into the queue.
    fn receive(&mut self) -> Result<(), Failure> {
        match self.socket.receive(false).map_err(|e| self.lost(&e))? {
            Received::Nothing => {}
            Received::Message(bytes, pid) => {
                let report = message::read_report(&bytes).map_err(|e| self.lost(&e))?;
                self.take(report, pid);
            }
            Received::End => {
                let outcome = self.end();
                if !self.failed && !self.killed {
                    self.queue.push_back(Event::Failed(silent_end(
                        &self.name,
                        self.ready,
                        outcome,
                        self.out_of_memory,
                    )));
                }
                self.gone = true;
                self.queue.push_back(Event::Gone);
            }
        }
        Ok(())
    }

    fn take(&mut self, report: Report, pid: i32) {
        let event = match report {
            Report::Ready { steps } => {
                self.ready = true;
                self.steps.extend(steps.into_iter().map(|(name, time)| (format!("init: {name}"), time)));
                Event::Ready
            }
            Report::Failed(failure) => {
                self.failed = true;
                Event::Failed(failure)
            }
            Report::Started { id, cpus, mems } => Event::Started { id, pid, cpus, mems },
            Report::ExecFailed { id, failure } => {
                self.unexecuted.insert(id);
                Event::ExecFailed { id, failure }
            }
            Report::Exited { id, .. } if self.unexecuted.remove(&id) => return,
            Report::Exited { id, outcome } => Event::Exited { id, outcome },
        };
        self.queue.push_back(event);
    }

    /// Sends an order. While init is too busy to take it, its reports are taken, or both would wait for ever.
    fn order(&mut self, order: &Order) -> Result<(), Failure> {
        for part in message::parts(order).map_err(|e| self.lost(&e))? {
            loop {
                if self.socket.send(&part, false).map_err(|e| self.lost(&e))? {
                    break;
                }
                let (_, readable) = self.socket.wait_either().map_err(|e| self.lost(&e))?;
                if readable {
                    self.receive()?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}
