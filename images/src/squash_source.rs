//! Squashfs images of other tools (Enroot, Sarus, Charliecloud) as a source: sqfs2tar(1) of squashfs-tools-ng reads them
//! without root.

use crate::flatten::FlattenError;
use corebox_spec::Failure;
use corebox_sys::Error;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running sqfs2tar.
pub(crate) struct SquashSource {
    child: Child,
    stderr: std::thread::JoinHandle<String>,
}

impl SquashSource {
    /// Starts to read an image; gives the tar.
    ///
    /// # Errors
    /// sqfs2tar is not installed.
    pub(crate) fn start(goal: &str, path: &Path) -> Result<(Self, ChildStdout), Failure> {
        let mut command = Command::new("sqfs2tar");
        // the root directory's own entry comes first; what a tar cannot hold is an error
        command.args(["--root-becomes", ".", "--no-skip", "--"]).arg(path);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| {
            let failure = Failure::new(goal, Error::io("execute", "sqfs2tar", &error));
            failure.hint("squashfs images are read by the package squashfs-tools-ng (Debian, Fedora)")
        })?;
        let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::new(goal, "sqfs2tar has no output"));
        };
        let stderr = std::thread::spawn(move || {
            let mut said = Vec::new();
            // what cannot be read is not shown
            stderr.by_ref().take(4096).read_to_end(&mut said).ok();
            std::io::copy(&mut stderr, &mut std::io::sink()).ok();
            String::from_utf8_lossy(&said).trim().to_owned()
        });
        Ok((Self { child, stderr }, stdout))
    }

    /// Waits for its end; what it says goes before what we saw, unless it only failed because we stopped reading.
    pub(crate) fn finish(mut self, goal: &str, flattened: &Result<(), FlattenError>) -> Result<(), Failure> {
        if flattened.is_err() {
            // it may have ended already
            self.child.kill().ok();
        }
        let status =
            self.child.wait().map_err(|error| Failure::new(goal, Error::io("wait for", "sqfs2tar", &error)))?;
        let said = self.stderr.join().unwrap_or_default();
        match status.success() || said.is_empty() && flattened.is_err() {
            true => Ok(()),
            false => Err(Failure::new(goal, format!("sqfs2tar failed ({status}): {said}"))
                .during("reading the image", "squashfs")),
        }
    }
}
