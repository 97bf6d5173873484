//! Whatever dies: the right exit code, one clear message, and nothing left on any node 5 s later.

use corebox_tests::{Ended, Running, Site, require_images};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// The agent of a node: the oldest process of that name (its container's init is a younger fork of it).
const AGENT: &str = "pgrep -o -f 'corebox agent'";
/// The container's init: the process that is number 1 one level below the node.
const INIT: &str =
    "for p in /proc/[0-9]*; do awk '/^NSpid:/ && NF == 3 && $3 == 1 { print $2 }' $p/status 2>/dev/null; done";
/// A rank, by its program.
const RANK: &str = "pgrep -n -x mpitest";

/// A job of two ranks on two nodes that hangs after MPI_Init.
fn hanging<'a>(site: &'a Site, options: &[&str]) -> Running<'a> {
    let rest = [
        "--host",
        "n1:1,n2:1",
        "-e",
        "OMPI_MCA_btl=self,vader,tcp",
        "-e",
        "OMPI_MCA_pml=ob1",
        "ompi4",
        "mpitest",
        "hang",
    ];
    site.start_and_wait(&[options, &rest].concat(), "hangs", 2)
}

fn kill(site: &Site, node: &str, which: &str) {
    let pid = site.shell_until(node, which);
    assert!(pid.lines().count() == 1, "one process: {pid}");
    site.shell(node, &format!("kill -KILL {pid}"));
}

/// One message, with these words.
fn assert_said(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!(ended.err.matches("error: ").count(), 1, "one message: {ended:?}");
    for word in words {
        assert!(ended.err.contains(word), "no `{word}`: {ended:?}");
    }
}

