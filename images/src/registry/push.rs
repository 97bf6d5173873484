//! `corebox image push`: an image becomes an OCI image of one layer that any tool can pull.
//!
//! The layer is made while it is sent: no temporary file. Its digest is known at its end, when the registry is told it.

use super::PullEvent;
use super::address::{AddressError, places};
use super::client::{ClientError, Connection};
use super::error::{Kind, RegistryError};
use super::signatures::{sign, unusable};
use crate::config::Config;
use crate::export::{Export, ExportError};
use crate::layer::hex;
use crate::platform::Machine;
use crate::store::{Image, Store};
use crate::trust::SigningKey;
use corebox_spec::{Failure, ImageConfig};
use flate2::write::GzEncoder;
use oci_client::{Reference, RegistryOperation};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes sent at once.
const PIECE: usize = 4 << 20;
/// Pieces made in advance.
const AHEAD: usize = 2;

/// How the layer is compressed on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// Every tool reads it.
    #[default]
    Gzip,
    /// Faster and smaller; docker from 23, podman from 2.
    Zstd,
    /// For registries nearby.
    None,
}

impl Compress {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
        }
    }
}

/// What to push where.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// An image of the store.
    pub image: String,
    /// `[docker://]HOST[:PORT]/PATH[:TAG]`.
    pub reference: String,
    /// How.
    pub compress: Compress,
    /// A private key (PEM, PKCS #8, ECDSA P-256) to sign it with.
    pub sign: Option<PathBuf>,
}

/// What is in the registry now.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `HOST[:PORT]/PATH:TAG`.
    pub reference: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
}

/// Pushes an image.
///
/// # Errors
/// No such image, one that cannot be read, what the registry says.
pub fn push(store: &Store, config: &Config, request: &PushRequest, say: &dyn Fn(PullEvent)) -> Result<Pushed, Failure> {
    let goal = format!("cannot push `{}`", request.image);
    let image = store.find(&request.image)?;
    let place = one_place(&goal, &request.reference, config)?;
    let key = request.sign.as_deref().map(SigningKey::read).transpose().map_err(|error| unusable(&goal, &error))?;
    let export = Export::open(&image.path).map_err(|error| unreadable(&goal, &error))?;
    let connection = Connection::new(&place, config, say).map_err(|error| failed(&goal, error))?;
    connection.log_in(RegistryOperation::Push).map_err(|error| error.failure(&goal))?;
    let layer = send_layer(&connection, &export, request.compress, say).map_err(|error| failed(&goal, error))?;
    let digest = send_manifest(&connection, &image, &layer).map_err(|error| error.failure(&goal))?;
    if let Some(key) = &key {
        sign(&goal, &connection, &digest, key)?;
    }
    Ok(Pushed { reference: place.to_string(), digest })
}

/// Where it goes: a registry must be named, and a digest cannot be chosen.
pub(super) fn one_place(goal: &str, reference: &str, config: &Config) -> Result<Reference, Failure> {
    // without a registry it would mean the search list, which is for finding
    let named = config.clone();
    let wrong = |error: AddressError| Failure::new(goal, error);
    let mut places = places(reference, &Config { search: vec!["unnamed.invalid".into()], ..named }).map_err(wrong)?;
    let place = places.remove(0);
    if place.registry() == "unnamed.invalid" {
        return Err(Failure::new(goal, format!("`{reference}` names no registry")).hint("like docker://HOST/PATH:TAG"));
    }
    match place.digest() {
        Some(_) => Err(Failure::new(goal, "the registry computes the digest").hint("give a tag instead")),
        None => Ok(place),
    }
}

/// A layer in the registry.
struct Sent {
    media_type: &'static str,
    digest: String,
    size: u64,
    /// `sha256:…` of the tar.
    diff_id: String,
}

