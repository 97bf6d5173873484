//! What system call filters cost, as CSV: `seccomp_cost PROFILE.json ROUNDS`.
//!
//! Per round, interleaved: compiling the profile, taking it from the cache, installing a filter; and one system call
//! without a filter, with ours, and with the profile's, each in a thread of its own. Nanoseconds.

use corebox_runtime::seccomp::{self, Cache, Program};
use corebox_spec::Seccomp;
use corebox_sys::{fd, process};
use std::hint::black_box;
use std::time::Instant;

const CALLS: u32 = 200_000;

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().expect("a profile");
    let rounds: u32 = words.next().map_or(20, |n| n.parse().expect("a number of rounds"));
    let text = corebox_sys::fs::read_to_string(path).expect("the profile");
    let profile = serde_json::from_str(&text).expect("an OCI profile");
    let directory = std::env::temp_dir().join(format!("corebox-seccomp-cost-{}", process::id()));
    let cache = Cache::below(&directory);
    let theirs = vec![seccomp::cached(&profile, Some(&cache)).expect("a program")];
    let ours = seccomp::programs(&Seccomp::Default).expect("our filters");
    println!("round,what,nanoseconds");
    for round in 0..rounds {
        let say = |what: &str, nanoseconds: f64| println!("{round},{what},{nanoseconds:.1}");
        say("compile", timed(1, || drop(black_box(seccomp::compile(&profile)))));
        say("cached", timed(1, || drop(black_box(seccomp::cached(&profile, Some(&cache))))));
        say("ours", timed(1, || drop(black_box(seccomp::programs(&Seccomp::Default)))));
        for (name, programs) in [("none", &Vec::new()), ("ours", &ours), ("profile", &theirs)] {
            for (what, nanoseconds) in filtered(programs.clone()) {
                say(&format!("{what} {name}"), nanoseconds);
            }
        }
    }
    let _ = std::fs::remove_dir_all(directory);
}

/// In a thread, as filters never go away.
fn filtered(programs: Vec<Program>) -> Vec<(&'static str, f64)> {
    let measure = move || {
        process::no_new_privileges().expect("no_new_privs");
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let install = timed(1, || programs.iter().for_each(|p| drop(p.install().expect("installed"))));
        let getppid = timed(CALLS, || _ = black_box(std::os::unix::process::parent_id()));
        let ioctl = timed(CALLS, || _ = black_box(fd::is_terminal(&null)));
        vec![("install", install), ("getppid", getppid), ("ioctl", ioctl)]
    };
    std::thread::spawn(measure).join().expect("the thread measures")
}

/// Nanoseconds per call.
fn timed(calls: u32, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..calls).for_each(|_| call());
    start.elapsed().as_nanos() as f64 / f64::from(calls)
}
