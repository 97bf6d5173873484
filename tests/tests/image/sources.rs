//! Archives written byte by byte, so that they can hold what no archiver would write.

use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use tar::{EntryType, Header};

/// A tar being written.
#[derive(Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

/// Metadata of an entry.
#[derive(Clone, Copy)]
pub struct Meta<'a> {
    pub mode: u32,
    pub owner: (u64, u64),
    pub device: (u32, u32),
    pub xattrs: &'a [(&'a str, &'a [u8])],
}

/// root:root, no device, no attributes.
pub fn mode(mode: u32) -> Meta<'static> {
    Meta { mode, owner: (0, 0), device: (0, 0), xattrs: &[] }
}

impl Tar {
    pub fn entry(mut self, path: &[u8], kind: EntryType, meta: Meta, link: &[u8], content: &[u8]) -> Self {
        let mut pax = Vec::new();
        if path.len() > 100 {
            pax_record(&mut pax, b"path", path);
        }
        if link.len() > 100 {
            pax_record(&mut pax, b"linkpath", link);
        }
        for (name, value) in meta.xattrs {
            pax_record(&mut pax, format!("SCHILY.xattr.{name}").as_bytes(), value);
        }
        if !pax.is_empty() {
            self = self.raw(b"pax", EntryType::XHeader, mode(0), b"", pax.len() as u64).data(&pax);
        }
        self.raw(path, kind, meta, link, content.len() as u64).data(content)
    }

    /// A header alone, whatever it promises.
    pub fn raw(mut self, path: &[u8], kind: EntryType, meta: Meta, link: &[u8], size: u64) -> Self {
        let mut header = Header::new_ustar();
        let fit = |field: &mut [u8], value: &[u8]| {
            field[..value.len().min(100)].copy_from_slice(&value[..value.len().min(100)])
        };
        fit(&mut header.as_old_mut().name, path);
        fit(&mut header.as_old_mut().linkname, link);
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.owner.0);
        header.set_gid(meta.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        let ustar = header.as_ustar_mut().unwrap();
        ustar.set_device_major(meta.device.0);
        ustar.set_device_minor(meta.device.1);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self
    }

    pub fn data(mut self, content: &[u8]) -> Self {
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path.as_bytes(), EntryType::Regular, mode(0o644), b"", content)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Directory, mode(0o755), b"", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Symlink, mode(0o777), target.as_bytes(), b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Link, mode(0o644), target.as_bytes(), b"")
    }

    /// The archive with its end mark.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

pub fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| length - length.to_string().len() == rest).unwrap();
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A layer without its compression.
fn unpacked(layer: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => drop(flate2::read::GzDecoder::new(layer).read_to_end(&mut plain).unwrap()),
        [0x28, 0xb5, ..] => plain = zstd::decode_all(layer).unwrap(),
        _ => plain.extend_from_slice(layer),
    }
    plain
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image of a layout: its architecture if the index names it, its layers as stored, its `config`.
pub type Platform<'a> = (Option<&'a str>, &'a [Vec<u8>], serde_json::Value);

/// An OCI layout: file name → content.
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
}

impl Layout {
    pub fn new(images: &[Platform]) -> Self {
        let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        let mut blob = |media: &str, bytes: Vec<u8>| {
            let hex = digest(&bytes);
            let descriptor = serde_json::json!({
                "mediaType": media, "digest": format!("sha256:{hex}"), "size": bytes.len()
            });
            files.push((format!("blobs/sha256/{hex}"), bytes));
            descriptor
        };
        let mut manifests = Vec::new();
        for (arch, layers, config) in images {
            let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(&unpacked(layer)))).collect();
            let layers: Vec<_> =
                layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar+gzip", layer.clone())).collect();
            let config = serde_json::json!({
                "architecture": arch.unwrap_or("amd64"), "os": "linux", "config": config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids}
            });
            let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": layers
            });
            let mut manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
            // how umoci finds it
            manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "env"});
            if let Some(arch) = arch {
                manifest["platform"] = serde_json::json!({"architecture": arch, "os": "linux"});
            }
            manifests.push(manifest);
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        Self { files }
    }

    pub fn archive(&self) -> Vec<u8> {
        self.files.iter().fold(Tar::default(), |tar, (name, content)| tar.file(name, content)).end()
    }

    pub fn write(&self, scratch: &crate::support::Scratch, name: &str) -> std::path::PathBuf {
        for (file, content) in &self.files {
            scratch.file(&format!("{name}/{file}"), content);
        }
        scratch.path.join(name)
    }
}
