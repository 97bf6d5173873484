//! Directories and tars: what went in is what the kernel finds.

use crate::sources::{Meta, Tar, gzip, mode, zstd};
use crate::support::{Scratch, cat, copy_out, listing, ready, with_mounted};
use corebox_tests::require_programs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tar::EntryType;

const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A POSIX ACL as acl(5) and linux/posix_acl_xattr.h have it: version 2, then tag, permissions and id of each entry. User
/// 7 may read.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 4, 7), (4, 5, !0), (16, 5, !0), (32, 5, !0)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn everything() -> Vec<u8> {
    let long = "x".repeat(200);
    let owned = |bits, uid, gid| Meta { mode: bits, owner: (uid, gid), ..mode(0) };
    let device = |major, minor| Meta { device: (major, minor), ..mode(0o660) };
    let acl = acl();
    let attributes: &[(&str, &[u8])] = &[
        ("security.capability", CAPABILITY),
        ("user.note", b"a=b\n\0c"),
        ("system.posix_acl_access", &acl),
        ("system.nfs4_acl", b"lost"),
    ];
    Tar::default()
        .entry(b"./", EntryType::Directory, owned(0o1770, 7, 8), b"", b"")
        .entry(b"./bin/", EntryType::Directory, owned(0o750, 1, 2), b"", b"")
        .entry(b"./bin/su", EntryType::Regular, owned(0o4755, 0, 0), b"", b"#!/bin/sh\n")
        .entry(b"./bin/mail", EntryType::Regular, owned(0o2755, 0, 70_000), b"", b"m")
        .entry(b"./bin/big-id", EntryType::Regular, owned(0o600, 3_000_000, 4_000_000_000), b"", b"i")
        .hard_link("./bin/sudo", "./bin/su")
        .entry(b"./ping", EntryType::Regular, Meta { xattrs: attributes, ..mode(0o755) }, b"", b"p")
        .symlink("./absolute", "/etc/../target")
        .symlink("./upward", "../../x")
        .entry(b"./null", EntryType::Char, device(1, 3), b"", b"")
        .entry(b"./disk", EntryType::Block, device(8, 1), b"", b"")
        .entry(b"./pipe", EntryType::Fifo, mode(0o600), b"", b"")
        .file("./empty", b"")
        .file("./implied/parent/file", b"f")
        .file(&format!("./{long}/{long}"), b"l")
        .entry(b"./far", EntryType::Symlink, mode(0o777), "t/".repeat(120).as_bytes(), b"")
        .file("./late/first", b"1")
        .entry(b"./late/", EntryType::Directory, owned(0o711, 5, 6), b"", b"")
        .file("./twice", b"old")
        .file("./twice", b"newer")
        .end()
}

#[test]
fn a_tar_comes_out_as_it_went_in() {
    if !ready("a_tar_comes_out_as_it_went_in") {
        return;
    }
    let scratch = Scratch::new("roundtrip");
    let image = scratch.import("env", &scratch.file("env.tar", &everything()));
    let found = listing(&image);
    let long = "x".repeat(200);
    let far = format!("lrwxrwxrwx 0/0 240 -> {}", "t/".repeat(120));
    let nested = format!("{long}/{long}");
    let expected = [
        ("bin/su", "-rwsr-xr-x 0/0 10"),
        ("bin/sudo", "-rwsr-xr-x 0/0 10"),
        ("bin/mail", "-rwxr-sr-x 0/70000 1"),
        ("bin/big-id", "-rw------- 3000000/4000000000 1"),
        ("ping", "-rwxr-xr-x 0/0 1"),
        ("absolute", "lrwxrwxrwx 0/0 14 -> /etc/../target"),
        ("upward", "lrwxrwxrwx 0/0 7 -> ../../x"),
        ("null", "crw-rw---- 0/0 1, 3"),
        ("disk", "brw-rw---- 0/0 8, 1"),
        ("pipe", "prw------- 0/0 0"),
        ("empty", "-rw-r--r-- 0/0 0"),
        ("implied/parent/file", "-rw-r--r-- 0/0 1"),
        (&nested, "-rw-r--r-- 0/0 1"),
        ("far", &far),
        ("late/first", "-rw-r--r-- 0/0 1"),
        ("twice", "-rw-r--r-- 0/0 5"),
    ];
    for (path, line) in expected {
        assert_eq!(found.get(path).map(String::as_str), Some(line), "{path}");
    }
    // the size of a directory is the file system's business
    for (path, line) in
        [("", "drwxrwx--T 7/8"), ("bin", "drwxr-x--- 1/2"), ("late", "drwx--x--x 5/6"), ("implied", "drwxr-xr-x 0/0")]
    {
        assert!(found[path].starts_with(line), "{path:?}: {}", found[path]);
    }
    assert_eq!(found.len(), expected.len() + 6, "{found:#?}");
    assert_eq!(cat(&image, "twice"), b"newer");
}

