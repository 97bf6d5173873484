//! The filters of `corebox run` and `corebox mpirun`. What they refuse and why: docs/design/security.md.
//!
//! They are in the program in compiled form, so that a start compiles nothing and a node needs no libseccomp. A test
//! compiles them again and compares; `COREBOX_WRITE_FILTERS=1 cargo test -p corebox-runtime compiled_filters` writes
//! them.

use super::{Cache, Error, Program, cached};
use corebox_spec::Seccomp;
use corebox_sys::seccomp;
use oci_spec::runtime::LinuxSeccomp;

/// The list of what programs may call.
pub(super) const DEFAULT: &str = include_str!("default.json");
/// No typing on the caller's terminal (TIOCSTI, TIOCLINUX): a filter of its own, as a list of what is allowed cannot say
/// "all but these".
pub(super) const TERMINAL: &str = include_str!("terminal.json");

#[cfg(target_arch = "x86_64")]
const COMPILED: Option<[&[u8]; 2]> =
    Some([include_bytes!("default-x86_64.bpf"), include_bytes!("terminal-x86_64.bpf")]);
#[cfg(target_arch = "aarch64")]
const COMPILED: Option<[&[u8]; 2]> =
    Some([include_bytes!("default-aarch64.bpf"), include_bytes!("terminal-aarch64.bpf")]);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const COMPILED: Option<[&[u8]; 2]> = None;

/// The filters to install, in order, for what was asked.
///
/// # Errors
/// A profile that is none, or that only an engine can serve; [`super::compile`].
pub fn programs(asked: &Seccomp) -> Result<Vec<Program>, Error> {
    match (asked, COMPILED) {
        (Seccomp::None, _) => Ok(Vec::new()),
        (Seccomp::Default, Some(compiled)) => {
            let ready = |bytes: &[u8]| Program { instructions: seccomp::instructions(bytes), flags: 0 };
            Ok(compiled.into_iter().map(ready).collect())
        }
        (Seccomp::Default, None) => [DEFAULT, TERMINAL].into_iter().map(from_text).collect(),
        (Seccomp::Profile(text), _) => Ok(vec![from_text(text)?]),
    }
}

/// Refuses a profile that we could not install, before anything is made.
///
/// # Errors
/// As [`programs`].
pub fn check(asked: &Seccomp) -> Result<(), Error> {
    match asked {
        Seccomp::Profile(text) => super::assemble::check(&parse(text)?).map(drop),
        Seccomp::None | Seccomp::Default => Ok(()),
    }
}

fn from_text(text: &str) -> Result<Program, Error> {
    cached(&parse(text)?, Cache::of_caller().as_ref())
}

/// Words by which podman and docker choose among rules; whoever passes them over gets other rules than were meant.
const ENGINE_WORDS: [&str; 4] = ["archMap", "includes", "excludes", "minKernel"];

fn parse(text: &str) -> Result<LinuxSeccomp, Error> {
    let wrong = |e: serde_json::Error| Error::Profile(format!("it is no seccomp object of the OCI runtime-spec: {e}"));
    let value: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
    let rules = value["syscalls"].as_array().into_iter().flatten();
    let says = |object: &serde_json::Value, word: &str| {
        let empty = |v: &serde_json::Value| v.as_object().is_some_and(serde_json::Map::is_empty);
        object.get(word).is_some_and(|v| !v.is_null() && !empty(v))
    };
    for object in rules.chain([&value]) {
        if let Some(word) = ENGINE_WORDS.into_iter().find(|word| says(object, word)) {
            return Err(Error::Profile(format!(
                "`{word}` is podman's and docker's word; give linux.seccomp of the config.json they make of it"
            )));
        }
    }
    let profile: LinuxSeccomp = serde_json::from_value(value).map_err(wrong)?;
    if super::assemble::check(&profile)? & seccomp::flag::NEW_LISTENER != 0 {
        return Err(Error::Profile("SCMP_ACT_NOTIFY is for container engines (`corebox oci`)".to_owned()));
    }
    Ok(profile)
}