fn site(test: &str) -> Option<Site> {
    require_images(test, &["ompi4"]).then(|| Site::start().expect("starts"))
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let Some(site) = site("a_killed_launcher_leaves_nothing") else { return };
    let job = hanging(&site, &[]);
    job.signal("KILL");
    assert_eq!(job.wait().0.code, 137);
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_killed_agent_ends_the_job_with_its_name() {
    let Some(site) = site("a_killed_agent_ends_the_job_with_its_name") else { return };
    let job = hanging(&site, &["--pids", "100"]);
    kill(&site, "n2", AGENT);
    let (ended, took) = job.wait();
    assert_said(&ended, 125, &["node n2 was lost"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_killed_init_ends_the_job_with_its_node() {
    let Some(site) = site("a_killed_init_ends_the_job_with_its_node") else { return };
    let job = hanging(&site, &[]);
    kill(&site, "n1", INIT);
    assert_said(&job.wait().0, 125, &["on n1", "first process", "SIGKILL"]);
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_killed_rank_decides() {
    let Some(site) = site("a_killed_rank_decides") else { return };
    let job = hanging(&site, &[]);
    kill(&site, "n2", RANK);
    assert_said(&job.wait().0, 137, &["rank 1", "on n2", "SIGKILL"]);
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_dead_node_ends_the_job_with_its_name() {
    let Some(site) = site("a_dead_node_ends_the_job_with_its_name") else { return };
    let job = hanging(&site, &[]);
    site.cluster.node("n2").kill().expect("dies");
    let (ended, took) = job.wait();
    assert_said(&ended, 125, &["node n2 was lost"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
    site.assert_clean(&["ctl", "n1"]);
}

#[test]
fn a_lost_link_ends_the_job_with_a_name() {
    let Some(site) = site("a_lost_link_ends_the_job_with_a_name") else { return };
    let job = hanging(&site, &[]);
    // the remote shell does not need this cable: what notices is the exchange between the agents
    site.cluster.node("n2").cut_link().expect("cuts");
    let (ended, took) = job.wait();
    assert_said(&ended, 125, &["was lost", "lost its connection"]);
    assert!(took < Duration::from_secs(12), "{took:?}");
    site.cluster.node("n2").restore_link().expect("mends");
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn ranks_that_fail_in_their_own_way() {
    let Some(site) = site("ranks_that_fail_in_their_own_way") else { return };
    let cases: [(&[&str], i32, &str); 6] = [
        (&["segv", "1"], 139, "SIGSEGV"),
        (&["exit", "3", "0"], 3, "code 3"),
        (&["abort", "7"], 7, "MPI_Abort"),
        (&["abort", "0"], 1, "MPI_Abort"),
        (&["nofinalize", "1"], 1, "MPI_Finalize"),
        (&["forkbomb", "5000"], 9, "code 9"),
    ];
    for (mode, code, word) in cases {
        let base = ["--pids", "60", "--host", "n1:1,n2:1", "-e", "OMPI_MCA_btl=self,vader,tcp", "ompi4", "mpitest"];
        let ended = site.run(&[&base, mode].concat());
        assert_said(&ended, code, &[word]);
        if mode[0] == "forkbomb" {
            assert!(ended.out.contains("Resource temporarily unavailable"), "the limit did not hold: {ended:?}");
        }
        site.assert_clean(&["ctl", "n1", "n2"]);
    }
}

#[test]
fn mpich_aborts_and_deaths_are_the_same() {
    let test = "mpich_aborts_and_deaths_are_the_same";
    if !require_images(test, &["mpich5"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let cases: [(&[&str], i32, &str); 4] = [
        (&["segv", "1"], 139, "SIGSEGV"),
        (&["exit", "3", "0"], 3, "code 3"),
        (&["abort", "7"], 7, "MPI_Abort"),
        (&["nofinalize", "1"], 1, "MPI_Finalize"),
    ];
    for (mode, code, word) in cases {
        let ended = site.run(&[&["--host", "n1:1,n2:1", "mpich5", "mpitest"], mode].concat());
        assert_said(&ended, code, &[word]);
    }
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_full_dev_shm_stays_inside() {
    let Some(site) = site("a_full_dev_shm_stays_inside") else { return };
    let options = ["--shm-size", "64M", "--host", "n1:1,n2:1", "-e", "OMPI_MCA_btl=self,vader,tcp"];
    let ended = site.run(&[&options[..], &["ompi4", "mpitest", "fillshm", "1000"]].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.out.matches("No space left on device").count(), 2, "{ended:?}");
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn an_agent_that_never_answers_is_named() {
    let Some(site) = site("an_agent_that_never_answers_is_named") else { return };
    let rsh = site.cluster.pfs().join("deaf");
    corebox_sys::fs::write(&rsh, "#!/bin/sh\nexec sleep 1000\n").expect("writes");
    std::fs::set_permissions(&rsh, PermissionsExt::from_mode(0o755)).expect("changes");
    let rsh = rsh.display().to_string();
    let ended = site.run(&["--rsh", &rsh, "--start-timeout", "1s", "--host", "n1:1,n2:1", "ompi4", "true"]);
    assert_said(&ended, 125, &["n1, n2", "1 s", "--start-timeout"]);
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn interrupts_end_the_job_and_a_second_one_at_once() {
    let Some(site) = site("interrupts_end_the_job_and_a_second_one_at_once") else { return };
    let job = hanging(&site, &[]);
    job.signal("INT");
    assert_eq!(job.wait().0.code, 130);
    site.assert_clean(&["ctl", "n1", "n2"]);
    // ranks that ignore what can be ignored live until the grace is over, or the second interrupt
    let stubborn = ["--grace", "60s", "--host", "n1:1,n2:1", "--pmi", "none", "ompi4", "sh", "-c"];
    let script = "trap '' INT TERM; echo stubborn; while :; do sleep 1; done";
    let job = site.start_and_wait(&[&stubborn[..], &[script]].concat(), "stubborn", 2);
    job.signal("INT");
    job.signal("INT");
    let (ended, took) = job.wait();
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_time_limit_ends_the_job() {
    let Some(site) = site("a_time_limit_ends_the_job") else { return };
    let options = ["--timeout", "3s", "--host", "n1:1,n2:1", "-e", "OMPI_MCA_btl=self,vader,tcp"];
    let ended = site.run(&[&options[..], &["ompi4", "mpitest", "hang"]].concat());
    assert_said(&ended, 124, &["--timeout 3 s"]);
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn a_reader_that_leaves_ends_the_job_quietly() {
    let Some(site) = site("a_reader_that_leaves_ends_the_job_quietly") else { return };
    let corebox = corebox_tests::corebox().expect("built");
    let script = format!(
        "cd {}; {{ {} mpirun --rsh {} --host n1:1,n2:1 --pmi none ompi4 yes; echo code $? >&2; }} | head -n 3",
        site.cluster.pfs().display(),
        corebox.display(),
        site.cluster.rsh().display()
    );
    let output = site.cluster.node("ctl").command("sh").args(["-c", &script]).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "y\ny\ny\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "code 141\n");
    site.assert_clean(&["ctl", "n1", "n2"]);
}
