//! Hostlists: `n[01-04]:4,login` (Slurm's notation, with slots after a colon) and hostfiles.

/// A host and the slots asked for on it, if any were named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSlots {
    /// Host name or address, as the remote shell takes it.
    pub host: String,
    /// Slots on it; `None`: as many as the node has cores for us.
    pub slots: Option<u32>,
}

/// Why a text is not a hostlist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostListError {
    /// A bracket is missing, nested or empty.
    #[error("`{0}`: brackets do not match, as in n[01-04]")]
    Brackets(String),
    /// A range in brackets is malformed.
    #[error("`{0}` is not a range like 01-04")]
    Range(String),
    /// Slots are not a number above zero.
    #[error("`{0}`: slots after the colon must be a number above 0")]
    Slots(String),
    /// A name is empty or has a character that no host name has.
    #[error("`{0}` is not a host name")]
    Name(String),
    /// The same host twice.
    #[error("host `{0}` is named twice")]
    Duplicate(String),
    /// More than 65,536 hosts.
    #[error("the list expands to more than {MAX_HOSTS} hosts")]
    TooMany,
    /// A line of a hostfile has an unknown word.
    #[error("line {line}: `{word}` is not known here (a line is `HOST [slots=N]`)")]
    HostfileWord {
        /// Line number, from 1.
        line: usize,
        /// The offending word.
        word: String,
    },
    /// No host at all.
    #[error("the list names no host")]
    Empty,
}

const MAX_HOSTS: usize = 65_536;

/// Expands `n[01-04]:4,login,io[1,3-4]` in order.
///
/// # Errors
/// See [`HostListError`]; a host named twice is an error, because two containers of one job on one node
/// are never what was meant (say `host:SLOTS`).
pub fn parse_hostlist(text: &str) -> Result<Vec<HostSlots>, HostListError> {
    let mut hosts = Vec::new();
    for item in split_outside_brackets(text)? {
        let (names, slots) = match item.rsplit_once(':') {
            // an IPv6 address has more than one colon; it takes slots only in brackets-free hostfiles
            Some((name, _)) if name.contains(':') => (item, None),
            Some((name, slots)) => (name, Some(slots_of(item, slots)?)),
            None => (item, None),
        };
        for host in expand(names)? {
            hosts.push(HostSlots { host, slots });
            if hosts.len() > MAX_HOSTS {
                return Err(HostListError::TooMany);
            }
        }
    }
    checked(hosts)
}

/// Reads a hostfile: a line is `HOST [slots=N]` (Open MPI) or `HOST:N` (MPICH); `#` starts a comment.
///
/// # Errors
/// See [`HostListError`].
pub fn parse_hostfile(text: &str) -> Result<Vec<HostSlots>, HostListError> {
    let mut hosts = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(first) = words.next() else { continue };
        let mut entry = parse_hostlist(first)?;
        for word in words {
            let slots = match word.split_once('=') {
                Some(("slots", n)) => slots_of(word, n)?,
                _ => return Err(HostListError::HostfileWord { line: number + 1, word: word.to_owned() }),
            };
            entry.iter_mut().for_each(|host| host.slots = Some(slots));
        }
        hosts.append(&mut entry);
    }
    checked(hosts)
}

fn checked(hosts: Vec<HostSlots>) -> Result<Vec<HostSlots>, HostListError> {
    let mut seen = std::collections::HashSet::new();
    for HostSlots { host, .. } in &hosts {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        // a leading dash would be read as an option by the remote shell
        if host.is_empty() || host.starts_with('-') || !host.chars().all(good) {
            return Err(HostListError::Name(host.clone()));
        }
        if !seen.insert(host) {
            return Err(HostListError::Duplicate(host.clone()));
        }
    }
    if hosts.is_empty() { Err(HostListError::Empty) } else { Ok(hosts) }
}

fn slots_of(item: &str, slots: &str) -> Result<u32, HostListError> {
    match slots.parse::<u32>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(HostListError::Slots(item.to_owned())),
    }
}

fn split_outside_brackets(text: &str) -> Result<Vec<&str>, HostListError> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err(HostListError::Brackets(text.to_owned()));
        }
    }
    if depth != 0 {
        return Err(HostListError::Brackets(text.to_owned()));
    }
    items.push(&text[start..]);
    Ok(items)
}

/// `n[01-03,7]x` → n01x n02x n03x n7x; several bracket groups multiply.
fn expand(name: &str) -> Result<Vec<String>, HostListError> {
    let Some((head, rest)) = name.split_once('[') else { return Ok(vec![name.to_owned()]) };
    let (group, tail) = rest.split_once(']').ok_or_else(|| HostListError::Brackets(name.to_owned()))?;
    let tails = expand(tail)?;
    let mut names = Vec::new();
    for part in group.split(',') {
        let bad = || HostListError::Range(part.to_owned());
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let digits = |s: &str| !s.is_empty() && s.len() <= 9 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(low) || !digits(high) {
            return Err(bad());
        }
        let (from, to): (usize, usize) = (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
        if from > to {
            return Err(bad());
        }
        if (to - from + 1).saturating_mul(tails.len()) > MAX_HOSTS {
            return Err(HostListError::TooMany);
        }
        for n in from..=to {
            names.extend(tails.iter().map(|tail| format!("{head}{n:0width$}{tail}", width = low.len())));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse_hostlist(text)
            .unwrap()
            .into_iter()
            .map(|h| match h.slots {
                Some(n) => format!("{}:{n}", h.host),
                None => h.host,
            })
            .collect()
    }

    #[test]
    fn expands_in_order_and_keeps_zeros() {
        assert_eq!(names("n[01-03]:4,login"), ["n01:4", "n02:4", "n03:4", "login"]);
        assert_eq!(names("r[1-2]n[9-10]"), ["r1n9", "r1n10", "r2n9", "r2n10"]);
        assert_eq!(names("io[1,3-4].site"), ["io1.site", "io3.site", "io4.site"]);
        assert_eq!(names("fe80::1"), ["fe80::1"]);
    }

    #[test]
    fn refuses_bad_lists() {
        for text in [
            "",
            "a,,b",
            "n[1-",
            "n]1[",
            "n[[1]]",
            "n[3-1]",
            "n[a]",
            "a:0",
            "a:x",
            "a,a",
            "n[1-2],n2",
            "-oProxyCommand=x",
            "a b",
            "n[0-999999]",
        ] {
            assert!(parse_hostlist(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn reads_hostfiles_of_both_families() {
        let hosts = parse_hostfile("# site\nn1 slots=4  # four\nn2:2\n\nn3\n").unwrap();
        assert_eq!(hosts.iter().map(|h| h.slots).collect::<Vec<_>>(), [Some(4), Some(2), None]);
        assert!(parse_hostfile("n1 max_slots=3").is_err());
    }
}
