//! `corebox image push`.

use super::print;
use super::pull::Show;
use clap::ValueEnum;
use corebox_images::{Compress, Config, PushRequest, Store};
use corebox_spec::Failure;
use std::path::PathBuf;

/// Send an image to a registry.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image push lammps docker://registry.site.org/lab/lammps:2024
  corebox image push --compress zstd lammps registry.site.org:5000/lab/lammps

The image becomes an OCI image of one layer, which any tool can pull. Compressed images (--codec) cannot be pushed.")]
pub struct PushArgs {
    /// NAME[:TAG], sha256:HEX, or 8 or more digits of the digest
    image: String,
    /// [docker://]HOST[:PORT]/PATH[:TAG]
    #[arg(value_name = "REF")]
    reference: String,
    /// How the layer is compressed
    #[arg(long, value_enum, default_value = "gzip")]
    compress: CompressName,
    /// Sign it as cosign does, with this private key (PEM, PKCS #8, ECDSA P-256, not encrypted)
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
}

/// Compressions as users name them.
#[derive(Clone, Copy, ValueEnum)]
enum CompressName {
    /// Every tool reads it
    Gzip,
    /// Faster and smaller; docker from 23, podman from 2
    Zstd,
    /// For registries nearby
    None,
}

/// Pushes.
pub fn run(store: &Store, args: &PushArgs) -> Result<u8, Failure> {
    let config = Config::load()?;
    let compress = match args.compress {
        CompressName::Gzip => Compress::Gzip,
        CompressName::Zstd => Compress::Zstd,
        CompressName::None => Compress::None,
    };
    let request =
        PushRequest { image: args.image.clone(), reference: args.reference.clone(), compress, sign: args.sign.clone() };
    let show = Show::new();
    show.bar.set_message(format!("sending {}", args.image));
    let pushed = corebox_images::push(store, &config, &request, &|event| show.event(event));
    show.bar.finish_and_clear();
    let pushed = pushed?;
    print(&format!("{} {}\n", pushed.reference, pushed.digest))
}
