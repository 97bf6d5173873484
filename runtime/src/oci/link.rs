//! What the maker of a container (or `start`) and its init tell each other: one byte, and for a failure its JSON.

use corebox_spec::Failure;
use corebox_sys::control::{Received, Socket};
use corebox_sys::{Errno, Error, Result};

/// A message.
#[derive(Debug, PartialEq)]
pub(crate) enum Word {
    /// To init: ids are mapped.
    Mapped,
    /// To init: the cgroups are entered.
    Grouped,
    /// From init: everything is mounted; hooks of the host may look. To init: they have.
    Hooks,
    /// From init: it waits to be started. To init: its maker has written that down.
    Ready,
    /// From init: names and microseconds of its steps.
    Times(Vec<(String, u64)>),
    /// From init, or from the process that joins namespaces for it.
    Failed(Failure),
    /// From who installed a seccomp filter that notifies: the number of its listener. It waits for any byte.
    Listener(i32),
    /// From the process that joins namespaces: the pid of the one that it made.
    Pid(i32),
}

impl Word {
    fn bytes(&self) -> Vec<u8> {
        let (tag, rest) = match self {
            Self::Mapped => (b'm', Vec::new()),
            Self::Grouped => (b'g', Vec::new()),
            Self::Hooks => (b'h', Vec::new()),
            Self::Ready => (b'r', Vec::new()),
            Self::Times(times) => (b't', serde_json::to_vec(times).unwrap_or_default()),
            Self::Failed(failure) => (b'f', serde_json::to_vec(failure).unwrap_or_default()),
            Self::Listener(number) => (b'l', number.to_ne_bytes().to_vec()),
            Self::Pid(pid) => (b'p', pid.to_ne_bytes().to_vec()),
        };
        [&[tag], &rest[..]].concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        Some(match tag {
            b'm' => Self::Mapped,
            b'g' => Self::Grouped,
            b'h' => Self::Hooks,
            b'r' => Self::Ready,
            b't' => Self::Times(serde_json::from_slice(rest).ok()?),
            b'f' => Self::Failed(serde_json::from_slice(rest).ok()?),
            b'l' => Self::Listener(i32::from_ne_bytes(rest.try_into().ok()?)),
            b'p' => Self::Pid(i32::from_ne_bytes(rest.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// Says something. A seccomp filter may be in force already: write(2) is the call that none forbids.
pub(crate) fn say(socket: &Socket, word: &Word) -> Result<()> {
    socket.put(&word.bytes())
}

/// Waits for a word; `None` when the other end is gone.
pub(crate) fn hear(socket: &Socket) -> Result<Option<Word>> {
    match socket.receive(true)? {
        Received::Message(bytes, _) => {
            let malformed = || Error::new("read", "a message between corebox and the container", Errno::EBADMSG);
            Word::read(&bytes).map(Some).ok_or_else(malformed)
        }
        Received::End | Received::Nothing => Ok(None),
    }
}

/// Waits for exactly this word.
///
/// # Errors
/// ECONNRESET when the other end is gone or says anything else.
pub(crate) fn expect(socket: &Socket, wanted: &Word) -> Result<()> {
    match hear(socket)? {
        Some(word) if word == *wanted => Ok(()),
        _ => Err(Error::new("wait for", "corebox, which is gone", Errno::ECONNRESET)),
    }
}
