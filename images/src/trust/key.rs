//! Keys of signers: PEM files, ECDSA P-256 with SHA-256 (cosign's own kind) or Ed25519.

use corebox_sys::{Error, fs};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use std::path::Path;

/// What stands before the point of a P-256 key (RFC 5480): SEQUENCE, id-ecPublicKey, prime256v1, BIT STRING of 66 bytes.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// What stands before an Ed25519 key (RFC 8410).
const EDWARDS: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("{0}")]
    File(#[from] Error),
    #[error("{0} is not {1}")]
    Form(String, &'static str),
    #[error("the system gives no randomness")]
    Randomness,
}

/// A key that signatures are checked with.
pub(crate) struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
}

impl PublicKey {
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let form = || KeyError::Form(path.display().to_string(), "a public key in PEM (ECDSA P-256 or Ed25519)");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(&fs::read(path)?).map_err(|_| form())?;
        if let Some(key) = der.strip_prefix(&P256[..]).filter(|key| key.len() == 65) {
            return Ok(Self { algorithm: &ECDSA_P256_SHA256_ASN1, key: key.to_vec() });
        }
        match der.strip_prefix(&EDWARDS[..]).filter(|key| key.len() == 32) {
            Some(key) => Ok(Self { algorithm: &ED25519, key: key.to_vec() }),
            None => Err(form()),
        }
    }

    /// Whether this is the key's signature of the message.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.key).verify(message, signature).is_ok()
    }
}

/// A key that signs.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl SigningKey {
    /// Reads an unencrypted PKCS #8 file, as `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes it.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let form =
            |_| KeyError::Form(path.display().to_string(), "an unencrypted private key in PEM (PKCS #8, ECDSA P-256)");
        let pem = fs::read(path)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| form(()))?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der(), &random);
        Ok(Self { pair: pair.map_err(|_| form(()))?, random })
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.pair.sign(&self.random, message).map_err(|_| KeyError::Randomness)?.as_ref().to_vec())
    }
}
