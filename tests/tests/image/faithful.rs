//! What a container sees is what another tool unpacks: type, mode, owner, size, time, links, device, attributes and
//! content of every object of the nastiest layers, by the kernel's mount, by our FUSE server, and in memory.

use crate::sources::{Layout, Meta, Tar, gzip, mode, pax_record};
use crate::support::{Scratch, ready, with_mounted};
use corebox_tests::{require_programs, skip};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use tar::EntryType;

/// Prints what there is below a directory, as JSON, without what is mounted on it.
const WALK: &str = r#"
import hashlib, json, os, stat, sys
root = sys.argv[1]
device = os.lstat(root).st_dev
def content(path, s):
    if stat.S_ISLNK(s.st_mode): return os.fsencode(os.readlink(path)).decode("latin-1")
    if not stat.S_ISREG(s.st_mode): return ""
    with open(path, "rb") as f: return hashlib.sha256(f.read()).hexdigest()
def show(path):
    s = os.lstat(path)
    attributes = {a: os.getxattr(path, a, follow_symlinks=False).hex() for a in os.listxattr(path, follow_symlinks=False)}
    size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
    node = s.st_rdev if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else 0
    return [stat.filemode(s.st_mode), s.st_uid, s.st_gid, size, s.st_mtime_ns, s.st_nlink, node, attributes, content(path, s)]
found = {"/": show(root)}
todo = [b"/"]
while todo:
    where = todo.pop()
    for name in sorted(os.listdir(root.encode() + where)):
        path = os.path.join(where, name)
        on_disk = root.encode() + path
        if os.lstat(on_disk).st_dev != device: continue
        found[path.decode("latin-1")] = show(on_disk)
        if stat.S_ISDIR(os.lstat(on_disk).st_mode): todo.append(path)
print(json.dumps(found))
"#;

type Manifest = BTreeMap<String, serde_json::Value>;

fn manifest(json: &[u8]) -> Manifest {
    serde_json::from_slice(json).unwrap()
}

/// Both must be the same but for what is mounted over in a container.
fn assert_same(what: &str, expected: &Manifest, found: &Manifest, hidden: &[&str]) {
    let hidden = |path: &str| hidden.iter().any(|h| path == *h || path.starts_with(&format!("{h}/")));
    let show = |entry: Option<&serde_json::Value>| entry.map_or("nothing".to_owned(), serde_json::Value::to_string);
    let differ = |path: &&String| expected.get(*path) != found.get(*path) && !hidden(path);
    let wrong: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).filter(differ).collect();
    let lines = wrong
        .iter()
        .take(20)
        .map(|path| format!("\n{path}: {} is {}", show(expected.get(*path)), show(found.get(*path))));
    assert!(wrong.is_empty(), "{what}, {} differ:{}", wrong.len(), lines.collect::<String>());
}

/// What a container's root directory needs to hold, so that nothing is laid over it.
const MOUNT_POINTS: [&str; 6] = ["/dev", "/proc", "/sys", "/tmp", "/run", "/etc"];

