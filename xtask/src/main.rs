//! Checks of the house that no compiler makes: `cargo run -p corebox-xtask -- house`.
//!
//! The arrows between the crates are those of `docs/design/house.md`, and unsafe code stays in its rooms.
#![forbid(unsafe_code)]

mod arrows;
mod unsafe_rooms;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("house") {
        eprintln!("usage: cargo run -p corebox-xtask -- house");
        return ExitCode::from(2);
    }
    let broken = match (arrows::broken(), unsafe_rooms::broken()) {
        (Ok(arrows), Ok(rooms)) => [arrows, rooms].concat(),
        (Err(cause), _) | (_, Err(cause)) => {
            eprintln!("error: cannot check the house\n  cause: {cause}");
            return ExitCode::FAILURE;
        }
    };
    for line in &broken {
        eprintln!("{line}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
