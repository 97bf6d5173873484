//! The key-value space of one node's ranks: what they put, and what the other nodes sent with the last barrier.

use std::collections::HashMap;

/// Longest key we accept, in bytes (what `get_maxes` promises).
pub const KEY_MAX: usize = 64;
/// Longest value we accept, in bytes. More than promised: newer clients have longer lines.
pub const VALUE_MAX: usize = 8192;
/// What one node's ranks may store in all, in bytes: hundreds of times what an MPI library needs.
const STORE_MAX: usize = 256 << 20;

/// A store whose new pairs travel with the next barrier.
#[derive(Debug, Default)]
pub struct Kvs {
    pairs: HashMap<String, String>,
    fresh: Vec<u8>,
    stored: usize,
}

/// Why a pair was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is empty or longer than [`KEY_MAX`].
    Key,
    /// The value is longer than [`VALUE_MAX`].
    Value,
    /// The store is full.
    Full,
}

impl Kvs {
    /// Stores a pair; ranks of this node see it at once, other nodes after the next barrier.
    ///
    /// # Errors
    /// If the pair is out of bounds.
    pub fn put(&mut self, key: &str, value: &str) -> Result<(), Refused> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Refused::Key);
        }
        if value.len() > VALUE_MAX {
            return Err(Refused::Value);
        }
        self.stored += key.len() + value.len() + 8;
        if self.stored > STORE_MAX {
            return Err(Refused::Full);
        }
        for text in [key, value] {
            self.fresh.extend((text.len() as u32).to_le_bytes());
            self.fresh.extend(text.as_bytes());
        }
        self.pairs.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// Looks a key up.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }

    /// Takes the pairs stored since the last call, as one blob for the other nodes.
    pub fn take_fresh(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.fresh)
    }

    /// Adds the pairs of another node's blob; `None` if it is not one.
    pub fn merge(&mut self, mut blob: &[u8]) -> Option<()> {
        while !blob.is_empty() {
            let key = take_text(&mut blob)?;
            let value = take_text(&mut blob)?;
            self.pairs.insert(key.to_owned(), value.to_owned());
        }
        Some(())
    }
}

fn take_text<'a>(blob: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *blob = rest;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn travels_as_a_blob() {
        let (mut a, mut b) = (Kvs::default(), Kvs::default());
        a.put("k", "v=1").unwrap();
        a.put("e", "").unwrap();
        b.merge(&a.take_fresh()).unwrap();
        assert_eq!((b.get("k"), b.get("e"), b.get("x")), (Some("v=1"), Some(""), None));
        assert!(a.take_fresh().is_empty());
        assert_eq!(b.merge(&[9, 0, 0, 0, 1]), None);
        assert_eq!(a.put("", "v"), Err(Refused::Key));
        assert_eq!(a.put("k", &"v".repeat(VALUE_MAX + 1)), Err(Refused::Value));
    }
}
