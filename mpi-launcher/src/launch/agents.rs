//! All agents of a job: started together, asked for their facts, given their plans, dismissed.

use super::event::Event;
use super::link::AgentLink;
use super::remote;
use super::report::grouped;
use crate::protocol::{Frame, FromAgent, Hello, NodeFacts, NodePlan, Pmi, ToAgent};
use corebox_spec::{Failure, JobSpec};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Events on their way to the loop; full: output waits in the agents.
const QUEUE: usize = 64;

/// The agents of a job, by node index.
pub struct Agents {
    links: Vec<AgentLink>,
    names: Vec<String>,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
}

/// What every agent is told first.
pub struct Greeting<'a> {
    /// Job id.
    pub job: &'a str,
    /// Image digest or file.
    pub image: &'a str,
    /// Wire-up protocol.
    pub pmi: Pmi,
}

impl Agents {
    /// Starts one agent per node and greets it.
    ///
    /// # Errors
    /// When a remote shell cannot be run here; agents already started end by themselves when their stream closes.
    pub fn start(spec: &JobSpec, names: &[String], greeting: &Greeting) -> Result<Self, Failure> {
        let (sender, events) = sync_channel(QUEUE);
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| Failure::new("cannot start the agents", format!("getrandom: {e}")))?;
        let mut agents = Self { links: Vec::new(), names: names.to_vec(), events, sender };
        for (index, name) in names.iter().enumerate() {
            let child = remote::start(spec, name, remote::is_here(name))?;
            let link = AgentLink::new(index as u32, child, spec.start_timeout, agents.sender.clone());
            link.send(&ToAgent::Hello(Hello {
                job: greeting.job.to_owned(),
                node: name.clone(),
                index: index as u32,
                nodes: names.len() as u32,
                secret,
                image: greeting.image.to_owned(),
                store: std::env::var("COREBOX_STORE").ok(),
                pmi: greeting.pmi,
            }));
            agents.links.push(link);
        }
        Ok(agents)
    }

    /// Waits until every agent has said what its node is.
    ///
    /// # Errors
    /// Every agent's failure, equal ones grouped into the first; on an error all agents are dismissed.
    pub fn facts(&mut self) -> Result<Vec<NodeFacts>, Failure> {
        let mut facts: Vec<Option<NodeFacts>> = vec![None; self.links.len()];
        let mut failures = Vec::new();
        let mut open = self.links.len();
        while open > 0 {
            let Ok(event) = self.events.recv() else { break };
            let node = match event {
                Event::Agent(node, Frame::Message(FromAgent::Facts(found))) => {
                    facts[node as usize] = Some(*found);
                    node
                }
                Event::Agent(node, Frame::Message(FromAgent::Failed(failure))) => {
                    failures.push((node, failure.on(self.name(node))));
                    node
                }
                Event::AgentGone(node, why) if facts[node as usize].is_none() => {
                    failures.push((node, unreachable(why).on(self.name(node))));
                    node
                }
                Event::AgentGone(node, why) => {
                    return Err(
                        self.dismissed(Failure::new("an agent was lost before the start", why).on(self.name(node)))
                    );
                }
                _ => continue,
            };
            debug_assert!((node as usize) < self.links.len());
            open -= 1;
        }
        // agents answer in any order; nodes are named in the order of the allocation
        failures.sort_by_key(|(node, _)| *node);
        let failures: Vec<Failure> = failures.into_iter().map(|(_, failure)| failure).collect();
        match grouped(&failures).into_iter().next() {
            Some(first) => Err(self.dismissed(first)),
            None => Ok(facts.into_iter().flatten().collect()),
        }
    }

    /// Sends every node its plan.
    pub fn send_plans(&self, plans: Vec<NodePlan>) {
        for (link, plan) in self.links.iter().zip(plans) {
            link.send(&ToAgent::Plan(Box::new(plan)));
        }
    }

    /// Sends a message to every agent.
    pub fn broadcast(&self, message: &ToAgent) {
        self.links.iter().for_each(|link| link.send(message));
    }

    /// The agent of a node.
    pub fn link(&self, node: u32) -> &AgentLink {
        &self.links[node as usize]
    }

    /// Another sender of events, for signals and standard input.
    pub fn sender(&self) -> SyncSender<Event> {
        self.sender.clone()
    }

    /// The next event, or nothing until the deadline.
    pub fn next(&self, deadline: Option<Instant>) -> Option<Event> {
        match deadline {
            None => self.events.recv().ok(),
            Some(at) => self.events.recv_timeout(at.saturating_duration_since(Instant::now())).ok(),
        }
    }

    /// Tells all agents to end and waits for their remote shells.
    pub fn dismiss(&mut self) {
        self.broadcast(&ToAgent::Finish);
        // closing all first lets them end in parallel; the reader threads drain what still comes
        self.links.iter_mut().for_each(AgentLink::close);
        let deadline = Instant::now() + Duration::from_secs(3);
        self.links.iter_mut().for_each(|link| link.reap(deadline));
    }

    fn dismissed(&mut self, failure: Failure) -> Failure {
        self.dismiss();
        failure
    }

    fn name(&self, node: u32) -> String {
        self.names[node as usize].clone()
    }
}

fn unreachable(why: String) -> Failure {
    Failure::new("cannot start an agent", why).during("reaching the node", "agents").hint(
        "corebox must be installed there under the same path (or say --agent-path), and the remote shell must work \
         without a question: try it by hand. --start-timeout sets how long to wait.",
    )
}
