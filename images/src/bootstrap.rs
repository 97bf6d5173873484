//! `corebox image bootstrap`: a Debian (or Ubuntu) root made by mmdebstrap(1), whose tar goes through a pipe straight
//! into the image file.
//!
//! Modes (mmdebstrap(1), MODES): an ordinary user gets `unshare` where `/etc/subuid` allows it and `fakechroot`
//! elsewhere, which is mmdebstrap's own choice (`auto`). Root gets `unshare` too, not `root`: the mounts that package
//! scripts need are then made in a namespace of their own, and a killed bootstrap leaves none of them on the host.

use crate::flatten::{Codec, FlattenError};
use crate::import::{Streamed, import_stream};
use crate::reference::ImageName;
use crate::store::{Image, Store};
use corebox_spec::Failure;
use corebox_sys::fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

/// Ids that `unshare` needs in /etc/subuid and /etc/subgid.
const WANTED_IDS: u64 = 65_536;
/// Where programs of the system are that an ordinary user's PATH may lack (chroot, dpkg's helpers).
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lines of mmdebstrap's output that are kept for a failure.
const KEPT_LINES: usize = 200;

/// Runs mmdebstrap and ends it when we end, in whatever way (setpriv(1) asks the kernel for that signal). It must be
/// the whole process group: alone, mmdebstrap's main process would wait for the others to finish their work, minutes;
/// and SIGINT, as Ctrl-C gives it: that is the one that fakeroot(1) passes on to its daemon. (A shell's background
/// command ignores SIGINT unless told otherwise.)
///
/// mmdebstrap then removes the root it made, but not the directory of its gpg: so it gets a place of its own for both,
/// open to the ids of its user namespace. No mount can be in there: see the modes above. The shell may have nobody
/// left to write to, hence PIPE.
const SUPERVISOR: &str = r#"
place=$(mktemp -d "${TMPDIR:-/tmp}/corebox-bootstrap.XXXXXXXX") && chmod 755 "$place" || exit
trap 'trap "" INT; kill -INT 0' TERM
trap : PIPE
TMPDIR=$place env --default-signal=INT mmdebstrap "$@" &
wait $!
status=$?
wait
rm -rf --one-file-system "$place"
exit $status"#;

/// What to bootstrap.
#[derive(Clone, Debug, Default)]
pub struct BootstrapRequest {
    /// `name[:tag]` the image gets.
    pub name: String,
    /// Suite, e.g. `bookworm`.
    pub suite: String,
    /// Packages besides those of the variant.
    pub packages: Vec<String>,
    /// Mirrors as mmdebstrap takes them: a URI, an apt line (`deb …`) or a file with apt sources. Empty: Debian's own,
    /// with updates and security for a stable suite.
    pub mirrors: Vec<String>,
    /// mmdebstrap's variant; `None`: `minbase`.
    pub variant: Option<String>,
    /// Components for mirrors given as a URI (`main`, `contrib`, …); empty: `main`.
    pub components: Vec<String>,
    /// Files and directories of the host to copy into directories of the new root, owned by root there.
    pub copy_in: Vec<(PathBuf, String)>,
    /// Shell commands to run in the new root, after the copies.
    pub run: Vec<String>,
    /// How the image file holds the contents.
    pub codec: Codec,
}

/// Makes an image. `progress` is told how many bytes of content were added, `say` each line of mmdebstrap's progress.
///
/// # Errors
/// Bad words, missing programs (with the packages that have them), whatever mmdebstrap says: nothing of it is in the
/// store then.
pub fn bootstrap(
    store: &Store,
    request: &BootstrapRequest,
    progress: &dyn Fn(u64),
    say: impl Fn(&str) + Send + 'static,
) -> Result<Image, Failure> {
    let goal = format!("cannot bootstrap `{}`", request.name);
    let name = ImageName::parse(&request.name).map_err(|error| Failure::new(&goal, error))?;
    check_words(&goal, request)?;
    let is_root = nix::unistd::geteuid().is_root();
    check_programs(&goal, is_root)?;
    let mut running = Mmdebstrap::start(&goal, arguments(request, is_root), say)?;
    let Some(stdout) = running.child.stdout.take() else {
        return Err(Failure::new(goal, "mmdebstrap has no output"));
    };
    let said = ["mmdebstrap", &request.suite].into_iter().chain(request.packages.iter().map(String::as_str));
    let source = said.collect::<Vec<_>>().join(" ");
    let made = Streamed { goal: &goal, name: &name, source, codec: request.codec };
    import_stream(store, made, stdout, progress, |flattened| running.finish(&goal, &flattened))
}

