//! The runner of virtual machines itself, from outside: what comes back, and what a dead machine looks like.

use corebox_tests::{corebox, skip, vm_program, wait_until};
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The runner, where it can start machines; else a SKIP line.
fn ready(test: &str) -> Option<Command> {
    let runner: PathBuf = match vm_program() {
        Ok(runner) => runner,
        Err(failure) => {
            skip!(test, "{}", failure.to_string().replace('\n', " "));
            return None;
        }
    };
    let check = Command::new(&runner).arg("--check").output().expect("the runner runs");
    if !check.status.success() {
        skip!(test, "needs a virtual machine: {}", String::from_utf8_lossy(&check.stdout).trim());
        return None;
    }
    let mut command = Command::new(runner);
    command.stdin(Stdio::null());
    Some(command)
}

#[test]
fn output_and_exit_status_come_back_exactly() {
    let Some(mut runner) = ready("output_and_exit_status_come_back_exactly") else { return };
    // Every byte value, more than any buffer on the way holds, and a child that outlives the program and holds its output.
    let script = r#"
        cd /tmp
        for a in 0 1 2 3; do for b in 0 1 2 3 4 5 6 7; do for c in 0 1 2 3 4 5 6 7; do printf "\\$a$b$c"; done; done; done >all
        for i in 1 2 3; do cat all all all all all all all all all all >more; mv more all; done
        cat all all
        printf 'not a line' >&2
        echo again >/dev/stderr
        sleep 1000 &
        exit 42"#;
    let output = runner.args(["sh", "-c", script]).output().expect("the runner runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "not a lineagain\n");
    assert_eq!(output.status.code(), Some(42));
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(output.stdout.len(), 256 * 2000);
    assert!(output.stdout.chunks(256).all(|chunk| chunk == all), "bytes were changed");
}

#[test]
fn a_dead_machine_is_no_success() {
    let Some(mut runner) = ready("a_dead_machine_is_no_success") else { return };
    // The machine crashes when a file appears in the build directory, which it sees: what a program has just written is
    // lost in a crash, so its words must have arrived first.
    let corebox = corebox().expect("there, as the machine is");
    let sign = corebox.with_file_name(format!("corebox-vm-test-{}", std::process::id()));
    let script = "echo before; until [ -e $0 ]; do sleep 0.1; done; echo c >/proc/sysrq-trigger; sleep 1000";
    runner.args(["sh", "-c", script]).arg(&sign).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = runner.spawn().expect("the runner runs");
    let mut before = [0; 7];
    running.stdout.as_mut().expect("piped").read_exact(&mut before).expect("the program's words");
    corebox_sys::fs::write(&sign, "").expect("a writable build directory");
    let output = running.wait_with_output().expect("the runner ends");
    std::fs::remove_file(&sign).expect("it was made above");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert_eq!((&before, &output.stdout[..]), (b"before\n", &b""[..]));
    assert!(error.contains("died") && error.contains("sysrq triggered crash"), "{error}");
}

#[test]
fn a_machine_that_takes_too_long_is_killed() {
    let Some(mut runner) = ready("a_machine_that_takes_too_long_is_killed") else { return };
    let output = runner.args(["sleep", "1000"]).env("COREBOX_VM_LIMIT", "1").output().expect("the runner runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(125) && error.contains("COREBOX_VM_LIMIT"), "{error}");
}

/// Processes whose command line has this word.
fn processes(word: &str) -> Vec<String> {
    let list = corebox_sys::fs::list("/proc").expect("readable");
    let holds = |pid: &String| {
        let line = corebox_sys::fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    list.into_iter().filter(|name| name.parse::<u32>().is_ok()).filter(holds).collect()
}

#[test]
fn a_killed_runner_takes_its_machine_along() {
    let Some(mut runner) = ready("a_killed_runner_takes_its_machine_along") else { return };
    let mut child =
        runner.args(["sh", "-c", "echo ready; sleep 1000"]).stdout(Stdio::piped()).spawn().expect("the runner runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let place = std::env::temp_dir().join(format!("corebox-vm-{}", child.id())).display().to_string();
    assert!(!processes(&place).is_empty(), "the test sees no machine");
    child.kill().expect("it lives");
    child.wait().expect("it ends");
    let gone = wait_until(Duration::from_secs(10), || processes(&place).is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", processes(&place));
    // Its directory is removed by the next one.
    let Some(mut next) = ready("a_killed_runner_takes_its_machine_along") else { return };
    let _ = next.args(["true"]).env("COREBOX_VM_LIMIT", "1").output().expect("the runner runs");
    assert!(!Path::new(&place).exists());
}
