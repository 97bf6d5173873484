//! The environment of the container's processes: clean, by an allow-list of classes, each variable with its origin.
//!
//! Later wins: the default `PATH`, the image's `Env`, what passes the allow-list from the caller, `HOME`, edits of
//! RDMA and the like, `--env`.

use crate::facts::HostFacts;
use crate::plan::ImageSource;
use corebox_spec::{ContainerSpec, Edits, EnvEdit, Origin};

/// What a shell finds programs in when the image says nothing (login(1), and Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A class of the allow-list: its name as `--plan` shows it, and its variables; a `*` at the end stands for anything.
struct Class {
    name: &'static str,
    variables: &'static [&'static str],
}

/// What the user's session is like. `HOME` and `PATH` are not among them: those of the host are wrong inside.
const SESSION: Class = Class {
    name: "session",
    variables: &[
        "TERM",
        "COLORTERM",
        "NO_COLOR",
        "LANG",
        "LANGUAGE",
        "LC_*",
        "TZ",
        "USER",
        "LOGNAME",
        "COLUMNS",
        "LINES",
    ],
};
/// What batch systems tell their jobs.
const BATCH: Class = Class {
    name: "batch system",
    variables: &[
        "SLURM_*",
        "SLURMD_*",
        "PBS_*",
        "PALS_*",
        "LSB_*",
        "LSF_*",
        "FLUX_*",
        "SGE_*",
        "JOB_ID",
        "JOB_NAME",
        "NSLOTS",
        "NHOSTS",
        "PE_HOSTFILE",
        "TMPDIR",
    ],
};
/// How an MPI library finds its launcher. Handed on by `corebox run`, which may itself be a rank of another launcher.
const WIRE_UP: Class = Class {
    name: "MPI wire-up",
    variables: &["PMI_*", "PMI2_*", "PMIX_*", "PRTE_*", "OMPI_*", "MPI_*", "MPIR_*", "HYDI_*", "HYDRA_*"],
};
/// How libraries are tuned for fabric, threads and accelerators.
const TUNING: Class = Class {
    name: "fabric and threads",
    variables: &[
        "UCX_*",
        "FI_*",
        "MPICH_*",
        "MPIR_CVAR_*",
        "I_MPI_*",
        "MV2_*",
        "MVP_*",
        "PSM2_*",
        "PSM3_*",
        "IBV_*",
        "RDMAV_*",
        "HCOLL_*",
        "SHARP_*",
        "OMP_*",
        "GOMP_*",
        "KMP_*",
        "MKL_*",
        "OPENBLAS_*",
        "BLIS_*",
        "NCCL_*",
        "RCCL_*",
        "CUDA_*",
        "NVIDIA_*",
        "ROCR_*",
        "HIP_*",
        "ROCM_*",
        "ZE_*",
        "GPU_DEVICE_ORDINAL",
    ],
};

/// The classes that `corebox run` takes from its caller.
const RUN: [&Class; 4] = [&SESSION, &BATCH, &WIRE_UP, &TUNING];
/// The classes that ranks take from the launcher's environment: their wire-up is ours, and a batch step's variables
/// would make an MPI library believe that the batch system started it.
const JOB: [&Class; 2] = [&SESSION, &TUNING];

fn class_of(classes: &[&Class], name: &str) -> Option<&'static str> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    classes.iter().find(|class| class.variables.iter().any(|p| matches(p))).map(|class| class.name)
}

fn pass(classes: &[&Class], variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let mut passed: Vec<String> = variables
        .into_iter()
        .filter(|(name, _)| class_of(classes, name).is_some())
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    passed.sort();
    passed
}

/// The caller's variables that `corebox run` hands on, as `NAME=value`, sorted.
pub fn for_run(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    pass(&RUN, variables)
}

/// The launcher's variables that ranks of `corebox mpirun` get, as `NAME=value`, sorted.
pub fn for_job(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    pass(&JOB, variables)
}

/// `--env NAME[=VALUE]` with values filled in from the caller; a name the caller does not have is the error.
///
/// # Errors
/// The name without a value, or the text that is no variable.
pub fn asked_for(asked: &[String], caller: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let one = |text: &String| match text.split_once('=') {
        Some(("", _)) | None if text.is_empty() || text.starts_with('=') => {
            Err(format!("`{text}` is not NAME or NAME=VALUE"))
        }
        Some(_) => Ok(text.clone()),
        None => match caller(text) {
            Some(value) => Ok(format!("{text}={value}")),
            None => Err(format!("{text} is not set in your environment")),
        },
    };
    asked.iter().map(one).collect()
}

/// The environment of every process of the container, each variable once.
pub(crate) fn plan(spec: &ContainerSpec, image: &ImageSource, facts: &HostFacts, edits: &[Edits]) -> Vec<EnvEdit> {
    let mut environment = Environment::default();
    environment.set("PATH", DEFAULT_PATH, "default");
    environment.set_all(&image.config.env, |_| "image".to_owned());
    environment.set_all(&spec.caller_env, |name| format!("caller: {}", class_of(&RUN, name).unwrap_or("asked for")));
    let home = match (&facts.account, spec.as_root) {
        (_, true) => "/root",
        (Some(account), false) => account.home.as_str(),
        (None, false) => "/",
    };
    environment.set("HOME", home, "caller's account");
    for edit in edits.iter().flat_map(|e| &e.env) {
        environment.set(&edit.name, &edit.value, &edit.origin.0);
    }
    // A bare NAME was replaced by the caller's value before (`asked_for`), or came with `caller_env`.
    environment.set_all(&spec.env, |_| "--env".to_owned());
    environment.0
}

#[derive(Default)]
struct Environment(Vec<EnvEdit>);

impl Environment {
    fn set(&mut self, name: &str, value: &str, origin: &str) {
        self.0.retain(|edit| edit.name != name);
        self.0.push(EnvEdit { name: name.to_owned(), value: value.to_owned(), origin: Origin(origin.to_owned()) });
    }
    fn set_all(&mut self, variables: &[String], origin: impl Fn(&str) -> String) {
        for (name, value) in variables.iter().filter_map(|text| text.split_once('=')) {
            self.set(name, value, &origin(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<(String, String)> {
        [
            "TERM=x",
            "LD_PRELOAD=/evil.so",
            "SLURM_JOB_ID=7",
            "LC_ALL=C",
            "HOME=/h",
            "PATH=/p",
            "PMI_FD=3",
            "TERMINAL=y",
            "OMP_NUM_THREADS=2",
        ]
        .iter()
        .filter_map(|t| t.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
    }

    #[test]
    fn passes_only_listed_classes() {
        assert_eq!(for_run(variables()), ["LC_ALL=C", "OMP_NUM_THREADS=2", "PMI_FD=3", "SLURM_JOB_ID=7", "TERM=x"]);
        assert_eq!(for_job(variables()), ["LC_ALL=C", "OMP_NUM_THREADS=2", "TERM=x"]);
    }

    #[test]
    fn fills_in_values_and_names_what_is_missing() {
        let caller = |name: &str| (name == "A").then(|| "1".to_owned());
        assert_eq!(asked_for(&["A".into(), "B=2".into(), "C=".into()], caller).unwrap(), ["A=1", "B=2", "C="]);
        assert_eq!(asked_for(&["X".into()], caller).unwrap_err(), "X is not set in your environment");
        assert!(asked_for(&["=x".into()], caller).is_err());
        assert!(asked_for(&[String::new()], caller).is_err());
    }
}
