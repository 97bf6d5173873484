//! Pseudo-terminals (pts(4), ioctl_tty(2)).

use crate::{Error, Result, fd};
use nix::errno::Errno;
use nix::sys::termios::{self, SetArg, Termios};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Unlocks the master and opens its other side without any path (TIOCGPTPEER): what is mounted where does not matter.
///
/// # Errors
/// What ioctl_tty(2) says.
pub fn open_peer(master: impl AsFd) -> Result<OwnedFd> {
    let number = master.as_fd().as_raw_fd();
    let unlock: libc::c_int = 0;
    // SAFETY: reads one int.
    let result = unsafe { libc::ioctl(number, libc::TIOCSPTLCK, &raw const unlock) };
    Errno::result(result).map_err(|e| Error::new("unlock", "the terminal", e))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: numbers only; returns a new descriptor.
    let peer = unsafe { libc::ioctl(number, libc::TIOCGPTPEER, flags) };
    crate::mount::owned("open", "the terminal's other side", peer.into())
}

/// Sets rows and columns.
///
/// # Errors
/// What ioctl_tty(2) says.
pub fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads one winsize.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result).map(drop).map_err(|e| Error::new("set the size of", "the terminal", e))
}

/// Rows and columns.
///
/// # Errors
/// ENOTTY for what is no terminal.
pub fn size(terminal: impl AsFd) -> Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: writes one winsize.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(result).map_err(|e| Error::new("ask the size of", "the terminal", e))?;
    Ok((size.ws_row, size.ws_col))
}

/// Makes it the controlling terminal of our session, which we must lead, and our standard input, output and error.
///
/// # Errors
/// What ioctl_tty(2) and dup2(2) say.
pub fn become_terminal(terminal: &OwnedFd) -> Result<()> {
    // SAFETY: numbers only.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    Errno::result(result).map_err(|e| Error::new("make", "the terminal our controlling one", e))?;
    (0..3).try_for_each(|number| fd::place(terminal.as_raw_fd(), number))
}

/// A terminal in raw mode, as long as this value lives.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Puts a terminal into raw mode: every key goes to the reader.
    ///
    /// # Errors
    /// ENOTTY for what is no terminal.
    pub fn set(terminal: OwnedFd) -> Result<Self> {
        let failed = |e| Error::new("set the mode of", "the terminal", e);
        let before = termios::tcgetattr(&terminal).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}
