//! Virtual functions of SR-IOV interfaces: found in sysfs, set up through their physical function, lent like any other.

use crate::attach::{Sides, host_link};
use crate::plan::InterfacePlan;
use crate::{Error, Result, borrow, link};
use corebox_spec::network::VfSettings;
use corebox_sys::{Errno, fs};
use netlink_packet_route::link::{
    LinkAttribute, LinkVfInfo, VfInfo, VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan,
};
use std::path::{Path, PathBuf};

fn device(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface).join("device")
}

/// The interfaces of the virtual functions that are on the host now: (number, name).
fn free(parent: &str) -> Vec<(u32, String)> {
    let device = device(parent);
    let names = fs::list(&device).unwrap_or_default();
    let numbers = names.iter().filter_map(|name| name.strip_prefix("virtfn")?.parse::<u32>().ok());
    let interface = |number: u32| Some((number, fs::list(device.join(format!("virtfn{number}/net"))).ok()?.pop()?));
    let mut all: Vec<(u32, String)> = numbers.filter_map(interface).collect();
    all.sort();
    all
}

/// Refuses a parent without virtual functions, and one that has none left.
///
/// # Errors
/// [`Error::WrongInterface`], [`Error::Refused`].
pub fn check(parent: &str, settings: &VfSettings) -> Result<()> {
    choose(parent, settings).map(drop)
}

fn choose(parent: &str, settings: &VfSettings) -> Result<(u32, String)> {
    let Ok(count) = fs::read_to_string(device(parent).join("sriov_numvfs")) else {
        return Err(Error::WrongInterface {
            name: parent.to_owned(),
            what: "has no virtual functions: it is no SR-IOV interface, or its driver or the BIOS has it off".into(),
        });
    };
    if count.trim() == "0" {
        return Err(Error::refused(
            format!("`{parent}` has no virtual functions yet"),
            format!("your administrator makes some: echo 4 >/sys/class/net/{parent}/device/sriov_numvfs"),
        ));
    }
    let free = free(parent);
    let found = match settings.number {
        None => free.first().cloned(),
        Some(number) => free.iter().find(|(n, _)| *n == number).cloned(),
    };
    found.ok_or_else(|| {
        let asked =
            settings.number.map_or("no virtual function".to_owned(), |n| format!("virtual function {n} is not"));
        let count = count.trim();
        Error::refused(
            format!("{asked} free at `{parent}`, which has {count}"),
            "a container has it, or its driver is not the network's (vfio-pci); `ip link` shows what is here.",
        )
    })
}

/// Sets a virtual function up and lends it.
pub(crate) fn lend(sides: &mut Sides<'_>, parent: &str, settings: &VfSettings, plan: &InterfacePlan) -> Result<()> {
    let (number, name) = choose(parent, settings)?;
    let index = host_link(sides, parent)?;
    // Off is what a fresh function has: the next one to get it must not find this one's VLAN.
    let mut infos = vec![VfInfo::Vlan(VfInfoVlan::new(number, plan.vlan.unwrap_or(0).into(), 0))];
    infos.extend(plan.mac.map(|mac| VfInfo::Mac(VfInfoMac::new(number, &mac.0))));
    infos.extend(settings.spoofchk.map(|on| VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, on))));
    infos.extend(settings.trust.map(|on| VfInfo::Trust(VfInfoTrust::new(number, on))));
    // In Mbit/s, rounded up: 0 would mean no limit.
    let rate = plan.rate.map_or(0, |bits| bits.div_ceil(1_000_000).min(u32::MAX.into()) as u32);
    if rate > 0 {
        infos.push(VfInfo::Rate(VfInfoRate::new(number, 0, rate)));
    }
    // One at a time: what a driver does not have is then named.
    for info in infos {
        let optional = matches!(&info, VfInfo::Vlan(vlan) if vlan.vlan_id == 0);
        let set = link::set(
            &mut sides.host,
            index,
            vec![LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])])],
            "set up a virtual function of",
            parent,
        );
        match set {
            Err(error) if optional && error.errno == Errno::EOPNOTSUPP => {}
            other => other?,
        }
    }
    borrow::lend(sides, &name, &InterfacePlan { mac: None, ..plan.clone() })
}
