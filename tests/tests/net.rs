//! Networks of containers on two simulated nodes: what they carry, what is refused, and that nothing stays.

use corebox_tests::{Ended, Site, require_images, require_programs, skip, wait_until};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// One end serves, the other asks, by every address that the serving end has.
const ASK: &str = r#"
set -e
if [ "$(hostname)" = n2 ]; then
    ./nettool serve 5000 >serving &
    until grep -q ready serving; do usleep 10000; done
    ip -o addr show "$IF" | grep -v 'scope link' | sed 's,.*inet6* \([^/]*\)/.*,\1,' >addr.new
    mv addr.new addr
    if [ "$GROUPS_TOO" ]; then
        ./nettool join 239.7.7.7 5001 "$IF"
        ./nettool join ff15::7 5002 "$IF"
    fi
    until [ -e done ]; do usleep 10000; done
else
    until [ -s addr ]; do usleep 10000; done
    for a in $(cat addr); do
        for kind in ping "tcp" "udp" "mtu"; do
            if [ $kind = ping ]; then ./nettool ping "$a"; else ./nettool $kind "$a" 5000; fi
        done
    done
    if [ "$GROUPS_TOO" ]; then
        ./nettool send 239.7.7.7 5001 "$IF" >/dev/null & ./nettool send ff15::7 5002 "$IF" >/dev/null &
        wait
    fi
    : >done
fi
"#;

/// Two nodes with addresses of both families and the tool in the shared directory; or a SKIP line.
fn site(test: &str, images: &[&str]) -> Option<Site> {
    if !require_images(test, images) || !require_programs(test, &["gcc", "ip"]) {
        return None;
    }
    let site = Site::start().expect("starts");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/content/nettool.c");
    let tool = site.cluster.pfs().join("nettool");
    let built = Command::new("gcc").args(["-O2", "-static", "-w", "-o"]).arg(&tool).arg(source).output().expect("gcc");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    corebox_sys::fs::write(site.cluster.pfs().join("ask.sh"), ASK).expect("a script");
    for node in ["n1", "n2"] {
        let number = &node[1..];
        // A new network namespace takes its switches from the machine's.
        let off = "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0";
        site.shell(node, &format!("{off}; ip addr add fd77::{number}/64 dev eth0 nodad"));
    }
    Some(site)
}

/// `corebox run OPTIONS plain sh -c SCRIPT` on node n1.
fn run(site: &Site, options: &[&str], script: &str) -> Ended {
    command(site, options, script).output().expect("corebox runs").into()
}

fn command(site: &Site, options: &[&str], script: &str) -> Command {
    let mut command = site.cluster.node("n1").command(corebox_tests::corebox().expect("built"));
    command.arg("run").args(options).args(["plain", "sh", "-c", script]);
    command.current_dir(site.cluster.pfs()).stdin(Stdio::null());
    command
}

/// Nothing but empty lists is left on any node.
fn assert_clean(site: &Site) {
    for node in ["n1", "n2"] {
        let found = || {
            let left = site.cluster.node(node).leftovers().expect("the node can be entered");
            let left: Vec<String> = left.into_iter().filter(|line| !line.starts_with("file /run/corebox")).collect();
            let state = site.shell(
                node,
                "ls -A /run/corebox/net/owners 2>/dev/null; cat /run/corebox/net/*.json 2>/dev/null | grep -o '\"pid\".*'; \
                 ip route show proto 203; ip -6 route show proto 203",
            );
            (left, state)
        };
        let mut last = found();
        wait_until(Duration::from_secs(10), || {
            last = found();
            (last.0.is_empty() && last.1.trim().is_empty()).then_some(())
        });
        assert!(last.0.is_empty() && last.1.trim().is_empty(), "left on {node}: {last:?}");
    }
}