/// Refuses what would be read as an option or as something else than one word.
fn check_words(goal: &str, request: &BootstrapRequest) -> Result<(), Failure> {
    let plain = |word: &str| {
        !word.is_empty() && !word.starts_with('-') && !word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    let refuse = |what: &str, word: &str| Err(Failure::new(goal, format!("`{word}` is not {what}")));
    if !plain(&request.suite) || request.suite.contains('/') {
        return refuse("the name of a suite, like bookworm", &request.suite);
    }
    if let Some(word) = request.packages.iter().find(|word| !plain(word)) {
        return refuse("the name of a package", word);
    }
    if let Some(word) = request.variant.iter().chain(&request.components).find(|word| !plain(word)) {
        return refuse("a variant or component", word);
    }
    if let Some(word) = request.mirrors.iter().find(|word| word.is_empty() || word.starts_with('-')) {
        return refuse("a mirror: a URI, `deb …` or a file", word);
    }
    for (source, target) in &request.copy_in {
        // the hook that copies runs minutes later
        if let Err(error) = std::fs::symlink_metadata(source) {
            return Err(Failure::new(goal, corebox_sys::Error::io("open", source.display(), &error)));
        }
        if source.to_str().is_none() || source.file_name().is_none() {
            return refuse("a path that can be copied in", &source.to_string_lossy());
        }
        if !target.starts_with('/') {
            return refuse("an absolute path in the image", target);
        }
    }
    Ok(())
}

/// Names what must be installed, before anything else is done.
fn check_programs(goal: &str, is_root: bool) -> Result<(), Failure> {
    let has = |program: &str| find_program(program).is_some();
    if !has("mmdebstrap") {
        return Err(Failure::new(goal, "mmdebstrap is not installed").hint(
            "install the Debian package mmdebstrap, or bring a root directory or OCI archive from elsewhere \
             (`corebox image import`)",
        ));
    }
    let unshare = has("newuidmap") && has_subordinate_ids("/etc/subuid") && has_subordinate_ids("/etc/subgid");
    let fakechroot = has("fakechroot") && has("fakeroot");
    if is_root || unshare || fakechroot {
        return Ok(());
    }
    Err(Failure::new(
        goal,
        "without root, mmdebstrap needs fakechroot and fakeroot, or ids in /etc/subuid and /etc/subgid",
    )
    .hint(
        "ask your administrator for the Debian packages fakechroot and fakeroot (no privilege is needed to use them)",
    ))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = search_path();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATH);
    path
}

/// Whether the caller has a range of subordinate ids (subuid(5)).
fn has_subordinate_ids(file: &str) -> bool {
    let uid = nix::unistd::geteuid();
    let login = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let who = fields.next().unwrap_or_default();
        let count = fields.nth(1).and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default();
        (Some(who) == login.as_deref() || who == uid.to_string()) && count >= WANTED_IDS
    })
}

fn arguments(request: &BootstrapRequest, is_root: bool) -> Vec<OsString> {
    let mut words: Vec<String> = vec!["--format=tar".into()];
    words.push(format!("--mode={}", if is_root { "unshare" } else { "auto" }));
    words.push(format!("--variant={}", request.variant.as_deref().unwrap_or("minbase")));
    words.extend(request.packages.iter().map(|package| format!("--include={package}")));
    words.extend(request.components.iter().map(|component| format!("--components={component}")));
    for (source, target) in &request.copy_in {
        let (source, target) = (source.to_string_lossy(), target.trim_end_matches('/'));
        let target = if target.is_empty() { "/" } else { target };
        let name = Path::new(&*source).file_name().unwrap_or_default().to_string_lossy();
        let hook = |command: String| format!("--customize-hook={command}");
        words.push(hook(in_root(&format!("mkdir -p {}", quoted(target)))));
        words.push(hook(format!("copy-in {} {}", quoted(&source), quoted(target))));
        // the host's owners mean nothing in the image
        words.push(hook(in_root(&format!("chown -hR 0:0 {}", quoted(&format!("{target}/{name}"))))));
    }
    words.extend(request.run.iter().map(|command| format!("--customize-hook={}", in_root(command))));
    words.extend([request.suite.clone(), "-".to_owned()]);
    words.extend(request.mirrors.iter().cloned());
    words.into_iter().map(OsString::from).collect()
}

/// A hook that runs a shell command in the new root: mmdebstrap gives a hook the root's path as `$1`.
fn in_root(command: &str) -> String {
    format!("chroot \"$1\" /bin/sh -ec {}", quoted(command))
}

/// One word for the shell, and for mmdebstrap's own splitting of its special hooks.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

struct Mmdebstrap {
    child: Child,
    stderr: std::thread::JoinHandle<Vec<String>>,
}

