//! What launcher and agent say to each other over the remote shell's stdin and stdout.
//!
//! A stream begins with the line [`GREETING`], so that whatever a login shell prints before it can be skipped. Then come
//! frames: kind (1 byte), length (4 bytes, little endian), payload. Control messages are JSON (small, rare, readable in a
//! trace); output and input bytes are carried as they are.

use corebox_spec::{ContainerSpec, Failure, IdSet, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// First line of both directions; the version is that of this protocol.
pub const GREETING: &str = "corebox-agent-protocol 1\n";

/// Both sides send something at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// The launcher takes an agent that was silent this long for dead.
pub const AGENT_PATIENCE: Duration = Duration::from_secs(8);

/// An agent takes a launcher that was silent this long for dead; longer, because a launcher may be stopped in a terminal or
/// a debugger, and its ordinary death closes the stream at once.
pub const LAUNCHER_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of standard input on their way to rank 0 at most.
pub const STDIN_WINDOW: usize = 1 << 20;

/// Frames above this are a broken or hostile stream.
const MAX_FRAME: usize = 64 << 20;

/// An output stream of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// The wire-up protocol decided for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pmi {
    /// PMIx, served through the node's libpmix.
    Pmix,
    /// PMI-1 on an inherited descriptor.
    Pmi1,
    /// None.
    None,
}

/// Launcher to agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// First message: who we are and what to look for.
    Hello(Hello),
    /// The decision for this node.
    Plan(Box<NodePlan>),
    /// Send this signal to every rank.
    Signal(i32),
    /// End the job: SIGTERM to every rank, SIGKILL after the grace.
    Stop {
        /// Time between the two.
        grace: Duration,
    },
    /// Kill everything at once.
    Kill,
    /// No more standard input for rank 0.
    StdinEnd,
    /// Still here.
    Ping,
    /// Nothing more to do; exit.
    Finish,
}

/// The first message to an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Job id, unique per launch.
    pub job: String,
    /// Name of this node as the user wrote it.
    pub node: String,
    /// Index of this node in the allocation.
    pub index: u32,
    /// Number of nodes.
    pub nodes: u32,
    /// Secret that the agents of this job prove to each other.
    pub secret: [u8; 32],
    /// Image digest to look for in the store, or the path of an image file.
    pub image: String,
    /// Store directory of the launcher, if the user set one.
    pub store: Option<String>,
    /// Wire-up protocol; the agent checks that it can serve it.
    pub pmi: Pmi,
}

/// What an agent found on its node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The machine.
    pub host: corebox_host::Host,
    /// Its RDMA devices.
    pub rdma: corebox_rdma::Inventory,
    /// Addresses other agents may reach this one by.
    pub addresses: Vec<SocketAddr>,
    /// How other nodes know this one, for the containers' networks; the first is preferred.
    #[serde(default)]
    pub network: Vec<corebox_spec::network::Peer>,
}

/// One rank, decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankPlan {
    /// Rank in the job.
    pub rank: u32,
    /// Position among the ranks of its node.
    pub local_rank: u32,
    /// Which program of an MPMD job.
    pub app: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables of this rank besides those of the container.
    pub env: Vec<(String, String)>,
    /// Working directory; `None`: the container's.
    pub wdir: Option<String>,
    /// Whether the rank is bound (anything but `--bind-to none`); else an inherited memory policy stays.
    pub bound: bool,
    /// HCA and port it was told to use: `mlx5_0:1`.
    pub hca: Option<String>,
    /// CPUs and memory nodes.
    pub binding: crate::bind::Binding,
}

/// The part of the exchange tree that one node needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TreePlan {
    /// Addresses of the parent's listener; empty at the root.
    pub parent: Vec<SocketAddr>,
}

/// One node, decided: one container and its ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodePlan {
    /// The container as asked for.
    pub container: ContainerSpec,
    /// Ranks of this node, in rank order.
    pub ranks: Vec<RankPlan>,
    /// Ranks of every node, by node index.
    pub layout: Vec<Vec<u32>>,
    /// Program index of every rank.
    pub apps: Vec<u32>,
    /// Slots of all nodes.
    pub universe: u32,
    /// Node names by index.
    pub nodes: Vec<String>,
    /// Exchange tree; `None` on one node.
    pub tree: Option<TreePlan>,
}

