//! How users name images: `name[:tag]`, `sha256:HEX`, or the first 8 or more digits of the digest.

use std::fmt;

/// Longest repository name; with the longest tag it still fits a file name (255 bytes).
const NAME_LIMIT: usize = 120;
/// Longest tag (OCI distribution-spec).
const TAG_LIMIT: usize = 128;
/// Digits that a shortened digest needs at least.
const SHORTEST_DIGEST: usize = 8;

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not `name[:tag]`.
    #[error(
        "`{0}` is not an image name: letters, digits, `.`, `_`, `-`, up to {NAME_LIMIT} of them, the first one a letter \
         or digit, and perhaps `:TAG`"
    )]
    Name(String),
    /// `sha256:` with something else than 8 to 64 hexadecimal digits.
    #[error("`{0}` is not a digest: `sha256:` and {SHORTEST_DIGEST} to 64 digits 0-9 a-f")]
    Digest(String),
}

/// A name with its tag. `lammps` and `lammps:latest` are the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    name: String,
    tag: String,
}

impl ImageName {
    /// Reads `name[:tag]`.
    ///
    /// # Errors
    /// [`ReferenceError::Name`].
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        let good = |word: &str, limit: usize| {
            word.len() <= limit
                && word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        // `sha256:…` must stay a digest
        if good(name, NAME_LIMIT) && good(tag, TAG_LIMIT) && name != "sha256" {
            Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
        } else {
            Err(ReferenceError::Name(text.to_owned()))
        }
    }

    /// The name of the file that holds it in the store.
    pub(crate) fn file_name(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag.as_str() {
            "latest" => write!(f, "{}", self.name),
            tag => write!(f, "{}:{tag}", self.name),
        }
    }
}

/// What a user typed to mean an image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name.
    Name(ImageName),
    /// The beginning (or all) of a digest's digits.
    Digest(String),
    /// A word that is tried as a name first and then as the beginning of a digest.
    Either(ImageName, String),
}

impl Reference {
    /// Reads a reference.
    ///
    /// # Errors
    /// See [`ReferenceError`].
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let is_digits = |digits: &str| {
            (SHORTEST_DIGEST..=64).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if let Some(digits) = text.strip_prefix("sha256:") {
            return if is_digits(digits) {
                Ok(Self::Digest(digits.to_owned()))
            } else {
                Err(ReferenceError::Digest(text.to_owned()))
            };
        }
        let name = ImageName::parse(text)?;
        Ok(if is_digits(text) { Self::Either(name, text.to_owned()) } else { Self::Name(name) })
    }
}

/// Whether a text is the 64 digits of a complete digest.
pub(crate) fn is_full_digest(digits: &str) -> bool {
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names() {
        for (text, shown) in [("lammps", "lammps"), ("lammps:latest", "lammps"), ("a.b_c-1:2.0", "a.b_c-1:2.0")] {
            assert_eq!(ImageName::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(ImageName::parse("x"), ImageName::parse("x:latest"));
        for bad in ["", ":", "a:", ":a", "-a", ".a", "../a", "a/b", "a b", "a:b:c", "sha256:x", "ä", &"x".repeat(121)]
        {
            assert!(ImageName::parse(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn reads_digests() {
        assert_eq!(Reference::parse("sha256:0123456789"), Ok(Reference::Digest("0123456789".into())));
        assert!(matches!(Reference::parse("deadbeef"), Ok(Reference::Either(..))));
        assert!(matches!(Reference::parse("deadbee"), Ok(Reference::Name(_))));
        for bad in ["sha256:", "sha256:1234567", "sha256:DEADBEEF", &format!("sha256:{}", "0".repeat(65))] {
            assert!(matches!(Reference::parse(bad), Err(ReferenceError::Digest(_))), "{bad} was accepted");
        }
    }
}
