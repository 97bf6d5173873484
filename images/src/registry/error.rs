//! What a registry or the way to it answered, sorted by what can be done about it.

use corebox_spec::Failure;
use oci_client::errors::{OciDistributionError, OciErrorCode};

/// Longest part of a registry's own words that is shown.
const SHOWN: usize = 300;

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 404: no such repository, tag or blob.
    NotFound,
    /// 401.
    Unauthorized,
    /// 403.
    Denied,
    /// 429.
    TooMany,
    /// 408 and 5xx.
    Server,
    /// No connection, or one that ended.
    Network,
    /// No secure connection.
    Tls,
    /// What came is not what its digest promised.
    Digest,
    /// An answer that is not understood.
    Protocol,
}

/// A registry's error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{registry}: {cause}")]
pub(crate) struct RegistryError {
    pub kind: Kind,
    /// The registry that was asked (a mirror's own name).
    pub registry: String,
    pub cause: String,
}

impl RegistryError {
    pub(crate) fn new(kind: Kind, registry: &str, cause: impl Into<String>) -> Self {
        Self { kind, registry: registry.to_owned(), cause: cause.into() }
    }

    /// Sorts what the client says.
    pub(crate) fn of(registry: &str, error: &OciDistributionError) -> Self {
        let (kind, cause) = match error {
            OciDistributionError::UnauthorizedError { url } => (Kind::Unauthorized, format!("401 for {url}")),
            OciDistributionError::AuthenticationFailure(said) => {
                (Kind::Unauthorized, format!("no token was given: {}", short(said)))
            }
            OciDistributionError::RegistryError { envelope, url } => {
                let kind = envelope.errors.first().map_or(Kind::Protocol, |error| kind_of(&error.code));
                let said: Vec<_> = envelope.errors.iter().map(|e| format!("{:?} {}", e.code, e.message)).collect();
                (kind, format!("{} for {url}", short(&said.join(", "))))
            }
            OciDistributionError::ServerError { code, url, message } => {
                (kind_of_status(*code), format!("{code} for {url}: {}", short(message)))
            }
            OciDistributionError::RequestError(error) => {
                let chain = chain(error);
                let tls = ["certificate", "tls", "handshake", "corrupt message"]
                    .iter()
                    .any(|word| chain.to_lowercase().contains(word));
                (if tls { Kind::Tls } else { Kind::Network }, chain)
            }
            OciDistributionError::IoError(error) => (Kind::Network, chain(error)),
            OciDistributionError::DigestError(error) => (Kind::Digest, error.to_string()),
            OciDistributionError::ImageManifestNotFoundError(said) => (Kind::NotFound, said.clone()),
            other => (Kind::Protocol, chain(other)),
        };
        Self { kind, registry: registry.to_owned(), cause }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::TooMany | Kind::Server | Kind::Network)
    }

    /// As the user sees it.
    pub(crate) fn failure(&self, goal: &str) -> Failure {
        let failure = Failure::new(goal, self).during("talking to the registry", "registry");
        let registry = &self.registry;
        match self.kind {
            Kind::NotFound => failure.hint("check the name and the tag; a private image may need `corebox image login`"),
            Kind::Unauthorized => failure.hint(format!(
                "`corebox image login {registry}` with a user and password (or token) that may read it; credentials are \
                 taken from $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json and ~/.docker/config.json"
            )),
            Kind::Denied => failure.hint("this user may not do that; ask the owner of the repository"),
            Kind::TooMany => failure.hint("the registry limits how often it is asked: wait, log in, or name a mirror"),
            Kind::Server => failure.hint("the registry has trouble; what has been downloaded is kept for the next try"),
            Kind::Network => failure.hint(
                "is the name right, and can this node reach it? Behind a proxy, set https_proxy. What has been downloaded is \
                 kept for the next try",
            ),
            Kind::Tls if self.cause.contains("CaUsedAsEndEntity") => failure.hint(
                "the registry shows an authority's own certificate; give it one for a server (basicConstraints=CA:FALSE)",
            ),
            Kind::Tls => failure.hint(format!(
                "a registry with a certificate of its own needs `ca = \"FILE\"`, one without TLS `http = true`, under \
                 [registry.\"{registry}\"] in images.toml"
            )),
            Kind::Digest => failure.hint("the registry or the way to it is damaged, or somebody changes the data"),
            Kind::Protocol => failure,
        }
    }
}

fn kind_of(code: &OciErrorCode) -> Kind {
    match code {
        OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::NotFound
        | OciErrorCode::BlobUnknown => Kind::NotFound,
        OciErrorCode::Unauthorized => Kind::Unauthorized,
        OciErrorCode::Denied => Kind::Denied,
        OciErrorCode::Toomanyrequests => Kind::TooMany,
        _ => Kind::Protocol,
    }
}

fn kind_of_status(code: u16) -> Kind {
    match code {
        404 => Kind::NotFound,
        401 => Kind::Unauthorized,
        403 => Kind::Denied,
        429 => Kind::TooMany,
        408 | 500.. => Kind::Server,
        _ => Kind::Protocol,
    }
}

/// The error with its reasons: reqwest's own words end before the interesting part.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = error.source();
    }
    text
}

/// One line without control characters: it comes from outside and goes to a terminal.
fn short(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted() {
        let server =
            |code| OciDistributionError::ServerError { code, url: "u".into(), message: "\u{1b}[31mm\nn".into() };
        for (code, kind, passing) in [
            (401, Kind::Unauthorized, false),
            (403, Kind::Denied, false),
            (404, Kind::NotFound, false),
            (416, Kind::Protocol, false),
            (429, Kind::TooMany, true),
            (500, Kind::Server, true),
            (503, Kind::Server, true),
        ] {
            let error = RegistryError::of("r", &server(code));
            assert_eq!((error.kind, error.is_passing()), (kind, passing), "{code}");
            assert_eq!(error.to_string(), format!("r: {code} for u: [31mm n"));
        }
        let envelope = serde_json::from_str(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}"#).unwrap();
        let error = RegistryError::of("r", &OciDistributionError::RegistryError { envelope, url: "u".into() });
        assert_eq!(error.kind, Kind::TooMany);
    }
}