/// A rank that runs, with what the kernel says of its binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStarted {
    /// Rank in the job.
    pub rank: u32,
    /// Process id on its node.
    pub pid: i32,
    /// Cpus_allowed_list read back.
    pub cpus: IdSet,
    /// Memory nodes of the policy or cpuset, read back.
    pub mems: IdSet,
}

/// Agent to launcher.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromAgent {
    /// Answer to Hello.
    Facts(Box<NodeFacts>),
    /// Something of ours failed; the job cannot go on.
    Failed(Failure),
    /// Every rank of the node was started.
    Started(Vec<RankStarted>),
    /// A rank ended.
    Exited {
        /// Rank in the job.
        rank: u32,
        /// How.
        outcome: Outcome,
        /// It called MPI_Init and never MPI_Finalize.
        unfinished: bool,
        /// Where the kernel left the core, when there is one.
        core: Option<String>,
    },
    /// A rank called MPI_Abort.
    Abort {
        /// Rank in the job.
        rank: u32,
        /// Its code.
        code: i32,
        /// What it said.
        message: String,
    },
    /// The exchange lost the agent of another node.
    LinkLost {
        /// Index of the other node.
        node: u32,
    },
    /// So many bytes of standard input were taken by rank 0.
    StdinTaken(usize),
    /// Every rank ended and the container is gone.
    Done,
    /// Still here.
    Pong,
}

/// A frame as it arrives.
#[derive(Clone, Debug)]
pub enum Frame<M> {
    /// A control message.
    Message(M),
    /// Output of a rank.
    Output {
        /// Rank in the job.
        rank: u32,
        /// Which stream.
        stream: Stream,
        /// Whole lines, or the last piece of a stream.
        bytes: Vec<u8>,
    },
    /// Input for rank 0.
    Input(Vec<u8>),
}

const MESSAGE: u8 = b'm';
const OUTPUT: u8 = b'o';
const ERROR: u8 = b'e';
const INPUT: u8 = b'i';

/// Encodes a control message.
///
/// # Panics
/// Never: the message types hold nothing that JSON cannot.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    let payload = serde_json::to_vec(message).unwrap_or_else(|e| unreachable!("a message type JSON cannot hold: {e}"));
    framed(MESSAGE, &[&payload])
}

/// Encodes output of a rank.
pub fn encode_output(rank: u32, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let kind = if stream == Stream::Out { OUTPUT } else { ERROR };
    framed(kind, &[&rank.to_le_bytes(), bytes])
}

/// Encodes input for rank 0.
pub fn encode_input(bytes: &[u8]) -> Vec<u8> {
    framed(INPUT, &[bytes])
}

fn framed(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|p| p.len()).sum::<usize>();
    let mut frame = Vec::with_capacity(5 + length);
    frame.push(kind);
    frame.extend((length as u32).to_le_bytes());
    parts.iter().for_each(|part| frame.extend(*part));
    frame
}

/// Cuts a byte stream into frames.
#[derive(Default)]
pub struct Decoder {
    buffer: VecDeque<u8>,
    greeted: bool,
}

/// Why a stream cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No greeting in the first 64 KiB.
    #[error("it does not speak corebox's protocol; it said: {0}")]
    NoGreeting(String),
    /// The greeting is there but of another version.
    #[error("it speaks another version of the protocol ({0}); install the same corebox on every node")]
    Version(String),
    /// A frame that no version of ours sends.
    #[error("it sent a malformed frame ({0})")]
    Frame(String),
}

