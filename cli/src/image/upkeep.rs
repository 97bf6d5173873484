//! `corebox image tag`, `gc`, `verify` and `df`.

use super::{print, print_json, table};
use corebox_images::{Store, Usage};
use corebox_spec::{Failure, exit, format_size, parse_duration};
use serde_json::json;
use std::time::Duration;

/// Give an image a further name.
#[derive(clap::Args)]
pub struct TagArgs {
    /// NAME[:TAG], sha256:HEX, or 8 or more digits of the digest
    image: String,
    /// The further NAME[:TAG]; one that is there is moved
    name: String,
}

/// Remove what nobody names: old images, interrupted downloads, leftovers.
#[derive(clap::Args)]
#[command(after_help = "\
An image is removed when it has had no name for --older-than and no running job uses it (jobs say so in the store, where
they may write to it). A queued job's image is safe by its name; one that a job names by digest needs a name of its own:
`corebox image tag sha256:HEX KEEP-FOR-JOB`.")]
pub struct GcArgs {
    /// How long an image must have been without a name, e.g. 36h
    #[arg(long, value_name = "DURATION", default_value = "336h", value_parser = parse_duration)]
    older_than: Duration,
    /// Say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Read images and compare their digests.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Images [default: all]
    images: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show how much space stores use.
#[derive(clap::Args)]
pub struct DfArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tags.
pub fn tag(store: &Store, args: &TagArgs) -> Result<u8, Failure> {
    let image = store.tag(&args.image, &args.name)?;
    print(&format!("{} {}\n", args.name, image.digest))
}

/// Collects garbage.
pub fn gc(store: &Store, args: &GcArgs) -> Result<u8, Failure> {
    let done = store.gc(args.older_than, args.dry_run)?;
    if args.json {
        let kept: Vec<_> = done.kept.iter().map(|(digest, why)| json!({"digest": digest, "reason": why})).collect();
        return print_json(&json!({
            "removed": done.images, "image_bytes": done.image_bytes, "layer_bytes": done.layer_bytes, "kept": kept,
            "dry_run": args.dry_run,
        }));
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for digest in &done.images {
        print(&format!("{verb} {digest}\n"))?;
    }
    for (digest, why) in &done.kept {
        print(&format!("kept {digest}: {why}\n"))?;
    }
    print(&format!("{verb} {} of images, {} of layers\n", format_size(done.image_bytes), format_size(done.layer_bytes)))
}

/// Verifies; 125 if one is damaged.
pub fn verify(store: &Store, args: &VerifyArgs) -> Result<u8, Failure> {
    let listing = if args.images.is_empty() { Some(store.list()?) } else { None };
    let digests = listing.iter().flat_map(|listing| listing.images.iter().map(|image| image.digest.clone()));
    let images: Vec<String> = args.images.iter().cloned().chain(digests).collect();
    let mut failures: Vec<Failure> = listing.map(|listing| listing.broken).unwrap_or_default();
    let mut good = Vec::new();
    for image in &images {
        match store.verify(image) {
            Ok(image) => good.push(image),
            Err(failure) => failures.push(failure),
        }
    }
    if args.json {
        let damaged: Vec<_> = failures.iter().map(|failure| failure.cause.clone()).collect();
        let good: Vec<_> = good.iter().map(|image| image.digest.clone()).collect();
        print_json(&json!({"good": good, "damaged": damaged}))?;
    } else {
        for image in &good {
            print(&format!("good {} {}\n", image.digest, image.names.join(",")))?;
        }
    }
    for failure in &failures {
        eprintln!("{failure}");
    }
    Ok(if failures.is_empty() { 0 } else { exit::COREBOX })
}

/// Shows the use of space.
pub fn df(store: &Store, args: &DfArgs) -> Result<u8, Failure> {
    let usage = store.usage()?;
    if args.json {
        let json = |usage: &Usage| {
            json!({
                "store": usage.root, "images": usage.images, "image_bytes": usage.image_bytes,
                "unnamed_bytes": usage.unnamed_bytes, "layer_bytes": usage.layer_bytes,
                "temporary_bytes": usage.temporary_bytes, "free_bytes": usage.free_bytes,
            })
        };
        return print_json(&usage.iter().map(json).collect());
    }
    let mut rows = vec![["STORE", "IMAGES", "SIZE", "UNNAMED", "LAYERS", "TEMPORARY", "FREE"].map(str::to_owned)];
    rows.extend(usage.iter().map(|usage| {
        let size = |bytes: u64| format_size(bytes);
        [
            usage.root.display().to_string(),
            usage.images.to_string(),
            size(usage.image_bytes),
            size(usage.unnamed_bytes),
            size(usage.layer_bytes),
            size(usage.temporary_bytes),
            size(usage.free_bytes),
        ]
    }));
    print(&table(&rows))
}
