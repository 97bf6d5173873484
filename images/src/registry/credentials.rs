//! Users and passwords of registries, where docker and podman keep them (docker's config.json, containers-auth.json(5)).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corebox_sys::{Error, fs};
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use nix::errno::Errno;
use oci_client::secrets::RegistryAuth;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why credentials cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("{0}")]
    File(#[from] Error),
    #[error("{path}: {cause}")]
    Content { path: String, cause: String },
    #[error("credential helper {program}: {cause}")]
    Helper { program: String, cause: String },
    #[error("there is no place for credentials: neither HOME nor DOCKER_CONFIG nor REGISTRY_AUTH_FILE is set")]
    NoPlace,
}

/// The files that may hold credentials, in the order in which they are asked.
fn files() -> Vec<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = path("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let podman = path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let docker = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")));
    podman.into_iter().chain(docker.map(|dir| dir.join("config.json"))).collect()
}

/// docker's key of its own registry; others are known by `host[:port]`.
fn key(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

/// The credentials for a registry; anonymous when there are none.
pub(crate) fn find(registry: &str) -> Result<RegistryAuth, CredentialError> {
    for path in files() {
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        match get_credential_from_reader(&content[..], key(registry)) {
            Ok(DockerCredential::UsernamePassword(user, password)) => return Ok(RegistryAuth::Basic(user, password)),
            Ok(DockerCredential::IdentityToken(token)) => return Ok(RegistryAuth::Bearer(token)),
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // what every helper says for a server it does not know
            Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
            Err(CredentialRetrievalError::HelperFailure { helper, stdout, stderr }) => {
                let cause = format!("{} {}", stdout.trim(), stderr.trim()).trim().to_owned();
                return Err(CredentialError::Helper { program: helper, cause });
            }
            Err(error) => return Err(wrong(&path, error)),
        }
    }
    Ok(RegistryAuth::Anonymous)
}

/// Keeps credentials: with the helper that the file names, else in the file itself. Gives the place.
pub(crate) fn keep(registry: &str, user: &str, password: &str) -> Result<String, CredentialError> {
    let path = place()?;
    let mut content = read(&path)?;
    if let Some(helper) = helper(&content, registry) {
        let secret = json!({"ServerURL": key(registry), "Username": user, "Secret": password});
        run_helper(&helper, "store", &secret.to_string())?;
        return Ok(format!("docker-credential-{helper}"));
    }
    content["auths"][key(registry)] = json!({"auth": STANDARD.encode(format!("{user}:{password}"))});
    write(&path, &content)?;
    Ok(path.display().to_string())
}

/// Forgets credentials; whether there were any.
pub(crate) fn forget(registry: &str) -> Result<bool, CredentialError> {
    let mut found = false;
    for path in files() {
        let mut content = read(&path)?;
        if let Some(helper) = helper(&content, registry) {
            found |= run_helper(&helper, "erase", key(registry)).is_ok();
        }
        let Some(auths) = content.get_mut("auths").and_then(Value::as_object_mut) else { continue };
        if auths.remove(key(registry)).is_some() {
            write(&path, &content)?;
            found = true;
        }
    }
    Ok(found)
}

/// Where new credentials go: the first file that is there, else docker's.
fn place() -> Result<PathBuf, CredentialError> {
    let files = files();
    let there = files.iter().find(|path| path.is_file()).or(files.last());
    there.cloned().ok_or(CredentialError::NoPlace)
}

fn read(path: &Path) -> Result<Value, CredentialError> {
    let bytes = match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => return Ok(json!({})),
        Ok(bytes) => bytes,
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => return Ok(json!({})),
        Err(error) => return Err(error.into()),
    };
    let content: Value =
        serde_json::from_slice(&bytes).map_err(|error| wrong(path, format_args!("not JSON: {error}")))?;
    let object_or_none = |value: Option<&Value>| value.is_none_or(Value::is_object);
    match content.is_object() && object_or_none(content.get("auths")) {
        true => Ok(content),
        false => Err(wrong(path, "not a docker configuration")),
    }
}

fn wrong(path: &Path, cause: impl std::fmt::Display) -> CredentialError {
    CredentialError::Content { path: path.display().to_string(), cause: cause.to_string() }
}

fn helper(content: &Value, registry: &str) -> Option<String> {
    let own = content.get("credHelpers").and_then(|helpers| helpers.get(key(registry)));
    let name = own.or_else(|| content.get("credsStore"))?.as_str()?;
    // it becomes part of a program's name
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    plain.then(|| name.to_owned())
}

fn run_helper(helper: &str, verb: &str, input: &str) -> Result<(), CredentialError> {
    let program = format!("docker-credential-{helper}");
    let failed = |cause: String| CredentialError::Helper { program: program.clone(), cause };
    let mut command = Command::new(&program);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Err(failed(said.trim().to_owned()))
}

/// Replaces the file as a whole, readable by its owner only.
fn write(path: &Path, content: &Value) -> Result<(), CredentialError> {
    // a link to a file kept elsewhere (dotfiles) stays a link
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new("/"));
    let failed = |call: &'static str| move |error: std::io::Error| Error::io(call, path.display(), &error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("mkdir for"))?;
    let aside = directory.join(format!(".corebox-{}", std::process::id()));
    // a leftover of a killed process with our number
    std::fs::remove_file(&aside).ok();
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
    let mut file = made.map_err(failed("create a file beside"))?;
    let written = file.write_all(format!("{content:#}\n").as_bytes()).and_then(|()| file.sync_all());
    let result = written.map_err(failed("write")).and_then(|()| fs::rename(&aside, path));
    if result.is_err() {
        std::fs::remove_file(&aside).ok();
    }
    Ok(result?)
}
