//! The site's networks and who may use them: `/etc/corebox/networks.toml`, else `/run/corebox/networks.toml`.
//!
//! ```toml
//! [network.cluster]
//! kind = "macvlan"                             # veth, macvlan, ipvlan, netkit, phys, sriov, with options as in --net
//! options = "parent=eth1,vlan=7"
//! subnet = ["10.200.0.0/16", "fd12::/64"]      # each node's containers get a share of it
//! per_node = 62
//! gateway = ["10.200.255.254"]
//! users = ["alice"]                            # without users and groups: root only
//! groups = ["hpc"]                             # "*": everybody
//! max_rate = "10g"
//! ```

use crate::{Error, Result};
use corebox_spec::network::{InterfaceKind, InterfaceSpec, NetArgument, parse_rate};
use corebox_sys::fs;
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the file is looked for, in this order. What the administrator wrote wins over what a boot script did.
pub const FILES: [&str; 2] = ["/etc/corebox/networks.toml", "/run/corebox/networks.toml"];
/// The network of `--net veth` and the like, where the site has no `[network.default]`.
pub const DEFAULT: &str = "default";
/// Its addresses: RFC 1918 and RFC 4193 space that neither Docker (172.17/16) nor Podman (10.88/16) use.
const DEFAULT_SUBNETS: [&str; 2] = ["10.192.0.0/10", "fdc0:5eb0::/64"];
/// Containers per node that a share has room for.
const DEFAULT_PER_NODE: u32 = 62;

/// The site's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The file they are from; `None`: there is none.
    pub file: Option<PathBuf>,
    /// By name.
    pub networks: BTreeMap<String, Network>,
}

/// One network of the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its interfaces.
    pub interface: InterfaceSpec,
    /// Its addresses.
    pub subnets: Vec<IpNet>,
    /// Containers per node.
    pub per_node: u32,
    /// Who may use it, as written.
    pub users: Vec<String>,
    /// Members of these groups may, too.
    pub groups: Vec<String>,
    /// What a container may send at most, in bits per second.
    pub max_rate: Option<u64>,
    /// The line of the file that it begins in.
    pub line: usize,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Login name, where there is one.
    pub user: Option<String>,
    /// Names of the groups.
    pub groups: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    network: BTreeMap<String, toml::Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: String,
    #[serde(default)]
    options: String,
    #[serde(default)]
    subnet: Vec<IpNet>,
    per_node: Option<u32>,
    #[serde(default)]
    gateway: Vec<IpAddr>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    max_rate: Option<String>,
}

impl Site {
    /// Reads the site's file; a site without one has only the built-in network.
    ///
    /// # Errors
    /// [`Error::Config`] with file and line; a file that others than root could have written.
    pub fn read() -> Result<Self> {
        match FILES.iter().map(Path::new).find(|file| file.exists()) {
            Some(file) => Self::read_file(file),
            None => Ok(Self::default()),
        }
    }

