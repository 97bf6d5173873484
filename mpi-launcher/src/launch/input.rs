//! Standard input for rank 0, with a window so that a rank that does not read costs no memory, and the signals of the launcher.

use super::event::Event;
use crate::protocol::STDIN_WINDOW;
use nix::sys::signal::{SigSet, Signal};
use std::io::{IsTerminal, Read};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex};

/// Bytes under way to rank 0.
#[derive(Default)]
pub struct Window {
    under_way: Mutex<usize>,
    shrunk: Condvar,
}

impl Window {
    /// Rank 0 took `bytes`.
    pub fn taken(&self, bytes: usize) {
        if let Ok(mut under_way) = self.under_way.lock() {
            *under_way = under_way.saturating_sub(bytes);
            self.shrunk.notify_one();
        }
    }

    fn sent(&self, bytes: usize) {
        if let Ok(mut under_way) = self.under_way.lock() {
            *under_way += bytes;
            // a poisoned lock: the launcher is ending
            drop(self.shrunk.wait_while(under_way, |under_way| *under_way >= STDIN_WINDOW));
        }
    }
}

/// Reads standard input into events, until its end.
///
/// A launcher in the background of a terminal reads nothing: reading would stop it (SIGTTIN).
pub fn forward_stdin(events: SyncSender<Event>, window: Arc<Window>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let background = stdin.is_terminal() && nix::unistd::tcgetpgrp(&stdin) != Ok(nix::unistd::getpgrp());
        if !background {
            forward_until_end(&mut stdin, &events, &window);
        }
        let _ = events.send(Event::InputEnd); // the launcher may be past listening
    });
}

fn forward_until_end(stdin: &mut std::io::Stdin, events: &SyncSender<Event>, window: &Window) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdin.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(n) if events.send(Event::Input(buffer[..n].to_vec())).is_err() => return,
            Ok(n) => window.sent(n),
        }
    }
}

/// Signals that the launcher acts on or passes on.
const SIGNALS: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Blocks the launcher's signals; call before any thread starts.
pub fn block_signals() {
    let _ = SIGNALS.into_iter().collect::<SigSet>().thread_block(); // fails only for a bad argument
}

/// Turns the launcher's signals into events.
pub fn forward_signals(events: SyncSender<Event>) {
    std::thread::spawn(move || {
        let set: SigSet = SIGNALS.into_iter().collect();
        while let Ok(signal) = set.wait() {
            if events.send(Event::Signal(signal as i32)).is_err() {
                return;
            }
        }
    });
}
