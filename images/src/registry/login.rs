//! `corebox image login` and `logout`.

use super::client::{ClientError, Connection};
use super::credentials::{self, CredentialError};
use super::error::Kind;
use crate::config::Config;
use corebox_spec::Failure;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};

/// Who logs in where.
#[derive(Clone)]
pub struct LoginRequest {
    /// `host[:port]`.
    pub registry: String,
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

/// Checks the credentials with the registry and keeps them; gives the place where they are kept.
///
/// # Errors
/// The registry refuses them or cannot be asked, or there is no place to keep them.
pub fn login(config: &Config, request: &LoginRequest) -> Result<String, Failure> {
    let registry = &request.registry;
    let goal = format!("cannot log in to {registry}");
    let place = any_place(registry).ok_or_else(|| not_a_registry(&goal, registry))?;
    let auth = RegistryAuth::Basic(request.user.clone(), request.password.clone());
    let connection = Connection::with(&place, auth, config, &|_| {}).map_err(|error| explained(&goal, error))?;
    let refused = |error: super::error::RegistryError| {
        let failure = error.failure(&goal);
        if error.kind == Kind::Unauthorized { failure.hint("wrong user or password") } else { failure }
    };
    let token = connection.log_in(RegistryOperation::Pull).map_err(refused)?;
    if !token {
        // no tokens here: only a request shows whether the password is right. That there is no such image is fine.
        match connection.manifest(&place) {
            Err(error) if error.kind != Kind::NotFound => return Err(refused(error)),
            _ => {}
        }
    }
    credentials::keep(registry, &request.user, &request.password).map_err(|error| unkept(&goal, error))
}

/// Forgets the credentials of a registry; whether there were any.
///
/// # Errors
/// A file of credentials cannot be read or written.
pub fn logout(registry: &str) -> Result<bool, Failure> {
    let goal = format!("cannot log out of {registry}");
    any_place(registry).ok_or_else(|| not_a_registry(&goal, registry))?;
    credentials::forget(registry).map_err(|error| unkept(&goal, error))
}

/// An image that the registry need not have.
fn any_place(registry: &str) -> Option<Reference> {
    let host_only = !registry.is_empty() && !registry.contains(['/', '@']);
    let place: Reference = format!("{registry}/corebox/login:check").parse().ok().filter(|_| host_only)?;
    (place.registry() == registry).then_some(place)
}

fn not_a_registry(goal: &str, registry: &str) -> Failure {
    Failure::new(goal, format!("`{registry}` is not HOST[:PORT]")).hint("like docker.io or registry.site.org:5000")
}

fn explained(goal: &str, error: ClientError) -> Failure {
    match error {
        ClientError::Registry(error) => error.failure(goal),
        other => Failure::new(goal, other),
    }
}

fn unkept(goal: &str, error: CredentialError) -> Failure {
    Failure::new(goal, error).during("keeping the credentials", "credentials")
}
