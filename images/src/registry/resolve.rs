//! From a name to one manifest for one machine.

use super::PullEvent;
use super::address::through_mirrors;
use super::client::{ClientError, Connection, MAX_SMALL};
use super::error::{Kind, RegistryError};
use crate::config::Config;
use crate::layer::hex;
use crate::oci::{self, OciError};
use crate::platform::{self, Machine};
use oci_client::{Reference, RegistryOperation};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use sha2::{Digest, Sha256};

/// Indexes may point to indexes, this deep.
const MAX_NESTING: usize = 4;

/// Why no manifest was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Oci(#[from] OciError),
    /// Nobody has it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Nowhere(Vec<ClientError>),
}

impl From<RegistryError> for ResolveError {
    fn from(error: RegistryError) -> Self {
        Self::Client(error.into())
    }
}

/// An image of a registry.
pub(crate) struct Found<'a> {
    pub connection: Connection<'a>,
    /// The place as the user would name it, not the mirror.
    pub place: Reference,
    /// `sha256:…` of what the name points to: an index, or the manifest itself.
    pub top_digest: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
    pub manifest: ImageManifest,
    /// What the index says about its platform.
    pub platform: Option<String>,
}

/// Asks the places in order. A place that does not have it (or does not say so to strangers) leads to the next one; any
/// other trouble ends the search, because the next place may have another image under that name. Mirrors are different:
/// whatever one says, the next is asked.
pub(crate) fn find<'a>(
    places: &[Reference],
    machine: &Machine,
    config: &'a Config,
    say: &'a dyn Fn(PullEvent),
) -> Result<Found<'a>, ResolveError> {
    let mut said = Vec::new();
    for place in places {
        let mut absent = true;
        for asked in through_mirrors(place, config) {
            let connection = Connection::new(&asked, config, say)?;
            let error = match fetch(connection, place, machine) {
                Err(ResolveError::Client(error)) => error,
                decided => return decided,
            };
            absent = is_absent(&error);
            said.push(error);
        }
        // the last one asked is the registry itself
        if !absent {
            break;
        }
    }
    Err(match said.len() {
        1 => said.remove(0).into(),
        _ => ResolveError::Nowhere(said),
    })
}

/// Whether an error means that there is no such image. Some registries answer strangers 401 whatever they ask for.
fn is_absent(error: &ClientError) -> bool {
    matches!(error, ClientError::Registry(error) if matches!(error.kind, Kind::NotFound | Kind::Unauthorized))
}

fn fetch<'a>(connection: Connection<'a>, place: &Reference, machine: &Machine) -> Result<Found<'a>, ResolveError> {
    connection.log_in(RegistryOperation::Pull)?;
    let (mut bytes, mut digest) = connection.manifest(&connection.place.clone())?;
    let top_digest = digest.clone();
    let mut platform = None;
    for _ in 0..MAX_NESTING {
        if !is_index(&bytes)? {
            let manifest: ImageManifest = oci::parse("the manifest", &bytes)?;
            return Ok(Found { connection, place: place.clone(), top_digest, digest, manifest, platform });
        }
        let index: ImageIndex = oci::parse("the index", &bytes)?;
        let chosen = platform::choose(index.manifests(), machine).map_err(OciError::from)?;
        platform = chosen.platform().as_ref().map(platform::show).or(platform);
        digest = format!("sha256:{}", oci::digits(chosen)?);
        bytes = manifest_of(&connection, chosen)?;
    }
    Err(OciError::Nesting.into())
}

/// A manifest that a descriptor points to.
pub(crate) fn manifest_of(connection: &Connection, descriptor: &Descriptor) -> Result<Vec<u8>, ResolveError> {
    let expected = oci::digits(descriptor)?;
    let bytes = connection.manifest_by_digest(&format!("sha256:{expected}"))?;
    // the client checks it as well; this is the place that must not be wrong
    let got = hex(&Sha256::digest(&bytes));
    match got == expected {
        true => Ok(bytes),
        false => Err(OciError::Digest { what: "the manifest".to_owned(), expected, got }.into()),
    }
}

/// Whether a document is an index, whatever type the registry gave it.
fn is_index(bytes: &[u8]) -> Result<bool, OciError> {
    debug_assert!(bytes.len() as u64 <= MAX_SMALL);
    let value: serde_json::Value = oci::parse("the manifest", bytes)?;
    if value.get("schemaVersion") == Some(&1.into()) {
        return Err(OciError::Artifact("docker manifest, schema version 1 (no longer in use)".to_owned()));
    }
    Ok(value.get("manifests").is_some_and(|list| list.is_array()))
}
