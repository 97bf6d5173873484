//! Changed copies of a seed, the same ones every time: enough to find again what was found once, and what a careless
//! change breaks at once. The search with coverage is libFuzzer's.

/// A stream of numbers (xorshift64*, Marsaglia).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed; 0 is none.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next one below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

/// What parsers stumble over.
const WORDS: [&[u8]; 14] = [
    b"",
    b"\0",
    b"\xff\xff\xff\xff",
    b"-1",
    b"0",
    b"4294967296",
    b"18446744073709551616",
    b"9999999999",
    b",",
    b"-",
    b"[",
    b"]",
    b"\n",
    b"=",
];

/// A copy with one to eight changes: bytes, words, cuts, repetitions, pieces of another seed.
pub fn mutated(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + numbers.below(8) {
        let at = numbers.below(bytes.len() + 1);
        let end = at + numbers.below((bytes.len() - at).min(64) + 1);
        match numbers.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 if at < bytes.len() => bytes[at] = numbers.below(256) as u8,
            2 => drop(bytes.splice(at..end, WORDS[numbers.below(WORDS.len())].iter().copied())),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let from = numbers.below(other.len() + 1);
                let to = from + numbers.below((other.len() - from).min(64) + 1);
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}
