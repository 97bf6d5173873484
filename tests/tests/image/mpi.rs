//! MPI libraries are found by looking into them. The libraries here are made with the C compiler and hold what the
//! real ones hold where we look (the real ones are in `bootstrap.rs`, which needs the network).

use crate::support::Scratch;
use corebox_tests::require_programs;
use std::path::Path;
use std::process::Command;

fn library(scratch: &Scratch, path: &str, code: &str, strip: bool) {
    let source = scratch.file("library.c", code.as_bytes());
    let out = scratch.file(path, b"");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&out).arg(&source);
    if strip {
        command.arg("-s");
    }
    assert!(command.status().unwrap().success());
}

fn found(scratch: &Scratch, source: &Path) -> Vec<(String, String, String)> {
    let image = scratch.import("env", source);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let list = image["mpi"].as_array().unwrap();
    list.iter().map(|mpi| (text(&mpi["library"]), text(&mpi["family"]), text(&mpi["version"]))).collect()
}

#[test]
fn mpi_libraries_are_recognised() {
    let test = "mpi_libraries_are_recognised";
    if !require_programs(test, &["cc"]) {
        return;
    }
    let scratch = Scratch::new("mpi");
    let lib = "root/usr/lib/x86_64-linux-gnu";
    let open_mpi = r#"const char ompi_version_string[] = "4.1.4"; const char f[] = "Open MPI v%d.%d.%d";"#;
    library(&scratch, &format!("{lib}/libmpi.so.40.30.4"), open_mpi, true);
    std::os::unix::fs::symlink("libmpi.so.40.30.4", scratch.path.join(format!("{lib}/libmpi.so.40"))).unwrap();
    let mpich = r#"const char MPII_Version_string[] = "4.0.2"; const char f[] = "MPICH Version:\t%s";"#;
    library(&scratch, &format!("{lib}/libmpich.so.12.2.2"), mpich, true);
    // hidden symbols, as in PyPI's wheel: only the strings tell
    let hidden = r#"__attribute__((used)) static const char v[] = "5.0.2"; __attribute__((used)) static const char f[] = "MPICH Version:      %s";"#;
    library(&scratch, "root/opt/py/lib/python3.11/site-packages/mpich.libs/libmpi-1a2b3c4d.so.12", hidden, true);
    let intel = r#"__attribute__((used)) static const char f[] = "Intel(R) MPI Library 2021.10 for Linux* OS\n"; __attribute__((used)) static const char g[] = "MPICH Version";"#;
    library(&scratch, "root/opt/intel/lib/release/libmpi.so.12", intel, false);
    let mvapich = r#"__attribute__((used)) static const char f[] = "MVAPICH Version      :\t%s\n"; __attribute__((used)) static const char v[] = "3.0";"#;
    library(&scratch, "root/opt/mvapich/lib/libmpi.so.12", mvapich, false);
    // these are none
    library(&scratch, &format!("{lib}/libmpi_cxx.so.40"), open_mpi, false);
    library(&scratch, "root/usr/lib/other/libmpi.so.1", "int nothing;", false);
    scratch.file(&format!("{lib}/libmpi.so"), b"INPUT(libmpi.so.40) /* Open MPI v4.1.4 */");
    let expected = [
        ("/opt/intel/lib/release/libmpi.so.12", "intel-mpi", "2021.10"),
        ("/opt/mvapich/lib/libmpi.so.12", "mvapich", "3.0"),
        ("/opt/py/lib/python3.11/site-packages/mpich.libs/libmpi-1a2b3c4d.so.12", "mpich", "5.0.2"),
        ("/usr/lib/x86_64-linux-gnu/libmpi.so.40.30.4", "open-mpi", "4.1.4"),
        ("/usr/lib/x86_64-linux-gnu/libmpich.so.12.2.2", "mpich", "4.0.2"),
    ];
    let expected =
        expected.map(|(library, family, version)| (library.to_owned(), family.to_owned(), version.to_owned()));
    assert_eq!(found(&scratch, &scratch.path.join("root")), expected);
    assert_eq!(scratch.inspect("env")["arch"], std::env::consts::ARCH);
}

#[test]
fn the_architecture_is_that_of_the_shell() {
    let scratch = Scratch::new("elf");
    let elf = |machine: u8| {
        let mut head = vec![0u8; 64];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (head[16], head[18]) = (3, machine);
        head
    };
    scratch.file("root/usr/bin/aa-cross-tool", &elf(62));
    scratch.file("root/usr/lib/libx.so", &elf(62));
    assert_eq!(scratch.import("a", &scratch.path.join("root"))["arch"], "x86_64");
    scratch.file("root/usr/bin/dash", &elf(183));
    assert_eq!(scratch.import("b", &scratch.path.join("root"))["arch"], "aarch64");
    scratch.file("text/bin/sh", b"#!/bin/true\n");
    assert_eq!(scratch.import("c", &scratch.path.join("text"))["arch"], serde_json::Value::Null);
}
