//! The wire-up service of this node: what must exist before the container, and what may start only after it.

use super::pmi_lines::PmiLines;
use super::starting;
use crate::protocol::{Pmi, RankPlan};
use crate::wire::exchange::Exchange;
use crate::wire::pmix::{Library, LocalRank, PmixServer, ServerConfig};
use crate::wire::{JobShape, PmiServer, Protocol, WireEvent, WireUp};
use corebox_host::Topology;
use corebox_spec::{Failure, ImageFacts, MpiFamily};
use corebox_sys::netns::NetworkNamespace;
use nix::sys::stat::Mode;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

/// Open MPI from 4.1 knows how to be launched by someone else's PMIx; older ones must be told that they are under Slurm.
const KNOWS_LAUNCHERS: (u32, u32) = (4, 1);

/// What [`Service::start`] needs besides.
pub struct Start<'a> {
    /// Ranks of this node.
    pub ranks: &'a [RankPlan],
    /// Names of all nodes.
    pub nodes: &'a [String],
    /// This machine.
    pub topology: &'a Topology,
    /// User and group id inside the container: libpmix compares them with what a rank says of itself.
    pub user: (u32, u32),
    /// Where the parent in the exchange tree listens.
    pub parent: Vec<SocketAddr>,
    /// The container's network namespace, if it has its own.
    pub namespace: Option<NetworkNamespace>,
}

/// Before [`Service::start`]: no thread, only descriptors and a directory.
pub struct Service {
    shape: JobShape,
    /// The ranks' PMI descriptors; none with PMIx.
    pub lines: PmiLines,
    directory: Option<Directory>,
    open_mpi_before_4_1: bool,
    library: Option<Library>,
    pmi: Pmi,
    exchange: Option<Exchange>,
    wire: Option<WireUp>,
    environments: Vec<Vec<(String, String)>>,
}

/// The PMIx server's directory, removed with the agent (and by the container's sweeper if the agent is killed).
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // nobody is left to tell; the sweeper tries, too
    }
}

impl Service {
    /// Prepares the service.
    ///
    /// # Errors
    /// When descriptors or the directory cannot be made.
    pub fn open(
        pmi: Pmi,
        shape: JobShape,
        library: Option<Library>,
        exchange: Exchange,
        image: &ImageFacts,
    ) -> Result<Self, Failure> {
        let ranks = if pmi == Pmi::Pmi1 { shape.local_ranks().len() } else { 0 };
        let lines = PmiLines::open(ranks).map_err(|e| starting("opening PMI", "wire-up", e))?;
        let directory = (pmi == Pmi::Pmix).then(|| directory(&shape)).transpose()?;
        let is_old = |mpi: &corebox_spec::MpiFound| mpi.family == MpiFamily::OpenMpi && is_older(&mpi.version);
        Ok(Self {
            lines,
            directory,
            open_mpi_before_4_1: image.mpi.iter().any(is_old),
            library,
            pmi,
            exchange: Some(exchange),
            wire: None,
            environments: vec![Vec::new(); shape.local_ranks().len()],
            shape,
        })
    }

    /// Descriptors that a rank inherits.
    pub fn rank_descriptor(&self, local: usize) -> Option<RawFd> {
        self.lines.theirs(local)
    }

