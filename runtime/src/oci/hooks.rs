//! Hooks (runtime-spec config.md, "POSIX-platform Hooks"): programs that get the container's state on standard input.

use crate::step::Stop;
use corebox_sys::fd;
use corebox_sys::process;
use oci_spec::runtime::Hook;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest part of a hook's words that an error repeats.
const WORDS: u64 = 2000;

/// Runs them in order.
///
/// # Errors
/// The first that fails, by its place, with what it said.
pub(crate) fn run(point: &str, hooks: Option<&Vec<Hook>>, state: &Value) -> Result<(), Stop> {
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        one(hook, state).map_err(|why| {
            Stop::new(format!("`hooks.{point}[{index}]` ({}) {why}", hook.path().display()))
                .hint("the hook comes from config.json; what it said is above.")
        })?;
    }
    Ok(())
}

/// Runs them all, whatever becomes of each: what they do is after the fact. Returns what failed.
pub(crate) fn run_all(point: &str, hooks: Option<&Vec<Hook>>, state: &Value) -> Vec<String> {
    let each = hooks.into_iter().flatten().enumerate();
    each.filter_map(|(index, hook)| {
        one(hook, state).err().map(|why| format!("`hooks.{point}[{index}]` ({}) {why}", hook.path().display()))
    })
    .collect()
}

fn one(hook: &Hook, state: &Value) -> Result<(), String> {
    if !hook.path().is_absolute() {
        return Err("is no absolute path".to_owned());
    }
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    // No variables at all is what the specification says of hooks without `env`.
    command.envs(hook.env().iter().flatten().filter_map(|text| text.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("cannot be run: {e}"))?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its input is none the worse for it.
        let _ = input.write_all(state.to_string().as_bytes());
    }
    let ended = wait(&mut child, hook.timeout())?;
    let mut words = String::new();
    if let Some(output) = child.stderr.take().filter(|_| !ended.success()) {
        let _ = output.take(WORDS).read_to_string(&mut words);
    }
    if ended.success() { Ok(()) } else { Err(format!("failed: {ended}\nit said: {}", words.trim())) }
}

fn wait(child: &mut Child, seconds: Option<i64>) -> Result<std::process::ExitStatus, String> {
    if let Some(seconds) = seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0) {
        let pidfd = process::open_pid(child.id() as i32).map_err(|e| e.to_string())?;
        let ready =
            fd::poll_readable(&[pidfd.as_fd()], Some(Duration::from_secs(seconds))).map_err(|e| e.to_string())?;
        if !ready[0] {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("did not end within {seconds} s and was killed"));
        }
    }
    child.wait().map_err(|e| e.to_string())
}