#[test]
fn attributes_and_hard_links_survive() {
    let test = "attributes_and_hard_links_survive";
    if !ready(test) {
        return;
    }
    let scratch = Scratch::new("xattrs");
    let image = scratch.import("env", &scratch.file("env.tar", &everything()));
    let out = scratch.path.join("out");
    copy_out(&image, &out);
    // a second trip, now from a directory with all of that in it
    let again = scratch.import("again", &out);
    assert_eq!(image["digest"], again["digest"]);
    let stat = |path: &str| std::fs::symlink_metadata(out.join(path)).unwrap();
    assert_eq!(stat("bin/su").ino(), stat("bin/sudo").ino());
    assert_eq!(stat("bin/su").nlink(), 2);
    assert_eq!(stat("bin/su").mtime(), 1_000_000_000);
    assert_eq!(stat("").mtime(), 1_000_000_000);
    let script = r#"exec python3 -c '
import os
for a in sorted(os.listxattr("/mnt/ping")): print(a, os.getxattr("/mnt/ping", a).hex())'"#;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let acl_line = format!("system.posix_acl_access {}\n", hex(&acl()));
    let others = format!("security.capability {}\n{{acl}}user.note 613d620a0063\n", hex(CAPABILITY));
    let attributes = |image: &serde_json::Value| String::from_utf8(with_mounted(image, script, "".as_ref())).unwrap();
    assert_eq!(attributes(&image), others.replace("{acl}", &acl_line));
    if !require_programs(test, &["mksquashfs"]) {
        return;
    }
    // squashfs has no ACLs; all else is the same
    scratch.ok(&["import", "--codec", "lz4", "small", out.to_str().unwrap()]);
    let small = scratch.inspect("small");
    assert_eq!(attributes(&small), others.replace("{acl}", ""));
    let (mut one, mut other) = (listing(&image), listing(&small));
    for listing in [&mut one, &mut other] {
        listing.retain(|_, line| !line.starts_with('d'));
    }
    assert_eq!(one, other);
}

#[test]
fn compression_and_repetition_do_not_change_the_image() {
    let scratch = Scratch::new("deterministic");
    let tar = everything();
    let plain = scratch.import("plain", &scratch.file("a", &tar));
    let gz = scratch.import("gz", &scratch.file("b", &gzip(&tar)));
    let zst = scratch.import("zst", &scratch.file("c", &zstd(&tar)));
    let two_frames = [zstd(&tar[..1000]), zstd(&tar[1000..])].concat();
    let frames = scratch.import("frames", &scratch.file("d", &two_frames));
    for other in [&gz, &zst, &frames] {
        assert_eq!(plain["digest"], other["digest"]);
    }
    assert_eq!(scratch.list().len(), 1);
    assert_eq!(scratch.inspect("gz")["names"], serde_json::json!(["frames", "gz", "plain", "zst"]));
    assert_eq!(
        format!("sha256:{}", crate::sources::digest(&corebox_sys::fs::read(plain["path"].as_str().unwrap()).unwrap())),
        plain["digest"]
    );
    assert_eq!(std::fs::metadata(plain["path"].as_str().unwrap()).unwrap().mode() & 0o777, 0o444);
}

