//! The one place with an async runtime: requests to one registry, each sent again while that may help.

use super::PullEvent;
use super::credentials::{self, CredentialError};
use super::error::{Kind, RegistryError};
use super::layer_file::LayerFile;
use crate::config::Config;
use crate::layer::hex;
use futures_util::StreamExt;
use http::HeaderValue;
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::time::Duration;

/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Largest manifest, config or attachment that is read into memory.
pub(crate) const MAX_SMALL: u64 = 4 << 20;
/// What a manifest may be.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Why a connection could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{0}")]
    Registry(#[from] RegistryError),
    #[error("{0}")]
    Credential(#[from] CredentialError),
    #[error("{0}")]
    File(#[from] corebox_sys::Error),
}

/// A blob that is wanted as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// 64 digits.
    pub hex: String,
    pub size: u64,
}

/// One repository of one registry, as one user.
pub(crate) struct Connection<'a> {
    runtime: tokio::runtime::Runtime,
    client: oci_client::Client,
    pub place: Reference,
    auth: RegistryAuth,
    config: &'a Config,
    say: &'a dyn Fn(PullEvent),
    /// Whether the registry has answered before: then a failing connection may be worth another try.
    answered: Cell<bool>,
}

impl<'a> Connection<'a> {
    /// Prepares a connection; nothing is sent yet.
    pub(crate) fn new(place: &Reference, config: &'a Config, say: &'a dyn Fn(PullEvent)) -> Result<Self, ClientError> {
        let auth = credentials::find(place.resolve_registry())?;
        Self::with(place, auth, config, say)
    }

