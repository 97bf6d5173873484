//! The ranks of this node: their pipes, their container, their start.

use super::pipes::{InputPipe, OutputPipe};
use super::service::Service;
use super::starting;
use crate::protocol::{NodePlan, RankPlan, Stream};
use corebox_images::Image;
use corebox_runtime::{Container, Grouping, HostFacts, ImageSource, ProcessPlan};
use corebox_spec::{Bind, Failure, IdSet};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// The ranks and what the agent holds for them.
pub struct Ranks {
    plans: Vec<RankPlan>,
    /// Two per rank.
    pub outputs: Vec<OutputPipe>,
    /// Standard input of rank 0, if it lives here.
    pub input: Option<InputPipe>,
    null: OwnedFd,
    environment: Vec<String>,
    user: (u32, u32),
    directory: String,
    /// Ranks that have not ended.
    pub running: BTreeSet<u32>,
    /// Process ids on this node, once started.
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
        let input = plan.ranks.iter().any(|rank| rank.rank == 0).then(InputPipe::open);
        let null = std::fs::File::open("/dev/null").map_err(|e| starting("opening /dev/null", "pipes", e))?;
        Ok(Self {
            running: plan.ranks.iter().map(|rank| rank.rank).collect(),
            plans: plan.ranks.clone(),
            outputs,
            input: input.transpose().map_err(failed)?,
            null: null.into(),
            environment: Vec::new(),
            user: (0, 0),
            directory: String::new(),
            pids: BTreeMap::new(),
        })
    }

    /// The plans, by local rank.
    pub fn plans(&self) -> &[RankPlan] {
        &self.plans
    }

    /// User and group id inside the container, once it is planned.
    pub fn user(&self) -> (u32, u32) {
        self.user
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
    pub fn contain(
        &mut self,
        job: &str,
        plan: &NodePlan,
        image: &Image,
        service: &Service,
    ) -> Result<Container, Failure> {
        let mut spec = plan.container.clone();
        spec.name = job.to_owned();
        if let Some(directory) = service.directory() {
            let path = directory.display().to_string();
            spec.binds.push(Bind { source: path.clone(), target: path, read_only: false });
        }
        let source = ImageSource {
            path: image.path.clone(),
            digest: Some(image.digest.clone()),
            config: image.facts.config.clone(),
        };
        let facts = HostFacts::find()?;
        spec.network.busy = Some(plan.ranks.iter().flat_map(|rank| rank.binding.cpus.iter()).collect());
        let network = corebox_net::planned(&spec.network, job, false)?;
        let numa = plan.ranks.iter().fold(IdSet::default(), |all, rank| all.union(&rank.binding.numa));
        let rdma = corebox_rdma::host_edits(&spec, &numa)?;
        let has_rdma = !rdma.mounts.is_empty();
        let edits = [rdma, network.edits(spec.hostname.as_deref().unwrap_or(&facts.hostname), "", has_rdma)];
        let mut decided = corebox_runtime::plan(&spec, &source, &facts, &edits)?;
        decided.network = network;
        decided.cleanup_paths.extend(service.directory().map(Path::to_path_buf));
        self.environment = decided.environment();
        self.directory = decided.workdir.clone();
        self.user = (decided.user.uid, decided.user.gid);
        Container::create(&decided, &self.descriptors(service))
    }

    fn descriptors(&self, service: &Service) -> Vec<RawFd> {
        let mut all: Vec<RawFd> = self.outputs.iter().map(OutputPipe::theirs).collect();
        all.extend(self.input.as_ref().map(InputPipe::theirs));
        all.push(self.null.as_raw_fd());
        all.extend((0..self.plans.len()).filter_map(|local| service.rank_descriptor(local)));
        all
    }

    /// Starts every rank at once and closes what only they need.
    ///
    /// # Errors
    /// When the wire-up service or the container's init refuses.
    pub fn start(&mut self, container: &mut Container, service: &mut Service) -> Result<(), Failure> {
        let mut processes = Vec::new();
        for local in 0..self.plans.len() {
            processes.push(self.process(local, service));
        }
        container.start(&processes)?;
        self.outputs.iter_mut().for_each(OutputPipe::started);
        self.input.iter_mut().for_each(InputPipe::started);
        service.lines.started();
        Ok(())
    }

    fn process(&self, local: usize, service: &Service) -> ProcessPlan {
        let plan = &self.plans[local];
        let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut environment: BTreeMap<String, String> = self.environment.iter().filter_map(pair).collect();
        environment.retain(|name, _| !crate::wire::pmix::is_foreign(name));
        environment.extend(service.environment(local));
        environment.extend(plan.env.iter().cloned());
        let stdin = self.input.as_ref().filter(|_| plan.rank == 0).map_or(self.null.as_raw_fd(), InputPipe::theirs);
        ProcessPlan {
            id: plan.rank,
            argv: plan.argv.clone(),
            env: environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: plan.wdir.clone().unwrap_or_else(|| self.directory.clone()),
            cpus: Some(plan.binding.cpus.clone()),
            mems: plan.bound.then(|| plan.binding.mems.clone()),
            stdio: [stdin, self.outputs[2 * local].theirs(), self.outputs[2 * local + 1].theirs()],
            keep_fds: service.rank_descriptor(local).into_iter().collect(),
            rlimits: Vec::new(),
            group: Grouping::OwnGroup,
        }
    }
}
