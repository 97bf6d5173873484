//! `corebox image pull`.

use super::PullEvent;
use super::address::{AddressError, name_of, places};
use super::client::{ClientError, Wanted};
use super::error::Kind;
use super::layer_file::LayerFile;
use super::resolve::{Found, ResolveError, find};
use super::signatures::check;
use crate::config::Config;
use crate::flatten::Codec;
use crate::import::{About, import_layers, settings, store_failure};
use crate::layer::{Layer, hex};
use crate::lease::Lease;
use crate::oci::{self, OciError};
use crate::platform::Machine;
use crate::reference::ImageName;
use crate::store::{Image, Store};
use crate::trust::Policy;
use corebox_spec::{Failure, ImageOrigin};
use nix::errno::Errno;
use oci_client::Reference;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::path::PathBuf;

/// Digits of a lease's key: enough that two never meet, few enough for file names.
const KEY_DIGITS: usize = 16;

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullRequest {
    /// `[docker://][HOST[:PORT]/]PATH[:TAG][@sha256:HEX]`.
    pub reference: String,
    /// `NAME[:TAG]` it gets; `None`: the last part of the path and the tag.
    pub name: Option<String>,
    /// `linux/ARCH[/VARIANT]`; `None`: this machine's.
    pub platform: Option<String>,
    /// How the image file holds the contents.
    pub codec: Codec,
    /// A public key (PEM): only an image that it signed is pulled.
    pub signed_by: Option<PathBuf>,
}

/// What was asked for, understood.
struct Wish {
    places: Vec<Reference>,
    name: ImageName,
    machine: Machine,
    codec: Codec,
}

/// Pulls an image into the store; one that is there already only gets the name. Of several processes on all nodes that
/// share a store, one downloads and the others wait for it. Gives the name it has now.
///
/// # Errors
/// A bad reference, what the registry says, a damaged or hostile image, a full disk: no half image is left, and what was
/// downloaded is kept for the next try.
pub fn pull(
    store: &Store,
    config: &Config,
    request: &PullRequest,
    say: &dyn Fn(PullEvent),
) -> Result<(ImageName, Image), Failure> {
    let goal = format!("cannot pull `{}`", request.reference);
    let wish = read(request, config, &goal)?;
    let found = find(&wish.places, &wish.machine, config, say).map_err(|error| unresolved(&goal, &error))?;
    say(PullEvent::Found { place: &found.place.to_string(), digest: &found.digest });
    oci::refuse_artifact(&found.manifest).map_err(|error| damaged(&goal, &error))?;
    let policy = Policy::load()?;
    let signers = check(&goal, &found, &policy, store.root(), request.signed_by.as_deref())?;
    let key = key(&found.digest, wish.codec, &signers);
    let failed = |error| store_failure(&goal, store, &error);
    if let Some(image) = store.adopt(&key, &wish.name).map_err(failed)? {
        return Ok((wish.name, image));
    }
    store.prepare().map_err(failed)?;
    let waiting = |busy: &crate::lease::Busy| {
        let progress = busy.progress;
        say(PullEvent::Waiting { host: &busy.host, user: &busy.user, done: progress.done, of: progress.of });
        !store.has_origin(&key)
    };
    let lease = Lease::wait(store.root(), &key, config.lease, waiting).map_err(failed)?;
    // whoever we waited for may have made it
    if let Some(image) = store.adopt(&key, &wish.name).map_err(failed)? {
        return Ok((wish.name, image));
    }
    let image = fetch(store, config, &goal, &wish, &found, signers, &key, lease.as_ref(), say)?;
    drop(lease);
    Ok((wish.name, image))
}

fn read(request: &PullRequest, config: &Config, goal: &str) -> Result<Wish, Failure> {
    let places = places(&request.reference, config).map_err(|error| {
        let failure = Failure::new(goal, &error);
        match error {
            AddressError::File(_) => failure.hint("`corebox image import NAME PATH` reads files and directories"),
            AddressError::Search(_) => failure.hint("correct `search` in images.toml"),
            AddressError::Form(..) => failure,
        }
    })?;
    let name = match &request.name {
        Some(name) => ImageName::parse(name).map_err(|error| Failure::new(goal, error))?,
        None => places.first().and_then(name_of).ok_or_else(|| {
            Failure::new(goal, "its path makes no name for the store").hint("give it one with `--as NAME`")
        })?,
    };
    let machine = match &request.platform {
        None => Machine::this(),
        Some(text) => Machine::parse(text).ok_or_else(|| {
            Failure::new(goal, format!("`{text}` is no platform"))
                .hint("like linux/amd64, linux/amd64/v3 or linux/arm64")
        })?,
    };
    Ok(Wish { places, name, machine, codec: request.codec })
}

/// What makes two pulls the same work: the manifest, what decides how the file is written, and who signed: an image that
/// was pulled before anybody asked for signatures is not taken for a signed one.
fn key(manifest: &str, codec: Codec, signers: &[String]) -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_default();
    let mut key = hex(&Sha256::digest(format!("{manifest} {codec:?} {epoch} {signers:?}")));
    key.truncate(KEY_DIGITS);
    key
}

