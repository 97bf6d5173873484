//! `corebox image import`: a source becomes one file in the store.

use crate::directory::{Owners, flatten_directory};
use crate::erofs::ErofsError;
use crate::flatten::{Codec, FlattenError, Settings, flatten_layers, flatten_stream};
use crate::inspect::Findings;
use crate::layer::{Layer, hex};
use crate::reference::ImageName;
use crate::source::{Source, SourceError};
use crate::squash::{self, SquashError};
use crate::squash_source::SquashSource;
use crate::staging::Staging;
use crate::store::{Image, Store};
use corebox_spec::{Failure, ImageConfig, ImageFacts, ImageOrigin};
use corebox_sys::Error;
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// More compressor threads than this bring nothing for the streams we write, and login nodes are shared.
const MAX_PROCESSORS: usize = 16;

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// `name[:tag]` it gets.
    pub name: String,
    /// A root directory, a tar of one (plain, gzip or zstd), an OCI layout directory, an OCI or docker archive, or a
    /// squashfs image of another tool.
    pub source: PathBuf,
    /// Record the calling user's own files as owned by that user, not by root. (Always so for root.)
    pub keep_owner: bool,
    /// How the image file holds the contents.
    pub codec: Codec,
    /// Bytes that one layer or archive may have when unpacked.
    pub max_unpacked: u64,
}

/// What is known about an image besides its content.
pub(crate) struct About {
    pub config: ImageConfig,
    /// Where it came from, in the user's words.
    pub source: String,
    pub origin: Option<ImageOrigin>,
}

impl About {
    /// Something without a config, from anywhere but a registry.
    fn plain(source: String) -> Self {
        Self { config: ImageConfig::default(), source, origin: None }
    }
}

/// Makes an image of layers.
pub(crate) fn import_layers(
    store: &Store,
    goal: &str,
    name: &ImageName,
    layers: &[Layer],
    about: About,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<Image, Failure> {
    let file = store.stage().map_err(|error| store_failure(goal, store, &error))?;
    let findings = flatten_layers(layers, file.path(), settings, progress);
    let findings = findings.map_err(|error| flatten_failure(goal, &error))?;
    finish(store, goal, name, file, findings, about)
}

/// Imports a source. `progress` is told how many bytes of content were added, as they pass.
///
/// # Errors
/// A bad name or source, a missing or too old mksquashfs, hostile or damaged input, a full disk: nothing of it is in
/// the store then.
pub fn import(store: &Store, request: &ImportRequest, progress: &dyn Fn(u64)) -> Result<Image, Failure> {
    let goal = format!("cannot import {} as `{}`", request.source.display(), request.name);
    let name = ImageName::parse(&request.name).map_err(|error| Failure::new(&goal, error))?;
    let settings = settings(&goal, request.codec)?;
    let mut source = Source::open(&request.source).map_err(|error| refused(&goal, &error))?;
    source.limit(request.max_unpacked);
    if let Source::Squashfs(path) = &source {
        return import_squashfs(store, &goal, &name, request, path, progress);
    }
    let file = store.stage().map_err(|error| store_failure(&goal, store, &error))?;
    let (findings, config) = match &source {
        Source::Squashfs(_) => (Err(FlattenError::Empty), ImageConfig::default()),
        Source::Directory(root) => {
            let owners = owners(request.keep_owner);
            (flatten_directory(root, owners, file.path(), settings, progress), ImageConfig::default())
        }
        Source::Tar(layer) => {
            (flatten_layers(std::slice::from_ref(layer), file.path(), settings, progress), ImageConfig::default())
        }
        Source::Oci(image) => (flatten_layers(&image.layers, file.path(), settings, progress), image.config.clone()),
    };
    let findings = findings.map_err(|error| flatten_failure(&goal, &error))?;
    let said = request.source.to_string_lossy().into_owned();
    finish(store, &goal, &name, file, findings, About { config, ..About::plain(said) })
}

/// Imports a squashfs image of another tool, through the tar that sqfs2tar makes of it.
fn import_squashfs(
    store: &Store,
    goal: &str,
    name: &ImageName,
    request: &ImportRequest,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<Image, Failure> {
    let (reading, tar) = SquashSource::start(goal, path)?;
    let source = request.source.to_string_lossy().into_owned();
    let made = Streamed { goal, name, source, codec: request.codec };
    import_stream(store, made, tar, progress, |flattened| reading.finish(goal, &flattened))
}

/// What an archive from a pipe becomes.
pub(crate) struct Streamed<'a> {
    /// What failures are about.
    pub goal: &'a str,
    pub name: &'a ImageName,
    /// Where it comes from, for [`ImageFacts::source`].
    pub source: String,
    pub codec: Codec,
}

/// Imports one archive from a pipe; `complete` says, after its end, whether its writer succeeded.
pub(crate) fn import_stream(
    store: &Store,
    made: Streamed,
    stream: impl Read,
    progress: &dyn Fn(u64),
    complete: impl FnOnce(Result<(), FlattenError>) -> Result<(), Failure>,
) -> Result<Image, Failure> {
    let Streamed { goal, name, source, codec } = made;
    let settings = settings(goal, codec)?;
    let file = store.stage().map_err(|error| store_failure(goal, store, &error))?;
    match flatten_stream(stream, file.path(), settings, progress) {
        Ok(findings) => {
            complete(Ok(()))?;
            finish(store, goal, name, file, findings, About::plain(source))
        }
        Err(error) => {
            let failure = flatten_failure(goal, &error);
            // if the writer failed, its reason is the better one
            complete(Err(error))?;
            Err(failure)
        }
    }
}

/// Checks mksquashfs, where it is needed, and the environment.
pub(crate) fn settings(goal: &str, codec: Codec) -> Result<Settings, Failure> {
    if codec != Codec::None {
        squash::check_program().map_err(|error| flatten_failure(goal, &error.into()))?;
    }
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => Some(text.trim().parse::<u32>().map_err(|_| {
            Failure::new(goal, format!("SOURCE_DATE_EPOCH=`{text}` is not a number of seconds since 1970"))
        })?),
        Err(_) => None,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_PROCESSORS);
    Ok(Settings { codec, epoch, processors })
}

