//! What batch systems say about the allocation that a process runs in.
//!
//! Today: the nodes and slots of a Slurm, Grid Engine, PBS or LSF allocation, from the variables and files they give every
//! job. The SPANK plugin and the schedulers' own remote shells come with the scheduler issue.
#![forbid(unsafe_code)]

use corebox_spec::{Failure, HostSlots, parse_hostlist};
use corebox_sys::fs;

/// An allocation, as its scheduler describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// `Slurm`, `Grid Engine`, `PBS` or `LSF`.
    pub scheduler: &'static str,
    /// Nodes in the scheduler's order, each with its slots.
    pub hosts: Vec<HostSlots>,
}

/// The allocation that the variables describe; `None` outside of any.
///
/// `variable` looks up an environment variable.
///
/// # Errors
/// When a scheduler's variables are there but contradict themselves or name an unreadable file.
pub fn allocation(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Allocated>, Failure> {
    if let (Some(nodes), Some(tasks)) = (variable("SLURM_JOB_NODELIST"), variable("SLURM_TASKS_PER_NODE")) {
        return slurm(&nodes, &tasks).map(|hosts| Some(Allocated { scheduler: "Slurm", hosts }));
    }
    let file = |name: &str, scheduler: &'static str, read: fn(&str) -> Option<Vec<HostSlots>>| {
        variable(name).map(|path| from_file(&path, scheduler, read)).transpose()
    };
    if let Some(allocated) = file("PE_HOSTFILE", "Grid Engine", grid_engine)? {
        return Ok(Some(allocated));
    }
    if let Some(allocated) = file("PBS_NODEFILE", "PBS", pbs)? {
        return Ok(Some(allocated));
    }
    variable("LSB_MCPU_HOSTS").map(|text| lsf(&text).map(|hosts| Allocated { scheduler: "LSF", hosts })).transpose()
}

fn refused(scheduler: &str, cause: impl std::fmt::Display) -> Failure {
    Failure::new(format!("cannot read the {scheduler} allocation"), cause)
        .hint("name the nodes with --host or --hostfile.")
}

fn from_file(
    path: &str,
    scheduler: &'static str,
    read: fn(&str) -> Option<Vec<HostSlots>>,
) -> Result<Allocated, Failure> {
    let text = fs::read_to_string(path).map_err(|e| refused(scheduler, e))?;
    let hosts = read(&text).filter(|hosts| !hosts.is_empty());
    let hosts = hosts.ok_or_else(|| refused(scheduler, format!("{path} is not a host file of {scheduler}")))?;
    Ok(Allocated { scheduler, hosts })
}

/// `SLURM_TASKS_PER_NODE` is `2(x3),1`: 2 on each of three nodes, 1 on the next (srun(1)).
fn slurm(nodes: &str, tasks: &str) -> Result<Vec<HostSlots>, Failure> {
    let mut hosts = parse_hostlist(nodes).map_err(|e| refused("Slurm", format!("SLURM_JOB_NODELIST: {e}")))?;
    let mut slots = Vec::new();
    for part in tasks.split(',') {
        let (count, repeat) = match part.split_once("(x") {
            Some((count, repeat)) => (count, repeat.trim_end_matches(')')),
            None => (part, "1"),
        };
        let numbers = count.parse::<u32>().ok().zip(repeat.parse::<usize>().ok().filter(|n| *n <= hosts.len()));
        let (count, repeat) = numbers.ok_or_else(|| refused("Slurm", format!("SLURM_TASKS_PER_NODE `{tasks}`")))?;
        slots.extend(std::iter::repeat_n(count, repeat));
    }
    if slots.len() != hosts.len() {
        let cause = format!("SLURM_TASKS_PER_NODE `{tasks}` does not fit {} nodes", hosts.len());
        return Err(refused("Slurm", cause));
    }
    hosts.iter_mut().zip(slots).for_each(|(host, slots)| host.slots = Some(slots));
    Ok(hosts)
}

/// `HOST SLOTS QUEUE PROCESSORS` (sge_pe(5), pe_hostfile).
fn grid_engine(text: &str) -> Option<Vec<HostSlots>> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(HostSlots { host: words.next()?.to_owned(), slots: Some(words.next()?.parse().ok()?) })
    };
    text.lines().filter(|l| !l.trim().is_empty()).map(line).collect()
}

/// A line per slot, the same host on several lines (pbs_job environment, qsub(1)).
fn pbs(text: &str) -> Option<Vec<HostSlots>> {
    let mut hosts: Vec<HostSlots> = Vec::new();
    for name in text.lines().map(str::trim).filter(|name| !name.is_empty()) {
        match hosts.iter_mut().find(|known| known.host == name) {
            Some(known) => known.slots = known.slots.map(|slots| slots + 1),
            None => hosts.push(HostSlots { host: name.to_owned(), slots: Some(1) }),
        }
    }
    Some(hosts)
}

/// `HOST SLOTS HOST SLOTS …` (LSB_MCPU_HOSTS, bsub(1)).
fn lsf(text: &str) -> Result<Vec<HostSlots>, Failure> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let pair = |pair: &[&str]| match pair {
        [host, slots] => slots.parse().ok().map(|n| HostSlots { host: (*host).to_owned(), slots: Some(n) }),
        _ => None,
    };
    let hosts: Option<Vec<_>> = words.chunks(2).map(pair).collect();
    hosts.filter(|h| !h.is_empty()).ok_or_else(|| refused("LSF", format!("LSB_MCPU_HOSTS `{text}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(variables: &[(&str, &str)]) -> Result<Option<Vec<String>>, Failure> {
        let find = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        let text = |h: HostSlots| format!("{}:{}", h.host, h.slots.unwrap());
        Ok(allocation(find)?.map(|allocated| allocated.hosts.into_iter().map(text).collect()))
    }

    #[test]
    fn reads_each_schedulers_description() {
        let slurm =
            hosts(&[("SLURM_JOB_NODELIST", "n[1-3],gpu7"), ("SLURM_TASKS_PER_NODE", "2(x3),1")]).unwrap().unwrap();
        assert_eq!(slurm, ["n1:2", "n2:2", "n3:2", "gpu7:1"]);
        let lsf = hosts(&[("LSB_MCPU_HOSTS", "a 4 b 2")]).unwrap().unwrap();
        assert_eq!(lsf, ["a:4", "b:2"]);
        let slots = |h: Vec<HostSlots>| h.into_iter().map(|h| (h.host, h.slots.unwrap())).collect::<Vec<_>>();
        assert_eq!(
            slots(grid_engine("n1 2 all.q@n1 UNDEFINED\nn2 1 all.q@n2 <NULL>\n").unwrap()),
            [("n1".into(), 2), ("n2".into(), 1)]
        );
        assert_eq!(slots(pbs("n1\nn1\nn2\n").unwrap()), [("n1".into(), 2), ("n2".into(), 1)]);
        assert_eq!(hosts(&[]).unwrap(), None);
    }

    #[test]
    fn contradictions_are_refused() {
        for tasks in ["2", "2(x4)", "x", "2(x999999999999)"] {
            assert!(hosts(&[("SLURM_JOB_NODELIST", "n[1-3]"), ("SLURM_TASKS_PER_NODE", tasks)]).is_err(), "{tasks}");
        }
        assert!(hosts(&[("PE_HOSTFILE", "/nonexistent/hostfile")]).is_err());
        assert!(hosts(&[("LSB_MCPU_HOSTS", "a")]).is_err());
    }
}
