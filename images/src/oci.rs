//! OCI images (image-spec): a layout directory, or the same in an uncompressed tar, read in place.

use crate::layer::{Layer, hex};
use crate::tar_reader::{TarError, TarReader};
use corebox_spec::ImageConfig;
use corebox_sys::Error;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
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
    #[error("it holds no image for {wanted}; it has: {}", list(.has))]
    Platform { wanted: String, has: Vec<String> },
    #[error("it holds several images for {wanted}: {}", list(.has))]
    Ambiguous { wanted: String, has: Vec<String> },
    #[error("indexes are nested more than {MAX_NESTING} deep")]
    Nesting,
    #[error("it is an artifact of type {0}, not an image")]
    Artifact(String),
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Where the blobs are.
enum Blobs {
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

/// Whether a tar holds an OCI layout, and then its image that fits this machine. Only headers are looked at.
pub(crate) fn open_archive(path: &Path) -> Result<Option<OciImage>, OciError> {
    let members = members(path)?;
    if !members.contains_key(&b"oci-layout"[..]) || !members.contains_key(&b"index.json"[..]) {
        return Ok(None);
    }
    open(&Blobs::Archive { file: path.to_owned(), members }).map(Some)
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
    let wanted = platform();
    let manifest = choose(blobs, index.manifests(), &wanted, 0)?;
    let bytes = blobs.json_blob(&manifest, "the manifest")?;
    let manifest: ImageManifest = parse("the manifest", &bytes)?;
    if let Some(kind) = manifest.artifact_type() {
        return Err(OciError::Artifact(kind.to_string()));
    }
    let config = blobs.json_blob(manifest.config(), "the image config")?;
    let config: ImageConfiguration = parse("the image config", &config)?;
    let mut layers = Vec::new();
    for (number, descriptor) in manifest.layers().iter().enumerate() {
        layers.push(blobs.layer(descriptor, number + 1, manifest.layers().len())?);
    }
    Ok(OciImage { layers, config: config_of(&config) })
}

/// Architecture of this machine in Go's words, which OCI uses.
fn platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    };
    format!("linux/{arch}")
}

/// Chooses the manifest for this machine. A single one is taken whatever it says: that is what was packed.
fn choose(blobs: &Blobs, all: &[Descriptor], wanted: &str, depth: usize) -> Result<Descriptor, OciError> {
    if depth > MAX_NESTING {
        return Err(OciError::Nesting);
    }
    // what `docker buildx` attaches (provenance, SBOM) has the platform unknown/unknown
    let images: Vec<_> = all.iter().filter(|d| d.platform().as_ref().is_none_or(|p| *p.os() == Os::Linux)).collect();
    let named = |d: &&Descriptor| d.platform().as_ref().map(|p| format!("{}/{}", p.os(), p.architecture()));
    let fitting: Vec<_> = match images.len() {
        1 => images.clone(),
        _ => images.iter().filter(|d| named(d).is_none_or(|platform| platform == wanted)).copied().collect(),
    };
    match fitting[..] {
        [one] if *one.media_type() == MediaType::ImageIndex || is_docker_list(one) => {
            let bytes = blobs.json_blob(one, "an index")?;
            let index: ImageIndex = parse("an index", &bytes)?;
            choose(blobs, index.manifests(), wanted, depth + 1)
        }
        [one] => Ok(one.clone()),
        [] => Err(OciError::Platform { wanted: wanted.to_owned(), has: images.iter().filter_map(named).collect() }),
        _ => Err(OciError::Ambiguous {
            wanted: wanted.to_owned(),
            has: fitting.iter().map(|d| d.digest().to_string()).collect(),
        }),
    }
}

fn is_docker_list(descriptor: &Descriptor) -> bool {
    descriptor.media_type().to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(json).map_err(|error| OciError::Json(what.to_owned(), error.to_string()))
}

/// The digits of a `sha256:…` digest.
fn digits(descriptor: &Descriptor) -> Result<String, OciError> {
    let text = descriptor.digest().to_string();
    match text.strip_prefix("sha256:") {
        Some(hex) if crate::reference::is_full_digest(hex) => Ok(hex.to_owned()),
        _ => Err(OciError::DigestForm(text)),
    }
}

impl Blobs {
    /// File, offset and length of a member of the layout.
    fn place(&self, name: &str) -> Result<(PathBuf, u64, u64), OciError> {
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
    fn whole(&self, name: &str, expected: Option<u64>) -> Result<Vec<u8>, OciError> {
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

    /// Reads a small blob and checks its digest.
    fn json_blob(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, OciError> {
        let expected = digits(descriptor)?;
        let bytes = self.whole(&format!("blobs/sha256/{expected}"), Some(descriptor.size()))?;
        let got = hex(&Sha256::digest(&bytes));
        if got == expected { Ok(bytes) } else { Err(OciError::Digest { what: what.to_owned(), expected, got }) }
    }

    /// Locates a layer; its digest is checked whenever it is read.
    fn layer(&self, descriptor: &Descriptor, number: usize, of: usize) -> Result<Layer, OciError> {
        let media = descriptor.media_type().to_string();
        if !media.contains("tar") {
            return Err(OciError::Artifact(media));
        }
        let hex = digits(descriptor)?;
        let (file, offset, length) = self.place(&format!("blobs/sha256/{hex}"))?;
        let label = format!("layer {number} of {of} (sha256:{})", &hex[..12]);
        check_size(&label, Some(descriptor.size()), length)?;
        Ok(Layer { file, offset, length, digest: Some(hex), whiteouts: true, label })
    }
}

fn check_size(what: &str, expected: Option<u64>, got: u64) -> Result<(), OciError> {
    match expected {
        Some(expected) if expected != got => Err(OciError::Size { what: what.to_owned(), expected, got }),
        _ => Ok(()),
    }
}

fn config_of(config: &ImageConfiguration) -> ImageConfig {
    let Some(config) = config.config() else { return ImageConfig::default() };
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    ImageConfig {
        env: words(config.env()),
        entrypoint: words(config.entrypoint()),
        cmd: words(config.cmd()),
        working_dir: text(config.working_dir()),
        user: text(config.user()),
    }
}