impl Decoder {
    /// Adds bytes as read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// What arrived before the greeting, for an error message.
    pub fn rubbish(&mut self) -> String {
        if self.greeted {
            String::new()
        } else {
            String::from_utf8_lossy(self.buffer.make_contiguous()).trim().to_owned()
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is useless after one.
    pub fn next_frame<M: for<'a> Deserialize<'a>>(&mut self) -> Result<Option<Frame<M>>, StreamError> {
        if !self.greeted && !self.skip_greeting()? {
            return Ok(None);
        }
        if self.buffer.len() < 5 {
            return Ok(None);
        }
        let bytes = self.buffer.make_contiguous();
        let (kind, length) = (bytes[0], u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize);
        if length > MAX_FRAME {
            return Err(StreamError::Frame(format!("{length} bytes long")));
        }
        let Some(payload) = bytes.get(5..5 + length) else { return Ok(None) };
        let frame = match kind {
            MESSAGE => Frame::Message(serde_json::from_slice(payload).map_err(|e| StreamError::Frame(e.to_string()))?),
            OUTPUT | ERROR => {
                let (rank, bytes) = payload.split_first_chunk().ok_or_else(|| StreamError::Frame("no rank".into()))?;
                let stream = if kind == OUTPUT { Stream::Out } else { Stream::Err };
                Frame::Output { rank: u32::from_le_bytes(*rank), stream, bytes: bytes.to_vec() }
            }
            INPUT => Frame::Input(payload.to_vec()),
            other => return Err(StreamError::Frame(format!("kind {other}"))),
        };
        self.buffer.drain(..5 + length);
        Ok(Some(frame))
    }

    fn skip_greeting(&mut self) -> Result<bool, StreamError> {
        let bytes = self.buffer.make_contiguous();
        let find = |needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle);
        if let Some(at) = find(GREETING.as_bytes()) {
            self.buffer.drain(..at + GREETING.len());
            self.greeted = true;
            return Ok(true);
        }
        if let Some(at) = find(b"corebox-agent-protocol ")
            && let Some(end) = bytes[at..].iter().position(|b| *b == b'\n')
        {
            return Err(StreamError::Version(String::from_utf8_lossy(&bytes[at..at + end]).into_owned()));
        }
        if bytes.len() > 65_536 {
            return Err(StreamError::NoGreeting(String::from_utf8_lossy(&bytes[..200]).into_owned()));
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_a_chatty_shell_and_any_cut() {
        let mut stream = b"Welcome to n1!\nquota: 3%\n".to_vec();
        stream.extend(GREETING.as_bytes());
        stream.extend(encode(&FromAgent::Pong));
        stream.extend(encode_output(7, Stream::Err, b"line\n"));
        stream.extend(encode_input(b"in"));
        for step in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame::<FromAgent>().unwrap() {
                    seen.push(match frame {
                        Frame::Message(FromAgent::Pong) => "pong".to_owned(),
                        Frame::Output { rank, stream, bytes } => format!("{rank} {stream:?} {bytes:?}"),
                        Frame::Input(bytes) => format!("{bytes:?}"),
                        other => panic!("{other:?}"),
                    });
                }
            }
            assert_eq!(seen, ["pong", "7 Err [108, 105, 110, 101, 10]", "[105, 110]"], "cut every {step}");
        }
    }

    #[test]
    fn a_hostile_or_foreign_stream_is_an_error() {
        let frame = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(GREETING.as_bytes());
            decoder.push(bytes);
            decoder.next_frame::<FromAgent>()
        };
        assert!(frame(&[b'm', 255, 255, 255, 255]).is_err());
        assert!(frame(&[b'x', 0, 0, 0, 0]).is_err());
        assert!(frame(&[b'm', 1, 0, 0, 0, b'{']).is_err());
        assert!(frame(&[b'o', 1, 0, 0, 0, 1]).is_err());
        let mut decoder = Decoder::default();
        decoder.push(b"corebox-agent-protocol 9\n");
        assert!(matches!(decoder.next_frame::<FromAgent>(), Err(StreamError::Version(_))));
        let mut decoder = Decoder::default();
        decoder.push(&[b'x'; 70_000]);
        assert!(matches!(decoder.next_frame::<FromAgent>(), Err(StreamError::NoGreeting(_))));
    }
}