const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn base(busybox: &[u8]) -> Vec<u8> {
    let name = "n".repeat(255);
    let many: String = (0..40).map(|n| format!("{n:02}/")).collect();
    let owned = |bits, uid, gid| Meta { mode: bits, owner: (uid, gid), ..mode(0) };
    let device = |bits, major, minor| Meta { device: (major, minor), ..mode(bits) };
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut tar = Tar::default().entry(b"./", EntryType::Directory, owned(0o755, 0, 0), b"", b"");
    for directory in
        ["bin", "dev", "proc", "sys", "tmp", "run", "etc", "d", "d/e", "gone", "gone/deep", "opaque", "turn"]
    {
        tar = tar.dir(&format!("{directory}/"));
    }
    for file in ["passwd", "group", "hosts", "hostname", "resolv.conf"] {
        tar = tar.file(&format!("etc/{file}"), b"");
    }
    tar = tar
        .entry(b"bin/busybox", EntryType::Regular, mode(0o755), b"", busybox)
        .symlink("bin/sh", "busybox")
        .symlink("bin/sleep", "busybox")
        .symlink("bin/echo", "busybox");
    for (n, size) in
        [0usize, 1, 31, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 65_536, 65_537, 1_000_003].iter().enumerate()
    {
        tar = tar.entry(
            format!("d/size-{size}").as_bytes(),
            EntryType::Regular,
            owned(0o644, n as u64, 7),
            b"",
            &big[..*size],
        );
    }
    let mut holes = vec![0; 3_500_000];
    holes[300_000] = 1;
    // ext4, where umoci unpacks, has one block for them
    let attributes: Vec<(String, Vec<u8>)> = (0..12).map(|n| (format!("user.{n:02}"), vec![n; 250])).collect();
    let attributes: Vec<(&str, &[u8])> = attributes.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
    let capable: &[(&str, &[u8])] = &[("security.capability", CAPABILITY), ("user.note", b"a=b\n\0c")];
    tar = tar
        .file("d/holes", &holes)
        .file(&format!("d/{name}"), b"long")
        .symlink("d/target", &"t/".repeat(1500))
        .symlink("d/absolute", "/etc/../target")
        .symlink("d/up", "../../../../..")
        .symlink("d/short", "e")
        .entry(b"d/su", EntryType::Regular, owned(0o6755, 0, 0), b"", b"s")
        .entry(b"d/sticky/", EntryType::Directory, owned(0o3777, 70_000, 4_000_000_000), b"", b"")
        .entry(b"d/ping", EntryType::Regular, Meta { xattrs: capable, ..mode(0o755) }, b"", b"ping")
        .entry(b"d/many", EntryType::Regular, Meta { xattrs: &attributes, ..mode(0o644) }, b"", &big[..1500])
        .entry(b"d/noted/", EntryType::Directory, Meta { xattrs: &capable[1..], ..mode(0o711) }, b"", b"")
        .entry(b"d/null", EntryType::Char, device(0o666, 1, 3), b"", b"")
        .entry(b"d/wide", EntryType::Block, device(0o600, 4095, 1_048_575), b"", b"")
        .entry(b"d/pipe", EntryType::Fifo, owned(0o620, 3, 4), b"", b"")
        .file("d/first", b"shared")
        .hard_link("d/second", "d/first")
        .hard_link("d/e/third", "d/first")
        .file("gone/deep/file", b"x")
        .file("opaque/old", b"old")
        .file("opaque/both", b"old")
        .file("turn/inside", b"x")
        .file("becomes-directory", b"x")
        .file("linked-later", b"linked");
    let mut path = String::new();
    for part in many.split_inclusive('/') {
        path.push_str(part);
        tar = tar.dir(&path);
    }
    for (text, time) in [("subsecond", "1234567890.123456789"), ("early", "-1000.25"), ("late", "5000000000")] {
        let mut pax = Vec::new();
        pax_record(&mut pax, b"mtime", time.as_bytes());
        tar = tar
            .raw(b"pax", EntryType::XHeader, mode(0), b"", pax.len() as u64)
            .data(&pax)
            .file(&format!("d/{text}"), b"");
    }
    // the directory takes many blocks
    tar = tar.dir("crowd/");
    for n in 0..3000 {
        tar = tar.file(&format!("crowd/{n:05}-{}", "x".repeat(n % 60)), b"");
    }
    tar.end()
}

fn middle() -> Vec<u8> {
    Tar::default()
        .file(".wh.gone", b"")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/both", b"new")
        .file(".wh.turn", b"")
        .symlink("turn", "/d/e")
        .file(".wh.becomes-directory", b"")
        .dir("becomes-directory/")
        .file("becomes-directory/inside", b"i")
        .hard_link("link-across", "linked-later")
        .entry(b"d/size-4096", EntryType::Regular, mode(0o600), b"", b"replaced")
        .end()
}

fn top() -> Vec<u8> {
    Tar::default()
        .file("d/.wh.first", b"")
        .file("becomes-directory/.wh.inside", b"")
        .entry(b"d/e/", EntryType::Directory, mode(0o700), b"", b"")
        .end()
}

#[test]
fn every_way_shows_what_umoci_unpacks() {
    let test = "every_way_shows_what_umoci_unpacks";
    if !ready(test) || !require_programs(test, &["umoci", "busybox", "nsenter"]) {
        return;
    }
    let scratch = Scratch::new("faithful");
    let busybox = corebox_sys::fs::read(corebox_tests::program("busybox").unwrap()).unwrap();
    let layers = [gzip(&base(&busybox)), gzip(&middle()), gzip(&top())];
    let layout = Layout::new(&[(None, &layers, serde_json::json!({}))]).write(&scratch, "layout");
    let bundle = scratch.path.join("bundle");
    let unpacked = Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:env", layout.display()))
        .arg(&bundle)
        .output();
    let unpacked = unpacked.unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let walked = Command::new("python3").args(["-c", WALK]).arg(bundle.join("rootfs")).output().unwrap();
    assert!(walked.status.success(), "{}", String::from_utf8_lossy(&walked.stderr));
    let expected = manifest(&walked.stdout);
    assert!(expected.len() > 3080, "{}", expected.len());
    let image = scratch.import("env", &layout);
    let script = format!("exec python3 -c '{WALK}' /mnt");
    assert_same("mounted", &expected, &manifest(&with_mounted(&image, &script, "".as_ref())), &[]);
    for method in ["kernel", "fuse"] {
        assert_same(method, &expected, &in_container(&scratch, method), &MOUNT_POINTS);
    }
    // in memory there are no device nodes and no attributes of the system, and a directory counts its entries
    let mut memory = in_container(&scratch, "unpack");
    let mut expected = expected;
    expected.retain(|_, entry| !entry[0].as_str().unwrap().starts_with(['c', 'b']));
    for entry in expected.values_mut().chain(memory.values_mut()) {
        if let Some(attributes) = entry[7].as_object_mut() {
            attributes.retain(|name, _| name.starts_with("user."));
        }
    }
    assert_same("unpack", &expected, &memory, &MOUNT_POINTS);
    let out = scratch.path.join("out");
    scratch.ok(&["unpack", "env", out.to_str().unwrap()]);
    let walked = Command::new("python3").args(["-c", WALK]).arg(&out).output().unwrap();
    let mut unpacked = manifest(&walked.stdout);
    unpacked
        .values_mut()
        .for_each(|entry| entry[7].as_object_mut().unwrap().retain(|name, _| name.starts_with("user.")));
    assert_same("image unpack", &expected, &unpacked, &[]);
    assert!(scratch.fails(&["unpack", "env", out.to_str().unwrap()]).contains("EEXIST"));
}

