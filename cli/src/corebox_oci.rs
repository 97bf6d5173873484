//! `corebox-oci`: the OCI runtime alone. `corebox` called by this name does the same.

mod oci;

fn main() -> std::process::ExitCode {
    oci::main()
}
