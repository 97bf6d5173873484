//! A remote shell between the nodes, without a network: the keeper listens on a socket every node can see.
//!
//! One command takes four connections: control, and one each for standard input, output and error. They are the
//! program's own descriptors on the other side, so that it sees the end of its input, and a broken pipe on its
//! output, when the local process dies; nothing has to pass that on.

use super::state::State;
use crate::Result;
use corebox_spec::Failure;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode};

/// Exit code when the connection failed or a signal ended the program, as ssh(1) has it.
const BROKEN: u8 = 255;

/// First message of each connection: a length of four bytes (little endian), then this as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// The same on the four connections of a command.
    token: String,
    /// 0 to 2: that descriptor of the program; 3: control.
    channel: usize,
    node: String,
    uid: u32,
    command: String,
}

/// Mode `rsh STATE [-l UID] [-x -n -q …] HOST WORD…`.
pub fn client(args: &[String]) -> Result<ExitCode> {
    let usage = || Failure::new("cannot read the command line of `rsh`", "see `corebox-simnode help`").code(BROKEN);
    let (state, mut rest) = args.split_first().ok_or_else(usage)?;
    let state = State::read(state).map_err(|failure| failure.code(BROKEN))?;
    let mut uid = nix::unistd::geteuid().as_raw();
    while let Some((option, tail)) = rest.split_first().filter(|(word, _)| word.starts_with('-')) {
        let takes_value = matches!(option.as_str(), "-l" | "-o" | "-p" | "-i" | "-F");
        if option == "-l" {
            uid = tail.first().and_then(|value| value.parse().ok()).ok_or_else(usage)?;
        }
        rest = &tail[usize::from(takes_value).min(tail.len())..];
    }
    let (node, words) = rest.split_first().ok_or_else(usage)?;
    state.node(node)?;
    let token = corebox_sys::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(|e| Failure::new("cannot name this connection", e).code(BROKEN))?;
    let mut hello = Hello { token, channel: 0, node: node.clone(), uid, command: words.join(" ") };
    let mut open = |channel| {
        hello.channel = channel;
        greet(&state, &hello).map_err(|e| Failure::new(format!("cannot reach node {node}"), e).code(BROKEN))
    };
    let (input, output, error, mut control) = (open(0)?, open(1)?, open(2)?, open(3)?);
    std::thread::spawn(move || {
        let _ = pump(std::io::stdin(), &input);
        let _ = input.shutdown(Shutdown::Write);
    });
    let out = std::thread::spawn(move || pump(output, std::io::stdout()));
    let err = std::thread::spawn(move || pump(error, std::io::stderr()));
    let mut code = [BROKEN];
    let told = control.read_exact(&mut code);
    let _ = (out.join(), err.join()); // the keeper has ended both: everything written is here
    if told.is_err() {
        eprintln!("rsh: connection to {node} lost");
    }
    Ok(ExitCode::from(code[0]))
}

/// Copies at once whatever arrives (std's stdout would wait for whole lines).
fn pump(mut from: impl Read, mut to: impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).and_then(|()| to.flush())?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Connects and says who this is.
fn greet(state: &State, hello: &Hello) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(state.socket())?;
    let text = serde_json::to_vec(hello)?;
    stream.write_all(&(text.len() as u32).to_le_bytes())?;
    stream.write_all(&text)?;
    Ok(stream)
}

/// The keeper's side: serves connections until the process ends.
pub fn serve(listener: &UnixListener, state: &State) {
    let mut waiting: HashMap<String, [Option<UnixStream>; 4]> = HashMap::new();
    for stream in listener.incoming().flatten() {
        let Ok((hello, stream)) = greeted(stream) else { continue };
        let Some(channel) = (hello.channel < 4).then_some(hello.channel) else { continue };
        let parts = waiting.entry(hello.token.clone()).or_default();
        parts[channel] = Some(stream);
        if parts.iter().all(Option::is_some)
            && let Some([Some(input), Some(output), Some(error), Some(control)]) = waiting.remove(&hello.token)
        {
            let state = state.clone();
            std::thread::spawn(move || {
                let mut control = control;
                let code = run(&state, &hello, input, &output, &error).unwrap_or_else(|cause| {
                    let _ = writeln!(&error, "rsh: cannot start a program on {}: {cause}", hello.node);
                    BROKEN
                });
                let _ = (output.shutdown(Shutdown::Both), error.shutdown(Shutdown::Both));
                let _ = control.write_all(&[code]);
            });
        }
    }
}

fn greeted(mut stream: UnixStream) -> std::io::Result<(Hello, UnixStream)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut text = vec![0; u32::from_le_bytes(length).min(1 << 20) as usize];
    stream.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text)?, stream))
}

/// Runs the command on the node with the connections as its descriptors.
fn run(
    state: &State,
    hello: &Hello,
    input: UnixStream,
    output: &UnixStream,
    error: &UnixStream,
) -> std::io::Result<u8> {
    let mut exec = Command::new(&state.program);
    exec.arg("exec").arg(state.file()).args([&hello.node, "--login"]);
    if !state.user_namespace {
        exec.args(["--user", &hello.uid.to_string()]);
    }
    exec.args(["--", "/bin/sh", "-c", &hello.command]);
    exec.stdin(OwnedFd::from(input))
        .stdout(OwnedFd::from(output.try_clone()?))
        .stderr(OwnedFd::from(error.try_clone()?));
    let mut child = exec.spawn()?;
    drop(exec); // our copies of its descriptors
    Ok(child.wait()?.code().map_or(BROKEN, |code| code as u8))
}
