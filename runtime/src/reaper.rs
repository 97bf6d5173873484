//! What init does once the container stands: fork processes, pass on signals, reap, and end with the parent.

use crate::message::{Order, Orders, Report, report, shortened};
use crate::process::{Grouping, ProcessPlan, become_program};
use crate::seccomp::Program;
use crate::step::goal;
use corebox_images::fuse::FuseServer;
use corebox_spec::{Failure, Outcome, exit};
use corebox_sys::control::{Received, Socket};
use corebox_sys::process::{self, Forked, SingleThreaded};
use corebox_sys::signal::{self, Signals};
use corebox_sys::{Result, fd};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, RawFd};

/// Init's state.
#[derive(Debug)]
pub(crate) struct Reaper {
    pub(crate) container: String,
    pub(crate) socket: Socket,
    pub(crate) orders: Orders,
    pub(crate) signals: Signals,
    pub(crate) server: Option<FuseServer>,
    pub(crate) single: SingleThreaded,
    /// What each process installs before it executes its program.
    pub(crate) filters: Vec<Program>,
    /// Signals that were ignored when corebox started.
    pub(crate) ignored: Vec<i32>,
    /// Started processes by pid: id, and whether they lead a group.
    pub(crate) running: BTreeMap<i32, (u32, Grouping)>,
}

impl Reaper {
    /// Serves until the parent is gone or the container is lost. The exit of process 1 then ends every process of the
    /// container (pid_namespaces(7)), whatever they do.
    pub(crate) fn serve(mut self) -> ! {
        loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => process::exit_now(0),
                Err(error) => {
                    let failure = Failure::new(format!("container `{}` is lost", self.container), error);
                    report(&self.socket, &Report::Failed(failure));
                    process::exit_now(exit::COREBOX);
                }
            }
        }
    }

    /// Waits for one event and handles it; false when it is time to end.
    fn step(&mut self) -> Result<bool> {
        let ready = fd::poll_readable(&[self.socket.as_fd(), self.signals.as_fd()], None)?;
        if ready[1] && !self.handle_signals()? {
            return Ok(false);
        }
        if ready[0] {
            match self.socket.receive(false)? {
                Received::End => return Ok(false),
                Received::Nothing => {}
                Received::Message(part, _) => {
                    if let Some(order) = self.orders.take(&part)? {
                        self.obey(order)?;
                    }
                }
            }
        }
        Ok(true)
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Go => Ok(()),
            Order::Start(plans) => self.start(&plans),
            Order::Signal { id, signal } => {
                let targets = self.running.iter().filter(|(_, (of, _))| id.is_none_or(|id| id == *of));
                for (pid, (_, group)) in targets {
                    let target = if *group == Grouping::Caller { *pid } else { -*pid };
                    process::kill(target, signal)?;
                    if target < 0 {
                        // Forked a moment ago, it may not lead its group yet.
                        process::kill(*pid, signal)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Forks all, then each binds and executes itself: they start side by side.
    fn start(&mut self, plans: &[ProcessPlan]) -> Result<()> {
        for plan in plans {
            match self.single.fork() {
                Ok(Forked::Child) => become_program(plan, &self.socket, &self.filters, &self.ignored),
                Ok(Forked::Parent(pid)) => {
                    self.running.insert(pid, (plan.id, plan.group));
                }
                Err(error) => {
                    let failure =
                        Failure::new(format!("cannot run `{}`", plan.argv.first().map_or("", String::as_str)), error)
                            .during("forking the process", "process")
                            .hint("a limit of processes (--pids, ulimit -u, or the batch system's) is reached.");
                    report(&self.socket, &Report::ExecFailed { id: plan.id, failure });
                }
            }
        }
        // Handed over: a pipe must end when the process ends, not when we do.
        let named: BTreeSet<RawFd> = plans.iter().flat_map(ProcessPlan::handed_over).collect();
        named.into_iter().try_for_each(fd::close)
    }

    /// Reaps whatever ended, orphans too; false when the container is lost.
    fn handle_signals(&mut self) -> Result<bool> {
        let mut children = false;
        while let Some(arrived) = self.signals.next()? {
            // All others are for the processes, and come by an order: process 1 must outlive the terminal's Ctrl-C.
            children |= arrived.signal == signal::SIGCHLD;
        }
        while let Some((pid, status)) = if children { process::reap()? } else { None } {
            let outcome = Outcome::from_wait_status(status);
            if let Some(server) = self.server.take_if(|server| server.pid == pid) {
                report(&self.socket, &Report::Failed(shortened(self.lost_image(&server, outcome))));
                return Ok(false);
            }
            let Some((id, _)) = self.running.remove(&pid) else { continue };
            // A process that failed because its files are gone did not fail: the container did.
            if let Some(server) = self.server.take_if(|server| !outcome.success() && !server.is_serving()) {
                let end = Outcome::from_wait_status(process::wait(server.pid)?);
                report(&self.socket, &Report::Failed(shortened(self.lost_image(&server, end))));
                return Ok(false);
            }
            report(&self.socket, &Report::Exited { id, outcome });
        }
        Ok(true)
    }

    fn lost_image(&self, server: &FuseServer, outcome: Outcome) -> Failure {
        let how = match outcome {
            Outcome::Exited(code) => format!("exited with {code}"),
            Outcome::Signaled { signal, .. } => format!("was killed by {}", signal::name(signal)),
        };
        let mut cause = format!("the FUSE server that provides the image {how}");
        let said = server.words();
        if !said.is_empty() {
            cause.push_str(&format!("\nit said: {said}"));
        }
        Failure::new(format!("container `{}` lost its root directory", self.container), cause)
            .during("running", "rootfs")
            .hint("every process of the container was ended; a memory limit is the usual reason.")
    }
}

/// The failure of a container whose init ended without a word.
pub(crate) fn silent_end(container: &str, ready: bool, outcome: Option<Outcome>, out_of_memory: bool) -> Failure {
    let how = match outcome {
        Some(Outcome::Signaled { signal, .. }) => format!("was killed by {}", signal::name(signal)),
        Some(Outcome::Exited(code)) => format!("exited with {code}"),
        None => "is gone".to_owned(),
    };
    let goal = if ready { format!("container `{container}` is lost") } else { goal(container) };
    if out_of_memory {
        return Failure::new(goal, format!("its memory limit is reached: its first process {how}"))
            .hint("allow it more (--mem); what lies in /dev/shm, /tmp and a writable root counts too.");
    }
    Failure::new(goal, format!("its first process {how}"))
        .hint("somebody killed it, or a memory limit of the batch system or the machine ended it; see `dmesg`.")
}
