//! Whose images may run: the site's policy, and signatures of the kind that cosign makes with a pair of keys.

mod key;
mod payload;
mod policy;

pub(crate) use key::{KeyError, PublicKey, SigningKey};
pub(crate) use payload::{ANNOTATION, MEDIA_TYPE, payload, says};
pub use policy::admit;
pub(crate) use policy::{Demand, Policy, refused};
