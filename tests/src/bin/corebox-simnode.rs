//! `corebox-simnode`: makes simulated nodes and runs programs on them. `corebox-simnode help` lists its modes.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    corebox_tests::simnode::main(std::env::args().skip(1).collect())
}
