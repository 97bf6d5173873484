//! MPI jobs over UCX and Soft-RoCE, one container per node, and what is left of containers that are killed.

use corebox_tests::vm::{Need, require};
use corebox_tests::{corebox, require_images, wait_until};
use std::process::{Command, Stdio};
use std::time::Duration;

fn ready(test: &str) -> bool {
    require(test, &[Need::Rdma]) && require_images(test, &["rdma"])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Without TCP and shared memory a job that ends well has used RDMA. Index 0 is the link-local GID: UCX 1.13 cannot wire up
/// over rxe's IPv4 one.
const OVER_RDMA: [&str; 5] = [
    "OMPI_MCA_pml=ucx",
    "OMPI_MCA_osc=^ucx",
    "OMPI_MCA_btl=^openib,ofi,vader,tcp,uct",
    "UCX_TLS=rc,ud,self",
    "UCX_IB_GID_INDEX=0",
];

#[test]
fn an_open_mpi_job_uses_the_nearest_hca() {
    if !ready("an_open_mpi_job_uses_the_nearest_hca") {
        return;
    }
    for ids in [None, Some("1000")] {
        let mut command = Command::new("prlimit");
        command.arg("--memlock=unlimited:unlimited");
        if let Some(id) = ids {
            command.args(["setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--bounding-set=-all"]);
        }
        command.arg(corebox().expect("corebox is built")).args([
            "mpirun",
            "-n",
            "2",
            "--display",
            "map,bind",
            "--fabric",
            "require",
        ]);
        for variable in OVER_RDMA {
            command.args(["-e", variable]);
        }
        let job = ["rdma", "sh", "-c", "test \"$UCX_NET_DEVICES\" = rxe0:1 && exec mpitest check"];
        let output = command.args(job).current_dir("/").stdin(Stdio::null()).output().expect("it runs");
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{:?}\n{out}\n{error}", output.status);
        assert!(format!("{out}{error}").lines().filter(|line| line.ends_with("rxe0:1")).count() == 2, "{out}{error}");
    }
}

#[test]
fn nothing_is_left_of_killed_containers() {
    if !ready("nothing_is_left_of_killed_containers") {
        return;
    }
    let state = || {
        let mounts = corebox_sys::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let mut groups = corebox_sys::fs::list("/sys/fs/cgroup").expect("readable");
        groups.retain(|name| name.starts_with("corebox-killed"));
        (mounts.lines().count(), groups)
    };
    let before = state();
    assert_eq!(before.1, Vec::<String>::new());
    for _ in 0..10 {
        let mut child = Command::new(corebox().expect("corebox is built"))
            .args([
                "run",
                "--name",
                "killed",
                "--rdma-limit",
                "rxe0:handles=1",
                "rdma",
                "ibv_rc_pingpong",
                "-d",
                "rxe0",
                "-g",
                "1",
            ])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let holds = || {
            std::fs::read_dir("/sys/fs/cgroup").ok()?.flatten().find_map(|group| {
                let name = group.file_name().to_string_lossy().into_owned();
                let text = corebox_sys::fs::read_to_string(group.path().join("rdma.current")).ok()?;
                (name.starts_with("corebox-killed") && text.contains("hca_handle=1")).then_some(())
            })
        };
        wait_until(Duration::from_secs(60), holds).expect("it holds a context");
        child.kill().expect("it lives");
        child.wait().expect("it ends");
        let clean = wait_until(Duration::from_secs(20), || (state() == before).then_some(()));
        assert!(clean.is_some(), "{:?}", state());
    }
}
