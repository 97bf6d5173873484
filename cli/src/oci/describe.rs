//! `spec`, `features`.

use super::show::print_pretty;
use corebox_runtime::oci;
use corebox_spec::Failure;
use std::path::PathBuf;

/// Write a config.json to start from.
#[derive(Debug, clap::Args)]
pub struct SpecArgs {
    /// Directory it is written to.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For an ordinary user: with a user namespace that has one user.
    #[arg(long)]
    rootless: bool,
}

/// Print what this runtime supports, as runtime-spec features.md says.
#[derive(Debug, clap::Args)]
pub struct FeaturesArgs {}

/// Runs `spec`.
pub fn spec(args: &SpecArgs) -> Result<u8, Failure> {
    let path = args.bundle.join("config.json");
    let failed = |cause: String| Failure::new("cannot write config.json", cause);
    if path.exists() {
        return Err(failed(format!("{} is there already", path.display())).hint("remove it first."));
    }
    let text = serde_json::to_string_pretty(&oci::default_config(args.rootless)).map_err(|e| failed(e.to_string()))?;
    corebox_sys::fs::write(&path, text + "\n").map_err(|e| failed(e.to_string()))?;
    Ok(0)
}

/// Runs `features`.
pub fn features() -> Result<u8, Failure> {
    print_pretty(&oci::features());
    Ok(0)
}
