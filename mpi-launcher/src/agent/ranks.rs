//! The ranks of this node: their pipes, their container, their start.

use super::pipes::{InputPipe, OutputPipe};
use super::starting;
use super::wireup::WireUp;
use crate::protocol::{NodePlan, RankPlan, Stream};
use corebox_host::Host;
use corebox_images::Image;
use corebox_runtime::{Container, ContainerPlan, ProcessPlan};
use corebox_spec::{Bind, Failure};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The ranks and what the agent holds for them.
pub struct Ranks {
    plans: Vec<RankPlan>,
    /// Two per rank.
    pub outputs: Vec<OutputPipe>,
    /// Standard input of rank 0, if it lives here.
    pub input: Option<InputPipe>,
    null: OwnedFd,
    environment: Vec<(String, String)>,
    directory: String,
    /// Ranks that have not ended.
    pub running: BTreeSet<u32>,
    /// Process ids in the container, once started.
    pub pids: BTreeMap<u32, i32>,
}

impl Ranks {
    /// Makes the pipes, before the container, whose init inherits the ranks' ends.
    ///
    /// # Errors
    /// When there are not enough descriptors.
    pub fn open(plan: &NodePlan) -> Result<Self, Failure> {
        let failed = |e: corebox_sys::Error| {
            starting("making the ranks' pipes", "pipes", e)
                .hint("four descriptors per rank are needed; raise the limit of open files (`ulimit -n`).")
        };
        let mut outputs = Vec::new();
        for rank in &plan.ranks {
            outputs.push(OutputPipe::open(rank.rank, Stream::Out).map_err(failed)?);
            outputs.push(OutputPipe::open(rank.rank, Stream::Err).map_err(failed)?);
        }
        let input = (plan.stdin && plan.ranks.iter().any(|rank| rank.rank == 0)).then(InputPipe::open);
        let null = std::fs::File::open("/dev/null").map_err(|e| starting("opening /dev/null", "pipes", e))?;
        Ok(Self {
            running: plan.ranks.iter().map(|rank| rank.rank).collect(),
            plans: plan.ranks.clone(),
            outputs,
            input: input.transpose().map_err(failed)?,
            null: null.into(),
            environment: Vec::new(),
            directory: String::new(),
            pids: BTreeMap::new(),
        })
    }

    /// The plans, by local rank.
    pub fn locals(&self) -> Vec<RankPlan> {
        self.plans.clone()
    }

    /// The local rank of a rank of this node.
    pub fn local(&self, rank: u32) -> Option<usize> {
        self.plans.iter().position(|plan| plan.rank == rank)
    }

    /// The working directory of a rank.
    pub fn directory(&self, rank: u32) -> String {
        let own = self.local(rank).and_then(|local| self.plans[local].wdir.clone());
        own.unwrap_or_else(|| self.directory.clone())
    }

    /// Makes the one container; its init is the last process that is forked from a single thread.
    ///
    /// # Errors
    /// What planning or creating a container can fail with.
    pub fn contain(&mut self, plan: &NodePlan, image: &Image, host: &Host, wire: &WireUp) -> Result<Container, Failure> {
        let mut spec = plan.container.clone();
        if let Some(directory) = wire.directory() {
            spec.binds.push(Bind { source: directory.into(), target: directory.into(), read_only: false });
        }
        let mut decided: ContainerPlan = corebox_runtime::plan(&spec, &image.source(), host)?;
        decided.cleanup_paths.extend(wire.directory().map(str::to_owned));
        self.environment = decided.environment();
        self.directory = decided.workdir.clone();
        Container::create(&decided, &self.descriptors(wire))
    }

    fn descriptors(&self, wire: &WireUp) -> Vec<RawFd> {
        let mut all: Vec<RawFd> = self.outputs.iter().map(OutputPipe::theirs).collect();
        all.extend(self.input.as_ref().map(InputPipe::theirs));
        all.push(self.null.as_raw_fd());
        all.extend((0..self.plans.len()).filter_map(|local| wire.rank_descriptor(local)));
        all
    }

    /// Starts every rank at once and closes what only they need.
    ///
    /// # Errors
    /// When the wire-up service or the container's init refuses.
    pub fn start(&mut self, container: &mut Container, wire: &mut WireUp) -> Result<(), Failure> {
        let mut processes = Vec::new();
        for local in 0..self.plans.len() {
            processes.push(self.process(local, wire)?);
        }
        container.start(&processes)?;
        self.outputs.iter_mut().for_each(OutputPipe::started);
        self.input.iter_mut().for_each(InputPipe::started);
        wire.started();
        Ok(())
    }

    fn process(&self, local: usize, wire: &mut WireUp) -> Result<ProcessPlan, Failure> {
        let plan = &self.plans[local];
        let mut environment: BTreeMap<String, String> = self.environment.iter().cloned().collect();
        environment.extend(wire.environment(local)?);
        environment.extend(plan.env.iter().cloned());
        let stdin = self.input.as_ref().filter(|_| plan.rank == 0).map_or(self.null.as_raw_fd(), InputPipe::theirs);
        Ok(ProcessPlan {
            id: plan.rank,
            argv: plan.argv.clone(),
            env: environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: plan.wdir.clone().unwrap_or_else(|| self.directory.clone()),
            cpus: Some(plan.binding.cpus.clone()),
            mems: Some(plan.binding.mems.clone()),
            stdio: [stdin, self.outputs[2 * local].theirs(), self.outputs[2 * local + 1].theirs()],
            keep_fds: wire.rank_descriptor(local).into_iter().collect(),
        })
    }
}
