//! What the container's files and environment must say about its network.

use crate::plan::NetworkPlan;
use corebox_spec::{Edits, EnvEdit, Mount, MountKind, Origin};
use std::fmt::Write as _;

const ORIGIN: &str = "--net";

impl NetworkPlan {
    /// `/etc/hosts`, `/etc/resolv.conf`, and the variables by which MPI libraries choose an interface.
    ///
    /// `others` are names that programs may look up (the job's nodes), as lines of hosts(5). With RDMA devices
    /// in the container, UCX keeps its own choice: naming an interface would keep it from using them.
    pub fn edits(&self, hostname: &str, others: &str, rdma: bool) -> Edits {
        if self.interfaces.is_empty() {
            return Edits::default();
        }
        let mut edits = Edits::default();
        edits.mounts.push(file("/etc/hosts", self.hosts(hostname, others)));
        if let Some(text) = self.resolver() {
            edits.mounts.push(file("/etc/resolv.conf", text));
        }
        let names: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let list = names.join(",");
        let mut variables = vec![("OMPI_MCA_btl_tcp_if_include", list.clone())];
        // libfabric's tcp provider and MPICH's own sockets take one interface.
        variables.extend([("FI_TCP_IFACE", names[0].to_owned()), ("MPIR_CVAR_NETWORK_IFACE", names[0].to_owned())]);
        if !rdma {
            variables.push(("UCX_NET_DEVICES", list));
        }
        edits.env = variables
            .into_iter()
            .map(|(name, value)| EnvEdit { name: name.to_owned(), value, origin: Origin(ORIGIN.to_owned()) })
            .collect();
        edits
    }

    fn hosts(&self, hostname: &str, others: &str) -> String {
        let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n");
        let mut addresses = self.interfaces.iter().flat_map(|interface| &interface.addresses).peekable();
        if addresses.peek().is_none() {
            let _ = writeln!(text, "127.0.0.1\t{hostname}");
        }
        for net in addresses {
            let _ = writeln!(text, "{}\t{hostname}", net.addr());
        }
        text.push_str(others);
        text
    }

    /// `None`: no interface names a server; then names are those of /etc/hosts.
    fn resolver(&self) -> Option<String> {
        let mut text = String::new();
        let search: Vec<&str> =
            self.interfaces.iter().flat_map(|interface| &interface.search).map(String::as_str).collect();
        if !search.is_empty() {
            let _ = writeln!(text, "search {}", search.join(" "));
        }
        for server in self.interfaces.iter().flat_map(|interface| &interface.dns) {
            let _ = writeln!(text, "nameserver {server}");
        }
        (!text.is_empty()).then_some(text)
    }
}

fn file(target: &str, content: String) -> Mount {
    Mount {
        target: target.to_owned(),
        kind: MountKind::File { content },
        read_only: true,
        devices: false,
        origin: Origin(ORIGIN.to_owned()),
    }
}