/// A job of two ranks, one asks the other.
fn carries(test: &str, net: &str, groups: bool) {
    let Some(site) = site(test, &["plain"]) else { return };
    let groups = if groups { "GROUPS_TOO=1" } else { "GROUPS_TOO=" };
    let options = ["--host", "n1:1,n2:1", "--pmi", "none", "--net", net, "-e", "IF=eth0", "-e", groups];
    let ended = site.run(&[&options[..], &["plain", "sh", "ask.sh"]].concat());
    assert_eq!(ended.code, 0, "{net}: {ended:?}");
    for (word, count) in [("OK ping", 2), ("OK tcp", 2), ("OK udp", 2), ("mtu 1500", 2)] {
        assert_eq!(ended.out.matches(word).count(), count, "{net}: {word}: {ended:?}");
    }
    if groups == "GROUPS_TOO=1" {
        assert_eq!(ended.out.matches("OK multicast").count(), 2, "{net}: {ended:?}");
    }
    assert_clean(&site);
}

#[test]
fn a_routed_veth_reaches_the_other_node() {
    carries("a_routed_veth_reaches_the_other_node", "veth", false);
}

#[test]
fn a_macvlan_reaches_the_other_node_and_its_groups() {
    carries("a_macvlan_reaches_the_other_node_and_its_groups", "macvlan", true);
}

#[test]
fn a_plain_veth_reaches_the_other_node_where_the_host_forwards() {
    let test = "a_plain_veth_reaches_the_other_node_where_the_host_forwards";
    let Some(site) = site(test, &["plain"]) else { return };
    let options =
        ["--host", "n1:1,n2:1", "--pmi", "none", "--net", "veth:plain", "-e", "IF=eth0", "plain", "sh", "ask.sh"];
    let refused = site.run(&options);
    assert!(refused.code == 125 && refused.err.contains("net.ipv4.conf.eth0.forwarding is 0"), "{refused:?}");
    for node in ["n1", "n2"] {
        site.shell(node, "sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv6.conf.all.forwarding=1");
    }
    let ended = site.run(&options);
    assert!(ended.code == 0 && ended.out.matches("OK ping").count() == 2, "{ended:?}");
    assert_clean(&site);
}

#[test]
fn ports_of_a_bridge_reach_each_other_and_the_host() {
    let Some(site) = site("ports_of_a_bridge_reach_each_other_and_the_host", &["plain"]) else { return };
    site.shell("n1", "ip link add br7 type bridge; ip addr add 10.7.0.254/24 dev br7; ip addr add fd07::fe/64 dev br7 nodad; ip link set br7 mtu 1400 up");
    let net = "veth:bridge=br7,address=10.7.0.1/24,address=fd07::1/64,name=lan0";
    let ended = run(&site, &["--net", net], "ip link show lan0; ./nettool ping 10.7.0.254; ./nettool ping fd07::fe");
    assert!(
        ended.code == 0 && ended.out.matches("OK ping").count() == 2 && ended.out.contains("mtu 1400"),
        "{ended:?}"
    );
    site.shell("n1", "ip link del br7");
    assert_clean(&site);
}

#[test]
fn host_and_container_reach_each_other_by_veth() {
    let Some(site) = site("host_and_container_reach_each_other_by_veth", &["plain"]) else { return };
    let script =
        "./nettool ping 10.77.0.1 && ./nettool ping fd77::1 && ip -o addr show eth0 && exec ./nettool serve 5000";
    let mut child = command(&site, &["--net", "veth"], script).stdout(Stdio::piped()).spawn().expect("corebox runs");
    let mut seen = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    while !seen.contains("ready") {
        assert!(std::io::BufRead::read_line(&mut out, &mut seen).expect("text") > 0, "{seen}");
    }
    assert_eq!(seen.matches("OK ping").count(), 2, "{seen}");
    let tool = site.cluster.pfs().join("nettool").display().to_string();
    for address in ["10.192.0.65", "fdc0:5eb0::a4d:1:1"] {
        assert!(seen.contains(address), "the first slot of node 10.77.0.1: {seen}");
        let said =
            site.shell("n1", &format!("{tool} ping {address}; {tool} tcp {address} 5000; {tool} udp {address} 5000"));
        assert_eq!(said.matches("OK").count(), 3, "{said}");
    }
    let stats = site.shell("n1", &format!("{} net stats --json", corebox_tests::corebox().expect("built").display()));
    assert!(stats.contains("\"rx_packets\"") && stats.contains("\"container\": \"plain\""), "{stats}");
    child.kill().expect("killed");
    child.wait().expect("ends");
    assert_clean(&site);
}

