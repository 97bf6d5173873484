//! What the site and the user say about sources of images: `images.toml`.
//!
//! ```toml
//! default-registry = "docker.io"          # where a name without a registry is looked for
//! search = ["registry.site.org/apps"]     # tried in this order instead of the default registry
//! parallel = 4                            # layers downloaded at once
//! retries = 5                             # after 429, 5xx and cut connections
//! retry-delay = "500ms"                   # doubled each time
//! stall = "60s"                           # a connection without a byte for so long is cut
//! lease = "60s"                           # a pull of another node without a sign of life for so long is taken over
//! max-unpacked = "256G"                   # what one layer or archive may have when unpacked
//!
//! [registry."registry.site.org:5000"]
//! http = true                             # plain http, for this registry only
//! ca = "/etc/ssl/site.pem"                # a root besides the system's
//! mirrors = ["mirror.site.org"]           # asked first, for pulls
//! ```
//!
//! The file is `$COREBOX_IMAGES_CONFIG` and no other, if that is set; else `/etc/corebox/images.toml` and then
//! `$XDG_CONFIG_HOME/corebox/images.toml` (`~/.config/…`), whose entries replace the site's.

use corebox_spec::{Failure, parse_duration, parse_size};
use corebox_sys::fs;
use nix::errno::Errno;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names the only configuration file.
pub const CONFIG_VARIABLE: &str = "COREBOX_IMAGES_CONFIG";
/// The site's file.
const SITE_FILE: &str = "/etc/corebox/images.toml";

/// The file as it is written; everything may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    default_registry: Option<String>,
    search: Option<Vec<String>>,
    parallel: Option<usize>,
    retries: Option<u32>,
    retry_delay: Option<String>,
    stall: Option<String>,
    lease: Option<String>,
    max_unpacked: Option<String>,
    #[serde(default)]
    registry: BTreeMap<String, RegistryConfig>,
}

/// What is said about one registry (`host[:port]`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistryConfig {
    /// Plain http instead of https.
    #[serde(default)]
    pub http: bool,
    /// A PEM file with roots to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// Registries (`host[:port]`) asked before this one, in order, for pulls.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where names without a registry are looked for: `host[:port][/path]`, in order; never empty.
    pub search: Vec<String>,
    /// Layers downloaded at once, 1 to 64.
    pub parallel: usize,
    /// How often a request is sent again.
    pub retries: u32,
    /// Wait before the first repetition; doubled each time.
    pub retry_delay: Duration,
    /// How long a connection may be silent.
    pub stall: Duration,
    /// How long a lease of another node may be silent.
    pub lease: Duration,
    /// Bytes that one layer or archive may have when unpacked.
    pub max_unpacked: u64,
    /// By `host[:port]`.
    pub registries: BTreeMap<String, RegistryConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            search: vec!["docker.io".to_owned()],
            parallel: 4,
            retries: 5,
            retry_delay: Duration::from_millis(500),
            stall: Duration::from_secs(60),
            lease: Duration::from_secs(60),
            max_unpacked: 256 << 30,
            registries: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads the configuration of the caller.
    ///
    /// # Errors
    /// A file that cannot be read or says something that is not understood. A file that is not there says nothing.
    pub fn load() -> Result<Self, Failure> {
        let mut config = Self::default();
        let goal = "cannot read the configuration of images";
        let only = std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let own = if only.is_none() { user_file() } else { None };
        let site = only.unwrap_or_else(|| SITE_FILE.into());
        for path in [Some(&site), own.as_ref()].into_iter().flatten() {
            match fs::read_to_string(path) {
                Ok(text) => config.add(&text).map_err(|cause| wrong(goal, path, &cause))?,
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => {}
                // HOME of a process that changed its user is another user's
                Err(error) if error.errno == Errno::EACCES && Some(path) == own.as_ref() => {}
                Err(error) => return Err(Failure::new(goal, error)),
            }
        }
        Ok(config)
    }

    /// Lays a file's entries over what is there.
    fn add(&mut self, text: &str) -> Result<(), String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let duration = |value: Option<String>, old: Duration| match value {
            Some(text) => parse_duration(&text).map_err(|error| error.to_string()),
            None => Ok(old),
        };
        if let Some(registry) = file.default_registry {
            self.search = vec![registry];
        }
        if let Some(search) = file.search.filter(|search| !search.is_empty()) {
            self.search = search;
        }
        self.parallel = file.parallel.unwrap_or(self.parallel).clamp(1, 64);
        self.retries = file.retries.unwrap_or(self.retries);
        self.retry_delay = duration(file.retry_delay, self.retry_delay)?;
        self.stall = duration(file.stall, self.stall)?;
        self.lease = duration(file.lease, self.lease)?;
        if let Some(size) = file.max_unpacked {
            self.max_unpacked = parse_size(&size).map_err(|error| error.to_string())?;
        }
        self.registries.extend(file.registry);
        Ok(())
    }

    /// What is said about a registry; nothing is the default.
    pub(crate) fn registry(&self, name: &str) -> RegistryConfig {
        self.registries.get(name).cloned().unwrap_or_default()
    }
}

fn wrong(goal: &str, path: &Path, cause: &str) -> Failure {
    Failure::new(goal, format!("{}: {cause}", path.display())).hint("docs/manual.md names all entries of images.toml")
}

/// `$XDG_CONFIG_HOME/corebox/images.toml`, else `~/.config/corebox/images.toml`.
fn user_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("corebox/images.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_replace_earlier_ones() {
        let mut config = Config::default();
        config.add("search = ['a', 'b/c']\nretry-delay = '1s'\n[registry.'a:5000']\nhttp = true").unwrap();
        config.add("default-registry = 'd'\nmax-unpacked = '1G'\n[registry.a]\nmirrors = ['m']").unwrap();
        assert_eq!(config.search, ["d"]);
        assert_eq!((config.retry_delay, config.max_unpacked), (Duration::from_secs(1), 1 << 30));
        assert!(config.registry("a:5000").http && !config.registry("a").http);
        assert_eq!(config.registry("a").mirrors, ["m"]);
        assert_eq!(config.registry("other"), RegistryConfig::default());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, named) in
            [("serach = []", "serach"), ("lease = 'soon'", "soon"), ("[registry.a]\ninsecure = 1", "insecure")]
        {
            let said = Config::default().add(text).unwrap_err();
            assert!(said.contains(named), "{text}: {said}");
        }
    }
}
