//! Which of the images of an index fits this machine, down to the micro-architecture level of x86-64.

use oci_spec::image::{Arch, Descriptor, Os, Platform};
use std::fmt;

/// A machine: architecture in Go's words (which OCI uses) and the highest variant it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    arch: String,
    /// `amd64`: 1 to 4; `arm64`: 8 and up, `arm`: 5 to 8; 0 where there are none.
    level: u32,
}

impl Machine {
    /// The machine we run on.
    pub(crate) fn this() -> Self {
        Self { arch: Self::arch_of_this(), level: this_level() }
    }

    /// Architecture of this machine in Go's words.
    pub(crate) fn arch_of_this() -> String {
        match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le".to_owned(),
            other => Self::arch_of(other),
        }
    }

    /// An architecture in Go's words, from the kernel's (`uname -m`).
    pub(crate) fn arch_of(machine: &str) -> String {
        let word = match machine {
            "x86_64" => "amd64",
            "x86" | "i686" => "386",
            "aarch64" => "arm64",
            "loongarch64" => "loong64",
            other => other,
        };
        word.to_owned()
    }

    /// Reads `[linux/]ARCH[/VARIANT]`, as a user gives it for another machine than this.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts: Vec<&str> = text.split('/').collect();
        if parts[0] == "linux" {
            parts.remove(0);
        }
        let (arch, variant) = match parts[..] {
            [arch] => (arch, ""),
            [arch, variant] => (arch, variant),
            _ => return None,
        };
        let plain = !arch.is_empty() && arch.chars().all(|c| c.is_ascii_alphanumeric());
        let level = level_of(arch, variant)?;
        plain.then(|| Self { arch: arch.to_owned(), level })
    }

    /// How well an image fits: `None` if it cannot run, else the higher the better.
    pub(crate) fn rank(&self, platform: &Platform) -> Option<u32> {
        if *platform.os() != Os::Linux || name(platform.architecture()) != self.arch {
            return None;
        }
        let level = level_of(&self.arch, platform.variant().as_deref().unwrap_or_default())?;
        (level <= self.level).then_some(level)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.arch)?;
        match (self.arch.as_str(), self.level) {
            ("amd64" | "arm64" | "arm", level @ 1..) => write!(f, "/v{level}"),
            _ => Ok(()),
        }
    }
}

/// Why an index has no image for a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("holds no image for {wanted}; it has: {}", list(.has))]
    None { wanted: String, has: Vec<String> },
    #[error("holds several images for {wanted}: {}", list(.has))]
    Several { wanted: String, has: Vec<String> },
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Chooses the image for a machine. A single one is taken whatever it says: that is what was packed.
pub(crate) fn choose<'a>(all: &'a [Descriptor], machine: &Machine) -> Result<&'a Descriptor, Unfit> {
    // what `docker buildx` attaches (provenance, SBOM) has the platform unknown/unknown
    let is_linux = |d: &&Descriptor| d.platform().as_ref().is_none_or(|p| *p.os() == Os::Linux);
    let images: Vec<_> = all.iter().filter(is_linux).collect();
    if let [one] = images[..] {
        return Ok(one);
    }
    let rank = |d: &Descriptor| d.platform().as_ref().map_or(Some(0), |platform| machine.rank(platform));
    let best = images.iter().filter_map(|d| rank(d)).max();
    let fitting: Vec<_> = images.iter().copied().filter(|d| best.is_some() && rank(d) == best).collect();
    let wanted = || machine.to_string();
    match fitting[..] {
        [one] => Ok(one),
        [] => Err(Unfit::None {
            wanted: wanted(),
            has: images.iter().filter_map(|d| d.platform().as_ref().map(show)).collect(),
        }),
        _ => Err(Unfit::Several { wanted: wanted(), has: fitting.iter().map(|d| d.digest().to_string()).collect() }),
    }
}

/// As the user should see it: `linux/amd64/v3`.
pub(crate) fn show(platform: &Platform) -> String {
    let base = format!("{}/{}", platform.os(), name(platform.architecture()));
    match platform.variant() {
        Some(variant) if !variant.is_empty() => format!("{base}/{variant}"),
        _ => base,
    }
}

fn name(arch: &Arch) -> String {
    arch.to_string()
}

/// The number in `v3`; the lowest one of the architecture when there is none; `None` for what is not understood.
fn level_of(arch: &str, variant: &str) -> Option<u32> {
    let lowest = match arch {
        "amd64" => 1,
        "arm64" => 8,
        "arm" => 7,
        _ => 0,
    };
    match variant {
        "" => Some(lowest),
        // arm64's minor versions (v8.2) are optional features: only the plain one is known to run
        _ => variant.strip_prefix('v')?.parse().ok(),
    }
}

/// The x86-64 level (System V psABI for AMD64, "micro-architecture levels").
#[cfg(target_arch = "x86_64")]
fn this_level() -> u32 {
    macro_rules! has { ($($feature:tt),+) => { $(std::is_x86_feature_detected!($feature))&&+ } }
    let v2 = has!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3");
    let v3 = v2 && has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe");
    let v4 = v3 && has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    1 + u32::from(v2) + u32::from(v3) + u32::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn this_level() -> u32 {
    level_of(if cfg!(target_arch = "aarch64") { "arm64" } else { "" }, "").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let parts: Vec<_> = text.split('/').collect();
        let mut json = serde_json::json!({"os": parts[0], "architecture": parts[1]});
        if let Some(variant) = parts.get(2) {
            json["variant"] = (*variant).into();
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_highest_level_that_runs_wins() {
        let machine = Machine::parse("linux/amd64/v3").unwrap();
        let rank = |text| machine.rank(&platform(text));
        assert_eq!(rank("linux/amd64"), Some(1));
        assert_eq!(rank("linux/amd64/v2"), Some(2));
        assert_eq!(rank("linux/amd64/v3"), Some(3));
        for no in ["linux/amd64/v4", "linux/arm64", "windows/amd64", "linux/amd64/x", "unknown/unknown"] {
            assert_eq!(rank(no), None, "{no}");
        }
        let arm = Machine::parse("arm64").unwrap();
        assert_eq!(arm.rank(&platform("linux/arm64/v8")), arm.rank(&platform("linux/arm64")));
        assert_eq!(machine.to_string(), "linux/amd64/v3");
        assert_eq!(show(&platform("linux/amd64/v2")), "linux/amd64/v2");
    }

    #[test]
    fn words_for_machines() {
        assert_eq!(Machine::parse("amd64"), Machine::parse("linux/amd64/v1"));
        for bad in ["", "linux", "linux/", "linux/a/b/c", "linux/amd64/x", "a b"] {
            assert!(Machine::parse(bad).is_none(), "{bad} was accepted");
        }
        assert!(Machine::this().rank(&platform(&Machine::this().to_string())).is_some());
    }
}