#[test]
fn several_interfaces_have_their_names_routes_and_resolver() {
    let Some(site) = site("several_interfaces_have_their_names_routes_and_resolver", &["plain"]) else { return };
    let second = "macvlan:private,name=hsn0,address=10.9.0.5/24,mac=02:00:00:00:00:55,mtu=1300,route=10.8.0.0/16@10.9.0.1,dns=10.9.0.53,search=site.example";
    let script = "ip link; ip route; cat /etc/resolv.conf /etc/hosts; echo $OMPI_MCA_btl_tcp_if_include";
    let ended = run(&site, &["--net", "veth", "--net", second, "--hostname", "box"], script);
    for word in [
        "02:00:00:00:00:55",
        "hsn0@",
        "mtu 1300",
        "10.8.0.0/16 via 10.9.0.1 dev hsn0",
        "default via 169.254.1.1 dev eth0",
        "nameserver 10.9.0.53",
        "search site.example",
        "10.9.0.5\tbox",
        "eth0,hsn0",
    ] {
        assert!(ended.code == 0 && ended.out.contains(word), "no `{word}`: {ended:?}");
    }
    assert_clean(&site);
}

#[test]
fn a_published_port_is_reached_from_outside() {
    let Some(site) = site("a_published_port_is_reached_from_outside", &["plain"]) else { return };
    let refused = run(&site, &["--net", "veth:publish=8080-5000"], "true");
    assert!(refused.code == 125 && refused.err.contains("net.ipv4.ip_forward is 0"), "{refused:?}");
    site.shell("n1", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let net = "veth:publish=8080-5000,publish=8080-5000/udp";
    let mut child =
        command(&site, &["--net", net], "exec ./nettool serve 5000").stdout(Stdio::piped()).spawn().expect("runs");
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().expect("a pipe")), &mut first)
        .expect("text");
    assert_eq!(first, "ready\n");
    let tool = site.cluster.pfs().join("nettool").display().to_string();
    for host in ["10.77.0.1", "fd77::1"] {
        let said = site.shell("n2", &format!("{tool} tcp {host} 8080; {tool} udp {host} 8080"));
        assert_eq!(said.matches("OK").count(), 2, "{host}: {said}");
    }
    child.kill().expect("killed");
    child.wait().expect("ends");
    let refused = || {
        let said = site.shell("n2", &format!("{tool} tcp 10.77.0.1 8080 2>&1 || true"));
        said.contains("refused").then_some(())
    };
    assert!(wait_until(Duration::from_secs(10), refused).is_some(), "the rules go with corebox");
    assert_clean(&site);
}

