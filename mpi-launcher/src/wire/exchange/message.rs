//! What agents say to each other on a link, and its encoding.

use super::super::gather::{Parts, Round};
use std::sync::Arc;

/// A message on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// First words of the child, and the parent's answer: both sides hold the secret.
    Hello,
    /// Nothing to say, but alive.
    Heartbeat,
    /// Closing in good order.
    Bye,
    /// The contributions of the sender's subtree.
    Up(Round, Parts),
    /// The result of a round.
    Down(Round, Parts),
    /// A question or answer for another node.
    Letter(Letter),
}

/// A question or answer, routed along the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) is_reply: bool,
    pub(super) id: u64,
    pub(super) blob: Vec<u8>,
}

impl Message {
    /// The message as a link sends it: its length, then its bytes.
    pub(super) fn encode(&self) -> Arc<[u8]> {
        let mut out = vec![0; 4];
        match self {
            Self::Hello => out.push(0),
            Self::Heartbeat => out.push(1),
            Self::Bye => out.push(2),
            Self::Up(round, parts) => encode_round(&mut out, 3, round, parts),
            Self::Down(round, parts) => encode_round(&mut out, 4, round, parts),
            Self::Letter(letter) => {
                out.push(if letter.is_reply { 6 } else { 5 });
                out.extend(letter.from.to_le_bytes());
                out.extend(letter.to.to_le_bytes());
                out.extend(letter.id.to_le_bytes());
                put_bytes(&mut out, &letter.blob);
            }
        }
        let length = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out.into()
    }

    /// Reads one whole message, without its length; `None` if it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let mut input = Input(rest);
        let message = match kind {
            0 => Self::Hello,
            1 => Self::Heartbeat,
            2 => Self::Bye,
            3 => input.round().map(|(round, parts)| Self::Up(round, parts))?,
            4 => input.round().map(|(round, parts)| Self::Down(round, parts))?,
            5 | 6 => Self::Letter(Letter {
                from: input.u32()?,
                to: input.u32()?,
                is_reply: kind == 6,
                id: input.u64()?,
                blob: input.bytes()?,
            }),
            _ => return None,
        };
        input.0.is_empty().then_some(message)
    }
}

fn encode_round(out: &mut Vec<u8>, kind: u8, round: &Round, parts: &Parts) {
    out.push(kind);
    put_bytes(out, &round.key);
    out.extend(round.number.to_le_bytes());
    out.extend((round.participants.len() as u32).to_le_bytes());
    for node in &round.participants {
        out.extend(node.to_le_bytes());
    }
    out.extend((parts.len() as u32).to_le_bytes());
    for (node, blob) in parts {
        out.extend(node.to_le_bytes());
        put_bytes(out, blob);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }
    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }
    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }
    fn round(&mut self) -> Option<(Round, Parts)> {
        let (key, number) = (self.bytes()?, self.u64()?);
        // No capacity from a length that was only claimed.
        let participants = (0..self.u32()?).map(|_| self.u32()).collect::<Option<Vec<u32>>>()?;
        let parts = (0..self.u32()?).map(|_| Some((self.u32()?, self.bytes()?))).collect::<Option<Parts>>()?;
        Some((Round { key, participants, number }, parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_the_rest() {
        let round = Round { key: b"k".to_vec(), participants: vec![0, 5], number: 7 };
        let letter = Letter { from: 1, to: 2, is_reply: true, id: u64::MAX, blob: vec![1; 300] };
        let messages = [
            Message::Hello,
            Message::Heartbeat,
            Message::Bye,
            Message::Up(round.clone(), vec![(0, vec![]), (5, vec![1, 2])]),
            Message::Down(round, vec![]),
            Message::Letter(letter),
        ];
        for message in messages {
            let encoded = message.encode();
            let (length, bytes) = encoded.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*length) as usize, bytes.len());
            assert_eq!(Message::decode(bytes), Some(message));
            for cut in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..cut]), None);
            }
            assert_eq!(Message::decode(&[bytes, &[0]].concat()), None);
        }
        assert_eq!(Message::decode(&[9]), None);
    }
}
