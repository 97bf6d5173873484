//! config.json, read.

use crate::step::Stop;
use corebox_sys::{Errno, fs};
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Larger ones are refused: podman's have some 20 KiB.
const LARGEST: usize = 16 << 20;

/// A bundle's configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// Absolute.
    pub(crate) bundle: PathBuf,
    /// As it was read, to be kept with the container: later changes of the file have no effect (runtime-spec,
    /// runtime.md, "create").
    pub(crate) text: Vec<u8>,
    pub(crate) spec: Spec,
    /// cgroups by systemd's slices (`--systemd-cgroup`).
    pub(crate) systemd_cgroup: bool,
}

impl Config {
    /// Reads `config.json` of a bundle.
    pub(crate) fn read(bundle: &Path, systemd_cgroup: bool) -> Result<Self, Stop> {
        let bundle = std::fs::canonicalize(bundle)
            .map_err(|e| corebox_sys::Error::io("open the bundle", bundle.display(), &e))?;
        let text = text(&bundle.join("config.json"))?;
        let spec = parse(&text, "config.json")?;
        Ok(Self { bundle, text, spec, systemd_cgroup })
    }
}

fn text(path: &Path) -> Result<Vec<u8>, Stop> {
    let text = fs::read(path).map_err(|error| {
        let missing = error.errno == Errno::ENOENT;
        let stop = Stop::from(error);
        if missing { stop.hint("`corebox oci spec` writes one to start from.") } else { stop }
    })?;
    if text.len() > LARGEST {
        return Err(Stop::new(format!("{} is larger than {LARGEST} bytes", path.display())));
    }
    Ok(text)
}

/// Reads JSON of this type; errors say where.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8], name: &str) -> Result<T, Stop> {
    // A list would be taken for the values of an object in order.
    if text.trim_ascii_start().first() == Some(&b'[') {
        return Err(Stop::new(format!("{name} is not valid: a list where an object is expected")));
    }
    serde_json::from_slice(text).map_err(|e| Stop::new(format!("{name} is not valid: {e}")))
}

/// The process of `exec --process FILE`.
pub(crate) fn process(path: &Path) -> Result<Process, Stop> {
    parse(&text(path)?, &path.display().to_string())
}