#[test]
fn source_date_epoch_makes_times_irrelevant() {
    let scratch = Scratch::new("epoch");
    let mut digests = Vec::new();
    for (name, times) in [("one", 1_000), ("two", 2_000)] {
        let file = scratch.file(&format!("{name}/bin/tool"), b"tool");
        for path in [file.as_path(), file.parent().unwrap(), &scratch.path.join(name)] {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(times);
            std::fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        let source = scratch.path.join(name);
        let mut command = scratch.command(&["import", name, source.to_str().unwrap()]);
        let output = command.env("SOURCE_DATE_EPOCH", "1234567890").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        digests.push(scratch.inspect(name)["digest"].clone());
    }
    assert_eq!(digests[0], digests[1]);
    let plain = scratch.import("plain", &scratch.path.join("one"));
    assert_ne!(plain["digest"], digests[0]);
    let mut command = scratch.command(&["import", "bad", "/"]);
    let said = crate::support::failed(&command.env("SOURCE_DATE_EPOCH", "soon").output().unwrap());
    assert!(said.contains("SOURCE_DATE_EPOCH=`soon`"), "{said}");
}

#[test]
fn sparse_files_of_gnu_tar_are_whole() {
    let test = "sparse_files_of_gnu_tar_are_whole";
    if !ready(test) || !require_programs(test, &["tar"]) {
        return;
    }
    let scratch = Scratch::new("sparse");
    let path = scratch.file("root/holes", b"");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut expected = vec![0; 3_000_001];
    for piece in 0..7u64 {
        let at = piece * 400_000;
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
        expected[at as usize..at as usize + 4].copy_from_slice(b"data");
    }
    file.set_len(expected.len() as u64).unwrap();
    drop(file);
    scratch.file("root/after", b"still in step");
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = scratch.path.join("sparse.tar");
        let status = Command::new("tar")
            .arg("-S")
            .args(format)
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(scratch.path.join("root"))
            .args(["holes", "after"])
            .status();
        assert!(status.unwrap().success());
        assert!(std::fs::metadata(&tar).unwrap().len() < 1_000_000, "tar found no holes");
        let image = scratch.import("sparse", &tar);
        assert!(cat(&image, "holes") == expected, "{format:?}");
        assert_eq!(cat(&image, "after"), b"still in step", "{format:?}");
    }
}

#[test]
fn an_ordinary_users_files_become_roots() {
    let test = "an_ordinary_users_files_become_roots";
    if !ready(test) || !require_programs(test, &["setpriv"]) {
        return;
    }
    let scratch = Scratch::new("owners");
    let own = scratch.file("root/own", b"o");
    let foreign = scratch.file("root/foreign", b"f");
    corebox_sys::fs::create_dir_all(scratch.store()).unwrap();
    for path in [&scratch.path.join("root"), &own, &scratch.store()] {
        std::os::unix::fs::chown(path, Some(4242), Some(4243)).unwrap();
    }
    std::os::unix::fs::chown(&foreign, Some(11), Some(4243)).unwrap();
    let program = scratch.public_program();
    let run = |extra: &[&str]| {
        let status = Command::new("setpriv")
            .args(["--reuid=4242", "--regid=4243", "--clear-groups"])
            .arg(&program)
            .args(["image", "import", "env"])
            .arg(scratch.path.join("root"))
            .args(extra)
            .env("COREBOX_STORE", scratch.store())
            .status();
        assert!(status.unwrap().success());
        listing(&scratch.inspect("env"))
    };
    let found = run(&[]);
    assert!(found["own"].starts_with("-rw-r--r-- 0/0"), "{found:?}");
    assert!(found["foreign"].starts_with("-rw-r--r-- 11/0"), "{found:?}");
    assert!(found[""].starts_with("drwxr-xr-x 0/0"), "{found:?}");
    let kept = run(&["--keep-owner"]);
    assert!(kept["own"].starts_with("-rw-r--r-- 4242/4243"), "{kept:?}");
    assert!(listing(&scratch.import("root", &scratch.path.join("root")))["own"].starts_with("-rw-r--r-- 4242/4243"));
}