fn owners(keep: bool) -> Owners {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if keep || uid.is_root() { Owners::Keep } else { Owners::OwnIsRoot { uid: uid.as_raw(), gid: gid.as_raw() } }
}

/// Hashes the finished image file and takes it into the store.
fn finish(
    store: &Store,
    goal: &str,
    name: &ImageName,
    file: Staging,
    findings: Findings,
    about: About,
) -> Result<Image, Failure> {
    let failed = |error: Error| store_failure(goal, store, &error);
    let (digest, size) = seal(file.path()).map_err(failed)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let facts = ImageFacts {
        digest: digest.clone(),
        size,
        arch: findings.arch,
        mpi: findings.mpi,
        source: about.source,
        created,
        config: about.config,
        origin: about.origin,
    };
    store.add(&file, &facts, name).map_err(failed)?;
    drop(file);
    store.find(&digest)
}

/// Makes the file read-only and durable; gives its digest and size.
fn seal(path: &Path) -> Result<(String, u64), Error> {
    let failed = |error: std::io::Error| Error::io("read", path.display(), &error);
    let mut file = File::open(path).map_err(failed)?;
    file.set_permissions(PermissionsExt::from_mode(0o444)).map_err(failed)?;
    file.sync_all().map_err(|error| Error::io("fsync", path.display(), &error))?;
    let mut hash = Sha256::new();
    let size = std::io::copy(&mut file, &mut hash).map_err(failed)?;
    Ok((format!("sha256:{}", hex(&hash.finalize())), size))
}

fn refused(goal: &str, error: &SourceError) -> Failure {
    let failure = Failure::new(goal, error);
    match error {
        SourceError::File(error) if error.errno == Errno::ENOENT => failure.hint(
            "the source is a path: a root directory, a tar (plain, gzip, zstd), an OCI layout directory, an OCI or docker \
             archive, or a squashfs file",
        ),
        _ => failure,
    }
}

pub(crate) fn store_failure(goal: &str, store: &Store, error: &Error) -> Failure {
    let failure = Failure::new(goal, error).during("writing to the image store", "store");
    match error.errno {
        Errno::EACCES | Errno::EPERM | Errno::EROFS => failure.hint(format!(
            "you may not write to {}; set {} to a directory of yours",
            store.root().display(),
            crate::store::STORE_VARIABLE
        )),
        Errno::ENOSPC | Errno::EDQUOT => {
            failure.hint(format!("make room on the file system of {}", store.root().display()))
        }
        _ => failure,
    }
}

pub(crate) fn flatten_failure(goal: &str, error: &FlattenError) -> Failure {
    let failure = Failure::new(goal, error).during("writing the image file", "flatten");
    match error {
        FlattenError::Squash(SquashError::Missing) => {
            failure.hint("install squashfs-tools (Debian, Fedora) or squashfs (SUSE), 4.5 or newer")
        }
        FlattenError::Squash(SquashError::TooOld(_)) => failure.hint("squashfs-tools 4.5 or newer is needed"),
        FlattenError::Squash(SquashError::Failed { said, .. }) if said.contains("No space left") => {
            failure.hint("make room in the image store")
        }
        FlattenError::Erofs(ErofsError::Write(error))
            if [Errno::ENOSPC, Errno::EDQUOT].iter().any(|full| error.raw_os_error() == Some(*full as i32)) =>
        {
            failure.hint("make room in the image store")
        }
        FlattenError::File(error) if matches!(error.errno, Errno::EACCES | Errno::EPERM) => {
            failure.hint("the directory has files that you may not read; import it as the user who may")
        }
        _ => failure,
    }
}
