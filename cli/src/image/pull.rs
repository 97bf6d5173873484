//! `corebox image pull`, and how fetching is shown.

use super::{CodecName, progress_bar, report};
use corebox_images::{Config, PullEvent, PullRequest, Store};
use corebox_spec::{Failure, format_size};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often something is said where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// Fetch an image from a registry.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image pull docker://ghcr.io/lab/lammps:2024
  corebox image pull ubuntu:24.04 --as base
  corebox image pull registry.site.org/app@sha256:0123…

A name without a registry is looked for where images.toml says (`search`, `default-registry`). An image that is here
already, or that somebody else is fetching into the same store, is not downloaded twice; what an interrupted download
left is used by the next one.")]
pub struct PullArgs {
    /// [docker://][HOST[:PORT]/]PATH[:TAG][@sha256:HEX]
    #[arg(value_name = "REF")]
    reference: String,
    /// NAME[:TAG] it gets in the store [default: the last part of PATH, and TAG]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// For another machine than this: linux/ARCH[/VARIANT], e.g. linux/amd64/v2
    #[arg(long)]
    platform: Option<String>,
    /// How the image holds its contents: `none` starts fastest, `zstd` is smallest
    #[arg(long, value_enum, default_value = "none", value_name = "CODEC")]
    codec: CodecName,
    /// Pull it only if this public key (PEM) has signed it, as cosign does
    #[arg(long, value_name = "KEY")]
    signed_by: Option<PathBuf>,
}

/// Pulls.
pub fn run(store: &Store, args: &PullArgs) -> Result<u8, Failure> {
    let config = Config::load()?;
    let request = PullRequest {
        reference: args.reference.clone(),
        name: args.name.clone(),
        platform: args.platform.clone(),
        codec: args.codec.into(),
        signed_by: args.signed_by.clone(),
    };
    let show = Show::new();
    let pulled = corebox_images::pull(store, &config, &request, &|event| show.event(event));
    show.bar.finish_and_clear();
    pulled.and_then(|(name, image)| report(&name.to_string(), &image))
}

/// What is going on: a bar on a terminal, else a line now and then.
pub struct Show {
    pub bar: ProgressBar,
    said: Cell<Option<Instant>>,
}

impl Show {
    pub fn new() -> Self {
        Self { bar: progress_bar(), said: Cell::new(None) }
    }

    pub fn event(&self, event: PullEvent) {
        let bar = &self.bar;
        match event {
            PullEvent::Found { place, .. } => bar.set_message(format!("found {place}")),
            PullEvent::Download { layers, bytes, present } => {
                self.measured(bytes);
                bar.set_position(present);
                bar.set_message(format!("downloading {layers} layers"));
            }
            PullEvent::Received(bytes) => bar.inc(bytes),
            PullEvent::Lost(bytes) => bar.dec(bytes),
            PullEvent::Again { what, cause, delay } => {
                self.line(&format!("{what}: {cause}; trying again in {:.1} s", delay.as_secs_f64()));
            }
            PullEvent::Waiting { host, user, done, of } => {
                let words = format!("waiting for {user} on {host}, who is fetching it");
                bar.set_message(words.clone());
                // who fetches has not said yet how much it is: there is nothing to show
                if of == 0 {
                    return;
                }
                self.measured(of);
                bar.set_position(done);
                if bar.is_hidden() && self.said.get().is_none_or(|said| said.elapsed() > QUIET) {
                    self.said.set(Some(Instant::now()));
                    eprintln!("{words}: {} of {}", format_size(done), format_size(of));
                }
            }
            PullEvent::Writing => {
                bar.reset();
                bar.set_message("writing the image");
            }
            PullEvent::Written(bytes) => bar.inc(bytes),
            PullEvent::Sent(bytes) => bar.set_message(format!("sent a layer of {}", format_size(bytes))),
        }
    }

    /// With a known end.
    fn measured(&self, bytes: u64) {
        self.bar.set_length(bytes);
        // the template is a constant; were it wrong, the old one would be shown
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13} {wide_msg}")
        {
            self.bar.set_style(style);
        }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}
