//! The parser of what other agents say, for the fuzz targets of `fuzz/` (feature `fuzzing`).

use super::message::Message;

/// Reads a message; one that was read says the same when it is written and read again.
pub fn message(bytes: &[u8]) {
    let Some(message) = Message::decode(bytes) else { return };
    let written = message.encode();
    assert_eq!(Message::decode(&written[4..]).as_ref(), Some(&message));
}
