//! What libpmix and the MPI libraries read from the environment.

use super::ffi::set_variable;

/// Variables of other launchers, wire-ups and servers. A rank that sees them joins the wrong job, or none.
const FOREIGN: [&str; 16] = [
    "PMIX_",
    "PMI_",
    "PMI2_",
    "OMPI_COMM_WORLD_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_pmix",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_FILE_LOCATION",
    "OMPI_APP_CTX_NUM_PROCS",
    "PRTE_",
    "HYDRA_",
    "HYDI_",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "JSM_",
];

/// Of those, what a user may set to tune the client.
const TUNING: [&str; 1] = ["PMIX_MCA_"];

/// Whether a variable of the caller's environment must not reach a rank.
pub fn is_foreign(name: &str) -> bool {
    FOREIGN.iter().any(|prefix| name.starts_with(prefix)) && !TUNING.iter().any(|prefix| name.starts_with(prefix))
}

/// Set in this process, for the server, and in each rank.
///
/// `gds=hash`: job data as messages. The other stores need a file of the server at the same path in the rank's mount
/// namespace (Open MPI 5 with a server 5.0 else fails in MPI_Init), and 4.2's shared store answers "not found" now and
/// then with direct modex.
const BOTH: [(&str, &str); 1] = [("PMIX_MCA_gds", "hash")];

/// Set in this process only: what makes the server start in 4 ms instead of 30 (Debian 12, 2 cores), and in far less
/// on a loaded node. Nothing else of a topology changes; what the user has set stays.
const SERVER: [(&str, &str); 2] = [
    // hwloc's plug-ins look for GPUs by OpenCL and by asking X servers; no MPI library uses that.
    ("HWLOC_PLUGINS_PATH", "/nonexistent"),
    // psec/munge would be loaded only to be passed over: Open MPI images have no munge.
    ("PMIX_MCA_psec", "native"),
];

/// hwloc's `x86` part binds itself to each CPU in turn, which on a busy node means waiting for each; Linux's sysfs
/// says the same. Its I/O part reads the configuration space of each PCI device (1.4 ms each in a virtual machine).
const NO_X86: &str = "-x86";
const NO_X86_NO_IO: &str = "-x86,-linuxio";

/// Where the kernel lists the adapters among which an MPI library chooses by distance.
const FABRICS: [&str; 2] = ["/sys/class/infiniband", "/sys/class/cxi"];

/// hwloc's parts to leave out: I/O too, unless there are several adapters to choose from.
fn components() -> &'static str {
    let count = |class: &&str| std::fs::read_dir(class).map_or(0, Iterator::count);
    if FABRICS.iter().map(count).sum::<usize>() > 1 { NO_X86 } else { NO_X86_NO_IO }
}

/// Set in each rank: Open MPI 4.1 believes that it was launched (and does not start as a lot of single processes) when
/// it sees a launcher that it knows; `schizo/jsm` asks for this variable only, and leaves binding to us. Open MPI 5
/// ignores it.
const LAUNCHED: [(&str, &str); 1] = [("JSM_JSRUN_PORT", "1")];

/// Set in each rank for Open MPI before 4.1, which knows no JSM: the look of a Slurm step (`schizo/slurm`).
const LAUNCHED_OLD: [(&str, &str); 3] = [("SLURM_JOBID", "1"), ("SLURM_NODELIST", "localhost"), ("SLURM_STEP_ID", "0")];

/// Prepares this process's environment for the server: foreign variables out (their presence makes the library
/// join another server), ours in. Call it before any thread is started.
pub(super) fn prepare_process() {
    let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for name in names.iter().filter(|name| is_foreign(name)) {
        set_variable(name, None);
    }
    for (name, value) in BOTH {
        set_variable(name, Some(value));
    }
    for (name, value) in SERVER.iter().chain(&[("HWLOC_COMPONENTS", components())]) {
        if std::env::var_os(name).is_none() {
            set_variable(name, Some(value));
        }
    }
}

/// What a rank needs beside `setup_fork`'s variables.
pub(super) fn of_rank(before_4_1: bool) -> Vec<(String, String)> {
    let launched: &[(&str, &str)] = if before_4_1 { &LAUNCHED_OLD } else { &LAUNCHED };
    BOTH.iter().chain(launched).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_foreign_variables() {
        for name in ["PMIX_RANK", "PMI_FD", "OMPI_COMM_WORLD_RANK", "PMIX_NAMESPACE", "PMI_RANK", "JSM_NAMESPACE_RANK"]
        {
            assert!(is_foreign(name), "{name}");
        }
        for name in ["OMPI_MCA_btl", "PATH", "PMIX_MCA_psec", "UCX_TLS", "SLURM_JOB_ID"] {
            assert!(!is_foreign(name), "{name}");
        }
    }
}