/// The manifest of a running container's root directory.
fn in_container(scratch: &Scratch, method: &str) -> Manifest {
    let mut child = Command::new(corebox_tests::corebox().unwrap())
        .args(["run", "--no-cwd", "--rootfs", method, "env", "sh", "-c", "echo here; exec sleep 1000"])
        .env("COREBOX_STORE", scratch.store())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "here\n", "{method}");
    let sleeper = descendant(child.id(), "sleep");
    // FUSE lets in only who is in the container's user namespace; python is outside of its root directory
    let output = Command::new("nsenter")
        .args(["--preserve-credentials", "-U", "-t", &sleeper.to_string(), "python3", "-c", WALK])
        .arg(format!("/proc/{sleeper}/root/."))
        .output()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
    manifest(&output.stdout)
}

/// A process of this name below another one.
fn descendant(of: u32, name: &str) -> u32 {
    let find = || {
        let mut todo = vec![of];
        while let Some(pid) = todo.pop() {
            if corebox_sys::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name) {
                return Some(pid);
            }
            let children =
                corebox_sys::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            todo.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        None
    };
    corebox_tests::wait_until(std::time::Duration::from_secs(20), find).expect("the container's process")
}

#[test]
fn four_gibibytes_of_hole_take_no_room() {
    let test = "four_gibibytes_of_hole_take_no_room";
    if !ready(test) || !require_programs(test, &["tar", "fsck.erofs"]) {
        return;
    }
    let scratch = Scratch::new("hole");
    let path = scratch.file("root/holes", b"");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let places = [0u64, 5_000_000, 3_000_000_123, (4 << 30) + 7];
    for at in places {
        std::os::unix::fs::FileExt::write_all_at(&file, format!("<{at:011}>").as_bytes(), at).unwrap();
    }
    file.set_len((4 << 30) + 100).unwrap();
    drop(file);
    let tar = scratch.path.join("holes.tar");
    let made = Command::new("tar")
        .args(["-S", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(scratch.path.join("root"))
        .arg("holes")
        .status()
        .unwrap();
    assert!(made.success());
    if std::fs::metadata(&tar).unwrap().len() > 1 << 20 {
        skip!(test, "tar finds no holes on this file system");
        return;
    }
    for source in [&tar, &scratch.path.join("root")] {
        let image = scratch.import("holes", source);
        assert!(image["size"].as_u64().unwrap() < 8 << 20, "{}", image["size"]);
        let script =
            r#"stat -c %s /mnt/holes && for at in $1; do tail -c +$((at + 1)) /mnt/holes | head -c 13; echo; done"#;
        let argument = places.map(|at| at.to_string()).join(" ");
        let output = with_mounted(&image, script, argument.as_ref());
        let expected: String = places.iter().map(|at| format!("<{at:011}>\n")).collect();
        assert_eq!(String::from_utf8_lossy(&output), format!("{}\n{expected}", (4u64 << 30) + 100));
        let checked = Command::new("fsck.erofs").arg(image["path"].as_str().unwrap()).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

/// In bounded memory, and the checker of erofs-utils finds nothing wrong.
#[test]
fn a_hundred_thousand_files() {
    let test = "a_hundred_thousand_files";
    if !ready(test) || !require_programs(test, &["fsck.erofs", "find"]) {
        return;
    }
    let scratch = Scratch::new("many");
    let mut tar = Tar::default();
    for n in 0..100_000 {
        tar = tar.file(&format!("{:02}/{:02}/file-{n}", n % 50, n / 50 % 40), format!("content {n}").as_bytes());
    }
    let path = scratch.file("many.tar", &tar.end());
    let script = r#"ulimit -d 524288; exec "$1" image import env "$2""#;
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([corebox_tests::corebox().unwrap(), path])
        .env("COREBOX_STORE", scratch.store())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = scratch.inspect("env");
    let script = "find /mnt -type f | wc -l && cat /mnt/49/39/file-99999 && find /mnt -type d | wc -l";
    let output = with_mounted(&image, script, "".as_ref());
    assert_eq!(String::from_utf8_lossy(&output), "100000\ncontent 999992051\n");
    let checked = Command::new("fsck.erofs").arg(image["path"].as_str().unwrap()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