impl Mmdebstrap {
    fn start(goal: &str, arguments: Vec<OsString>, say: impl Fn(&str) + Send + 'static) -> Result<Self, Failure> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "sh", "-c", SUPERVISOR, "sh"]).args(arguments).process_group(0);
        let mut child = command
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(goal, corebox_sys::Error::io("execute", "setpriv", &error)))?;
        let Some(stderr) = child.stderr.take() else {
            return Err(Failure::new(goal, "mmdebstrap has no standard error"));
        };
        Ok(Self { child, stderr: std::thread::spawn(move || follow(stderr, say)) })
    }

    /// Waits for mmdebstrap; its own failure is reported before ours, unless it only failed because we stopped
    /// reading.
    fn finish(mut self, goal: &str, flattened: &Result<(), FlattenError>) -> Result<(), Failure> {
        let ours = matches!(flattened, Err(FlattenError::Erofs(_) | FlattenError::Squash(_) | FlattenError::File(_)));
        if flattened.is_err() {
            // SIGTERM makes it remove its temporary directory; an error means that it has ended
            kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).ok();
        }
        let status = self.child.wait();
        let lines = self.stderr.join().unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(()),
            _ if ours => Ok(()),
            Ok(status) => Err(Failure::new(goal, format!("mmdebstrap failed ({status}):\n{}", reason(&lines)))
                .during("making the root with mmdebstrap", "bootstrap")),
            Err(error) => Err(Failure::new(goal, corebox_sys::Error::io("wait for", "mmdebstrap", &error))),
        }
    }
}

/// Reads what mmdebstrap says, line by line, and keeps the end of it.
fn follow(stderr: ChildStderr, say: impl Fn(&str)) -> Vec<String> {
    let mut kept = VecDeque::new();
    // its progress bars use carriage returns
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        let line = line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or_default().trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        say(&line);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept.into()
}

/// The lines that say why: errors of apt and mmdebstrap, or else the last ones.
fn reason(lines: &[String]) -> String {
    let errors: Vec<&str> = lines.iter().map(String::as_str).filter(|line| line.starts_with("E: ")).collect();
    let chosen = match errors.is_empty() {
        true => lines.iter().map(String::as_str).skip(lines.len().saturating_sub(8)).collect(),
        false => errors,
    };
    chosen.into_iter().take(8).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> BootstrapRequest {
        BootstrapRequest { name: "x".into(), suite: "bookworm".into(), ..Default::default() }
    }

    #[test]
    fn words_that_would_be_options_are_refused() {
        assert!(check_words("g", &request()).is_ok());
        let bad = [
            BootstrapRequest { suite: "--help".into(), ..request() },
            BootstrapRequest { suite: "".into(), ..request() },
            BootstrapRequest { suite: "/etc".into(), ..request() },
            BootstrapRequest { packages: vec!["a b".into()], ..request() },
            BootstrapRequest { packages: vec!["-x".into()], ..request() },
            BootstrapRequest { mirrors: vec!["--setup-hook=x".into()], ..request() },
            BootstrapRequest { variant: Some("".into()), ..request() },
            BootstrapRequest { copy_in: vec![("/proc/self/exe".into(), "opt".into())], ..request() },
            BootstrapRequest { copy_in: vec![("/does/not/exist".into(), "/opt".into())], ..request() },
        ];
        for request in bad {
            assert!(check_words("g", &request).is_err(), "{request:?} was accepted");
        }
    }

    #[test]
    fn hooks_keep_the_words_of_the_user_together() {
        let request = BootstrapRequest {
            copy_in: vec![("/a b/c".into(), "/opt/it's/".into())],
            run: vec!["echo \"$HOME\" 'x'".into()],
            packages: vec!["lammps".into(), "python3".into()],
            ..request()
        };
        let words: Vec<_> = arguments(&request, false).into_iter().map(|word| word.into_string().unwrap()).collect();
        assert_eq!(
            words,
            [
                "--format=tar",
                "--mode=auto",
                "--variant=minbase",
                "--include=lammps",
                "--include=python3",
                r#"--customize-hook=chroot "$1" /bin/sh -ec 'mkdir -p '\''/opt/it'\''\'\'''\''s'\'''"#,
                r#"--customize-hook=copy-in '/a b/c' '/opt/it'\''s'"#,
                r#"--customize-hook=chroot "$1" /bin/sh -ec 'chown -hR 0:0 '\''/opt/it'\''\'\'''\''s/c'\'''"#,
                r#"--customize-hook=chroot "$1" /bin/sh -ec 'echo "$HOME" '\''x'\'''"#,
                "bookworm",
                "-",
            ]
        );
    }

    #[test]
    fn the_reason_is_what_apt_says() {
        let lines = ["I: running", "E: Unable to locate package lamps", "I: main() received signal", "E: failed"];
        let lines: Vec<String> = lines.map(str::to_owned).into();
        assert_eq!(reason(&lines), "E: Unable to locate package lamps\nE: failed");
        assert_eq!(reason(&lines[..1]), "I: running");
        assert_eq!(reason(&[]), "");
    }
}