/// Downloads the layers and makes the image file of them.
#[expect(clippy::too_many_arguments, reason = "the steps of one function, cut in two")]
fn fetch(
    store: &Store,
    config: &Config,
    goal: &str,
    wish: &Wish,
    found: &Found,
    signers: Vec<String>,
    key: &str,
    lease: Option<&Lease>,
    say: &dyn Fn(PullEvent),
) -> Result<Image, Failure> {
    let settings = settings(goal, wish.codec)?;
    let wanted = wanted(found).map_err(|error| damaged(goal, &error))?;
    let image_config = found.manifest.config();
    let digest = format!("sha256:{}", oci::digits(image_config).map_err(|error| damaged(goal, &error))?);
    let json = found.connection.small_blob(&digest, image_config.size(), "the image config");
    let json = json.map_err(|error| error.failure(goal))?;
    let image_config = oci::config_of(&json).map_err(|error| damaged(goal, &error))?;
    let files = download(store, goal, found, key, &wanted, lease, say)?;
    say(PullEvent::Writing);
    let layers = layers(found, &wanted, &files, config.max_unpacked);
    let origin = ImageOrigin {
        reference: found.place.to_string(),
        manifest: found.digest.clone(),
        platform: found.platform.clone(),
        signers,
    };
    let about = About { config: image_config, source: format!("docker://{}", found.place), origin: Some(origin) };
    let made =
        import_layers(store, goal, &wish.name, &layers, about, settings, &|bytes| say(PullEvent::Written(bytes)));
    // used, or good for nothing; when only the disk is full, the next try can use them
    if !made.as_ref().is_err_and(|failure| is_full(&failure.cause)) {
        files.into_iter().for_each(LayerFile::remove);
    }
    let image = made?;
    store.set_origin(key, &image.digest).map_err(|error| store_failure(goal, store, &error))?;
    Ok(image)
}

/// Whether it is ENOSPC or EDQUOT, whichever program or library says so.
fn is_full(cause: &str) -> bool {
    ["No space left", "quota exceeded"].iter().any(|words| cause.contains(words))
}

/// The different layers of a manifest.
fn wanted(found: &Found) -> Result<Vec<Wanted>, OciError> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for layer in found.manifest.layers() {
        let blob = Wanted { hex: oci::layer_digits(layer)?, size: layer.size() };
        if !wanted.contains(&blob) {
            wanted.push(blob);
        }
    }
    Ok(wanted)
}

fn download(
    store: &Store,
    goal: &str,
    found: &Found,
    key: &str,
    wanted: &[Wanted],
    lease: Option<&Lease>,
    say: &dyn Fn(PullEvent),
) -> Result<Vec<LayerFile>, Failure> {
    let failed = |error| store_failure(goal, store, &error);
    let directory = store.root().join("layers");
    let mut files = Vec::new();
    for blob in wanted {
        let mut file = LayerFile::claim(&directory, &blob.hex, key).map_err(failed)?;
        if file.length() > blob.size {
            file.restart().map_err(failed)?;
        }
        files.push((blob.clone(), file));
    }
    let bytes = wanted.iter().map(|blob| blob.size).sum();
    let done = Cell::new(files.iter().map(|(_, file)| file.length()).sum::<u64>());
    say(PullEvent::Download { layers: wanted.len(), bytes, present: done.get() });
    // the connection speaks to `say` itself; what others see of it goes through the lease
    let told = found.connection.blobs(files, &|arrived: i64| {
        done.set(done.get().saturating_add_signed(arrived));
        if let Some(lease) = lease {
            lease.progress(done.get(), bytes);
        }
    });
    told.map_err(|error| match error {
        ClientError::Registry(error) => error.failure(goal),
        ClientError::File(error) if matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT) => {
            let failure = failed(error);
            let hint = format!(
                "{}; what has been downloaded is kept for the next try",
                failure.hint.clone().unwrap_or_default()
            );
            failure.hint(hint)
        }
        ClientError::File(error) => failed(error),
        ClientError::Credential(error) => Failure::new(goal, error),
    })
}

/// The layers in the manifest's order, each in its file.
fn layers(found: &Found, wanted: &[Wanted], files: &[LayerFile], limit: u64) -> Vec<Layer> {
    let all = found.manifest.layers();
    let layer = |(number, descriptor)| {
        let hex = oci::digits(descriptor).ok()?;
        let (blob, file) = wanted.iter().zip(files).find(|(blob, _)| blob.hex == hex)?;
        Some(Layer {
            file: file.path().to_owned(),
            offset: 0,
            length: blob.size,
            label: oci::layer_label(&hex, number + 1, all.len()),
            digest: Some(hex),
            whiteouts: true,
            limit,
        })
    };
    all.iter().enumerate().filter_map(layer).collect()
}

fn damaged(goal: &str, error: &OciError) -> Failure {
    Failure::new(goal, error).during("reading the manifest", "registry")
}

fn unresolved(goal: &str, error: &ResolveError) -> Failure {
    match error {
        ResolveError::Client(ClientError::Registry(error)) => error.failure(goal),
        ResolveError::Client(error) => Failure::new(goal, error),
        ResolveError::Oci(error) => damaged(goal, error),
        ResolveError::Nowhere(said) => {
            let failure = Failure::new(goal, error).during("asking one registry after the other", "registry");
            let refused =
                |error: &ClientError| matches!(error, ClientError::Registry(e) if e.kind == Kind::Unauthorized);
            match said.iter().any(refused) {
                true => failure.hint("a private image needs `corebox image login`"),
                false => failure.hint("`search` and `mirrors` in images.toml say who is asked"),
            }
        }
    }
}
