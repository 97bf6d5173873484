//! Every target over its seeds, and over the same mutations of them each time. Longer runs: docs/fuzzing.md.

use corebox_fuzz::TARGETS;
use corebox_fuzz::mutate::{Numbers, mutated};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Mutations per target: a few seconds in all, without optimisation.
const MUTATIONS: usize = 3000;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let names = corebox_sys::fs::list(&directory).expect("the seeds are there");
    let read = |name: &String| {
        let path = directory.join(name);
        let bytes = corebox_sys::fs::read(&path).expect("a seed");
        (path, bytes)
    };
    names.iter().map(read).collect()
}

#[test]
fn no_target_panics() {
    let mut ran = 0;
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (path, bytes) in &seeds {
            assert!(catch_unwind(|| target(bytes)).is_ok(), "{name} panics on {}", path.display());
        }
        let mut numbers = Numbers::new(name.len() as u64);
        for _ in 0..MUTATIONS {
            let (seed, other) = (&seeds[numbers.below(seeds.len())].1, &seeds[numbers.below(seeds.len())].1);
            let bytes = mutated(seed, other, &mut numbers);
            assert!(catch_unwind(|| target(&bytes)).is_ok(), "{name} panics on {:?}", bytes.escape_ascii().to_string());
            ran += 1;
        }
    }
    assert_eq!(ran, TARGETS.len() * MUTATIONS);
}
