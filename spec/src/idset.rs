//! Idsets: `0-3,8`, the notation of Slurm, Flux and the kernel's cpulists (cpuset(7), "List format").

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The largest id accepted: larger than any kernel's `NR_CPUS` (8192), small enough that a hostile
/// `0-4294967295` costs nothing.
const MAX_ID: u32 = 65_535;

/// An ordered set of small integers (CPU numbers, NUMA nodes), written `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdSet(BTreeSet<u32>);

/// Why a text is not an idset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdSetError {
    /// A part is neither `N` nor `N-M`.
    #[error("`{0}` is not a number or a range like 0-3")]
    Part(String),
    /// A range runs backwards.
    #[error("the range `{0}` runs backwards")]
    Backwards(String),
    /// An id is above 65535.
    #[error("`{0}` is larger than {MAX_ID}")]
    TooLarge(String),
}

impl IdSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }
    /// Number of ids.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether `id` is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }
    /// Adds `id`; false if it was there.
    pub fn insert(&mut self, id: u32) -> bool {
        self.0.insert(id)
    }
    /// The ids in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
    /// The smallest id.
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }
    /// The ids in both sets.
    pub fn intersection(&self, other: &IdSet) -> IdSet {
        Self(self.0.intersection(&other.0).copied().collect())
    }
    /// The ids in either set.
    pub fn union(&self, other: &IdSet) -> IdSet {
        Self(self.0.union(&other.0).copied().collect())
    }
    /// The ids of `self` that are not in `other`.
    pub fn difference(&self, other: &IdSet) -> IdSet {
        Self(self.0.difference(&other.0).copied().collect())
    }
    /// Whether every id of `self` is in `other`.
    pub fn is_subset(&self, other: &IdSet) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for IdSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl FromStr for IdSet {
    type Err = IdSetError;
    /// Reads `0-3,8`; white space around parts and a trailing newline (as sysfs has) are ignored;
    /// the empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, IdSetError> {
        let number = |s: &str| -> Result<u32, IdSetError> {
            if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
                return Err(IdSetError::Part(s.to_owned()));
            }
            match s.parse::<u32>() {
                Ok(n) if n <= MAX_ID => Ok(n),
                _ => Err(IdSetError::TooLarge(s.to_owned())),
            }
        };
        let mut ids = BTreeSet::new();
        for part in text.trim().split(',').map(str::trim) {
            if part.is_empty() && text.trim().is_empty() {
                break;
            }
            match part.split_once('-') {
                None => {
                    ids.insert(number(part)?);
                }
                Some((low, high)) => {
                    let (low, high) = (number(low.trim())?, number(high.trim())?);
                    if low > high {
                        return Err(IdSetError::Backwards(part.to_owned()));
                    }
                    ids.extend(low..=high);
                }
            }
        }
        Ok(Self(ids))
    }
}

impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(low) = ids.next() {
            let mut high = low;
            while ids.peek() == Some(&(high + 1)) {
                high += 1;
                ids.next();
            }
            if low == high {
                write!(f, "{separator}{low}")?;
            } else {
                write!(f, "{separator}{low}-{high}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl TryFrom<String> for IdSet {
    type Error = IdSetError;
    fn try_from(text: String) -> Result<Self, IdSetError> {
        text.parse()
    }
}

impl From<IdSet> for String {
    fn from(set: IdSet) -> String {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_kernels_notation() {
        for (text, canonical) in
            [("", ""), ("0\n", "0"), ("0-3,8", "0-3,8"), ("8,0,1,2,3", "0-3,8"), ("0-1,2-3", "0-3")]
        {
            assert_eq!(text.parse::<IdSet>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn refuses_what_is_not_an_idset() {
        for text in ["a", "1-", "-1", "3-1", "1,,2", "0x1", "+1", "70000", "0-4294967295", "99999999999999999999"] {
            assert!(text.parse::<IdSet>().is_err(), "{text} was accepted");
        }
    }
}