    /// Reads a file. It decides who may do what: nobody but root or the caller may have written it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_file(file: &Path) -> Result<Self> {
        let place = |reason: String| Error::Config { place: file.display().to_string(), reason };
        let meta = std::fs::metadata(file).map_err(|e| place(e.to_string()))?;
        let (uid, _) = corebox_sys::user::ids();
        if (meta.uid() != 0 && meta.uid() != uid) || meta.mode() & 0o022 != 0 {
            return Err(place("others than root may write it; it is not believed".into()));
        }
        let mut site = Self::parse(&fs::read_to_string(file)?, &file.display().to_string())?;
        site.file = Some(file.to_path_buf());
        Ok(site)
    }

    /// Reads the text of a file called `name`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let line_of = |offset: usize| text.get(..offset).unwrap_or("").matches('\n').count() + 1;
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| line_of(span.start)).unwrap_or(1);
            Error::Config { place: format!("{name}:{line}"), reason: e.message().to_owned() }
        })?;
        let mut site = Self::default();
        for (network, entry) in file.network {
            let line = line_of(entry.span().start);
            let place = |reason: String| Error::Config {
                place: format!("{name}:{line}"),
                reason: format!("network `{network}`: {reason}"),
            };
            site.networks.insert(network.clone(), entry.into_inner().checked(&network, line).map_err(place)?);
        }
        Ok(site)
    }

    /// The network of this name; the built-in one for [`DEFAULT`].
    ///
    /// # Errors
    /// [`Error::UnknownNetwork`].
    pub fn network(&self, name: &str) -> Result<Network> {
        match self.networks.get(name) {
            Some(network) => Ok(network.clone()),
            None if name == DEFAULT => Ok(built_in()),
            None => {
                let names: Vec<&str> = self.networks.keys().map(String::as_str).collect();
                let there = if names.is_empty() {
                    "this site has none".into()
                } else {
                    format!("this site has {}", names.join(", "))
                };
                Err(Error::UnknownNetwork { name: name.to_owned(), there })
            }
        }
    }

    /// Refuses who may not.
    ///
    /// # Errors
    /// [`Error::Policy`], with the line that says no.
    pub fn permit(&self, name: &str, network: &Network, caller: &Caller, wanted: &InterfaceSpec) -> Result<()> {
        let refused = |reason: String| {
            let file =
                self.file.as_ref().map(|file| format!("{}:{}: ", file.display(), network.line)).unwrap_or_default();
            Err(Error::Policy { wanted: format!("network `{name}`"), line: format!("{file}{reason}") })
        };
        if caller.uid == 0 {
            return Ok(());
        }
        if !self.networks.contains_key(name) {
            return refused("the site names no network for it; without one it is for root only".into());
        }
        let user = caller.user.as_deref().unwrap_or("");
        let by_user = network.users.iter().any(|allowed| allowed == "*" || (allowed == user && !user.is_empty()));
        let by_group = network.groups.iter().any(|allowed| allowed == "*" || caller.groups.contains(allowed));
        if !by_user && !by_group {
            let list = |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            return refused(format!(
                "[network.{name}] is for users {} and groups {}",
                list(&network.users),
                list(&network.groups)
            ));
        }
        match (network.max_rate, wanted.rate) {
            (Some(limit), Some(rate)) if rate > limit => {
                refused(format!("[network.{name}] max_rate is {limit} bit/s, asked for were {rate}"))
            }
            _ => Ok(()),
        }
    }
}

fn built_in() -> Network {
    Network {
        interface: InterfaceSpec::new(InterfaceKind::Veth),
        subnets: DEFAULT_SUBNETS.iter().filter_map(|net| net.parse().ok()).collect(),
        per_node: DEFAULT_PER_NODE,
        users: Vec::new(),
        groups: Vec::new(),
        max_rate: None,
        line: 0,
    }
}

impl Entry {
    fn checked(self, name: &str, line: usize) -> std::result::Result<Network, String> {
        let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !good || name.is_empty() || name.len() > 64 || name.starts_with(['.', '-']) {
            return Err("its name may have letters, digits, `-`, `_` and `.`".into());
        }
        let text = if self.options.is_empty() { self.kind.clone() } else { format!("{}:{}", self.kind, self.options) };
        let mut interface = match text.parse::<NetArgument>().map_err(|e| e.to_string())? {
            NetArgument::Interface(spec) if !matches!(spec.kind, InterfaceKind::Named(_)) => *spec,
            _ => return Err(format!("kind `{}` is none of veth, macvlan, ipvlan, netkit, phys, sriov", self.kind)),
        };
        interface.network = Some(name.to_owned());
        interface.gateways.extend(self.gateway);
        interface.dns.extend(self.dns);
        interface.search.extend(self.search);
        let families = |v4: bool| self.subnet.iter().filter(|net| net.addr().is_ipv4() == v4).count();
        if families(true) > 1 || families(false) > 1 {
            return Err("subnet: one of each family".into());
        }
        Ok(Network {
            interface,
            subnets: self.subnet.iter().map(IpNet::trunc).collect(),
            per_node: self.per_node.unwrap_or(DEFAULT_PER_NODE).clamp(1, 1 << 20),
            users: self.users,
            groups: self.groups,
            max_rate: self.max_rate.map(|rate| parse_rate(&rate)).transpose().map_err(|e| e.to_string())?,
            line,
        })
    }
}

