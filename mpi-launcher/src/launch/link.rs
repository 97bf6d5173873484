//! The launcher's end of one agent: a reader and a writer thread around the remote shell's pipes.

use super::event::Event;
use crate::protocol::{self, AGENT_PATIENCE, Decoder, Frame, FromAgent, GREETING, HEARTBEAT, ToAgent};
use corebox_sys::{fd, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One agent as the launcher sees it.
pub struct AgentLink {
    child: Child,
    frames: Option<Sender<Vec<u8>>>,
}

impl AgentLink {
    /// Takes over a started agent; what it says becomes events of `node`.
    pub fn new(node: u32, mut child: Child, start_timeout: Duration, events: SyncSender<Event>) -> Self {
        let (frames, queue) = channel();
        if let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        {
            let said = std::thread::spawn(move || last_words(stderr));
            std::thread::spawn(move || write_frames(stdin, &queue));
            std::thread::spawn(move || read_frames(node, stdout, said, start_timeout, &events));
        }
        Self { child, frames: Some(frames) }
    }

    /// Queues a message; a dead agent is noticed by the reader, so nothing fails here.
    pub fn send(&self, message: &ToAgent) {
        self.send_raw(protocol::encode(message));
    }

    /// Queues an encoded frame.
    pub fn send_raw(&self, frame: Vec<u8>) {
        if let Some(frames) = &self.frames {
            let _ = frames.send(frame); // the writer is gone when the agent is
        }
    }

    /// Closes the stream; the agent ends by itself on that.
    pub fn close(&mut self) {
        self.frames = None;
    }

    /// Waits for the remote shell to end, kills it when it does not in time.
    pub fn reap(&mut self, deadline: Instant) {
        self.close();
        let left = deadline.saturating_duration_since(Instant::now());
        // the child is ours and not waited for, so its pid is its own: the pidfd names no other process
        let ended =
            process::open_pid(self.child.id() as i32).and_then(|pidfd| fd::poll_readable(&[pidfd.as_fd()], Some(left)));
        if !matches!(ended.as_deref(), Ok([true])) {
            let _ = self.child.kill(); // already gone is fine
        }
        let _ = self.child.wait();
    }
}

fn write_frames(mut stdin: ChildStdin, queue: &Receiver<Vec<u8>>) {
    let ping = protocol::encode(&ToAgent::Ping);
    let mut next = GREETING.as_bytes().to_vec();
    loop {
        if stdin.write_all(&next).and_then(|()| stdin.flush()).is_err() {
            return;
        }
        next = match queue.recv_timeout(HEARTBEAT) {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => ping.clone(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

fn read_frames(
    node: u32,
    mut stdout: ChildStdout,
    said: JoinHandle<String>,
    start_timeout: Duration,
    events: &SyncSender<Event>,
) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 256 << 10];
    let mut patience = start_timeout;
    let why = loop {
        // only waiting for the agent counts as its silence, not waiting for our own output
        match readable(&stdout, patience) {
            Ok(true) => {}
            Ok(false) => break format!("nothing was heard from it for {} s", patience.as_secs_f32()),
            Err(e) => break e.to_string(),
        }
        match stdout.read(&mut buffer) {
            Ok(0) => break "its connection ended".to_owned(),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => break e.to_string(),
        }
        match forward(node, &mut decoder, events, &mut patience) {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => break why,
        }
    };
    let closed = why.contains("ended");
    let words = if closed { said.join().unwrap_or_default() } else { String::new() };
    let rubbish = decoder.rubbish();
    let detail = [words.trim(), rubbish.as_str()].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join("\n");
    let why = if detail.is_empty() { why } else { format!("{why}; it said: {detail}") };
    let _ = events.send(Event::AgentGone(node, why)); // the launcher may be past listening
}

/// Passes on every whole frame; false when the launcher no longer listens.
fn forward(
    node: u32,
    decoder: &mut Decoder,
    events: &SyncSender<Event>,
    patience: &mut Duration,
) -> Result<bool, String> {
    while let Some(frame) = decoder.next_frame::<FromAgent>().map_err(|e| e.to_string())? {
        *patience = AGENT_PATIENCE;
        if !matches!(frame, Frame::Message(FromAgent::Pong)) && events.send(Event::Agent(node, frame)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn readable(stdout: &ChildStdout, patience: Duration) -> Result<bool, Errno> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis().min(1 << 30) as i32 + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e),
        }
    }
}

/// The last 4 KiB that the remote shell or the agent wrote to stderr: shown when it dies, silent else.
fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut buffer) {
        kept.extend(&buffer[..n]);
        if kept.len() > 8192 {
            kept.drain(..kept.len() - 4096);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}