#[test]
fn a_lent_interface_comes_home_as_it_was() {
    let Some(site) = site("a_lent_interface_comes_home_as_it_was", &["plain"]) else { return };
    site.shell(
        "n1",
        "ip link add phys0 type veth peer name phys1; ip link set phys0 address 02:00:00:00:07:07 mtu 1450 up; ip link set phys1 up; \
         ip addr add 10.6.0.1/24 dev phys0; ip addr add fd06::1/64 dev phys0 nodad",
    );
    let look = "ip -o link show phys0 | grep -o 'mtu [0-9]*\\|link/ether [0-9a-f:]*\\|[<,]UP[,>]'; \
                ip -o addr show phys0 | grep -v fe80 | grep -o 'inet6* [^ ]*'; ip -o link show phys1 | grep -o 'phys1@phys0'";
    let before = site.shell("n1", look);
    let net = "phys:phys0,mtu=1400,mac=02:00:00:00:07:08,address=10.6.0.9/24";
    let ended = run(&site, &["--net", net], "ip -o addr; ip -o link");
    assert!(
        ended.code == 0 && ended.out.contains("10.6.0.9/24") && ended.out.contains("02:00:00:00:07:08"),
        "{ended:?}"
    );
    assert_eq!(site.shell("n1", look), before);
    // corebox killed: the sweeper brings it home
    let mut child = command(&site, &["--net", net], "echo up; sleep 100").stdout(Stdio::piped()).spawn().expect("runs");
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().expect("a pipe")), &mut first)
        .expect("text");
    assert_eq!(first, "up\n");
    site.shell("n1", "pkill -KILL -n -x corebox");
    child.wait().expect("ends");
    let mut last = String::new();
    wait_until(Duration::from_secs(10), || {
        last = site.shell("n1", &format!("{look} 2>/dev/null"));
        (last == before).then_some(())
    });
    assert_eq!(last, before);
    site.shell("n1", "ip link del phys0");
    assert_clean(&site);
}

#[test]
fn a_prepared_namespace_is_joined() {
    let Some(site) = site("a_prepared_namespace_is_joined", &["plain"]) else { return };
    site.shell("n1", "ip netns add made && ip -n made link set lo up && ip -n made addr add 10.5.5.5/32 dev lo");
    let ended = run(&site, &["--net", "netns:/run/netns/made"], "ip -o addr");
    assert!(ended.code == 0 && ended.out.contains("10.5.5.5") && !ended.out.contains("10.77"), "{ended:?}");
    let refused = run(&site, &["--net", "netns:/etc/hosts"], "true");
    assert!(refused.code == 125 && refused.err.contains("is no network namespace"), "{refused:?}");
    site.shell("n1", "ip netns del made; umount /run/netns; rmdir /run/netns; rm -rf /run/mount");
    assert_clean(&site);
}

