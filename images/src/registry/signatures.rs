//! Signatures beside an image: the tag `sha256-HEX.sig` of its repository, one layer for each (cosign).

use super::client::Connection;
use super::error::{Kind, RegistryError};
use super::resolve::Found;
use crate::oci;
use crate::trust::{self, Demand, KeyError, Policy, PublicKey, SigningKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corebox_spec::Failure;
use oci_client::Reference;
use oci_spec::image::{Descriptor, ImageManifest};
use serde_json::{Value, json};

/// More signatures than this are not looked at.
const MOST: usize = 64;

/// Where signatures of a manifest are.
fn place(of: &Reference, digest: &str) -> Reference {
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let mut place = Reference::with_tag(of.registry().to_owned(), of.repository().to_owned(), tag);
    if of.resolve_registry() != of.registry() && of.namespace().is_some() {
        place.set_mirror_registry(of.resolve_registry().to_owned());
    }
    place
}

/// A signature and what it is of.
struct Signature {
    document: Vec<u8>,
    signature: Vec<u8>,
}

/// All signatures of a manifest; none if nobody signed it.
fn fetch(connection: &Connection, digest: &str) -> Result<Vec<Signature>, RegistryError> {
    let Some(manifest) = manifest(connection, digest)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for layer in manifest.layers().iter().take(MOST) {
        let Some(signature) = signature_of(layer) else { continue };
        let Ok(hex) = oci::digits(layer) else { continue };
        let document = connection.small_blob(&format!("sha256:{hex}"), layer.size(), "a signature")?;
        found.push(Signature { document, signature });
    }
    Ok(found)
}

fn manifest(connection: &Connection, digest: &str) -> Result<Option<ImageManifest>, RegistryError> {
    let bytes = match connection.manifest(&place(&connection.place, digest)) {
        Ok((bytes, _)) => bytes,
        Err(error) if error.kind == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // what is no manifest of signatures has none
    Ok(serde_json::from_slice(&bytes).ok())
}

fn signature_of(layer: &Descriptor) -> Option<Vec<u8>> {
    let is_ours = layer.media_type().to_string() == trust::MEDIA_TYPE;
    let text = layer.annotations().as_ref()?.get(trust::ANNOTATION).filter(|_| is_ours)?;
    STANDARD.decode(text).ok()
}

/// Refuses an image that the policy (or the user, by a key) wants signed and that is not; gives who signed it.
pub(crate) fn check(
    goal: &str,
    found: &Found,
    policy: &Policy,
    store: &std::path::Path,
    key: Option<&std::path::Path>,
) -> Result<Vec<String>, Failure> {
    let repository = format!("{}/{}", found.place.registry(), found.place.repository());
    let demand = policy.demand(&repository, store);
    if let Demand::Refused(_) = demand {
        return Err(trust::refused(goal, &demand));
    }
    let mut keys: Vec<(String, PublicKey)> = Vec::new();
    if let Demand::Signature(names) = &demand {
        for name in names {
            keys.push((name.clone(), policy.key(name).map_err(|error| unusable(goal, &error))?));
        }
    }
    let by_policy = keys.len();
    if let Some(path) = key {
        keys.push((path.display().to_string(), PublicKey::read(path).map_err(|error| unusable(goal, &error))?));
    }
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    // whoever signs a name of many platforms signs the index; either is a statement about what was chosen from it
    let digests = [found.top_digest.as_str(), found.digest.as_str()];
    let mut signatures = fetch(&found.connection, digests[0]).map_err(|error| error.failure(goal))?;
    if digests[0] != digests[1] {
        signatures.extend(fetch(&found.connection, digests[1]).map_err(|error| error.failure(goal))?);
    }
    let signed = |key: &PublicKey| {
        let good = |s: &Signature| key.verifies(&s.document, &s.signature) && trust::says(&s.document, &digests);
        signatures.iter().any(good)
    };
    let signers: Vec<String> = keys.iter().filter(|(_, key)| signed(key)).map(|(name, _)| name.clone()).collect();
    let of_policy = keys[..by_policy].iter().any(|(name, _)| signers.contains(name));
    let of_user = key.is_none_or(|path| signers.contains(&path.display().to_string()));
    if (by_policy == 0 || of_policy) && of_user {
        return Ok(signers);
    }
    let wanted: Vec<_> = keys.iter().map(|(name, _)| name.as_str()).collect();
    let cause = format!("{repository} has {} signatures, none by {}", signatures.len(), wanted.join(" or "));
    Err(Failure::new(goal, cause)
        .during("checking signatures", "signatures")
        .hint("do not run it before you know why: ask whoever publishes it"))
}

/// Signs a manifest that has just been pushed, beside the signatures that are there.
pub(crate) fn sign(goal: &str, connection: &Connection, digest: &str, key: &SigningKey) -> Result<(), Failure> {
    let failed = |error: RegistryError| error.failure(goal);
    let of = &connection.place;
    let document = trust::payload(&format!("{}/{}", of.registry(), of.repository()), digest);
    let signature = key.sign(&document).map_err(|error| unusable(goal, &error))?;
    let mut layers: Vec<Value> = Vec::new();
    if let Some(manifest) = manifest(connection, digest).map_err(failed)? {
        layers.extend(manifest.layers().iter().filter_map(|layer| serde_json::to_value(layer).ok()));
    }
    let size = document.len();
    let layer = connection.push_small(document).map_err(failed)?;
    layers.push(json!({
        "mediaType": trust::MEDIA_TYPE, "digest": layer, "size": size,
        "annotations": {trust::ANNOTATION: STANDARD.encode(signature)},
    }));
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({
        "architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let size = config.len();
    let config = connection.push_small(config).map_err(failed)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": layers,
    });
    connection.push_manifest(&place(of, digest), manifest.to_string().into_bytes()).map_err(failed)?;
    Ok(())
}

pub(crate) fn unusable(goal: &str, error: &KeyError) -> Failure {
    Failure::new(goal, error).during("reading a key", "signatures")
}