#[test]
fn a_directory_keeps_to_its_file_system() {
    let test = "a_directory_keeps_to_its_file_system";
    if !ready(test) || !require_programs(test, &["unshare", "mount"]) {
        return;
    }
    let scratch = Scratch::new("onefs");
    scratch.file("root/inside", b"i");
    corebox_sys::fs::create_dir_all(scratch.path.join("root/mounted")).unwrap();
    let script =
        r#"mount -t tmpfs none "$1/mounted" && echo other > "$1/mounted/other" && exec "$2" image import env "$1""#;
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(scratch.path.join("root"))
        .arg(corebox_tests::corebox().unwrap())
        .env("COREBOX_STORE", scratch.store())
        .status();
    assert!(status.unwrap().success());
    let found = listing(&scratch.inspect("env"));
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["", "inside", "mounted"]);
}

#[test]
fn an_empty_directory_is_no_image() {
    let scratch = Scratch::new("empty");
    let empty = scratch.path.join("nothing");
    corebox_sys::fs::create_dir_all(&empty).unwrap();
    assert!(scratch.import_fails(&empty).contains("it holds no files"));
    assert!(scratch.import_fails(Path::new("/does/not/exist")).contains("ENOENT"));
    assert!(scratch.import_fails(&scratch.file("zero", b"")).contains("empty file"));
}

/// mksquashfs would give the root directory the caller's ids: see `root_inode.rs` of `images`.
#[test]
fn the_root_directory_has_its_own_owner() {
    let test = "the_root_directory_has_its_own_owner";
    if !ready(test) || !require_programs(test, &["setpriv", "mksquashfs"]) {
        return;
    }
    let scratch = Scratch::new("rootdir");
    corebox_sys::fs::create_dir_all(scratch.store()).unwrap();
    std::os::unix::fs::chown(scratch.store(), Some(4242), Some(4243)).unwrap();
    let program = scratch.public_program();
    // all files are the caller's, so that neither 0 nor 7 is in the image's table of ids; attributes follow that table
    let meta = Meta { mode: 0o644, owner: (4242, 4243), device: (0, 0), xattrs: &[("user.note", b"here")] };
    let files = || {
        let many = (0..600).fold(Tar::default(), |tar, n| {
            let value = format!("value {n}");
            let meta = Meta { xattrs: &[("user.n", value.as_bytes())], ..meta };
            tar.entry(format!("many/{n}").as_bytes(), EntryType::Regular, meta, b"", b"x")
        });
        many.entry(b"f", EntryType::Regular, meta, b"", b"f")
    };
    let with_root =
        Tar::default().entry(b"./", EntryType::Directory, Meta { mode: 0o750, owner: (7, 8), ..mode(0) }, b"", b"");
    let with_root = Tar { bytes: [with_root.bytes, files().bytes].concat() };
    let roots = [(files().end(), "drwxr-xr-x 0/0"), (with_root.end(), "drwxr-x--- 7/8")];
    for (codec, (tar, root)) in ["none", "zstd"].iter().flat_map(|codec| roots.iter().map(move |root| (codec, root))) {
        let tar = scratch.file("env.tar", tar);
        let status = Command::new("setpriv")
            .args(["--reuid=4242", "--regid=4243", "--clear-groups"])
            .arg(&program)
            .args(["image", "import", "--codec", codec, "env"])
            .arg(&tar)
            .env("COREBOX_STORE", scratch.store())
            .status();
        assert!(status.unwrap().success());
        let image = scratch.inspect("env");
        let found = listing(&image);
        assert!(found[""].starts_with(root), "{}", found[""]);
        assert_eq!(found["f"], "-rw-r--r-- 4242/4243 1");
        let script = r#"stat -c '%u/%g %Y' /mnt && cat /mnt/f &&
            python3 -c "import os; print(os.getxattr('/mnt/f','user.note'), os.getxattr('/mnt/many/599','user.n'))""#;
        let output = with_mounted(&image, script, "".as_ref());
        let time = if root.ends_with("7/8") { 1_000_000_000 } else { 0 };
        let owner = root.split(' ').next_back().unwrap();
        assert_eq!(String::from_utf8_lossy(&output), format!("{owner} {time}\nfb'here' b'value 599'\n"));
    }
}
