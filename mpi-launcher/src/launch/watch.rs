//! What a running job has come to: who failed first, which nodes are still open, when patience ends. No I/O:
//! events in, orders out; an order is for every agent that is still there.

use crate::protocol::{FromAgent, RankStarted, ToAgent};
use corebox_spec::{Failure, IdSet, Outcome};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Why a job ended; the first reason counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rank ended other than with exit code 0.
    RankFailed {
        /// Rank in the job.
        rank: u32,
        /// How it ended.
        outcome: Outcome,
        /// Where its core is.
        core: Option<String>,
    },
    /// A rank exited with 0 between MPI_Init and MPI_Finalize.
    Unfinished {
        /// Rank in the job.
        rank: u32,
    },
    /// A rank called MPI_Abort.
    Aborted {
        /// Rank in the job.
        rank: u32,
        /// Its code.
        code: i32,
        /// What it said.
        message: String,
    },
    /// A rank runs elsewhere than planned.
    Misbound {
        /// Rank in the job.
        rank: u32,
        /// What was planned.
        planned: String,
        /// What the kernel says.
        found: String,
    },
    /// An agent or its node is gone.
    NodeLost {
        /// Node index.
        node: u32,
        /// In words.
        why: String,
    },
    /// corebox failed on some nodes (all failures are kept in [`Watch::failures`]).
    Failed,
    /// The user's signal.
    Interrupted(i32),
    /// `--timeout`.
    TimedOut(Duration),
    /// The reader of our output went away, or the disk is full.
    Output(String),
}

/// So long a crash may take to be reported after a peer noticed it.
const NOTICED_FIRST: Duration = Duration::from_millis(250);

/// The state of a running job.
pub struct Watch {
    grace: Duration,
    node_of: BTreeMap<u32, u32>,
    bindings: BTreeMap<u32, (IdSet, IdSet)>,
    open_nodes: BTreeSet<u32>,
    started_nodes: BTreeSet<u32>,
    interrupts: u32,
    ending_since: Option<Instant>,
    /// The first reason to end, if any.
    pub reason: Option<Reason>,
    /// corebox's own failures, with their node.
    pub failures: Vec<Failure>,
    /// Ranks that ended by the end of the job rather than by themselves.
    pub ended_with_job: Vec<u32>,
    /// When everything must be over.
    pub deadline: Option<Instant>,
}

impl Watch {
    /// A job of these ranks (`rank → (node, cpus, mems)`) on nodes 0..nodes.
    pub fn new(nodes: u32, ranks: impl IntoIterator<Item = (u32, u32, IdSet, IdSet)>, grace: Duration) -> Self {
        let (mut node_of, mut bindings) = (BTreeMap::new(), BTreeMap::new());
        for (rank, node, cpus, mems) in ranks {
            node_of.insert(rank, node);
            bindings.insert(rank, (cpus, mems));
        }
        Self {
            grace,
            node_of,
            bindings,
            open_nodes: (0..nodes).collect(),
            started_nodes: BTreeSet::new(),
            interrupts: 0,
            ending_since: None,
            reason: None,
            failures: Vec::new(),
            ended_with_job: Vec::new(),
            deadline: None,
        }
    }

    /// Whether every node is done or lost.
    pub fn over(&self) -> bool {
        self.open_nodes.is_empty()
    }
    /// Nodes not yet done.
    pub fn open_nodes(&self) -> &BTreeSet<u32> {
        &self.open_nodes
    }
    /// Whether every node has reported its ranks started.
    pub fn all_started(&self, nodes: u32) -> bool {
        self.started_nodes.len() == nodes as usize
    }
    /// Node index of a rank.
    pub fn node_of(&self, rank: u32) -> Option<u32> {
        self.node_of.get(&rank).copied()
    }