    /// A host directory that the container must see under the same path.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_ref().map(|directory| directory.0.as_path())
    }

    /// Starts what needs threads: the exchange, and libpmix.
    ///
    /// # Errors
    /// When libpmix refuses, or there are no threads left.
    pub fn start(&mut self, start: Start) -> Result<(), Failure> {
        let Some(mut exchange) = self.exchange.take() else { return Ok(()) };
        exchange.start(start.parent.clone()).map_err(|e| starting("connecting the agents", "exchange", e))?;
        let protocol = match (self.pmi, self.library.take()) {
            (Pmi::Pmix, Some(library)) => Protocol::Pmix(Box::new(self.start_pmix_inside(library, &start)?)),
            (Pmi::Pmi1, _) => Protocol::Pmi(Box::new(PmiServer::new(self.shape.clone()))),
            (Pmi::None | Pmi::Pmix, _) => Protocol::None,
        };
        self.wire = Some(WireUp::new(exchange, protocol));
        Ok(())
    }

    /// libpmix listens on the loopback interface, which is another one in the container: its socket is opened there, and the
    /// threads it starts stay there.
    fn start_pmix_inside(&mut self, library: Library, start: &Start) -> Result<PmixServer, Failure> {
        let Some(namespace) = &start.namespace else { return self.start_pmix(library, start) };
        let refused = |e: corebox_sys::Error| {
            starting("entering the container's network", "pmix", e)
                .hint("Open MPI's ranks reach their launcher by the loopback interface; without root, `--net host`.")
        };
        let inside = || {
            // Init brings it up, too, at the same time.
            corebox_net::loopback_up().map_err(refused)?;
            self.start_pmix(library, start)
        };
        namespace.inside(inside).map_err(refused)?
    }

    fn start_pmix(&mut self, library: Library, start: &Start) -> Result<PmixServer, Failure> {
        let (uid, gid) = start.user;
        let local = |plan: &RankPlan| LocalRank {
            uid,
            gid,
            cpuset: Some(plan.binding.cpus.to_string()),
            locality: start.topology.locality(&plan.binding.cpus),
        };
        let config = ServerConfig {
            shape: self.shape.clone(),
            hostnames: start.nodes.to_vec(),
            tmpdir: self.directory().unwrap_or(Path::new("/")).to_path_buf(),
            ranks: start.ranks.iter().map(local).collect(),
            open_mpi_before_4_1: self.open_mpi_before_4_1,
        };
        let server = PmixServer::start(library, config)?;
        for (environment, rank) in self.environments.iter_mut().zip(self.shape.local_ranks()) {
            *environment = server.environment(*rank)?;
        }
        Ok(server)
    }

    /// The variables by which a rank finds the service; complete after [`Self::start`].
    pub fn environment(&self, local: usize) -> Vec<(String, String)> {
        match self.rank_descriptor(local) {
            Some(descriptor) => PmiServer::environment(&self.shape, local, descriptor),
            None => self.environments.get(local).cloned().unwrap_or_default(),
        }
    }

    /// For poll(2), then [`Self::dispatch`].
    pub fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.wire.as_ref().map(WireUp::wake_fds).unwrap_or_default()
    }

    /// What happened in libpmix and between the agents.
    pub fn dispatch(&mut self) -> Vec<WireEvent> {
        let events = self.wire.as_mut().map(WireUp::dispatch).unwrap_or_default();
        self.written(events)
    }

    /// A rank's PMI descriptor is ready; also called when the rank exits, to hear its last words.
    pub fn attend(&mut self, local: usize) -> Vec<WireEvent> {
        let mut all = Vec::new();
        self.lines.write(local, &[]);
        loop {
            let bytes = self.lines.read(local);
            let Some(wire) = self.wire.as_mut().filter(|_| !bytes.is_empty()) else { return all };
            let events = wire.on_pmi_bytes(local, &bytes);
            all.extend(self.written(events));
        }
    }

    /// Carries out the writes among the events.
    fn written(&mut self, events: Vec<WireEvent>) -> Vec<WireEvent> {
        let mut others = Vec::new();
        for event in events {
            match event {
                WireEvent::Write { local, bytes } => self.lines.write(local, &bytes),
                WireEvent::Violation { rank, message } => {
                    if let Some(local) = self.shape.local_rank_of(rank) {
                        self.lines.close(local as usize);
                    }
                    others.push(WireEvent::Violation { rank, message });
                }
                other => others.push(other),
            }
        }
        others
    }
}

fn directory(shape: &JobShape) -> Result<Directory, Failure> {
    let path = std::env::temp_dir().join(format!("corebox-{}-{}", shape.name(), shape.node()));
    // mkdir never follows a link that somebody else put there: it fails with EEXIST
    nix::unistd::mkdir(&path, Mode::S_IRWXU).map_err(|e| {
        let cause = corebox_sys::Error::new("mkdir", path.display(), e);
        starting("making the directory of the PMIx server", "pmix", cause).hint("TMPDIR names another place for it.")
    })?;
    Ok(Directory(path))
}

fn is_older(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version < KNOWS_LAUNCHERS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn knows_old_open_mpi() {
        let versions = ["3.1.6", "4.0.7", "4.1.4", "5.0.11", ""];
        assert_eq!(versions.map(super::is_older), [true, true, false, false, false]);
    }
}
