//! Where mounts go in an image, and which of those places it lacks.
//!
//! Targets are resolved as the container's processes will see them: `..` and links stop at the image's root. A missing
//! place is made in a *skeleton*, a directory tree that an overlay lays over the image, so the image is never written.

use crate::step::Stop;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// As the kernel counts (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

/// A target, resolved in an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Without links, relative to the image's root.
    pub(crate) path: PathBuf,
    /// Whether the image has it.
    pub(crate) exists: bool,
}

/// Resolves `target` below the directory `root`. Nobody changes an image meanwhile, so plain look-ups do.
pub(crate) fn resolve(root: &Path, target: &Path) -> Result<Place, Stop> {
    let mut done = PathBuf::new();
    let mut todo: Vec<OsString> = parts(target);
    let mut links = 0;
    let mut exists = true;
    while let Some(part) = todo.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match std::fs::symlink_metadata(root.join(&next)) {
            Ok(found) if found.is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Stop::new(format!("{}: too many symbolic links in the image", target.display())));
                }
                let to = std::fs::read_link(root.join(&next))
                    .map_err(|e| corebox_sys::Error::io("read link", next.display(), &e))?;
                if to.is_absolute() {
                    done.clear();
                }
                todo.extend(parts(&to));
            }
            Ok(_) => done = next,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                exists = false;
                done = next;
            }
            Err(error) => return Err(corebox_sys::Error::io("look at", next.display(), &error).into()),
        }
    }
    Ok(Place { path: done, exists })
}

/// The parts of a path, last one first, `..` kept.
fn parts(path: &Path) -> Vec<OsString> {
    let mut parts: Vec<OsString> = path
        .components()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| c.as_os_str().to_owned())
        .collect();
    parts.reverse();
    parts
}

/// Makes `place` in the skeleton, as a directory or an empty file. Directories that the image has too get its mode,
/// as the upper one of merged directories decides it.
pub(crate) fn make(skeleton: &Path, image: &Path, place: &Path, directory: bool) -> Result<(), Stop> {
    let mut here = PathBuf::new();
    let last = place.components().count();
    for (index, part) in place.components().enumerate() {
        here.push(part);
        if index + 1 == last && !directory {
            return make_file(&skeleton.join(&here));
        }
        make_directory(&skeleton.join(&here), &image.join(&here))?;
    }
    Ok(())
}

/// An empty file, as a place to bind to.
pub(crate) fn make_file(path: &Path) -> Result<(), Stop> {
    corebox_sys::fs::write(path, b"").map_err(Stop::from)
}

fn make_directory(path: &Path, model: &Path) -> Result<(), Stop> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |e: &std::io::Error| Stop::from(corebox_sys::Error::io("make mount point", path.display(), e));
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(|e| failed(&e))?,
    }
    match std::fs::metadata(model) {
        Ok(model) => {
            let mode = std::fs::Permissions::from_mode(model.permissions().mode() & 0o7777);
            std::fs::set_permissions(path, mode).map_err(|e| failed(&e))
        }
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Scratch(PathBuf);
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    fn scratch(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("corebox-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Scratch(dir)
    }

    #[test]
    fn resolves_as_inside() {
        let dir = scratch("resolve");
        let root = dir.0.join("image");
        corebox_sys::fs::create_dir_all(root.join("var")).unwrap();
        corebox_sys::fs::create_dir_all(root.join("run/x")).unwrap();
        for (to, from) in
            [("/run", "var/run"), ("../../../../..", "escape"), ("loop", "loop"), ("../nowhere/file", "var/dangling")]
        {
            symlink(to, root.join(from)).unwrap();
        }
        let at = |target: &str| resolve(&root, Path::new(target)).map(|p| (p.path.display().to_string(), p.exists));
        assert_eq!(at("/var/run/x"), Ok(("run/x".into(), true)));
        assert_eq!(at("/var/run/y/z"), Ok(("run/y/z".into(), false)));
        assert_eq!(at("/escape/etc"), Ok(("etc".into(), false)));
        assert_eq!(at("/../../var"), Ok(("var".into(), true)));
        assert_eq!(at("/var/dangling"), Ok(("nowhere/file".into(), false)));
        assert!(at("/loop").is_err());
    }

    #[test]
    fn skeleton_keeps_modes() {
        let dir = scratch("skeleton");
        let (image, skeleton) = (dir.0.join("image"), dir.0.join("skeleton"));
        corebox_sys::fs::create_dir_all(image.join("a")).unwrap();
        std::fs::create_dir(&skeleton).unwrap();
        std::fs::set_permissions(image.join("a"), std::fs::Permissions::from_mode(0o1711)).unwrap();
        make(&skeleton, &image, Path::new("a/b/c"), true).unwrap();
        make(&skeleton, &image, Path::new("a/b/file"), false).unwrap();
        let mode = |p: &str| std::fs::metadata(skeleton.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b/c")), (0o1711, 0o755));
        assert!(skeleton.join("a/b/file").is_file());
    }
}