fn send_layer(
    connection: &Connection,
    export: &Export,
    compress: Compress,
    say: &dyn Fn(PullEvent),
) -> Result<Sent, ClientError> {
    std::thread::scope(|scope| {
        let (pieces, made) = sync_channel(AHEAD);
        let writing = scope.spawn(move || write_layer(export, compress, pieces));
        let sent = connection.push_stream(Pieces(made), say);
        let diff_id = writing.join().unwrap_or_else(|_| Err(ExportError::Write(io::Error::other("the writer ended"))));
        match (sent, diff_id) {
            (Ok((digest, size)), Ok(diff_id)) => Ok(Sent { media_type: compress.media_type(), digest, size, diff_id }),
            // a registry that hangs up makes the writer fail, and an image that cannot be read makes the push fail
            (Err(error), Ok(_) | Err(ExportError::Write(_))) => Err(error.into()),
            (_, Err(error)) => Err(RegistryError::new(Kind::Protocol, connection.registry(), error.to_string()).into()),
        }
    })
}

/// What arrives at the registry's end: pieces, or the reason why there are no more.
pub(super) struct Pieces(Receiver<io::Result<Vec<u8>>>);

impl Iterator for Pieces {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.recv().ok()
    }
}

/// Cuts what is written into pieces.
struct Cutter {
    piece: Vec<u8>,
    pieces: SyncSender<io::Result<Vec<u8>>>,
}

impl Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Cutter {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the compressed tar; gives the digest of the tar.
fn write_layer(
    export: &Export,
    compress: Compress,
    pieces: SyncSender<io::Result<Vec<u8>>>,
) -> Result<String, ExportError> {
    let refuse = pieces.clone();
    let cutter = Cutter { piece: Vec::with_capacity(PIECE), pieces };
    let written = match compress {
        Compress::None => hashed(export, cutter).map(|(hash, cutter)| (hash, Ok(cutter))),
        Compress::Gzip => {
            let encoder = GzEncoder::new(cutter, flate2::Compression::default());
            hashed(export, encoder).map(|(hash, encoder)| (hash, encoder.finish()))
        }
        Compress::Zstd => match zstd::Encoder::new(cutter, 3) {
            Ok(encoder) => hashed(export, encoder).map(|(hash, encoder)| (hash, encoder.finish())),
            Err(error) => Err(ExportError::Write(error)),
        },
    };
    let done = written.and_then(|(hash, cutter)| {
        cutter.and_then(|mut cutter| cutter.send()).map_err(ExportError::Write)?;
        Ok(hash)
    });
    if let Err(error) = &done {
        // half a layer must not look like a whole one; nobody may be there to hear it
        refuse.send(Err(io::Error::other(error.to_string()))).ok();
    }
    done
}

fn hashed<W: Write>(export: &Export, out: W) -> Result<(String, W), ExportError> {
    let mut hashing = Hashing { inner: out, hash: Sha256::new() };
    export.write(&mut hashing)?;
    Ok((format!("sha256:{}", hex(&hashing.hash.finalize())), hashing.inner))
}

/// Sends the config and the manifest; gives the manifest's digest.
fn send_manifest(connection: &Connection, image: &Image, layer: &Sent) -> Result<String, RegistryError> {
    let config = config_json(image, &layer.diff_id).to_string().into_bytes();
    let config_digest = connection.push_small(config.clone())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.len(),
        },
        "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}],
    });
    connection.push_manifest(&connection.place, manifest.to_string().into_bytes())
}

/// The OCI image config of an image.
fn config_json(image: &Image, diff_id: &str) -> Value {
    let ImageConfig { env, entrypoint, cmd, working_dir, user } = &image.facts.config;
    let mut config = json!({});
    let mut set = |key: &str, value: Value, given: bool| {
        if given {
            config[key] = value;
        }
    };
    set("Env", json!(env), !env.is_empty());
    set("Entrypoint", json!(entrypoint), !entrypoint.is_empty());
    set("Cmd", json!(cmd), !cmd.is_empty());
    set("WorkingDir", json!(working_dir), working_dir.is_some());
    set("User", json!(user), user.is_some());
    json!({
        "architecture": image.facts.arch.as_deref().map_or_else(Machine::arch_of_this, Machine::arch_of),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    })
}

pub(super) fn failed(goal: &str, error: ClientError) -> Failure {
    match error {
        ClientError::Registry(error) => error.failure(goal),
        other => Failure::new(goal, other),
    }
}

fn unreadable(goal: &str, error: &ExportError) -> Failure {
    let failure = Failure::new(goal, error);
    match error {
        ExportError::Compressed => {
            failure.hint("make the image again without --codec; registries compress what they are sent")
        }
        _ => failure,
    }
}
