//! What is signed: a small document that names a manifest (containers/image docs/containers-signature.5.md, "simple
//! signing"; sigstore/cosign specs/SIGNATURE_SPEC.md).

use serde::Deserialize;
use serde_json::json;

/// The layer's type that holds such a document.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where the layer's descriptor has the signature, in base64.
pub(crate) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What the document is.
const KIND: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Subject,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// The document for a manifest (`sha256:…`) of a repository.
pub(crate) fn payload(repository: &str, digest: &str) -> Vec<u8> {
    let document = json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": KIND,
        },
        "optional": null,
    });
    document.to_string().into_bytes()
}

/// Whether a document is about one of these manifests.
pub(crate) fn says(document: &[u8], digests: &[&str]) -> bool {
    serde_json::from_slice::<Payload>(document)
        .is_ok_and(|payload| payload.critical.kind == KIND && digests.contains(&payload.critical.image.digest.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_about_one_manifest() {
        let document = payload("a.org/x", "sha256:1");
        assert!(says(&document, &["sha256:0", "sha256:1"]));
        assert!(!says(&document, &["sha256:2"]));
        let other = String::from_utf8(document).unwrap().replace(KIND, "atomic container signature");
        assert!(!says(other.as_bytes(), &["sha256:1"]));
        assert!(!says(b"{}", &["sha256:1"]));
    }
}
