//! `corebox image`: fetch, make, list, look at and remove images.

mod login;
mod pull;
mod push;
mod unpack;
mod upkeep;

use corebox_images::{BootstrapRequest, Codec, Config, Image, ImportRequest, Store};
use corebox_spec::{Failure, MpiFound, exit, format_size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Fetch, make, list, look at and remove images.
#[derive(clap::Args)]
#[command(
    about = "Fetch, make, list, look at and remove images",
    after_help = "Images are kept in $COREBOX_STORE if that is set; else root keeps them in /var/lib/corebox, other \
                  users in ~/.local/share/corebox, and they see root's as well."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Bootstrap(BootstrapArgs),
    Import(ImportArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Ls(LsArgs),
    Inspect(InspectArgs),
    Tag(upkeep::TagArgs),
    Rm(RmArgs),
    Gc(upkeep::GcArgs),
    Verify(upkeep::VerifyArgs),
    Df(upkeep::DfArgs),
    Unpack(unpack::UnpackArgs),
}

/// Make an image of Debian packages, without root.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image bootstrap lammps --suite bookworm --package lammps
  corebox image bootstrap py --suite bookworm --package python3-venv,python3-numpy \\
      --copy-in wheels /opt --run 'python3 -m venv /opt/py && /opt/py/bin/pip install /opt/wheels/*.whl'

mmdebstrap(1) does the work; it must be installed. Without root it needs ids in /etc/subuid, or the programs
fakechroot and fakeroot.")]
struct BootstrapArgs {
    /// Name of the image: NAME[:TAG]
    name: String,
    /// Release to take packages from, e.g. bookworm
    #[arg(long)]
    suite: String,
    /// Packages to install, with what they depend on; may be repeated
    #[arg(short, long = "package", value_name = "PKG", value_delimiter = ',')]
    packages: Vec<String>,
    /// A mirror's URI, an apt line ("deb …") or a file with apt sources; may be repeated [default: Debian's]
    #[arg(long = "mirror", value_name = "MIRROR")]
    mirrors: Vec<String>,
    /// Components of the mirrors, e.g. main,contrib [default: main]
    #[arg(long = "components", value_name = "COMPONENT", value_delimiter = ',')]
    components: Vec<String>,
    /// Packages to start from: minbase, essential, apt, standard, … (see mmdebstrap(1))
    #[arg(long, default_value = "minbase")]
    variant: String,
    /// Copy a file or directory into a directory of the image; may be repeated
    #[arg(long = "copy-in", num_args = 2, value_names = ["SRC", "DIR"])]
    copy_in: Vec<String>,
    /// Run a shell command in the new root, after the copies; may be repeated
    #[arg(long = "run", value_name = "COMMAND")]
    run: Vec<String>,
    /// How the image holds its contents: `none` starts fastest, `zstd` is smallest
    #[arg(long, value_enum, default_value = "none", value_name = "CODEC")]
    codec: CodecName,
}

/// Make an image from a directory, tar, OCI or docker image, or squashfs file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image import myenv ./rootfs
  corebox image import myenv myenv.tar.zst
  skopeo copy docker-daemon:myenv:1 oci-archive:myenv.oci && corebox image import myenv:1 myenv.oci

What SOURCE is, is told by its content. SOURCE_DATE_EPOCH sets the times of all files.")]
struct ImportArgs {
    /// Name of the image: NAME[:TAG]
    name: String,
    /// A root directory, a tar of one (plain, gzip, zstd), an OCI layout directory, an OCI or docker archive, or a squashfs
    /// image of another tool
    source: PathBuf,
    /// Record your own files in a directory as yours instead of as root's
    #[arg(long)]
    keep_owner: bool,
    /// How the image holds its contents: `none` starts fastest, `zstd` is smallest
    #[arg(long, value_enum, default_value = "none", value_name = "CODEC")]
    codec: CodecName,
}

/// Codecs as users name them.
#[derive(Clone, Copy, clap::ValueEnum)]
enum CodecName {
    None,
    Lz4,
    Zstd,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Self {
        match name {
            CodecName::None => Self::None,
            CodecName::Lz4 => Self::Lz4,
            CodecName::Zstd => Self::Zstd,
        }
    }
}

/// List images.
#[derive(clap::Args)]
struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show what is known about an image.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image inspect lammps
  corebox image inspect sha256:0123abcd --json")]
struct InspectArgs {
    /// NAME[:TAG], sha256:HEX, or 8 or more digits of the digest
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove images.
#[derive(clap::Args)]
#[command(after_help = "\
A name is removed; its image goes with its last name. A digest removes the image and all its names.")]
struct RmArgs {
    /// NAME[:TAG], sha256:HEX, or 8 or more digits of the digest
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Even if a running job uses it
    #[arg(long)]
    force: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// What the store or the making of an image says.
pub fn run(args: Args) -> Result<u8, Failure> {
    let store = Store::open()?;
    match args.command {
        Command::Bootstrap(args) => bootstrap(&store, args),
        Command::Import(args) => import(&store, &args),
        Command::Pull(args) => pull::run(&store, &args),
        Command::Push(args) => push::run(&store, &args),
        Command::Login(args) => login::login(&args),
        Command::Logout(args) => login::logout(&args),
        Command::Ls(args) => list(&store, &args),
        Command::Inspect(args) => inspect(&store, &args),
        Command::Tag(args) => upkeep::tag(&store, &args),
        Command::Rm(args) => remove(&store, &args),
        Command::Gc(args) => upkeep::gc(&store, &args),
        Command::Verify(args) => upkeep::verify(&store, &args),
        Command::Df(args) => upkeep::df(&store, &args),
        Command::Unpack(args) => unpack::unpack(&store, &args),
    }
}

fn bootstrap(store: &Store, args: BootstrapArgs) -> Result<u8, Failure> {
    let (pairs, _) = args.copy_in.as_chunks::<2>();
    let request = BootstrapRequest {
        name: args.name,
        suite: args.suite,
        packages: args.packages,
        mirrors: args.mirrors,
        variant: Some(args.variant),
        components: args.components,
        copy_in: pairs.iter().map(|[source, target]| (source.into(), target.clone())).collect(),
        run: args.run,
        codec: args.codec.into(),
    };
    let bar = progress_bar();
    let line = bar.clone();
    let say = move |text: &str| line.set_message(text.trim_start_matches("I: ").to_owned());
    let made = corebox_images::bootstrap(store, &request, &|bytes| bar.inc(bytes), say);
    bar.finish_and_clear();
    made.and_then(|image| report(&request.name, &image))
}

fn import(store: &Store, args: &ImportArgs) -> Result<u8, Failure> {
    let request = ImportRequest {
        name: args.name.clone(),
        source: args.source.clone(),
        keep_owner: args.keep_owner,
        codec: args.codec.into(),
        max_unpacked: Config::load()?.max_unpacked,
    };
    let bar = progress_bar();
    bar.set_message("importing");
    let made = corebox_images::import(store, &request, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    made.and_then(|image| report(&request.name, &image))
}

/// Shown on a terminal only.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    bar.set_draw_target(ProgressDrawTarget::stderr());
    // the template is a constant; were it wrong, the default would be shown
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {bytes:>12}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn report(name: &str, image: &Image) -> Result<u8, Failure> {
    print(&format!("{name} {} {} {}\n", image.digest, format_size(image.facts.size), mpi_words(&image.facts.mpi)))
}

fn list(store: &Store, args: &LsArgs) -> Result<u8, Failure> {
    let listing = store.list()?;
    if args.json {
        print_json(&serde_json::Value::from(listing.images.iter().map(json).collect::<Vec<_>>()))?;
    } else {
        let mut rows = vec![["NAME", "DIGEST", "SIZE", "ARCH", "MPI", "CREATED"].map(str::to_owned)];
        rows.extend(listing.images.iter().map(row));
        print(&table(&rows))?;
    }
    for failure in &listing.broken {
        eprintln!("{failure}");
    }
    Ok(if listing.broken.is_empty() { 0 } else { exit::COREBOX })
}

fn row(image: &Image) -> [String; 6] {
    let names = if image.names.is_empty() { "-".to_owned() } else { image.names.join(",") };
    let digest = image.digest.trim_start_matches("sha256:").chars().take(12).collect();
    let facts = &image.facts;
    let arch = facts.arch.clone().unwrap_or_else(|| "-".to_owned());
    [names, digest, format_size(facts.size), arch, mpi_words(&facts.mpi), date(facts.created)]
}

/// `Open MPI 4.1.4`; one of several libraries of one implementation is enough.
fn mpi_words(found: &[MpiFound]) -> String {
    let mut words: Vec<_> =
        found.iter().map(|mpi| format!("{} {}", mpi.family.name(), mpi.version).trim_end().to_owned()).collect();
    words.dedup();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

/// Left-aligned columns, two blanks apart.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn inspect(store: &Store, args: &InspectArgs) -> Result<u8, Failure> {
    let image = store.find(&args.image)?;
    if args.json {
        return print_json(&json(&image));
    }
    let facts = &image.facts;
    let mut lines = vec![
        ("names", image.names.join(", ")),
        ("digest", image.digest.clone()),
        ("file", image.path.display().to_string()),
        ("size", format!("{} ({} bytes)", format_size(facts.size), facts.size)),
        ("arch", facts.arch.clone().unwrap_or_else(|| "unknown: no program in it".to_owned())),
        ("source", facts.source.clone()),
        ("created", date(facts.created)),
    ];
    let libraries = facts.mpi.iter().map(|mpi| format!("{} {} in {}", mpi.family.name(), mpi.version, mpi.library));
    lines.extend(libraries.map(|line| ("mpi", line)));
    if let Some(origin) = &facts.origin {
        lines.push(("manifest", origin.manifest.clone()));
        lines.extend(origin.platform.clone().map(|line| ("platform", line)));
        lines.extend(origin.signers.iter().map(|signer| ("signed by", signer.clone())));
    }
    let config = &facts.config;
    lines.extend(config.env.iter().map(|pair| ("env", pair.clone())));
    let words = |words: &[String]| (!words.is_empty()).then(|| format!("{words:?}"));
    lines.extend(words(&config.entrypoint).map(|line| ("entrypoint", line)));
    lines.extend(words(&config.cmd).map(|line| ("cmd", line)));
    lines.extend(config.working_dir.clone().map(|line| ("directory", line)));
    lines.extend(config.user.clone().map(|line| ("user", line)));
    let rows: Vec<_> = lines.into_iter().map(|(key, value)| [key.to_owned(), value]).collect();
    print(&table(&rows))
}

fn remove(store: &Store, args: &RmArgs) -> Result<u8, Failure> {
    for image in &args.images {
        for digest in store.remove(image, args.force)? {
            print(&format!("removed {digest}\n"))?;
        }
    }
    Ok(0)
}

fn json(image: &Image) -> serde_json::Value {
    let mut value = serde_json::to_value(&image.facts).unwrap_or_default();
    value["names"] = image.names.clone().into();
    value["path"] = image.path.to_string_lossy().into_owned().into();
    value
}

fn print_json(value: &serde_json::Value) -> Result<u8, Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes to standard output. A reader that has gone away (`| head`) is not an error.
fn print(text: &str) -> Result<u8, Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot print the result", corebox_sys::Error::io("write", "standard output", &error)))
        }
        _ => Ok(0),
    }
}

/// The day of a Unix time, UTC: `2026-11-21`. (Civil-from-days of Howard Hinnant's "chrono-compatible low-level date
/// algorithms".)
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_795_219_200, "2026-11-21"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"], ["long", "x"], ["é", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     B\nlong  x\né\n");
    }
}
