use super::*;

fn interface(text: &str) -> InterfaceSpec {
    match text.parse::<NetArgument>() {
        Ok(NetArgument::Interface(spec)) => *spec,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn reads_every_kind() {
    assert_eq!("host".parse(), Ok(NetArgument::Host));
    assert_eq!("none".parse(), Ok(NetArgument::None));
    assert_eq!("netns:/run/netns/a:b".parse(), Ok(NetArgument::Namespace("/run/netns/a:b".into())));
    assert_eq!(interface("veth"), InterfaceSpec::new(InterfaceKind::Veth));
    assert_eq!(interface("macvlan:private").kind, InterfaceKind::Macvlan(MacvlanMode::Private));
    assert_eq!(interface("macvlan:parent=eth1,mode=vepa").kind, InterfaceKind::Macvlan(MacvlanMode::Vepa));
    assert_eq!(interface("ipvlan:l3s,parent=ib0").kind, InterfaceKind::Ipvlan(IpvlanMode::L3s));
    assert_eq!(interface("phys:eth3").parent.as_deref(), Some("eth3"));
    let sriov = interface("sriov:eth1,vf=3,spoofchk=on,trust=off,vlan=7,rate=10g");
    assert_eq!(sriov.vf, VfSettings { number: Some(3), spoofchk: Some(true), trust: Some(false) });
    assert_eq!((sriov.vlan, sriov.rate), (Some(7), Some(10_000_000_000)));
    assert_eq!(interface("cluster-a:name=hsn0").kind, InterfaceKind::Named("cluster-a".into()));
}

#[test]
fn reads_addresses_of_both_families() {
    let spec = interface(
        "veth:bridge=br0,address=10.0.0.2/24,address=fd00::2/64,gateway=fd00::1,route=10.2.0.0/16@10.0.0.1,\
         mac=02:00:00:00:00:0A,mtu=9000,dns=10.0.0.53,search=site.example",
    );
    assert_eq!(spec.addresses.len(), 2);
    assert_eq!(spec.gateways, ["fd00::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(spec.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:0a"));
    assert_eq!((spec.mtu, spec.bridge.as_deref()), (Some(9000), Some("br0")));
}

#[test]
fn reads_published_ports() {
    let ports = |text: &str| text.parse::<Publish>().unwrap();
    assert_eq!(ports("80"), Publish { address: None, port: 80, inside: 80, udp: false });
    assert_eq!(ports("8080-80/udp"), Publish { address: None, port: 8080, inside: 80, udp: true });
    assert_eq!(ports("fd00::1@80").address, Some("fd00::1".parse().unwrap()));
}

#[test]
fn refuses_in_words() {
    for (text, word) in [
        ("host:x", "takes no options"),
        ("netns", "absolute path"),
        ("netns:relative", "absolute path"),
        ("phys", "names an interface"),
        ("phys:../../etc", "no name of an interface"),
        ("phys:0123456789abcdef", "too long"),
        ("veth:name=a/b", "no name of an interface"),
        ("veth:name=..", "no name of an interface"),
        ("veth:address=10.0.0.0/24", "station"),
        ("veth:address=10.0.0.255/24", "station"),
        ("veth:address=224.0.0.1/24", "station"),
        ("veth:address=10.0.0.1", "prefix length"),
        ("veth:address=", "no value"),
        ("veth:mac=01:00:00:00:00:00", "station"),
        ("veth:mac=02:00:00:00:00", "MAC"),
        ("veth:mtu=67", "68 to 65535"),
        ("veth:mtu=-1", "68 to 65535"),
        ("macvlan:vlan=4095", "1 to 4094"),
        ("veth:publish=0", "1 to 65535"),
        ("veth:publish=80/sctp", "tcp or udp"),
        ("macvlan:publish=80", "for veth"),
        ("macvlan:bridge=br0", "for veth"),
        ("veth:parent=eth0", "no parent"),
        ("veth:l2", "says nothing"),
        ("veth:vf=1", "for sriov"),
        ("veth:rate=7", "at least"),
        ("veth:rate=18446744073709551615g", "rate"),
        ("veth:route=10.0.0.0/8@fd00::1", "mixes"),
        ("veth:frobnicate=1", "no option"),
        ("../x", "neither"),
        ("", "neither"),
        ("veth:bridge=br0,nat", "routed veth"),
    ] {
        let error = text.parse::<NetArgument>().expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}
