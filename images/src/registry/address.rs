//! Where an image is looked for: `docker://host[:port]/path[:tag][@digest]`, or a name and the search list.

use crate::config::Config;
use crate::reference::ImageName;
use oci_client::Reference;

/// Why a text names no image of a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("`{0}` is not the name of an image in a registry: [docker://][HOST[:PORT]/]PATH[:TAG][@sha256:HEX] ({1})")]
    Form(String, String),
    #[error("`{0}` is a file or directory, not in a registry")]
    File(String),
    #[error("the search list names `{0}`, which is not HOST[:PORT][/PATH]")]
    Search(String),
}

/// The places that a text may mean, in the order in which they are asked. A name with a registry means one place.
pub(crate) fn places(text: &str, config: &Config) -> Result<Vec<Reference>, AddressError> {
    let typed = text.strip_prefix("docker://").unwrap_or(text);
    let form = |cause: String| AddressError::Form(text.to_owned(), cause);
    if let Some((transport, rest)) = typed.split_once(':')
        && matches!(transport, "oci" | "oci-archive" | "docker-archive" | "dir" | "sif")
        && (rest.starts_with(['/', '.']) || transport != "dir")
    {
        return Err(AddressError::File(text.to_owned()));
    }
    if typed.contains("://") {
        return Err(form("docker:// is the only scheme".to_owned()));
    }
    if has_registry(typed) {
        return typed.parse().map(|reference| vec![reference]).map_err(|error| form(format!("{error}")));
    }
    let search = config.search.iter().map(|prefix| {
        let whole = format!("{}/{typed}", prefix.trim_end_matches('/'));
        if !has_registry(&whole) {
            return Err(AddressError::Search(prefix.clone()));
        }
        whole.parse().map_err(|error| form(format!("{error}")))
    });
    search.collect()
}

/// A place as it is asked: each mirror of its registry, then the registry itself.
pub(crate) fn through_mirrors(place: &Reference, config: &Config) -> Vec<Reference> {
    let mirrors = config.registry(place.registry()).mirrors;
    let by_mirror = mirrors.into_iter().map(|mirror| {
        let mut asked = place.clone();
        asked.set_mirror_registry(mirror);
        asked
    });
    by_mirror.chain([place.clone()]).collect()
}

/// Whether the first part names a host (distribution/reference: it has a `.` or `:`, or is `localhost`).
fn has_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, _)| host == "localhost" || host.contains(['.', ':']))
}

/// The name an image gets when the user gives none: the last part of its path, with its tag.
pub(crate) fn name_of(place: &Reference) -> Option<ImageName> {
    let last = place.repository().rsplit('/').next()?;
    let text = match place.tag() {
        Some(tag) => format!("{last}:{tag}"),
        None => last.to_owned(),
    };
    ImageName::parse(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistryConfig;

    fn shown(text: &str, config: &Config) -> Vec<String> {
        places(text, config).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_names_of_registries() {
        let config = Config::default();
        for (text, place) in [
            ("docker://localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("ghcr.io/x/y", "ghcr.io/x/y:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("me/tool", "docker.io/me/tool:latest"),
            ("localhost/x", "localhost/x:latest"),
        ] {
            assert_eq!(shown(text, &config), [place], "{text}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(shown(&format!("ghcr.io/x@{digest}"), &config), [format!("ghcr.io/x@{digest}")]);
        for bad in ["", "docker://", "https://ghcr.io/x", "ghcr.io/X", "ghcr.io/x@sha256:12", "a b", "ghcr.io/../x"] {
            assert!(matches!(places(bad, &config), Err(AddressError::Form(..))), "{bad} was accepted");
        }
        assert!(matches!(places("oci-archive:x.tar", &config), Err(AddressError::File(_))));
    }

    #[test]
    fn a_bare_name_is_searched_for_and_mirrors_come_first() {
        let mut config = Config { search: vec!["a.org/apps".into(), "b.org".into()], ..Config::default() };
        assert_eq!(shown("x:1", &config), ["a.org/apps/x:1", "b.org/x:1"]);
        assert_eq!(shown("c.org/x", &config), ["c.org/x:latest"]);
        config
            .registries
            .insert("b.org".into(), RegistryConfig { mirrors: vec!["m:5000".into()], ..Default::default() });
        let place = &places("b.org/x", &config).unwrap()[0];
        let asked: Vec<_> = through_mirrors(place, &config).iter().map(|r| r.resolve_registry().to_owned()).collect();
        assert_eq!(asked, ["m:5000", "b.org"]);
        config.search = vec!["apps".into()];
        assert_eq!(places("x", &config), Err(AddressError::Search("apps".into())));
    }

    #[test]
    fn images_are_named_after_their_path() {
        let name = |text: &str| name_of(&text.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(name("ghcr.io/a/b:1").as_deref(), Some("b:1"));
        assert_eq!(name(&format!("ghcr.io/a/b@sha256:{}", "0".repeat(64))).as_deref(), Some("b"));
    }
}