    /// A message of an agent.
    pub fn on_message(&mut self, node: u32, name: &str, message: FromAgent, now: Instant) -> Option<ToAgent> {
        match message {
            FromAgent::Started(ranks) => {
                self.started_nodes.insert(node);
                let wrong = ranks.iter().find_map(|started| self.misbound(started))?;
                self.end(wrong, now)
            }
            FromAgent::Exited { rank, outcome, unfinished, core } => {
                if self.reason.is_some() {
                    self.on_later_end(rank, outcome, core, now);
                    return None;
                }
                match (outcome.success(), unfinished) {
                    (true, false) => None,
                    (true, true) => self.end(Reason::Unfinished { rank }, now),
                    (false, _) => self.end(Reason::RankFailed { rank, outcome, core }, now),
                }
            }
            FromAgent::Abort { rank, code, message } => self.end(Reason::Aborted { rank, code, message }, now),
            FromAgent::LinkLost { node: other } => {
                self.end(Reason::NodeLost { node: other, why: format!("{name} lost its connection to it") }, now)
            }
            FromAgent::Failed(failure) => {
                self.open_nodes.remove(&node);
                self.failures.push(Failure { node: Some(name.to_owned()), ..failure });
                self.end(Reason::Failed, now)
            }
            FromAgent::Done => {
                self.open_nodes.remove(&node);
                None
            }
            FromAgent::Facts(_) | FromAgent::StdinTaken(_) | FromAgent::Pong => None,
        }
    }

    /// A rank ended while the job was ending already. A peer of a crashed rank may notice, and abort, before the kernel has
    /// reported the crash: the crash then is the reason. (Our own signal is SIGTERM; SIGKILL comes after the grace.)
    fn on_later_end(&mut self, rank: u32, outcome: Outcome, core: Option<String>, now: Instant) {
        let soon = self.ending_since.is_some_and(|since| now < since + NOTICED_FIRST);
        let crashed = matches!(outcome, Outcome::Signaled { signal, .. } if signal != Signal::SIGTERM as i32);
        match self.reason.take() {
            Some(
                Reason::Aborted { rank: first, .. }
                | Reason::RankFailed { rank: first, outcome: Outcome::Exited(_), .. },
            ) if soon && crashed => {
                self.ended_with_job.extend((first != rank).then_some(first));
                self.reason = Some(Reason::RankFailed { rank, outcome, core });
            }
            reason => {
                let decided = matches!(&reason, Some(Reason::Aborted { rank: first, .. }) if *first == rank);
                self.ended_with_job.extend((!decided && !self.ended_with_job.contains(&rank)).then_some(rank));
                self.reason = reason;
            }
        }
    }

    /// An agent's stream ended or fell silent.
    pub fn on_gone(&mut self, node: u32, why: String, now: Instant) -> Option<ToAgent> {
        if self.open_nodes.remove(&node) { self.end(Reason::NodeLost { node, why }, now) } else { None }
    }

