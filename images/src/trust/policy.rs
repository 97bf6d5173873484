//! `/etc/corebox/policy.toml`: which images may run.
//!
//! ```toml
//! default = "refuse"                     # what no rule is about: "allow" (the default) or "refuse"
//! owners = ["swadmin"]                   # besides root: whose word about an image's origin counts
//!
//! [signer.site]
//! key = "/etc/corebox/site.pub"          # PEM, ECDSA P-256 or Ed25519, as `cosign generate-key-pair` makes it
//!
//! [[rule]]                               # the first rule that is about an image decides
//! registry = "registry.site.org/apps"    # host[:port][/path]; and what is below it
//! signers = ["site"]                     # one of them must have signed it; without this line nobody need have
//!
//! [[rule]]
//! path = "/apps/images"                  # image files, and stores, below this directory
//!
//! [[rule]]
//! registry = "docker.io/library/busybox"
//! refuse = true
//! ```
//!
//! A user who may run programs can run another runtime, too: the policy binds where the site starts jobs through corebox
//! and keeps people honest elsewhere.

use super::key::{KeyError, PublicKey};
use crate::store::Image;
use corebox_spec::Failure;
use corebox_sys::fs;
use nix::errno::Errno;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The one file. No variable names another: whoever sets variables is whom it binds.
const FILE: &str = "/etc/corebox/policy.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    default: Verdict,
    #[serde(default)]
    owners: Vec<String>,
    #[serde(default)]
    signer: BTreeMap<String, Signer>,
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    #[default]
    Allow,
    Refuse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    registry: Option<String>,
    path: Option<PathBuf>,
    #[serde(default)]
    signers: Vec<String>,
    #[serde(default)]
    refuse: bool,
}

/// What is demanded of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    /// A signature of one of these.
    Signature(Vec<String>),
    /// It may not run; the rule that says so.
    Refused(String),
}

/// The policy in force.
#[derive(Debug)]
pub(crate) struct Policy {
    file: File,
}

/// Where an image comes from, as far as it is known for sure.
#[derive(Clone, Copy, Debug, Default)]
struct Subject<'a> {
    /// `host[:port]/path`, without tag and digest.
    repository: Option<&'a str>,
    path: Option<&'a Path>,
}

