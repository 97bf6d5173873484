//! MPI jobs on a cluster: `corebox mpirun` as a program in the controller, with a deadline, and what it left behind.

use crate::{Builder, Cluster, Result, corebox, require_programs, require_root, wait_until};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any job of the tests takes; a job that hangs fails its test and not the run.
const LIMIT_SECONDS: &str = "120";
/// The bar of the project: so long after a job's end nothing of it is left on any node.
const CLEAN: Duration = Duration::from_secs(5);

/// Whether this machine can run MPI jobs in these images; prints the SKIP line of `test` if not.
///
/// Images live in the store that `$COREBOX_STORE` names (`./dev images` makes them).
#[must_use]
pub fn require_images(test: &str, images: &[&str]) -> bool {
    if !require_root(test) || !require_programs(test, &["ip", "nsenter", "timeout"]) {
        return false;
    }
    let Ok(corebox) = corebox() else {
        crate::skip!(test, "corebox is not built");
        return false;
    };
    let there = |image: &&&str| {
        let inspect = Command::new(&corebox).args(["image", "inspect", image]).output();
        !inspect.is_ok_and(|output| output.status.success())
    };
    match images.iter().find(there) {
        Some(image) => {
            crate::skip!(test, "needs the image `{image}` (`./dev images`)");
            false
        }
        None => true,
    }
}

/// Two nodes `n1`, `n2` and the controller, from which jobs are launched.
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code of mpirun, 128 + N for signal N.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        Self { code: code.unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Site {
    /// Starts a cluster of two nodes that sees the image store.
    ///
    /// # Errors
    /// What starting a cluster can fail with.
    pub fn start() -> Result<Self> {
        Self::with(Cluster::builder())
    }

    /// The same with a builder that was adjusted.
    ///
    /// # Errors
    /// What starting a cluster can fail with.
    pub fn with(builder: Builder) -> Result<Self> {
        let mut builder = builder.nodes(2);
        if let Some(store) = std::env::var_os("COREBOX_STORE") {
            builder = builder.bind(store);
        }
        builder.start().map(|cluster| Self { cluster })
    }

    /// `corebox mpirun --rsh … ARGUMENTS` in the controller, in the shared directory, to be adjusted.
    ///
    /// # Errors
    /// corebox is not built.
    pub fn mpirun(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.cluster.node("ctl").command("timeout");
        command.args(["-k", "5", LIMIT_SECONDS]).arg(corebox()?).arg("mpirun").arg("--rsh").arg(self.cluster.rsh());
        command.args(arguments).current_dir(self.cluster.pfs()).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a job to its end.
    ///
    /// # Panics
    /// It cannot be started at all: a broken harness.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.mpirun(arguments).map(|mut command| command.output());
        output.expect("corebox is built").expect("mpirun starts").into()
    }

    /// Starts a job and waits until `lines` lines of its output hold `mark`.
    ///
    /// # Panics
    /// It ends, or says nothing, before that.
    pub fn start_and_wait(&self, arguments: &[&str], mark: &str, lines: usize) -> Running<'_> {
        let mut command = self.mpirun(arguments).expect("corebox is built");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun starts");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (mut seen, mut line) = (0, String::new());
        while seen < lines {
            line.clear();
            if out.read_line(&mut line).expect("reads") == 0 {
                let end = child.wait_with_output().expect("ends");
                panic!("it ended early: {} {}", end.status, String::from_utf8_lossy(&end.stderr));
            }
            seen += usize::from(line.contains(mark));
        }
        Running { site: self, child, out }
    }

    /// Asserts that nothing is left on any node that lives, 5 s after now at the latest.
    ///
    /// # Panics
    /// Something is left.
    pub fn assert_clean(&self, nodes: &[&str]) {
        for name in nodes {
            let left = self.cluster.node(name).wait_clean(CLEAN).expect("the node can be entered");
            assert!(left.is_empty(), "left on {name}: {left:#?}");
        }
    }

    /// The output of a shell command on a node.
    ///
    /// # Panics
    /// It cannot be run.
    pub fn shell(&self, node: &str, script: &str) -> String {
        let output = self.cluster.node(node).command("sh").args(["-c", script]).output().expect("sh runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits for a shell command on a node to print something, and gives it.
    ///
    /// # Panics
    /// It prints nothing within 20 s.
    pub fn shell_until(&self, node: &str, script: &str) -> String {
        let said = || Some(self.shell(node, script)).filter(|text| !text.is_empty());
        wait_until(Duration::from_secs(20), said).unwrap_or_else(|| panic!("nothing from `{script}` on {node}"))
    }
}

/// A job that runs.
pub struct Running<'a> {
    site: &'a Site,
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running<'_> {
    /// Waits for its end; gives it and how long that took.
    ///
    /// # Panics
    /// Its output cannot be read.
    pub fn wait(mut self) -> (Ended, Duration) {
        let start = Instant::now();
        let mut out = String::new();
        self.out.read_to_string(&mut out).expect("text");
        let mut ended: Ended = self.child.wait_with_output().expect("ends").into();
        ended.out = out;
        (ended, start.elapsed())
    }

    /// Sends a signal to the launcher.
    pub fn signal(&self, name: &str) {
        // -n: the newest, which is corebox and not the `timeout` around it; [c]: not the shell that runs this
        self.site.shell("ctl", &format!("pkill -{name} -n -f '[c]orebox mpirun'"));
    }
}
