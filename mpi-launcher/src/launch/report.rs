//! The end of a job in words: exit code, and which rank, node, signal and core file.

use super::watch::{Reason, Watch};
use corebox_spec::{Failure, Outcome, exit};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;

/// Exit code of a job that `--timeout` ended, as of timeout(1).
const TIMED_OUT: u8 = 124;

/// The exit code, and what to print.
pub fn end_of_job(watch: &Watch, nodes: &[String]) -> (u8, Vec<Failure>) {
    let Some(reason) = &watch.reason else { return (0, Vec::new()) };
    let position = |failure: &Failure| nodes.iter().position(|node| Some(node) == failure.node.as_ref());
    let mut in_order = watch.failures.clone();
    in_order.sort_by_key(position);
    let own = grouped(&in_order);
    let node = |rank: u32| watch.node_of(rank).and_then(|n| nodes.get(n as usize)).cloned().unwrap_or_default();
    let others = match watch.ended_with_job.len() {
        0 => String::new(),
        1 => "; 1 other rank was ended with it".to_owned(),
        n => format!("; {n} other ranks were ended with it"),
    };
    let of_rank = |rank: u32, cause: String, code: u8| {
        Failure::new(format!("rank {rank} ended the job"), format!("{cause}{others}")).on(node(rank)).code(code)
    };
    let failure = match reason {
        Reason::RankFailed { rank, outcome, core } => {
            let failure = of_rank(*rank, outcome_in_words(*outcome), outcome.code());
            match core {
                Some(core) => failure.hint(format!("its core file: {core}")),
                None => failure,
            }
        }
        Reason::Unfinished { rank } => {
            of_rank(*rank, "it exited after MPI_Init without calling MPI_Finalize (exit code 0)".into(), 1)
                .hint("the other ranks would have waited for it; see its output above.")
        }
        Reason::Aborted { rank, code, message } => {
            // Open MPI sends `N/A` when the program gave no words
            let said = match message.trim() {
                "" | "N/A" => String::new(),
                text => format!(": {text}"),
            };
            of_rank(*rank, format!("it called MPI_Abort with code {code}{said}"), abort_code(*code))
        }
        Reason::Misbound { rank, planned, found } => {
            of_rank(*rank, format!("its binding was read back as {found}, planned was {planned}"), exit::COREBOX)
        }
        Reason::NodeLost { node, why } => {
            let name = nodes.get(*node as usize).cloned().unwrap_or_default();
            Failure::new(format!("node {name} was lost"), format!("{why}{others}"))
        }
        Reason::Failed => return (watch.failures.first().map_or(exit::COREBOX, |f| f.code), own),
        Reason::Interrupted(signal) => return (exit::SIGNAL_BASE.wrapping_add(*signal as u8), Vec::new()),
        Reason::TimedOut(after) => {
            Failure::new("the job took too long", format!("--timeout {} s is over{others}", after.as_secs_f32()))
                .code(TIMED_OUT)
        }
        // the reader left: as quiet as any program that SIGPIPE ends
        Reason::Output(why) if why.is_empty() => return (exit::SIGNAL_BASE + Signal::SIGPIPE as u8, Vec::new()),
        Reason::Output(why) => Failure::new("cannot write the ranks' output", why),
    };
    (failure.code, [vec![failure], own].concat())
}

/// MPI_Abort's code as an exit status; 0 would read as success.
fn abort_code(code: i32) -> u8 {
    match code as u8 {
        0 => 1,
        code => code,
    }
}

fn outcome_in_words(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("it exited with code {code}"),
        Outcome::Signaled { signal, core } => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            format!("it was ended by signal {signal} ({name}{})", if core { ", core dumped" } else { "" })
        }
    }
}

/// Equal failures of several nodes are said once, with all their nodes.
pub fn grouped(failures: &[Failure]) -> Vec<Failure> {
    let mut groups: BTreeMap<String, (Failure, Vec<String>)> = BTreeMap::new();
    for failure in failures {
        let anonymous = Failure { node: None, ..failure.clone() };
        let group = groups.entry(anonymous.to_string()).or_insert_with(|| (anonymous, Vec::new()));
        group.1.extend(failure.node.clone());
    }
    groups
        .into_values()
        .map(|(failure, nodes)| Failure { node: (!nodes.is_empty()).then(|| nodes.join(", ")), ..failure })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_failures_are_said_once() {
        let f = |node: &str, cause: &str| Failure::new("cannot start", cause).on(node);
        let groups = grouped(&[f("n1", "a"), f("n2", "b"), f("n3", "a")]);
        let text: Vec<_> = groups.iter().map(|f| (f.node.clone().unwrap(), f.cause.clone())).collect();
        assert_eq!(text, [("n1, n3".to_owned(), "a".to_owned()), ("n2".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn abort_never_reads_as_success() {
        assert_eq!([0, 7, 256, -1].map(abort_code), [1, 7, 1, 255]);
    }
}