impl Caller {
    /// The process itself.
    ///
    /// # Errors
    /// What the name service says.
    pub fn this() -> Result<Self> {
        let (uid, gid) = corebox_sys::user::ids();
        let user = corebox_sys::user::account(uid)?.map(|account| account.name);
        let mut ids = corebox_sys::user::supplementary_groups()?;
        ids.push(gid);
        let mut groups = Vec::new();
        for id in ids {
            groups.extend(corebox_sys::user::group_name(id)?);
        }
        Ok(Self { uid, user, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[network.cluster]
kind = "macvlan"
options = "parent=eth1,vlan=7"
subnet = ["10.200.3.0/16", "fd12::/64"]
gateway = ["10.200.255.254"]
users = ["alice"]
groups = ["hpc"]
max_rate = "10g"

[network.open]
kind = "veth"
users = ["*"]
"#;

    fn caller(user: &str, groups: &[&str]) -> Caller {
        Caller { uid: 1000, user: Some(user.into()), groups: groups.iter().map(|g| (*g).to_owned()).collect() }
    }

    #[test]
    fn reads_networks_and_says_who_may() {
        let site = Site::parse(TEXT, "networks.toml").unwrap();
        let cluster = site.network("cluster").unwrap();
        assert_eq!((cluster.line, cluster.interface.vlan, cluster.max_rate), (2, Some(7), Some(10_000_000_000)));
        assert_eq!(cluster.subnets[0].to_string(), "10.200.0.0/16");
        let wanted = cluster.interface.clone();
        for (caller, may) in
            [(caller("alice", &[]), true), (caller("bob", &["hpc"]), true), (caller("bob", &["users"]), false)]
        {
            assert_eq!(site.permit("cluster", &cluster, &caller, &wanted).is_ok(), may, "{caller:?}");
        }
        let error = site.permit("cluster", &cluster, &caller("bob", &[]), &wanted).unwrap_err().to_string();
        assert!(error.contains("[network.cluster] is for users alice and groups hpc"), "{error}");
        let open = site.network("open").unwrap();
        assert!(site.permit("open", &open, &caller("anybody", &[]), &open.interface).is_ok());
        let fast = InterfaceSpec { rate: Some(11_000_000_000), ..wanted };
        assert!(site.permit("cluster", &cluster, &caller("alice", &[]), &fast).is_err());
    }

    #[test]
    fn an_account_without_a_name_is_nobody() {
        let site = Site::parse("[network.a]\nkind = \"veth\"\nusers = [\"\"]\n", "x").unwrap();
        let network = site.network("a").unwrap();
        let nameless = Caller { uid: 7, user: None, groups: Vec::new() };
        assert!(site.permit("a", &network, &nameless, &network.interface).is_err());
        let default = site.network(DEFAULT).unwrap();
        assert!(site.permit(DEFAULT, &default, &nameless, &default.interface).is_err());
    }

    #[test]
    fn refuses_with_the_line() {
        for (text, words) in [
            ("[network.a]\nkind = \"host\"\n", "x:1: network `a`: kind `host`"),
            ("\n[network.a]\nkind = \"macvlan\"\noptions = \"frob=1\"\n", "x:2: network `a`: `frob` is no option"),
            ("[network.a]\nkind = \"veth\"\ncolour = 1\n", "unknown field `colour`"),
            ("[network.\"../a\"]\nkind = \"veth\"\n", "its name may have"),
            ("[network.a]\nkind = \"veth\"\nsubnet = [\"10.0.0.0/8\", \"11.0.0.0/8\"]\n", "one of each family"),
            ("[network", "x:1"),
        ] {
            let error = Site::parse(text, "x").unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(Site::default().network("z").unwrap_err().to_string().contains("this site has none"));
    }
}
