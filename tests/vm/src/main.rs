//! `corebox-vm PROGRAM ARG…`: runs a program in a virtual machine; cargo's runner for the suites in `tests/vm/tests`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    corebox_tests::vm::main(std::env::args().skip(1).collect())
}