    /// A signal for the launcher: the first Ctrl-C passes and starts the grace, the second kills.
    pub fn on_signal(&mut self, signal: i32, now: Instant) -> Vec<ToAgent> {
        let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].map(|s| s as i32);
        if !ends.contains(&signal) {
            return vec![ToAgent::Signal(signal)];
        }
        self.interrupts += 1;
        if self.interrupts > 1 {
            self.end(Reason::Interrupted(signal), now);
            return vec![ToAgent::Kill];
        }
        let stop = self.end(Reason::Interrupted(signal), now);
        [Some(ToAgent::Signal(signal)), stop].into_iter().flatten().collect()
    }

    /// Ends the job for this reason, unless it is ending already.
    pub fn end(&mut self, reason: Reason, now: Instant) -> Option<ToAgent> {
        if self.reason.is_some() {
            return None;
        }
        self.reason = Some(reason);
        self.ending_since = Some(now);
        // agents kill after the grace; one that does not report soon after is taken for lost
        self.deadline = Some(now + self.grace + Duration::from_secs(3));
        Some(ToAgent::Stop { grace: self.grace })
    }

    fn misbound(&self, started: &RankStarted) -> Option<Reason> {
        let (cpus, mems) = self.bindings.get(&started.rank)?;
        if *cpus == started.cpus && *mems == started.mems {
            return None;
        }
        Some(Reason::Misbound {
            rank: started.rank,
            planned: format!("cpus {cpus} mems {mems}"),
            found: format!("cpus {} mems {}", started.cpus, started.mems),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let set = |id: u32| IdSet::from_iter([id]);
        Watch::new(2, [(0, 0, set(0), set(0)), (1, 1, set(1), set(0))], Duration::from_secs(2))
    }
    fn exited(rank: u32, code: u8) -> FromAgent {
        FromAgent::Exited { rank, outcome: Outcome::Exited(code), unfinished: false, core: None }
    }

    #[test]
    fn the_first_failing_rank_decides() {
        let (mut watch, now) = (watch(), Instant::now());
        assert!(matches!(watch.on_message(1, "n2", exited(1, 3), now), Some(ToAgent::Stop { .. })));
        let killed = Outcome::Signaled { signal: 15, core: false };
        let late = FromAgent::Exited { rank: 0, outcome: killed, unfinished: true, core: None };
        assert!(watch.on_message(0, "n1", late, now).is_none());
        assert_eq!(watch.reason, Some(Reason::RankFailed { rank: 1, outcome: Outcome::Exited(3), core: None }));
        assert_eq!(watch.ended_with_job, [0]);
        assert!(!watch.over());
        watch.on_message(0, "n1", FromAgent::Done, now);
        watch.on_message(1, "n2", FromAgent::Done, now);
        assert!(watch.over());
        assert!(watch.on_gone(0, "closed".into(), now).is_none(), "a closed stream after Done is no loss");
    }

    #[test]
    fn a_crash_is_the_reason_though_a_peer_noticed_it_first() {
        let (mut watch, now) = (watch(), Instant::now());
        let abort = FromAgent::Abort { rank: 0, code: 14, message: String::new() };
        assert!(watch.on_message(0, "n1", abort, now).is_some());
        let crash = |core| FromAgent::Exited {
            rank: 1,
            outcome: Outcome::Signaled { signal: 11, core },
            unfinished: true,
            core: None,
        };
        assert!(watch.on_message(1, "n2", crash(false), now + Duration::from_millis(20)).is_none());
        let outcome = Outcome::Signaled { signal: 11, core: false };
        assert_eq!(watch.reason, Some(Reason::RankFailed { rank: 1, outcome, core: None }));
        assert_eq!(watch.ended_with_job, [0]);
    }

    #[test]
    fn exit_without_finalize_is_a_failure_and_a_clean_end_is_not() {
        let (mut watch, now) = (watch(), Instant::now());
        assert!(watch.on_message(0, "n1", exited(0, 0), now).is_none());
        let unfinished = FromAgent::Exited { rank: 1, outcome: Outcome::Exited(0), unfinished: true, core: None };
        assert!(watch.on_message(1, "n2", unfinished, now).is_some());
        assert_eq!(watch.reason, Some(Reason::Unfinished { rank: 1 }));
    }

    #[test]
    fn a_second_interrupt_kills() {
        let (mut watch, now) = (watch(), Instant::now());
        let first = watch.on_signal(2, now);
        assert!(matches!(first[..], [ToAgent::Signal(2), ToAgent::Stop { .. }]));
        assert!(matches!(watch.on_signal(2, now)[..], [ToAgent::Kill]));
        assert_eq!(watch.reason, Some(Reason::Interrupted(2)));
        assert!(matches!(watch.on_signal(10, now)[..], [ToAgent::Signal(10)]));
    }

    #[test]
    fn a_rank_on_the_wrong_core_ends_the_job() {
        let (mut watch, now) = (watch(), Instant::now());
        let started = |cpus: &str| {
            FromAgent::Started(vec![RankStarted {
                rank: 1,
                pid: 2,
                cpus: cpus.parse().unwrap(),
                mems: "0".parse().unwrap(),
            }])
        };
        assert!(watch.on_message(1, "n2", started("1"), now).is_none());
        assert!(watch.on_message(1, "n2", started("0-1"), now).is_some());
        assert!(matches!(watch.reason, Some(Reason::Misbound { rank: 1, .. })));
    }
}
