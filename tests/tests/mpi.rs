//! MPI jobs as users run them: right answers from every MPI, one container per node, one core per rank, exact streams.

use corebox_tests::{Cluster, Site, Snapshot, program, require_images, require_programs, skip, wait_until};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

/// Four spinning ranks on two real cores must yield, and nothing here is worth probing but shared memory and TCP (`vader` is
/// what Open MPI 4 calls `sm`, and an alias in 5).
const GENTLE: [&str; 6] =
    ["-e", "OMPI_MCA_mpi_yield_when_idle=1", "-e", "OMPI_MCA_btl=self,vader,tcp", "-e", "OMPI_MCA_pml=ob1"];

fn with<'a>(options: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [options, &GENTLE, rest].concat()
}

/// The right answers of `image`, `ranks` ranks on each of two nodes.
fn answers(test: &str, image: &str, ranks: u32) {
    if !require_images(test, &[image]) {
        return;
    }
    let site = Site::start().expect("starts");
    let hosts = format!("n1:{ranks},n2:{ranks}");
    let ended = site.run(&with(&["--host", &hosts], &[image, "mpitest", "check"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains("OK check"), "{ended:?}");
    for rank in 0..2 * ranks {
        let line =
            format!("rank {rank} size {} local {} of {ranks} host n{}", 2 * ranks, rank % ranks, rank / ranks + 1);
        assert!(ended.out.contains(&line), "no `{line}` in {ended:?}");
    }
    let ended = site.run(&with(&["--host", "n1:1,n2:1"], &[image, "mpitest", "bandwidth", "8", "1048576"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    site.assert_clean(&["n1", "n2", "ctl"]);
}

#[test]
fn open_mpi_4_of_debian_answers_right() {
    answers("open_mpi_4_of_debian_answers_right", "ompi4", 2);
}

#[test]
fn open_mpi_5_of_pypi_answers_right() {
    answers("open_mpi_5_of_pypi_answers_right", "ompi5", 2);
}

/// MPICH 4.0.2 over UCX 1.13 and TCP can hang in MPI_Finalize, under its own launcher too (pmodels/mpich#6596): between
/// nodes the answers count, which come before, and a time limit may end the job. Inside a node it must end by itself.
#[test]
fn mpich_4_of_debian_answers_right() {
    let test = "mpich_4_of_debian_answers_right";
    if !require_images(test, &["mpich4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let inside = site.run(&["--host", "n1:2", "mpich4", "mpitest", "check"]);
    assert!(inside.code == 0 && inside.out.contains("OK check"), "{inside:?}");
    let between = site.run(&["--timeout", "30s", "--host", "n1:1,n2:1", "mpich4", "mpitest", "check"]);
    assert!([0, 124].contains(&between.code) && between.out.contains("OK check"), "{between:?}");
    site.assert_clean(&["n1", "n2", "ctl"]);
}

#[test]
fn mpich_5_of_pypi_answers_right() {
    answers("mpich_5_of_pypi_answers_right", "mpich5", 2);
}

#[test]
fn mpi4py_answers_right() {
    let test = "mpi4py_answers_right";
    if !require_images(test, &["ompi5", "mpich5"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let script = "from mpi4py import MPI; w = MPI.COMM_WORLD; s = w.allreduce(w.rank + 1); \
                  assert s == w.size * (w.size + 1) // 2, s; w.Barrier(); print('sum', s)";
    for image in ["ompi5", "mpich5"] {
        let ended = site.run(&with(&["--host", "n1:2,n2:2"], &[image, "python3", "-c", script]));
        assert_eq!((ended.code, ended.out.matches("sum 10\n").count()), (0, 4), "{image}: {ended:?}");
    }
}

#[test]
fn the_host_needs_no_mpi() {
    let found: Vec<_> =
        ["mpirun", "mpiexec", "orted", "prterun", "hydra_pmi_proxy"].into_iter().filter_map(program).collect();
    if found.is_empty() {
        let libraries = std::process::Command::new("/sbin/ldconfig").arg("-p").output().expect("ldconfig runs").stdout;
        let libraries = String::from_utf8_lossy(&libraries).into_owned();
        assert!(!libraries.contains("libmpi.so") && !libraries.contains("libmpich.so"), "{libraries}");
    } else {
        skip!("the_host_needs_no_mpi", "this host has an MPI: {found:?}");
    }
}

#[test]
fn one_container_per_node_whatever_the_number_of_ranks() {
    let test = "one_container_per_node_whatever_the_number_of_ranks";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let before = Snapshot::take(&site.cluster.node("n1")).expect("looks");
    for ranks in ["1", "4", "64"] {
        let count: usize = ranks.parse().expect("a number");
        let arguments = [
            "--host",
            "n1",
            "-n",
            ranks,
            "--oversubscribe",
            "--pmi",
            "none",
            "plain",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ];
        let job = site.start_and_wait(&arguments, "up", count);
        let during = Snapshot::take(&site.cluster.node("n1")).expect("looks");
        for kind in ["user-namespace", "mnt-namespace"] {
            assert_eq!(during.count(kind), before.count(kind) + 1, "{ranks} ranks, {kind}");
        }
        job.signal("TERM");
        assert_eq!(job.wait().0.code, 143);
        site.assert_clean(&["n1", "ctl"]);
    }
}

#[test]
fn ranks_see_each_others_memory_and_descriptors() {
    let test = "ranks_see_each_others_memory_and_descriptors";
    if !require_images(test, &["ompi4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let ended = site.run(&with(&["--host", "n1", "-n", "4", "--oversubscribe"], &["ompi4", "mpitest", "cma"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains("OK cma"), "{ended:?}");
}

#[test]
fn ranks_are_bound_as_planned() {
    let test = "ranks_are_bound_as_planned";
    if !require_images(test, &["ompi4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let job = with(&["--host", "n1:2,n2:2"], &["ompi4", "mpitest", "binding"]);
    let planned = site.run(&[&["--plan"], job.as_slice()].concat());
    let plan: serde_json::Value = serde_json::from_str(&planned.out).expect("JSON");
    let ended = site.run(&job);
    let mut cores = BTreeSet::new();
    for node in plan["nodes"].as_array().expect("nodes") {
        for rank in node["ranks"].as_array().expect("ranks") {
            let text = |value: &serde_json::Value| value.as_str().expect("an idset").to_owned();
            let (cpus, mems) = (text(&rank["binding"]["cpus"]), text(&rank["binding"]["mems"]));
            let line = format!("rank {} cpus {cpus} mems {mems}", rank["rank"]);
            assert!(ended.out.contains(&line), "no `{line}` in {ended:?}");
            assert!(cores.insert((node["node"].to_string(), cpus)), "a core twice: {planned:?}");
        }
    }
    assert_eq!((cores.len(), ended.code), (4, 0));
}

#[test]
fn more_ranks_than_cores_need_a_word() {
    let test = "more_ranks_than_cores_need_a_word";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let job = ["--host", "n1", "-n", "300", "--pmi", "none", "plain", "true"];
    let refused = site.run(&job);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.err.contains("--oversubscribe"), "{refused:?}");
    let allowed = site.run(&[&["--oversubscribe"], job.as_slice()].concat());
    assert_eq!(allowed.code, 0, "{allowed:?}");
}

#[test]
fn standard_input_reaches_rank_0_whole() {
    let test = "standard_input_reaches_rank_0_whole";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let arguments = ["--host", "n1:1,n2:1", "--pmi", "none", "plain", "sh", "-c", "md5sum"];
    let mut command = site.mpirun(&arguments).expect("built");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut input = child.stdin.take().expect("a pipe");
    let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    for _ in 0..20 {
        input.write_all(&block).expect("is read");
    }
    drop(input);
    let out = String::from_utf8(child.wait_with_output().expect("ends").stdout).expect("text");
    let sums: BTreeSet<&str> = out.lines().collect();
    let whole = format!("{}  -", md5_of_blocks(&block, 20));
    assert_eq!(sums, BTreeSet::from([whole.as_str(), "d41d8cd98f00b204e9800998ecf8427e  -"]));
}

/// md5sum(1) of `count` blocks.
fn md5_of_blocks(block: &[u8], count: usize) -> String {
    let mut child =
        std::process::Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum");
    let mut input = child.stdin.take().expect("a pipe");
    (0..count).for_each(|_| input.write_all(block).expect("is read"));
    drop(input);
    let out = child.wait_with_output().expect("ends").stdout;
    String::from_utf8_lossy(&out).split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn lines_are_never_torn() {
    let test = "lines_are_never_torn";
    if !require_images(test, &["ompi4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let ended = site.run(&with(&["--host", "n1:2,n2:2"], &["ompi4", "mpitest", "output", "4000000"]));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let mut next = [0u64; 4];
    for line in ended.out.lines().filter(|line| line.len() == 79) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!((words.len(), words[0], words[2]), (5, "rank", "line"), "torn: {line}");
        let rank: usize = words[1].parse().expect("a rank");
        let number: u64 = words[3].parse().expect("a number");
        assert_eq!(number, next[rank], "rank {rank} lost or moved a line");
        next[rank] += 1;
    }
    assert_eq!(ended.out.len(), 4 * 4_000_000);
}

#[test]
fn a_gigabyte_of_output_arrives() {
    let test = "a_gigabyte_of_output_arrives";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let arguments =
        ["--host", "n1:1,n2:1", "--pmi", "none", "plain", "sh", "-c", "yes 0123456789abcdef | head -c 500000000"];
    let mut command = site.mpirun(&arguments).expect("built");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let count = std::io::copy(&mut child.stdout.take().expect("a pipe"), &mut std::io::sink()).expect("reads");
    assert_eq!((count, child.wait().expect("ends").code()), (1_000_000_000, Some(0)));
}

#[test]
fn output_is_tagged_or_filed() {
    let test = "output_is_tagged_or_filed";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let job = ["--host", "n1:1,n2:1", "--pmi", "none", "plain", "sh", "-c", "echo out; echo err >&2; printf tail"];
    let tagged = site.run(&[&["--tag-output"], job.as_slice()].concat());
    let lines: BTreeSet<&str> = tagged.out.lines().collect();
    assert_eq!(lines, BTreeSet::from(["[0] out", "[1] out", "[0] tail", "[1] tail"]));
    assert_eq!(tagged.err.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["[0] err", "[1] err"]));
    let filed = site.run(&[&["--output", "logs"], job.as_slice()].concat());
    assert_eq!((filed.code, filed.out.as_str(), filed.err.as_str()), (0, "", ""));
    let read = |name: &str| corebox_sys::fs::read(site.cluster.pfs().join("logs").join(name)).expect("is there");
    assert_eq!((read("rank.1.out"), read("rank.0.err")), (b"out\ntail".to_vec(), b"err\n".to_vec()));
}

#[test]
fn several_programs_make_one_job() {
    let test = "several_programs_make_one_job";
    if !require_images(test, &["ompi4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let mut job = with(&["--host", "n1:2,n2:2", "-n", "1"], &["ompi4", "mpitest", "check"]);
    job.extend([":", "-n", "3", "-e", "X=second", "sh", "-c", "echo $X; exec mpitest check"]);
    let ended = site.run(&job);
    assert_eq!((ended.code, ended.out.matches("second\n").count()), (0, 3), "{ended:?}");
    assert!(ended.out.contains("rank 3 size 4"), "{ended:?}");
}

#[test]
fn threads_are_told_their_cores() {
    let test = "threads_are_told_their_cores";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let script = "echo $OMP_NUM_THREADS $OMP_PLACES; grep Cpus_allowed_list /proc/self/status";
    let ended =
        site.run(&["--host", "n1", "--cpus-per-rank", "2", "-n", "1", "--pmi", "none", "plain", "sh", "-c", script]);
    let allowed = ended.out.lines().nth(1).and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.starts_with("2 {"), "{ended:?}");
    assert!(allowed.contains('-') || allowed.contains(','), "two cores: {ended:?}");
}

#[test]
fn an_ordinary_user_runs_jobs_through_fuse() {
    let test = "an_ordinary_user_runs_jobs_through_fuse";
    if !require_images(test, &["ompi4"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let corebox = corebox_tests::corebox().expect("built");
    let mut command = site.cluster.node("n1").command_as(12345, "timeout");
    command.args(["-k", "5", "120"]).arg(corebox).args(["mpirun", "-n", "2"]).args(GENTLE);
    command.args(["--no-cwd", "ompi4", "sh", "-c", "id -u; exec mpitest cma"]).stdin(Stdio::null());
    let output = command.output().expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("OK cma"), "{} {out} {err}", output.status);
    assert_eq!(out.matches("12345\n").count(), 2, "{out}");
    drop(output);
    assert!(
        wait_until(Duration::from_secs(5), || site.cluster.node("n1").leftovers().ok().filter(Vec::is_empty)).is_some()
    );
}

#[test]
fn ssh_starts_agents_and_its_death_ends_them() {
    let test = "ssh_starts_agents_and_its_death_ends_them";
    if !require_images(test, &["ompi4"]) || !require_programs(test, &["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let site = Site::with(Cluster::builder().ssh(true)).expect("starts");
    let base = with(&["--rsh", "ssh", "--host", "n1:1,n2:1"], &["ompi4", "mpitest"]);
    let ended = site.run(&[base.as_slice(), &["check"]].concat());
    assert!(ended.code == 0 && ended.out.contains("OK check"), "{ended:?}");
    let job = site.start_and_wait(&[base.as_slice(), &["hang"]].concat(), "hangs", 2);
    let client = site.shell_until("ctl", "pgrep -n -x ssh");
    site.shell("ctl", &format!("kill -KILL {client}"));
    let ended = job.wait().0;
    assert!(ended.code == 125 && ended.err.contains("was lost"), "{ended:?}");
    // sshd needs no look: it was there before; the agents it started end by themselves
    site.assert_clean(&["ctl", "n1", "n2"]);
}

#[test]
fn an_image_of_another_architecture_is_refused() {
    let test = "an_image_of_another_architecture_is_refused";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let (root, store) = (site.cluster.pfs().join("foreign"), site.cluster.pfs().join("store"));
    // the header of a program (elf(5)): 64 bits, ET_EXEC, for a machine that this one is not
    let (machine, name): (u8, &str) = if cfg!(target_arch = "x86_64") { (183, "aarch64") } else { (62, "x86_64") };
    let mut header = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 9], &[2, 0, machine, 0, 1, 0, 0, 0]].concat();
    header.resize(64, 0);
    header[52] = 64; // e_ehsize
    corebox_sys::fs::create_dir_all(root.join("bin")).expect("makes");
    corebox_sys::fs::write(root.join("bin/sh"), header).expect("writes");
    std::fs::set_permissions(root.join("bin/sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("changes");
    let corebox = corebox_tests::corebox().expect("built");
    let run = |arguments: &[&str]| {
        let mut command = site.cluster.node("n1").command(&corebox);
        command.env("COREBOX_STORE", &store).args(arguments).output().expect("runs")
    };
    let imported = run(&["image", "import", "foreign", &root.display().to_string()]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let refused = run(&["mpirun", "--no-cwd", "-n", "1", "--pmi", "none", "foreign", "sh"]);
    let err = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{err}");
    assert!(err.contains(name) && err.contains("on n1"), "{err}");
}

/// What is refused, the words that must be said, before anything is started on any node.
#[test]
fn bad_input_is_refused_before_any_side_effect() {
    let test = "bad_input_is_refused_before_any_side_effect";
    if !require_images(test, &["ompi4", "plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let cases: [(&[&str], &str); 16] = [
        (&["--host", "nowhere", "ompi4", "true"], "nowhere"),
        (&["--host", "n1,n1", "ompi4", "true"], "named twice"),
        (&["--host", "n1", "-n", "0", "ompi4", "true"], "-n 0"),
        (&["--host", "n1:2,n2:2", "--ppn", "1", "-n", "4", "ompi4", "true"], "ppn"),
        (&["--host", "n1:1", "-n", "2", "ompi4", "true"], "--oversubscribe"),
        (&["--host", "n1", "--cpus-per-rank", "999", "-n", "1", "ompi4", "true"], "999"),
        (&["--host", "n1", "plain", "true"], "--pmi none"),
        (&["--host", "n1", "--pmi", "pmi1", "ompi4", "true"], "--pmi"),
        (&["--host", "n1", "--mpi", "mpich", "ompi4", "true"], "MPICH"),
        (&["--host", "n1", "no-such-image", "true"], "no-such-image"),
        (&["--host", "n1[", "ompi4", "true"], "brackets"),
        (&["--hostfile", "/nonexistent", "ompi4", "true"], "/nonexistent"),
        (&["--host", "n1", "-v", "/nonexistent:/x", "ompi4", "true"], "/nonexistent"),
        (&["--host", "n1", "-e", "NOT_SET_ANYWHERE", "ompi4", "true"], "NOT_SET_ANYWHERE"),
        (&["--host", "n1", "--output", "/proc/x", "ompi4", "true"], "/proc/x"),
        (&["--host", "n1", "--timeout", "soon", "ompi4", "true"], "soon"),
    ];
    for (arguments, words) in cases {
        let ended = site.run(arguments);
        assert_eq!(ended.code, 125, "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(words), "{arguments:?} without `{words}`: {ended:?}");
        assert_eq!(ended.out, "", "{arguments:?}");
    }
    site.assert_clean(&["n1", "n2", "ctl"]);
}

#[test]
fn a_missing_libpmix_is_named_and_mpich_runs_without() {
    let test = "a_missing_libpmix_is_named_and_mpich_runs_without";
    if !require_images(test, &["ompi4", "mpich5"]) {
        return;
    }
    let site = Site::start().expect("starts");
    // the agent inherits it: the remote shell gives a login environment, so a local job is used
    let run = |image: &str| {
        let mut command = site.cluster.node("n1").command(corebox_tests::corebox().expect("built"));
        command.env("COREBOX_LIBPMIX", "/nonexistent/libpmix.so.2").args(["mpirun", "-n", "2"]);
        command.args(GENTLE).args(["--no-cwd", image, "mpitest", "check"]).stdin(Stdio::null());
        command.output().expect("runs")
    };
    let open_mpi = run("ompi4");
    let err = String::from_utf8_lossy(&open_mpi.stderr);
    assert_eq!(open_mpi.status.code(), Some(125), "{err}");
    assert!(err.contains("libpmix2") && err.contains("/nonexistent/libpmix.so.2"), "{err}");
    let mpich = run("mpich5");
    assert!(mpich.status.success(), "{}", String::from_utf8_lossy(&mpich.stderr));
}

#[test]
fn a_broken_or_unreadable_store_is_said_so() {
    let test = "a_broken_or_unreadable_store_is_said_so";
    if !require_images(test, &["plain"]) {
        return;
    }
    let site = Site::start().expect("starts");
    let store = site.cluster.pfs().join("store");
    std::fs::create_dir(&store).expect("makes");
    std::fs::set_permissions(&store, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("changes");
    let mut command = site.cluster.node("n1").command_as(12345, corebox_tests::corebox().expect("built"));
    let output =
        command.env("COREBOX_STORE", &store).args(["mpirun", "-n", "1", "plain", "true"]).output().expect("runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("EACCES") && err.contains("store"), "{err}");
}
