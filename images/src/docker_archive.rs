//! What `docker save`, `podman save` and `skopeo copy … docker-archive:` write: a tar with `manifest.json`, a config and
//! one tar for each layer (moby image/tarexport; docker's image specification v1.2).

use crate::layer::{Compression, Layer};
use crate::oci::{Blobs, OciError, OciImage, config_of, parse};
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

/// One image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads the one image of an archive. Layers are checked by the config's `diff_ids`, which are digests of the tars.
pub(crate) fn open(blobs: &Blobs) -> Result<OciImage, OciError> {
    let mut saved: Vec<Saved> = parse("manifest.json", &blobs.whole("manifest.json", None)?)?;
    if saved.len() != 1 {
        let names = saved.iter().map(|image| image.repo_tags.clone().unwrap_or_default().join(",")).collect();
        return Err(OciError::Several(names));
    }
    let image = saved.remove(0);
    let json = blobs.whole(&image.config, None)?;
    let config: ImageConfiguration = parse("the image config", &json)?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != image.layers.len() {
        let cause = format!("{} layers, and {} in the config", image.layers.len(), diff_ids.len());
        return Err(OciError::Json("manifest.json".to_owned(), cause));
    }
    let mut layers = Vec::new();
    for (number, (name, diff_id)) in image.layers.iter().zip(diff_ids).enumerate() {
        let (file, offset, length) = blobs.place(name)?;
        let head = blobs.head(name)?;
        let digest = diff_id.strip_prefix("sha256:").filter(|hex| crate::reference::is_full_digest(hex));
        layers.push(Layer {
            file,
            offset,
            length,
            // of a compressed one the stored bytes have another digest, which nobody tells
            digest: digest.filter(|_| Compression::of(&head) == Compression::None).map(str::to_owned),
            whiteouts: true,
            label: format!("layer {} of {} ({name})", number + 1, image.layers.len()),
            limit: u64::MAX,
        });
    }
    Ok(OciImage { layers, config: config_of(&json)? })
}