impl Policy {
    /// Reads the policy; without a file everything may run.
    ///
    /// # Errors
    /// A file that cannot be read or understood: then nothing may run.
    pub(crate) fn load() -> Result<Self, Failure> {
        let goal = "cannot read the site's policy of images";
        let text = match fs::read_to_string(FILE) {
            Ok(text) => text,
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => {
                return Ok(Self { file: File::default() });
            }
            Err(error) => return Err(Failure::new(goal, error)),
        };
        Self::parse(&text).map_err(|cause| {
            Failure::new(goal, format!("{FILE}: {cause}"))
                .hint("your administrator must correct it; docs/manual.md has its form")
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        for (number, rule) in file.rule.iter().enumerate() {
            if rule.registry.is_none() && rule.path.is_none() {
                return Err(format!("rule {} names neither a registry nor a path", number + 1));
            }
            if let Some(name) = rule.signers.iter().find(|name| !file.signer.contains_key(*name)) {
                return Err(format!("rule {} names the signer `{name}`, which is not there", number + 1));
            }
        }
        Ok(Self { file })
    }

    /// What is demanded of an image that is about to be pulled into a store.
    pub(crate) fn demand(&self, repository: &str, store: &Path) -> Demand {
        self.decide(Subject { repository: Some(repository), path: Some(store) })
    }

    fn decide(&self, subject: Subject) -> Demand {
        for (number, rule) in self.file.rule.iter().enumerate() {
            let by_registry = rule
                .registry
                .as_deref()
                .is_none_or(|prefix| subject.repository.is_some_and(|repository| is_below(repository, prefix)));
            let by_path =
                rule.path.as_deref().is_none_or(|prefix| subject.path.is_some_and(|path| path.starts_with(prefix)));
            if by_registry && by_path {
                return match (rule.refuse, rule.signers.is_empty()) {
                    (true, _) => Demand::Refused(format!("rule {} of {FILE}", number + 1)),
                    (false, false) => Demand::Signature(rule.signers.clone()),
                    (false, true) => Demand::Nothing,
                };
            }
        }
        match self.file.default {
            Verdict::Allow => Demand::Nothing,
            Verdict::Refuse => Demand::Refused(format!("no rule of {FILE} allows it")),
        }
    }

    /// The key of a signer.
    pub(crate) fn key(&self, signer: &str) -> Result<PublicKey, KeyError> {
        let path = self.file.signer.get(signer).map(|signer| signer.key.clone()).unwrap_or_default();
        PublicKey::read(&path)
    }

    /// Whether an image file may run. What is known about a stored image counts if root, or one of the policy's owners,
    /// has written it.
    fn admit(&self, path: &Path, image: Option<&Image>) -> Result<(), Demand> {
        let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let origin = image.filter(|image| self.is_trusted(image)).and_then(|image| image.facts.origin.as_ref());
        let repository = origin.map(|origin| repository_of(&origin.reference));
        match self.decide(Subject { repository, path: Some(&whole) }) {
            Demand::Nothing => Ok(()),
            Demand::Signature(names)
                if origin.is_some_and(|origin| origin.signers.iter().any(|signer| names.contains(signer))) =>
            {
                Ok(())
            }
            demand => Err(demand),
        }
    }

    fn is_trusted(&self, image: &Image) -> bool {
        let Ok(meta) = std::fs::symlink_metadata(image.facts_path()) else { return false };
        let uid =
            |name: &String| name.parse().ok().or_else(|| Some(nix::unistd::User::from_name(name).ok()??.uid.as_raw()));
        meta.uid() == 0 || self.file.owners.iter().filter_map(uid).any(|owner| owner == meta.uid())
    }
}

/// Refuses an image that the site's policy does not allow to run: one of a store, or a file.
///
/// # Errors
/// The rule that refuses it, or a policy that cannot be read.
pub fn admit(path: &Path, image: Option<&Image>) -> Result<(), Failure> {
    let demand = match Policy::load()?.admit(path, image) {
        Ok(()) => return Ok(()),
        Err(demand) => demand,
    };
    let goal = match image.and_then(|image| image.names.first()) {
        Some(name) => format!("cannot run image `{name}`"),
        None => format!("cannot run image {}", path.display()),
    };
    Err(refused(&goal, &demand))
}

/// How a refusal is said.
pub(crate) fn refused(goal: &str, demand: &Demand) -> Failure {
    let cause = match demand {
        Demand::Refused(rule) => format!("the site's policy does not allow it: {rule}"),
        Demand::Signature(names) => {
            format!("the site's policy wants it signed by {}, and it is not known to be", names.join(" or "))
        }
        Demand::Nothing => "the site's policy".to_owned(),
    };
    Failure::new(goal, cause)
        .during("asking the site's policy", "policy")
        .hint("your administrator decides what may run; what is known about an image counts in a store that root fills")
}

/// `host[:port]/path` of a reference with tag and digest.
fn repository_of(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Whether a repository is this one or below it, by whole parts of its path.
fn is_below(repository: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    repository.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        default = 'refuse'
        [signer.site]
        key = '/k'
        [[rule]]
        registry = 'a.org/apps/bad'
        refuse = true
        [[rule]]
        registry = 'a.org/apps'
        signers = ['site']
        [[rule]]
        path = '/apps'
    ";

    #[test]
    fn the_first_rule_that_is_about_an_image_decides() {
        let policy = Policy::parse(TEXT).unwrap();
        let demand = |repository: &str, store: &str| policy.demand(repository, Path::new(store));
        assert_eq!(demand("a.org/apps/x", "/home"), Demand::Signature(vec!["site".into()]));
        assert_eq!(demand("a.org/apps/bad", "/apps"), Demand::Refused("rule 1 of /etc/corebox/policy.toml".into()));
        assert!(matches!(demand("a.org/appsx/y", "/home"), Demand::Refused(_)));
        assert!(matches!(demand("a.org:5000/apps/x", "/home"), Demand::Refused(_)));
        assert_eq!(demand("b.org/x", "/apps/store"), Demand::Nothing);
        assert!(matches!(demand("b.org/x", "/appsx"), Demand::Refused(_)));
        assert_eq!(Policy::parse("").unwrap().demand("x", Path::new("/")), Demand::Nothing);
    }

    #[test]
    fn a_policy_that_is_not_understood_is_none() {
        for text in
            ["defualt = 'refuse'", "[[rule]]\nsigners = []", "[[rule]]\npath = '/a'\nsigners = ['x']", "default = 'no'"]
        {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
        assert_eq!(repository_of("a:5000/x/y:1"), "a:5000/x/y");
        assert_eq!(repository_of("a:5000/x@sha256:00"), "a:5000/x");
        assert_eq!(repository_of("a:5000/x"), "a:5000/x");
    }
}