    /// The same with these credentials.
    pub(crate) fn with(
        place: &Reference,
        auth: RegistryAuth,
        config: &'a Config,
        say: &'a dyn Fn(PullEvent),
    ) -> Result<Self, ClientError> {
        let registry = place.resolve_registry();
        // an error means that it is installed already
        rustls::crypto::ring::default_provider().install_default().ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| corebox_sys::Error::io("epoll_create for", registry, &error))?;
        let client = oci_client::Client::try_from(client_config(registry, config)?)
            .map_err(|error| RegistryError::of(registry, &error))?;
        let (place, answered) = (place.clone(), Cell::new(false));
        Ok(Self { runtime, client, place, auth, config, say, answered })
    }

    pub(crate) fn registry(&self) -> &str {
        self.place.resolve_registry()
    }

    /// Asks for a token if the registry works with tokens; wrong credentials show here. Whether one was given.
    pub(crate) fn log_in(&self, operation: RegistryOperation) -> Result<bool, RegistryError> {
        let given = self.persist("logging in", async || self.client.auth(&self.place, &self.auth, operation).await);
        given.map(|token| token.is_some())
    }

    /// A manifest or index as it is stored, with its digest (checked if the reference names one).
    pub(crate) fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), RegistryError> {
        let (bytes, digest) = self
            .persist("the manifest", async || self.client.pull_manifest_raw(reference, &self.auth, &MANIFESTS).await)?;
        match bytes.len() as u64 > MAX_SMALL {
            true => Err(RegistryError::new(Kind::Protocol, self.registry(), "the manifest is larger than 4 MiB")),
            false => Ok((bytes.to_vec(), digest)),
        }
    }

    /// A manifest of this repository by its digest.
    pub(crate) fn manifest_by_digest(&self, digest: &str) -> Result<Vec<u8>, RegistryError> {
        Ok(self.manifest(&self.place.clone_with_digest(digest.to_owned()))?.0)
    }

    /// A small blob; its digest has been checked.
    pub(crate) fn small_blob(&self, digest: &str, size: u64, what: &'static str) -> Result<Vec<u8>, RegistryError> {
        if size > MAX_SMALL {
            let cause = format!("{what} has {size} bytes, more than 4 MiB");
            return Err(RegistryError::new(Kind::Protocol, self.registry(), cause));
        }
        self.persist(what, async || {
            let mut stream = self.client.pull_blob_stream(&self.place, digest).await?;
            let mut content = Vec::new();
            while let Some(piece) = stream.next().await {
                content.extend_from_slice(&piece?);
                if content.len() as u64 > size {
                    let cause = format!("{what} is larger than the {size} bytes of its descriptor");
                    return Err(OciDistributionError::SpecViolationError(cause));
                }
            }
            Ok(content)
        })
    }

    /// Downloads blobs into files, several at once; a file that has a part already gets the rest. `arrived` is told how
    /// many bytes more (or, when a part proves worthless, less) there are.
    pub(crate) fn blobs(
        &self,
        wanted: Vec<(Wanted, LayerFile)>,
        arrived: &dyn Fn(i64),
    ) -> Result<Vec<LayerFile>, ClientError> {
        self.runtime.block_on(async {
            let downloads = wanted.into_iter().map(|(wanted, file)| self.blob(wanted, file, arrived));
            let mut running = futures_util::stream::iter(downloads).buffered(self.config.parallel);
            let mut done = Vec::new();
            while let Some(file) = running.next().await {
                done.push(file?);
            }
            Ok(done)
        })
    }

    /// One blob. Tries are counted anew whenever something has come.
    async fn blob(&self, wanted: Wanted, mut file: LayerFile, arrived: &dyn Fn(i64)) -> Result<LayerFile, ClientError> {
        let mut tries = 0;
        let mut resumed = file.length() > 0;
        loop {
            let before = file.length();
            let error = match self.rest_of_blob(&wanted, &mut file, arrived).await {
                Ok(()) if file.digest() == wanted.hex => {
                    file.sync()?;
                    return Ok(file);
                }
                // what an earlier, perhaps crashed, run left may be damaged: once from the start
                Ok(()) if resumed => {
                    resumed = false;
                    self.lose(&mut file, arrived)?;
                    continue;
                }
                Ok(()) => {
                    let got = file.digest();
                    file.remove();
                    let cause = format!("layer sha256:{} arrived with the digest sha256:{got}", wanted.hex);
                    return Err(RegistryError::new(Kind::Digest, self.registry(), cause).into());
                }
                Err(ClientError::Registry(error)) => error,
                Err(error) => return Err(error),
            };
            tries = if file.length() > before { 1 } else { tries + 1 };
            if !error.is_passing() || tries > self.config.retries {
                return Err(error.into());
            }
            self.wait(&format!("layer {}", &wanted.hex[..12]), &error, tries).await;
        }
    }

    async fn rest_of_blob(
        &self,
        wanted: &Wanted,
        file: &mut LayerFile,
        arrived: &dyn Fn(i64),
    ) -> Result<(), ClientError> {
        let registry = self.registry();
        let sorted = |error: OciDistributionError| RegistryError::of(registry, &error);
        if file.length() >= wanted.size {
            return Ok(());
        }
        let digest = format!("sha256:{}", wanted.hex);
        self.client.store_auth_if_needed(registry, &self.auth).await;
        let mut stream = if file.length() == 0 {
            self.client.pull_blob_stream(&self.place, digest.as_str()).await.map_err(sorted)?
        } else {
            match self.client.pull_blob_stream_partial(&self.place, digest.as_str(), file.length(), None).await {
                Ok(BlobResponse::Partial(stream)) => stream,
                // it does not know ranges
                Ok(BlobResponse::Full(stream)) => {
                    self.lose(file, arrived)?;
                    stream
                }
                Err(error) => {
                    let error = sorted(error);
                    if error.kind != Kind::Protocol {
                        return Err(error.into());
                    }
                    // 416, or an answer about ranges that is not understood
                    self.lose(file, arrived)?;
                    self.client.pull_blob_stream(&self.place, digest.as_str()).await.map_err(sorted)?
                }
            }
        };
        self.answered.set(true);
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| match error.get_ref() {
                // the client compares digests at the end of a whole blob; we do too, and know what to do about it
                Some(inner) if inner.is::<oci_client::errors::DigestError>() => Ok(()),
                _ => Err(sorted(error.into())),
            });
            let piece = match piece {
                Ok(piece) => piece,
                Err(Ok(())) => break,
                Err(Err(error)) => return Err(error.into()),
            };
            if file.length() + piece.len() as u64 > wanted.size {
                let cause = format!("layer {digest} is longer than the {} bytes of its descriptor", wanted.size);
                return Err(RegistryError::new(Kind::Protocol, registry, cause).into());
            }
            file.append(&piece)?;
            arrived(piece.len() as i64);
            (self.say)(PullEvent::Received(piece.len() as u64));
        }
        match file.length() == wanted.size {
            true => Ok(()),
            false => {
                let cause = format!("the connection ended after {} of {} bytes", file.length(), wanted.size);
                Err(RegistryError::new(Kind::Network, registry, cause).into())
            }
        }
    }

    /// Sends a blob of unknown length; gives its digest and size.
    pub(crate) fn push_stream(
        &self,
        pieces: impl Iterator<Item = std::io::Result<Vec<u8>>> + Send + 'static,
        say: &dyn Fn(PullEvent),
    ) -> Result<(String, u64), RegistryError> {
        let stream = futures_util::stream::iter(
            pieces.map(|piece| piece.map(Into::into).map_err(OciDistributionError::IoError)),
        );
        let sent = self.runtime.block_on(async {
            self.client.store_auth_if_needed(self.registry(), &self.auth).await;
            self.client.push_blob_stream_chunked(&self.place, stream).await
        });
        let sent = sent.map_err(|error| RegistryError::of(self.registry(), &error))?;
        self.answered.set(true);
        say(PullEvent::Sent(sent.size));
        Ok((sent.blob_digest, sent.size))
    }

    /// Sends a small blob; gives its digest.
    pub(crate) fn push_small(&self, content: Vec<u8>) -> Result<String, RegistryError> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(&content)));
        self.persist("a small blob", async || {
            self.client.push_blob(&self.place, content.clone(), &digest).await.map(|_| ())
        })?;
        Ok(digest)
    }

    /// Sends a manifest to a name of this repository; gives its digest.
    pub(crate) fn push_manifest(&self, name: &Reference, content: Vec<u8>) -> Result<String, RegistryError> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(&content)));
        let media_type = HeaderValue::from_static(MANIFESTS[0]);
        self.persist("the manifest", async || {
            self.client.push_manifest_raw(name, content.clone(), media_type.clone()).await.map(|_| ())
        })?;
        Ok(digest)
    }

    /// Begins a blob anew.
    fn lose(&self, file: &mut LayerFile, arrived: &dyn Fn(i64)) -> Result<(), ClientError> {
        arrived(-(file.length() as i64));
        (self.say)(PullEvent::Lost(file.length()));
        Ok(file.restart()?)
    }

    /// Sends a request until it succeeds, cannot succeed, or was sent often enough.
    pub(crate) fn persist<T>(
        &self,
        what: &str,
        mut request: impl AsyncFnMut() -> Result<T, OciDistributionError>,
    ) -> Result<T, RegistryError> {
        self.runtime.block_on(async {
            let mut tries = 0;
            loop {
                let error = match request().await {
                    Ok(answer) => {
                        self.answered.set(true);
                        return Ok(answer);
                    }
                    Err(error) => RegistryError::of(self.registry(), &error),
                };
                tries += 1;
                // a name that does not exist or a closed port will not open while we wait
                let hopeless = error.kind == Kind::Network && !self.answered.get();
                if !error.is_passing() || hopeless || tries > self.config.retries {
                    return Err(error);
                }
                self.answered.set(true);
                self.wait(what, &error, tries).await;
            }
        })
    }

    /// Waits before the next try, longer each time, and not as long as everybody else.
    async fn wait(&self, what: &str, error: &RegistryError, tries: u32) {
        let doubled = self.config.retry_delay.saturating_mul(1 << (tries - 1).min(16)).min(LONGEST_WAIT);
        let mut random = [0u8; 1];
        // without it all wait equally long
        getrandom::fill(&mut random).ok();
        let delay = doubled.mul_f64(0.75 + f64::from(random[0]) / 512.0);
        (self.say)(PullEvent::Again { what, cause: &error.to_string(), delay });
        tokio::time::sleep(delay).await;
    }
}

/// What the configuration says about a registry, in the client's words. One client serves one registry: its roots are
/// trusted for no other.
fn client_config(registry: &str, config: &Config) -> Result<ClientConfig, ClientError> {
    let said = config.registry(registry);
    let mut roots = Vec::new();
    if let Some(path) = &said.ca {
        let data = corebox_sys::fs::read(path)?;
        roots.push(Certificate { encoding: CertificateEncoding::Pem, data });
    }
    let plain = if said.http { vec![registry.to_owned()] } else { Vec::new() };
    Ok(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(plain),
        extra_root_certificates: roots,
        platform_resolver: None,
        read_timeout: Some(config.stall),
        connect_timeout: Some(config.stall.min(Duration::from_secs(20))),
        user_agent: concat!("corebox/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}
