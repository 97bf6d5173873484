//! OCI images (image-spec): a layout directory, or the same in an uncompressed tar, read in place.

use crate::docker_archive;
use crate::layer::{Layer, hex};
use crate::platform::{self, Machine, Unfit};
use crate::tar_reader::{TarError, TarReader};
use corebox_spec::ImageConfig;
use corebox_sys::Error;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Largest index, manifest or config read; registries have the same limit for manifests.
const MAX_JSON: u64 = 4 << 20;
/// Indexes may point to indexes, this deep.
const MAX_NESTING: usize = 4;

/// Why an OCI image cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("{0}")]
    File(#[from] Error),
    #[error("{0}")]
    Tar(#[from] TarError),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0}: {1}")]
    Json(String, String),
    #[error("{0} is larger than 4 MiB")]
    TooLarge(String),
    #[error("`{0}` is not a digest that is understood (sha256 and 64 digits)")]
    DigestForm(String),
    #[error("{what} has {got} bytes instead of {expected}")]
    Size { what: String, expected: u64, got: u64 },
    #[error("{what} has the digest sha256:{got} instead of sha256:{expected}")]
    Digest { what: String, expected: String, got: String },
    #[error("it {0}")]
    Platform(#[from] Unfit),
    #[error("indexes are nested more than {MAX_NESTING} deep")]
    Nesting,
    #[error("it is an artifact of type {0}, not an image")]
    Artifact(String),
    #[error("it holds several images: {}; save one of them", .0.join(" and "))]
    Several(Vec<String>),
}

/// Where the blobs are.
pub(crate) enum Blobs {
    Directory(PathBuf),
    /// Offset and length of each member of a tar.
    Archive {
        file: PathBuf,
        members: HashMap<Vec<u8>, (u64, u64)>,
    },
}

/// An image found in a layout.
pub(crate) struct OciImage {
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
}

/// Reads the image of a layout directory that fits this machine.
pub(crate) fn open_directory(path: &Path) -> Result<OciImage, OciError> {
    open(&Blobs::Directory(path.to_owned()))
}

/// Whether a tar holds an OCI layout or what `docker save` writes, and then its image that fits this machine. Of a tar that
/// is neither only headers are looked at.
pub(crate) fn open_archive(path: &Path) -> Result<Option<OciImage>, OciError> {
    let members = members(path)?;
    let has = |name: &str| members.contains_key(name.as_bytes());
    // newer docker writes both, of the same image
    let (is_layout, is_saved) = (has("oci-layout") && has("index.json"), has("manifest.json"));
    let blobs = Blobs::Archive { file: path.to_owned(), members };
    match (is_layout, is_saved) {
        (true, _) => open(&blobs).map(Some),
        (false, true) => docker_archive::open(&blobs).map(Some),
        (false, false) => Ok(None),
    }
}

/// Offsets of a tar's regular files; a later member replaces an earlier one.
fn members(path: &Path) -> Result<HashMap<Vec<u8>, (u64, u64)>, OciError> {
    let file = File::open(path).map_err(|error| Error::io("open", path.display(), &error))?;
    let mut tar = TarReader::new(BufReader::with_capacity(1 << 17, file), false);
    let mut members = HashMap::new();
    while let Some((_, entry)) = tar.next()? {
        if let Some((offset, length)) = tar.stored_content() {
            members.insert(entry.path, (offset, length));
        }
    }
    Ok(members)
}

fn open(blobs: &Blobs) -> Result<OciImage, OciError> {
    let index = blobs.whole("index.json", None)?;
    let index: ImageIndex = parse("index.json", &index)?;
    let manifest = choose(blobs, index.manifests(), &Machine::this(), 0)?;
    let bytes = blobs.json_blob(&manifest, "the manifest")?;
    let manifest: ImageManifest = parse("the manifest", &bytes)?;
    refuse_artifact(&manifest)?;
    let config = config_of(&blobs.json_blob(manifest.config(), "the image config")?)?;
    let mut layers = Vec::new();
    for (number, descriptor) in manifest.layers().iter().enumerate() {
        layers.push(blobs.layer(descriptor, number + 1, manifest.layers().len())?);
    }
    Ok(OciImage { layers, config })
}

/// Refuses what is stored like an image and is none (a chart, a signature, …).
pub(crate) fn refuse_artifact(manifest: &ImageManifest) -> Result<(), OciError> {
    match manifest.artifact_type() {
        Some(kind) => Err(OciError::Artifact(kind.to_string())),
        None => Ok(()),
    }
}

/// Follows indexes down to the manifest for a machine.
fn choose(blobs: &Blobs, all: &[Descriptor], machine: &Machine, depth: usize) -> Result<Descriptor, OciError> {
    if depth > MAX_NESTING {
        return Err(OciError::Nesting);
    }
    let one = platform::choose(all, machine)?;
    if *one.media_type() == MediaType::ImageIndex || is_docker_list(one) {
        let bytes = blobs.json_blob(one, "an index")?;
        let index: ImageIndex = parse("an index", &bytes)?;
        return choose(blobs, index.manifests(), machine, depth + 1);
    }
    Ok(one.clone())
}

pub(crate) fn is_docker_list(descriptor: &Descriptor) -> bool {
    descriptor.media_type().to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(json).map_err(|error| OciError::Json(what.to_owned(), error.to_string()))
}

/// The digits of a `sha256:…` digest.
pub(crate) fn digits(descriptor: &Descriptor) -> Result<String, OciError> {
    let text = descriptor.digest().to_string();
    match text.strip_prefix("sha256:") {
        Some(hex) if crate::reference::is_full_digest(hex) => Ok(hex.to_owned()),
        _ => Err(OciError::DigestForm(text)),
    }
}

impl Blobs {
    /// File, offset and length of a member of the layout.
    pub(crate) fn place(&self, name: &str) -> Result<(PathBuf, u64, u64), OciError> {
        match self {
            Self::Directory(root) => {
                let path = root.join(name);
                match std::fs::metadata(&path) {
                    Ok(meta) if meta.is_file() => Ok((path, 0, meta.len())),
                    Ok(_) => Err(OciError::Missing(path.display().to_string())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Err(OciError::Missing(path.display().to_string()))
                    }
                    Err(error) => Err(Error::io("stat", path.display(), &error).into()),
                }
            }
            Self::Archive { file, members } => match members.get(name.as_bytes()) {
                Some(&(offset, length)) => Ok((file.clone(), offset, length)),
                None => Err(OciError::Missing(format!("{name} in {}", file.display()))),
            },
        }
    }

    /// Reads a small member.
    pub(crate) fn whole(&self, name: &str, expected: Option<u64>) -> Result<Vec<u8>, OciError> {
        let (path, offset, length) = self.place(name)?;
        if length > MAX_JSON {
            return Err(OciError::TooLarge(name.to_owned()));
        }
        check_size(name, expected, length)?;
        let failed = |error: std::io::Error| Error::io("read", path.display(), &error);
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// The first bytes of a member.
    pub(crate) fn head(&self, name: &str) -> Result<Vec<u8>, OciError> {
        let (path, offset, length) = self.place(name)?;
        let failed = |error: std::io::Error| Error::io("read", path.display(), &error);
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(length.min(16)).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Reads a small blob and checks its digest.
    fn json_blob(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, OciError> {
        let expected = digits(descriptor)?;
        let bytes = self.whole(&format!("blobs/sha256/{expected}"), Some(descriptor.size()))?;
        let got = hex(&Sha256::digest(&bytes));
        if got == expected { Ok(bytes) } else { Err(OciError::Digest { what: what.to_owned(), expected, got }) }
    }

    /// Locates a layer; its digest is checked whenever it is read.
    fn layer(&self, descriptor: &Descriptor, number: usize, of: usize) -> Result<Layer, OciError> {
        let hex = layer_digits(descriptor)?;
        let (file, offset, length) = self.place(&format!("blobs/sha256/{hex}"))?;
        let label = layer_label(&hex, number, of);
        check_size(&label, Some(descriptor.size()), length)?;
        Ok(Layer { file, offset, length, digest: Some(hex), whiteouts: true, label, limit: u64::MAX })
    }
}

/// The digits of the digest of what must be a layer.
pub(crate) fn layer_digits(descriptor: &Descriptor) -> Result<String, OciError> {
    let media = descriptor.media_type().to_string();
    if media.contains("tar") { digits(descriptor) } else { Err(OciError::Artifact(media)) }
}

/// How messages call a layer.
pub(crate) fn layer_label(hex: &str, number: usize, of: usize) -> String {
    format!("layer {number} of {of} (sha256:{})", &hex[..12])
}

fn check_size(what: &str, expected: Option<u64>, got: u64) -> Result<(), OciError> {
    match expected {
        Some(expected) if expected != got => Err(OciError::Size { what: what.to_owned(), expected, got }),
        _ => Ok(()),
    }
}

/// The process defaults of an image config.
pub(crate) fn config_of(json: &[u8]) -> Result<ImageConfig, OciError> {
    let config: ImageConfiguration = parse("the image config", json)?;
    let Some(config) = config.config() else { return Ok(ImageConfig::default()) };
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(ImageConfig {
        env: words(config.env()),
        entrypoint: words(config.entrypoint()),
        cmd: words(config.cmd()),
        working_dir: text(config.working_dir()),
        user: text(config.user()),
    })
}