#[test]
fn what_cannot_be_is_refused_with_nothing_made() {
    let Some(site) = site("what_cannot_be_is_refused_with_nothing_made", &["plain"]) else { return };
    for (nets, words) in [
        (&["macvlan:parent=nope"][..], "the host has no interface `nope`; it has lo, eth0"),
        (&["macvlan:parent=lo"], "is the loopback interface"),
        (&["veth:address=10.77.0.1/24"], "the address 10.77.0.1 is used by the host's interface `eth0`"),
        (&["veth:bridge=eth0"], "`eth0` is no bridge"),
        (&["veth:name=a-name-that-is-too-long"], "too long for the name of an interface"),
        (&["veth:mtu=9000"], "mtu=9000 is more than the 1500"),
        (&["veth:name=x", "veth:name=x"], "two interfaces are called `x`"),
        (&["host", "veth"], "stand alone"),
        (&["phys:lo"], "every namespace has its own"),
        (&["sriov:eth0"], "has no virtual functions"),
        (&["clutser"], "there is no network `clutser`"),
        (&["veth:vlan=5"], "a routed veth has no VLAN"),
        (&["netns:/run/netns/none"], "ENOENT"),
    ] {
        let options: Vec<&str> = nets.iter().flat_map(|net| ["--net", net]).collect();
        let ended = run(&site, &options, "true");
        assert!(ended.code == 125 && ended.err.contains(words), "{nets:?}: {ended:?}");
        assert_eq!(ended.err.matches("error: ").count(), 1, "{ended:?}");
    }
    let cores = run(&site, &["--net", "veth", "--net-cores", "4000"], "true");
    assert!(cores.code == 125 && cores.err.contains("CPU 4000 is not online"), "{cores:?}");
    site.shell("n1", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let six = run(&site, &["--net", "veth:address=fd05::1/64"], "true");
    assert!(six.code == 125 && six.err.contains("IPv6"), "{six:?}");
    let both = run(&site, &["--net", "veth"], "ip -o addr show eth0");
    assert!(both.code == 0 && !both.out.contains("fdc0"), "the built-in network does without: {both:?}");
    site.shell("n1", "sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
    assert_clean(&site);
}

/// A kernel without a kind says which.
#[test]
fn a_kernel_without_a_kind_is_told_so_by_name() {
    let Some(site) = site("a_kernel_without_a_kind_is_told_so_by_name", &["plain"]) else { return };
    let corebox = corebox_tests::corebox().expect("built").display().to_string();
    let check = site.shell("n1", &format!("{corebox} net check"));
    for kind in ["ipvlan", "netkit"] {
        let line = check.lines().find(|line| line.starts_with(kind)).unwrap_or_else(|| panic!("no {kind} in {check}"));
        let ended = run(&site, &["--net", kind], "ip -o link show eth0");
        if line.ends_with("works") {
            assert!(ended.code == 0 && ended.out.contains("eth0"), "{ended:?}");
        } else {
            assert!(
                ended.code == 125 && ended.err.contains(&format!("this kernel has no {kind} interfaces")),
                "{ended:?}"
            );
        }
    }
    assert_clean(&site);
}

#[test]
fn the_site_says_who_may_and_how_many() {
    let Some(site) = site("the_site_says_who_may_and_how_many", &["plain"]) else { return };
    let corebox = corebox_tests::corebox().expect("built").display().to_string();
    let file = "/run/corebox/networks.toml";
    let text =
        "[network.small]\nkind = \"veth\"\nsubnet = [\"10.66.0.0/30\"]\nusers = [\"alice\"]\nmax_rate = \"50m\"\n";
    site.shell("n1", &format!("mkdir -p /run/corebox && cat >{file} <<'X'\n{text}X"));
    if std::path::Path::new("/etc/corebox/networks.toml").exists() {
        skip!("the_site_says_who_may_and_how_many", "this machine has an /etc/corebox/networks.toml");
        return;
    }
    let nobody: Output = site
        .cluster
        .node("n1")
        .command_as(65534, &corebox)
        .args(["run", "--net", "small", "plain", "true"])
        .current_dir("/")
        .output()
        .expect("runs");
    let nobody = Ended::from(nobody);
    assert!(
        nobody.code == 125
            && nobody.err.contains("networks.toml:1: [network.small] is for users alice and groups nobody"),
        "{nobody:?}"
    );
    // two addresses of the /30, and no third
    let holding = |n: &str| {
        let mut child = command(&site, &["--name", n, "--net", "small"], "ip -o addr show eth0; echo up; sleep 100");
        let mut child = child.stdout(Stdio::piped()).spawn().expect("runs");
        let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
        let mut seen = String::new();
        while !seen.contains("up\n") {
            assert!(std::io::BufRead::read_line(&mut out, &mut seen).expect("text") > 0, "{seen}");
        }
        (child, seen)
    };
    let (mut one, first) = holding("one");
    let (mut two, second) = holding("two");
    assert!(first.contains("10.66.0.1") && second.contains("10.66.0.2"), "{first} {second}");
    let third = run(&site, &["--net", "small"], "true");
    assert!(
        third.code == 125 && third.err.contains("all 2 addresses of this node in network `small` are in use"),
        "{third:?}"
    );
    let qdisc = site.shell("n1", "tc qdisc show | grep -c 'tbf .*rate 50Mbit'");
    assert_eq!(qdisc.trim(), "2", "both host ends are limited");
    let shown =
        site.shell("n1", &format!("{corebox} net show small; {corebox} net ls; {corebox} net rm small 2>&1 || true"));
    assert!(shown.contains("10.66.0.1 by container `one`") && shown.contains("is in use: container"), "{shown}");
    // SIGKILL frees the address, once the container is gone
    one.kill().expect("killed");
    one.wait().expect("ends");
    let mut again = None;
    wait_until(Duration::from_secs(10), || {
        let ended = run(&site, &["--net", "small"], "ip -o addr show eth0");
        let free = ended.code == 0;
        again = Some(ended);
        free.then_some(())
    });
    assert!(again.as_ref().is_some_and(|ended| ended.out.contains("10.66.0.1")), "{again:?}");
    two.kill().expect("killed");
    two.wait().expect("ends");
    let made = site.shell("n1", &format!("{corebox} net create open macvlan:private --subnet 10.55.0.0/16 --user '*' && {corebox} net ls --json && {corebox} net rm open && {corebox} net rm small && cat {file}"));
    assert!(made.contains("\"name\": \"open\"") && !made.ends_with("small"), "{made}");
    assert_clean(&site);
}

fn job_over(test: &str, image: &str) {
    let Some(site) = site(test, &[image]) else { return };
    for net in ["veth", "macvlan"] {
        let gentle =
            ["-e", "OMPI_MCA_btl=self,vader,tcp", "-e", "OMPI_MCA_pml=ob1", "-e", "OMPI_MCA_mpi_yield_when_idle=1"];
        let ended =
            site.run(&[&["--net", net, "--host", "n1:1,n2:1"], &gentle[..], &[image, "mpitest", "check"]].concat());
        assert!(ended.code == 0 && ended.out.contains("OK check"), "{net}: {ended:?}");
    }
    assert_clean(&site);
}

#[test]
fn open_mpi_runs_over_veth_and_macvlan() {
    job_over("open_mpi_runs_over_veth_and_macvlan", "ompi4");
}

#[test]
fn mpich_runs_over_veth_and_macvlan() {
    job_over("mpich_runs_over_veth_and_macvlan", "mpich5");
}

/// `COREBOX_NET_CYCLES` (500 for the record in docs/benchmarks/network.md) containers per kind, each killed at another moment.
#[test]
fn nothing_stays_of_killed_containers() {
    let Some(site) = site("nothing_stays_of_killed_containers", &["plain"]) else { return };
    let cycles: u64 = std::env::var("COREBOX_NET_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let corebox = corebox_tests::corebox().expect("built").display().to_string();
    site.shell("n1", "ip link add br7 type bridge; ip link set br7 up; ip link add phys0 type veth peer name phys1; ip link set phys0 up");
    let look = "ip -o link show phys0 | grep -o 'link/ether [0-9a-f:]*'";
    let before = site.shell("n1", look);
    for net in ["veth", "veth:plain", "veth:bridge=br7", "macvlan", "phys:phys0", "veth:rate=1g"] {
        // One shell on the node for all cycles: N containers, killed after 0 to 80 ms, corebox or its init.
        let script = format!(
            "i=0; while [ $i -lt {cycles} ]; do i=$((i+1)); {corebox} run --net {net} plain sleep 100 >/dev/null 2>&1 & p=$!; \
             n=$(( (i * 7919) % 80 )); usleep=$(printf 0.%03d $n); sleep $usleep; \
             if [ $((i % 3)) = 0 ]; then pkill -KILL -x corebox-init -n; fi; kill -KILL $p; wait $p 2>/dev/null; \
             if [ {net} = phys:phys0 ]; then t=0; until ip link show phys0 >/dev/null 2>&1 || [ $t = 400 ]; do t=$((t+1)); sleep 0.01; done; fi; done"
        );
        site.shell("n1", &script);
    }
    // Killed between write and rename, which chance meets once in some thousand cycles.
    let _ = site.shell("n1", &format!(": >/run/corebox/net/owners/1-1.new; {corebox} net check"));
    let mut after = String::new();
    wait_until(Duration::from_secs(10), || {
        after = site.shell("n1", look);
        (after == before).then_some(())
    });
    assert_eq!(after, before, "the lent interface is home");
    site.shell("n1", "ip link del br7; ip link del phys0");
    assert_clean(&site);
}
