//! What parent and init tell each other, over a socket that keeps message boundaries.
//!
//! To init: JSON in parts, as environments can be long. From init, and from each process it forks until that has
//! exec'd: one message each, so that they may share the socket.

use crate::process::ProcessPlan;
use corebox_spec::{Failure, IdSet, Outcome};
use corebox_sys::control::{MAX_MESSAGE, Received, Socket};
use corebox_sys::{Errno, Error, Result};
use serde::{Deserialize, Serialize};

/// From the parent to init.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Ids are mapped and cgroups entered: go on.
    Go,
    /// Fork and execute these.
    Start(Vec<ProcessPlan>),
    /// Send a signal to one process, or to all.
    Signal {
        /// As in [`ProcessPlan::id`].
        id: Option<u32>,
        signal: i32,
    },
}

/// From init or a forked process to the parent.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The container stands; names and microseconds of init's steps.
    Ready { steps: Vec<(String, u64)> },
    /// The container does not stand (any more).
    Failed(Failure),
    /// A process is bound and about to exec. Its pid is that of the message's sender.
    Started { id: u32, cpus: IdSet, mems: IdSet },
    /// A process could not become its program.
    ExecFailed { id: u32, failure: Failure },
    /// A process ended.
    Exited { id: u32, outcome: Outcome },
}

/// First byte of a part.
const MORE: u8 = 0;
const LAST: u8 = 1;

/// The parts of an order.
pub(crate) fn parts(order: &Order) -> Result<Vec<Vec<u8>>> {
    let bytes =
        serde_json::to_vec(order).map_err(|_| Error::new("write", "an order to the container", Errno::EINVAL))?;
    let chunks: Vec<&[u8]> = bytes.chunks(MAX_MESSAGE - 1).collect();
    let last = chunks.len().saturating_sub(1);
    Ok(chunks
        .iter()
        .enumerate()
        .map(|(index, chunk)| [&[if index == last { LAST } else { MORE }], *chunk].concat())
        .collect())
}

/// Puts orders together again.
#[derive(Debug, Default)]
pub(crate) struct Orders(Vec<u8>);

impl Orders {
    /// Takes one part; the order, when it was the last part of one.
    pub(crate) fn take(&mut self, part: &[u8]) -> Result<Option<Order>> {
        let Some((kind, bytes)) = part.split_first() else { return Ok(None) };
        self.0.extend_from_slice(bytes);
        if *kind != LAST {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.0);
        let malformed = |_| Error::new("read", "an order of the parent", Errno::EBADMSG);
        serde_json::from_slice(&whole).map(Some).map_err(malformed)
    }

    /// Waits for the next order; `None` when the parent is gone.
    pub(crate) fn wait(&mut self, socket: &Socket) -> Result<Option<Order>> {
        loop {
            match socket.receive(true)? {
                Received::End | Received::Nothing => return Ok(None),
                Received::Message(part, _) => {
                    if let Some(order) = self.take(&part)? {
                        return Ok(Some(order));
                    }
                }
            }
        }
    }
}

/// Longest text of a failure that surely fits a message, JSON escapes included.
const LONGEST: usize = 4000;

/// Sends a report. Nobody is left to hear about it when that fails.
pub(crate) fn report(socket: &Socket, report: &Report) {
    let bytes = serde_json::to_vec(report).unwrap_or_default();
    let _ = socket.send(&bytes, true);
}

/// Shortens what came from elsewhere (a server's messages, a path), so that the report fits.
pub(crate) fn shortened(mut failure: Failure) -> Failure {
    for text in [Some(&mut failure.cause), failure.hint.as_mut()].into_iter().flatten() {
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
    }
    failure
}

/// Reads a report.
pub(crate) fn read_report(bytes: &[u8]) -> Result<Report> {
    serde_json::from_slice(bytes).map_err(|_| Error::new("read", "a report of the container", Errno::EBADMSG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_orders_travel_in_parts() {
        let process = ProcessPlan { env: vec!["x".repeat(100_000)], ..ProcessPlan::new(7, vec!["a".into()]) };
        let order = Order::Start(vec![process]);
        let parts = parts(&order).unwrap();
        assert_eq!(parts.len(), 4);
        let mut orders = Orders::default();
        let taken: Vec<_> = parts.iter().map(|p| orders.take(p).unwrap()).collect();
        assert_eq!(taken, [None, None, None, Some(order)]);
        assert!(orders.take(&[LAST, b'{']).is_err());
    }

    #[test]
    fn long_failures_are_cut_at_a_character() {
        let failure = shortened(Failure::new("g", "ä".repeat(5000)));
        assert!(failure.cause.len() <= LONGEST + 4 && failure.cause.ends_with('…'));
    }
}
