//! `corebox image unpack`: an image's files in a directory.

use corebox_images::mount::{Format, format};
use corebox_images::{Store, erofs};
use corebox_spec::Failure;
use corebox_sys::{Error, fd};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Put an image's files into a new directory.
#[derive(clap::Args)]
#[command(after_help = "\
Root gets the owners of the image, others own all files. Device nodes, and extended attributes other than user.*, are
left out.")]
pub struct UnpackArgs {
    /// NAME[:TAG], sha256:HEX, or 8 or more digits of the digest
    image: String,
    /// The directory, which must not exist yet
    directory: PathBuf,
}

/// Unpacks; a directory that could not be filled is removed again.
///
/// # Errors
/// No such image, a compressed one, a directory that exists or cannot be written.
pub fn unpack(store: &Store, args: &UnpackArgs) -> Result<u8, Failure> {
    let goal = format!("cannot unpack image `{}` to {}", args.image, args.directory.display());
    let failed = |error: Error| Failure::new(&goal, error);
    let image = store.find(&args.image)?;
    let file = fd::open_read(&image.path).map_err(failed)?;
    if format(&file, &image.path).map_err(failed)? != Format::Erofs {
        return Err(Failure::new(&goal, "it is a compressed image").hint(format!(
            "unsquashfs -d {} {}",
            args.directory.display(),
            image.path.display()
        )));
    }
    let made = std::fs::create_dir(&args.directory);
    made.map_err(|error| failed(Error::io("mkdir", args.directory.display(), &error)))?;
    let is_root = corebox_sys::user::ids().0 == 0;
    erofs::unpack(file.as_fd(), &args.directory, is_root).map(|()| 0).map_err(|error| {
        // what cannot be removed is seen by who asked for it
        std::fs::remove_dir_all(&args.directory).ok();
        Failure::new(&goal, error)
    })
}
