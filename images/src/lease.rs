//! Who does a piece of work for all: one process of all nodes that share a store, without flock(2).
//!
//! A lease is a file `ROOT/leases/KEY`, made whole by link(2), that its holder writes to every now and then: who it is, a
//! counter, how far it is. Others read it. A holder on the same machine is gone when its process is; one on another
//! machine when its counter has stood still for `patience` of the *reader's* clock, so clocks need not agree. Whoever
//! finds it gone moves it aside by rename(2), looks whether it moved the right one, and links its own.
//!
//! A holder that was only stopped finds, when it goes on, that it is not the holder any more, and finishes: what it
//! makes has the same digest as what the other one makes. So a lease saves work; nothing depends on it for being right.

use crate::staging::{Owner, Staging};
use corebox_sys::{Error, Result, fs};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// All leases have this size, so that writing one is one write to one page.
const SIZE: usize = 512;
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(200);

/// How far a holder is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub done: u64,
    pub of: u64,
}

/// What a lease says.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    /// `OWNER,RANDOM`: no two leases have the same.
    holder: String,
    beat: u64,
    progress: Progress,
    user: String,
}

impl Record {
    fn text(&self) -> Vec<u8> {
        let Progress { done, of } = self.progress;
        let mut text = format!("{} {} {done} {of} {}", self.holder, self.beat, self.user).into_bytes();
        text.truncate(SIZE - 1);
        text.resize(SIZE - 1, b' ');
        text.push(b'\n');
        text
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split_whitespace();
        Some(Self {
            holder: words.next()?.to_owned(),
            beat: words.next()?.parse().ok()?,
            progress: Progress { done: words.next()?.parse().ok()?, of: words.next()?.parse().ok()? },
            user: words.next().unwrap_or("?").to_owned(),
        })
    }
}

/// Somebody else holds the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    pub host: String,
    pub user: String,
    pub progress: Progress,
}

/// A held lease; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    aside: PathBuf,
    holder: String,
    progress: Arc<(AtomicU64, AtomicU64)>,
    beat: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Lease {
    /// Gets the lease, waiting while another process holds it. `waiting` is told who and how far, again and again, and
    /// ends the waiting by `false` (the work is done): then there is no lease.
    ///
    /// # Errors
    /// A store that cannot be written to.
    pub(crate) fn wait(
        root: &Path,
        key: &str,
        patience: Duration,
        mut waiting: impl FnMut(&Busy) -> bool,
    ) -> Result<Option<Self>> {
        let path = root.join("leases").join(key);
        let mut seen: Option<(Record, Instant)> = None;
        loop {
            if let Some(lease) = Self::take(root, &path, patience)? {
                return Ok(Some(lease));
            }
            let Some(record) = read(&path)? else { continue };
            let owner = Owner::of_file(&record.holder);
            let since = match seen.take() {
                Some((before, since)) if before == record => since,
                _ => Instant::now(),
            };
            let gone = match owner.as_ref().and_then(|owner| owner.is_gone(&Owner::own().ok()?)) {
                Some(gone) => gone,
                None => since.elapsed() >= patience,
            };
            if gone {
                set_aside(&path, &root.join("tmp"), &record.holder)?;
                continue;
            }
            let host = owner.map_or_else(|| "another node".to_owned(), |owner| owner.host);
            let busy = Busy { host, user: record.user.clone(), progress: record.progress };
            if !waiting(&busy) {
                return Ok(None);
            }
            seen = Some((record, since));
            std::thread::sleep(LOOK.min(patience / 4));
        }
    }

    /// Makes the lease if nobody has it.
    fn take(root: &Path, path: &Path, patience: Duration) -> Result<Option<Self>> {
        let aside = root.join("tmp");
        let staged = Staging::new(&aside)?;
        let holder = staged.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let user = user.map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name);
        let record = Record { holder: holder.clone(), beat: 0, progress: Progress::default(), user };
        staged.write(&record.text())?;
        match std::fs::hard_link(staged.path(), path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(Error::io("link", path.display(), &error)),
        }
        // of the two names this one goes, with `staged`; the file stays open for the beats
        let failed = |error: std::io::Error| Error::io("open", path.display(), &error);
        let file = OpenOptions::new().write(true).open(staged.path()).map_err(failed)?;
        let progress = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let beat = Some(beat(file, record, progress.clone(), patience / 10));
        Ok(Some(Self { path: path.to_owned(), aside, holder, progress, beat }))
    }

    /// Tells those who wait how far the work is.
    pub(crate) fn progress(&self, done: u64, of: u64) {
        self.progress.0.store(done, Ordering::Relaxed);
        self.progress.1.store(of, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.beat.take() {
            drop(stop);
            // it does nothing that could panic
            thread.join().ok();
        }
        // a lease that cannot be given back is found to be gone
        set_aside(&self.path, &self.aside, &self.holder).ok();
    }
}

