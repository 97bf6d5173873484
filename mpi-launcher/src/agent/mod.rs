//! The agent: one per node and job. It owns the node's container, its ranks' wire-up and their output.

mod attend;
mod core_file;
mod link;
mod pipes;
mod pmi_lines;
mod ranks;
mod service;

use crate::protocol::{Frame, FromAgent, Hello, NodeFacts, NodePlan, Pmi, ToAgent};
use crate::wire::JobShape;
use crate::wire::exchange::{ARITY, Config, Exchange, Secret, Timing};
use crate::wire::pmix::Library;
use corebox_host::Host;
use corebox_images::{Image, Pin, Store};
use corebox_runtime::Container;
use corebox_spec::{Failure, NetMode, exit};
use corebox_sys::netns::NetworkNamespace;
use link::{LauncherGone, LauncherLink};
use ranks::Ranks;
use service::{Service, Start};

/// Why an agent ends early.
enum End {
    /// Nobody is left to tell.
    LauncherGone,
    /// To be told to the launcher.
    Failed(Box<Failure>),
}

impl From<LauncherGone> for End {
    fn from(_: LauncherGone) -> Self {
        Self::LauncherGone
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// Serves one job on this node over standard input and output; returns the exit code.
///
/// Call it in a process with one thread: the container's init is forked from it.
pub fn run() -> u8 {
    let Ok(mut link) = LauncherLink::open() else { return exit::COREBOX };
    match serve(&mut link) {
        Ok(()) => 0,
        Err(End::LauncherGone) => exit::COREBOX,
        Err(End::Failed(failure)) => {
            link.send(&FromAgent::Failed(*failure));
            let _ = link.drain(); // the launcher may be gone, too
            exit::COREBOX
        }
    }
}

fn serve(link: &mut LauncherLink) -> Result<(), End> {
    let hello = greeted(link)?;
    let node = Node::look(hello)?;
    link.send(&FromAgent::Facts(Box::new(node.facts.clone())));
    let Some(plan) = planned(link)? else { return Ok(()) };
    let shape = node.shape(&plan)?;
    let mut service = Service::open(node.hello.pmi, shape, node.libpmix, node.exchange, &node.image.facts)?;
    let mut ranks = Ranks::open(&plan)?;
    let mut container = ranks.contain(&node.hello.job, &plan, &node.image, &service)?;
    // threads may start from here on: init is forked, and sets up the container meanwhile
    service.start(Start {
        ranks: ranks.plans(),
        nodes: &plan.nodes,
        topology: &node.facts.host.topology,
        user: ranks.user(),
        namespace: own_network(&plan, &container)?,
        parent: plan.tree.map(|tree| tree.parent).unwrap_or_default(),
    })?;
    container.wait_ready()?;
    ranks.start(&mut container, &mut service)?;
    attend::attend(link, &mut ranks, &mut container, &mut service)
}

/// The network namespace of a container that does not have the host's.
fn own_network(plan: &NodePlan, container: &Container) -> Result<Option<NetworkNamespace>, Failure> {
    let pid = container.init_pid().filter(|_| plan.container.net == NetMode::None);
    let namespace = pid.map(NetworkNamespace::of_process).transpose();
    namespace.map_err(|e| starting("opening the container's network", "pmix", e))
}

fn starting(doing: &str, step: &str, cause: impl std::fmt::Display) -> Failure {
    Failure::new("cannot start the ranks", cause).during(doing, step)
}

fn greeted(link: &mut LauncherLink) -> Result<Hello, End> {
    loop {
        match link.wait_frame()? {
            Frame::Message(ToAgent::Hello(hello)) => return Ok(hello),
            Frame::Message(ToAgent::Finish) => return Err(End::LauncherGone),
            _ => {}
        }
    }
}

/// The plan, or nothing when the launcher needs us no more.
fn planned(link: &mut LauncherLink) -> Result<Option<NodePlan>, End> {
    loop {
        match link.wait_frame()? {
            Frame::Message(ToAgent::Plan(plan)) => return Ok(Some(*plan)),
            Frame::Message(ToAgent::Finish | ToAgent::Kill | ToAgent::Stop { .. }) => return Ok(None),
            Frame::Message(ToAgent::Ping) => link.send(&FromAgent::Pong),
            _ => {}
        }
    }
}

/// This node before the plan.
struct Node {
    hello: Hello,
    facts: NodeFacts,
    image: Image,
    /// Keeps the image from being collected while the job runs.
    _pin: Option<Pin>,
    exchange: Exchange,
    libpmix: Option<Library>,
}

impl Node {
    /// Looks at the machine, finds the image, loads libpmix, opens the exchange: everything that can be refused.
    fn look(hello: Hello) -> Result<Self, Failure> {
        let host = Host::this().map_err(|e| Failure::new("cannot read what this node is", e))?;
        let store = match &hello.store {
            Some(path) => Store::at(path),
            None => Store::open()?,
        };
        let image = store.find(&hello.image)?;
        corebox_images::admit(&image.path, Some(&image))?;
        let libpmix = (hello.pmi == Pmi::Pmix).then(|| Library::find(None)).transpose()?;
        let exchange = Exchange::new(Config {
            job: hello.job.clone(),
            secret: Secret::from_bytes(hello.secret),
            node: hello.index,
            nodes: hello.nodes,
            arity: ARITY,
            timing: Timing::default(),
        })
        .map_err(|e| starting("listening for the other agents", "exchange", e))?;
        let addresses = exchange.addresses().map_err(|e| starting("listing addresses", "exchange", e))?;
        let network = corebox_net::node_addresses().unwrap_or_default(); // needed only for containers with interfaces
        // one for the whole job: the store may be on a file system that all nodes share
        let pin = (hello.index == 0).then(|| image.pin(&format!("job {}", hello.job))).flatten();
        let rdma = corebox_rdma::Inventory::this().map_err(|e| starting("listing the HCAs", "rdma", e))?;
        let facts = NodeFacts { host, rdma, addresses, network };
        Ok(Self { facts, hello, image, _pin: pin, exchange, libpmix })
    }

    fn shape(&self, plan: &NodePlan) -> Result<JobShape, Failure> {
        JobShape::new(&self.hello.job, self.hello.index, plan.layout.clone(), plan.apps.clone(), plan.universe)
            .map_err(|e| starting("reading the plan", "plan", e))
    }
}