/// Writes the record again and again until the sender is dropped.
fn beat(
    file: File,
    mut record: Record,
    progress: Arc<(AtomicU64, AtomicU64)>,
    every: Duration,
) -> (Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = channel();
    let thread = std::thread::spawn(move || {
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            record.beat += 1;
            record.progress =
                Progress { done: progress.0.load(Ordering::Relaxed), of: progress.1.load(Ordering::Relaxed) };
            // fsync(2) is what sends it to the server of a network file system; a failing beat lets the lease go
            file.write_all_at(&record.text(), 0).and_then(|()| file.sync_data()).ok();
        }
    });
    (stop, thread)
}

/// What a lease says; `None` if there is none. What cannot be understood is nobody's (a full disk cut it).
fn read(path: &Path) -> Result<Option<Record>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(Record::parse(&text).unwrap_or(Record {
            holder: String::new(),
            beat: 0,
            progress: Progress::default(),
            user: "?".to_owned(),
        }))),
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a lease if it is this holder's.
fn set_aside(path: &Path, tmp: &Path, holder: &str) -> Result<()> {
    let aside = Staging::new(tmp)?;
    match fs::rename(path, aside.path()) {
        Ok(()) => {}
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        Err(error) => return Err(error),
    }
    match read(aside.path())? {
        // somebody was faster, and this is their new one: it gets its name back, unless that has been taken meanwhile
        Some(record) if record.holder != holder => aside.link_to(path),
        _ => Ok(()),
    }
}

/// Removes leases whose holders have certainly ended.
pub(crate) fn sweep(root: &Path) -> Result<()> {
    let own = Owner::own()?;
    for key in fs::list(root.join("leases"))? {
        let path = root.join("leases").join(key);
        let Some(record) = read(&path)? else { continue };
        if Owner::of_file(&record.holder).and_then(|owner| owner.is_gone(&own)) == Some(true) {
            set_aside(&path, &root.join("tmp"), &record.holder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Root(PathBuf);

    impl Root {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("corebox-lease-{test}-{}", std::process::id()));
            for directory in ["leases", "tmp"] {
                fs::create_dir_all(path.join(directory)).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_holds_and_the_others_see_how_far() {
        let root = Root::new("one");
        let lease = Lease::wait(&root.0, "k", Duration::from_millis(100), |_| false).unwrap().unwrap();
        lease.progress(3, 7);
        let mut seen = Progress::default();
        let none = Lease::wait(&root.0, "k", LONG, |busy| {
            seen = busy.progress;
            seen.of == 0
        });
        assert!(none.unwrap().is_none());
        assert_eq!(seen, Progress { done: 3, of: 7 });
        drop(lease);
        assert!(fs::list(root.0.join("leases")).unwrap().is_empty());
        assert!(fs::list(root.0.join("tmp")).unwrap().is_empty());
        assert!(Lease::wait(&root.0, "k", LONG, |_| false).unwrap().is_some());
    }

    #[test]
    fn a_dead_holder_is_replaced_and_a_living_one_is_not() {
        let root = Root::new("dead");
        let own = Owner::own().unwrap();
        let record =
            |holder: String| Record { holder, beat: 1, progress: Progress::default(), user: "u".to_owned() }.text();
        let path = root.0.join("leases/k");
        // another machine's, silent
        fs::write(&path, record(format!("elsewhere,{:08x},1,1,1,00", 7))).unwrap();
        let begun = Instant::now();
        assert!(Lease::wait(&root.0, "k", Duration::from_millis(300), |_| true).unwrap().is_some());
        assert!(begun.elapsed() >= Duration::from_millis(300));
        // this machine's, of a process that is gone: at once
        let gone = format!("{own}").replacen(&format!(",{},", own.pid), ",4194305,", 1);
        fs::write(&path, record(format!("{gone},00"))).unwrap();
        assert!(Lease::wait(&root.0, "k", LONG, |_| false).unwrap().is_some());
        // ours is alive, however long it is silent
        fs::write(&path, record(format!("{own},00"))).unwrap();
        let mut looks = 0;
        let none = Lease::wait(&root.0, "k", Duration::from_millis(20), |_| {
            looks += 1;
            looks < 20
        });
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn only_the_lease_that_was_meant_is_removed() {
        let root = Root::new("aside");
        let lease = Lease::wait(&root.0, "k", LONG, |_| false).unwrap().unwrap();
        set_aside(&root.0.join("leases/k"), &root.0.join("tmp"), "another").unwrap();
        assert_eq!(read(&root.0.join("leases/k")).unwrap().unwrap().holder, lease.holder);
    }
}
