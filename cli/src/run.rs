//! `corebox run`: one command in one container, as if it ran without.

use crate::container_options::{ContainerOptions, caller_variables};
use corebox_images::{Image, Store};
use corebox_runtime::{Container, ContainerPlan, Event, HostFacts, ImageSource, ProcessPlan, environment, plan};
use corebox_spec::{ContainerSpec, Edits, Failure, IdSet, Outcome, RdmaSelect};
use corebox_sys::signal::{self, Arrived, Signals};
use corebox_sys::{fd, process};
use std::io::Write as _;
use std::os::fd::{AsFd, RawFd};

/// Run a command in a container.
///
/// The command sees the image, the present directory, and nothing else of the host's files. It runs with your ids,
/// without any privilege, and its exit status is ours (128+N for signal N; 125 when corebox failed, 126 when the
/// command cannot be executed, 127 when it is not there).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    container: ContainerOptions,
    /// Name for messages and cgroups.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print what would be done as JSON, and do nothing.
    #[arg(long)]
    plan: bool,
    /// Print how long each step of starting took.
    #[arg(long)]
    timing: bool,
    /// Image reference, or the path of an image file.
    image: String,
    /// Command and arguments; without one, the image's Entrypoint and Cmd. A given command replaces both.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// The command's process in its container.
const COMMAND: u32 = 0;

/// Runs it; the result is the command's own exit code.
///
/// # Errors
/// Whatever keeps the command from running.
pub fn run(args: Args) -> Result<u8, Failure> {
    let kept = inherited_descriptors();
    let (spec, plan, image) = decide(&args)?;
    if args.plan {
        return show(&plan);
    }
    let _pin = image.filter(|_| is_first_of_step()).and_then(|image| image.pin(&format!("container `{}`", spec.name)));
    let process = command(&args, &spec, &plan, &kept)?;
    // Blocked before the container exists: from here on a signal ends it in order, or is passed on.
    let signals = Signals::block_all().map_err(|e| Failure::new("cannot watch signals", e))?;
    let mut container = Container::create(&plan, &kept)?;
    container.wait_ready()?;
    if args.timing {
        print_timing(&container);
    }
    container.start(&[process])?;
    follow(&mut container, &signals)
}

fn decide(args: &Args) -> Result<(ContainerSpec, ContainerPlan, Option<Image>), Failure> {
    let (image, stored) = find_image(&args.image)?;
    let mut spec = args.container.spec()?;
    spec.name = args.name.clone().unwrap_or_else(|| short_name(&args.image));
    spec.caller_env = environment::for_run(caller_variables());
    let network = corebox_net::planned(&spec.network, &spec.name, args.plan)?;
    let facts = HostFacts::find()?;
    let rdma = rdma_edits(&spec)?;
    let has_rdma = !rdma.mounts.is_empty();
    let edits = [rdma, network.edits(spec.hostname.as_deref().unwrap_or(&facts.hostname), "", has_rdma)];
    let mut plan = plan(&spec, &image, &facts, &edits)?;
    plan.network = network;
    Ok((spec, plan, stored))
}

/// Whether no other task of a parallel step does what all would do alike.
fn is_first_of_step() -> bool {
    const RANKS: [&str; 5] = ["SLURM_PROCID", "PMIX_RANK", "PMI_RANK", "PMI_ID", "OMPI_COMM_WORLD_RANK"];
    RANKS.iter().all(|name| std::env::var(name).map_or(true, |rank| rank == "0"))
}

/// The NUMA nodes of the container's CPUs: of those asked for, else of ours.
fn numa(spec: &ContainerSpec) -> Result<IdSet, Failure> {
    let host = corebox_host::Host::this().map_err(|e| Failure::new("cannot read the facts of this host", e))?;
    Ok(host.topology.numa_of(spec.limits.cpus.as_ref().unwrap_or(&host.allowed_cpus)))
}

/// The RDMA devices of this host, where they are wanted. Where CPUs are matters for one choice only, and reading it all
/// takes longer than the rest.
fn rdma_edits(spec: &ContainerSpec) -> Result<Edits, Failure> {
    let numa = if spec.rdma == RdmaSelect::Nearest { numa(spec)? } else { IdSet::default() };
    corebox_rdma::host_edits(spec, &numa)
}

/// An image of the store; what has a `/` is the path of an image file (no name has one), as is what ends in `.sqsh`.
fn find_image(reference: &str) -> Result<(ImageSource, Option<Image>), Failure> {
    if reference.contains('/') || reference.ends_with(".sqsh") {
        corebox_images::admit(reference.as_ref(), None)?;
        return Ok((ImageSource { path: reference.into(), digest: None, config: Default::default() }, None));
    }
    let image = Store::open()?.find(reference)?;
    corebox_images::admit(&image.path, Some(&image))?;
    let (path, digest, config) = (image.path.clone(), Some(image.digest.clone()), image.facts.config.clone());
    Ok((ImageSource { path, digest, config }, Some(image)))
}

/// `lammps` of `site/lammps:2024` or `dir/lammps.sqsh`.
fn short_name(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split([':', '.', '@']).next().filter(|name| !name.is_empty()).unwrap_or("container").to_owned()
}

fn show(plan: &ContainerPlan) -> Result<u8, Failure> {
    let text = serde_json::to_string_pretty(plan).map_err(|e| Failure::new("cannot print the plan", e))?;
    // A reader that closes the pipe has seen enough.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(0)
}

fn print_timing(container: &Container) {
    for (step, microseconds) in container.steps() {
        let _ = writeln!(std::io::stderr(), "{:>9.3} ms  {step}", *microseconds as f64 / 1000.0);
    }
}

/// Descriptors by which another launcher's wire-up reaches its rank; they pass through.
const DESCRIPTOR_VARIABLES: [&str; 2] = ["PMI_FD", "HYDI_CONTROL_FD"];

fn inherited_descriptors() -> Vec<RawFd> {
    let number = |name: &&str| std::env::var(name).ok()?.parse::<RawFd>().ok();
    DESCRIPTOR_VARIABLES.iter().filter_map(number).filter(|n| *n > 2 && fd::borrow(*n).is_ok()).collect()
}

fn command(args: &Args, spec: &ContainerSpec, plan: &ContainerPlan, kept: &[RawFd]) -> Result<ProcessPlan, Failure> {
    let argv = if args.command.is_empty() { plan.command.clone() } else { args.command.clone() };
    if argv.is_empty() {
        return Err(Failure::new(
            format!("cannot start container `{}`", spec.name),
            "no command is given and the image names none",
        )
        .hint(format!("say which: corebox run {} COMMAND", args.image)));
    }
    Ok(ProcessPlan {
        env: plan.environment(),
        cwd: plan.workdir.clone(),
        keep_fds: kept.to_vec(),
        ..ProcessPlan::new(COMMAND, argv)
    })
}

/// Passes signals in and waits for the end.
fn follow(container: &mut Container, signals: &Signals) -> Result<u8, Failure> {
    let lost = |e| Failure::new("cannot wait for the container", e);
    loop {
        while let Some(event) = container.next_event()? {
            match event {
                Event::Exited { outcome, .. } => return finish(container, outcome),
                Event::ExecFailed { failure, .. } | Event::Failed(failure) => return Err(failure),
                Event::Gone => return Err(Failure::new("cannot wait for the container", "it is gone")),
                Event::Ready | Event::Started { .. } => {}
            }
        }
        let ready = fd::poll_readable(&[container.control_fd(), signals.as_fd()], None).map_err(lost)?;
        if ready[1] {
            while let Some(arrived) = signals.next().map_err(lost)? {
                pass_on(container, arrived)?;
            }
        }
    }
}

/// Ends what the command left behind, and says so if the memory limit ended the command.
fn finish(container: &mut Container, outcome: Outcome) -> Result<u8, Failure> {
    container.kill();
    let killed = matches!(outcome, Outcome::Signaled { signal: signal::SIGKILL, .. });
    if killed && container.out_of_memory() {
        return Err(Failure::new("the command was killed", "its memory limit is reached")
            .hint("allow it more (--mem); what lies in /dev/shm, /tmp and a writable root counts too.")
            .code(outcome.code()));
    }
    Ok(outcome.code())
}

/// Gives the command what was meant for it. The terminal's signals went to its whole foreground group, the command
/// included; passing them on would deliver them twice.
fn pass_on(container: &mut Container, arrived: Arrived) -> Result<(), Failure> {
    if arrived.signal == signal::SIGCHLD {
        return Ok(());
    }
    if !arrived.from_kernel {
        container.signal(Some(COMMAND), arrived.signal)?;
    }
    if [signal::SIGTSTP, signal::SIGTTIN, signal::SIGTTOU].contains(&arrived.signal) {
        // The shell sees us stop, as it would the command. We go on with its SIGCONT.
        process::kill(process::id(), signal::SIGSTOP).map_err(|e| Failure::new("cannot stop", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn names_containers_after_images() {
        for (reference, name) in [
            ("lammps", "lammps"),
            ("site/lammps:2024", "lammps"),
            ("./x/env.sqsh", "env"),
            ("a@sha256:0", "a"),
            (".", "container"),
        ] {
            assert_eq!(short_name(reference), name);
        }
    }
}
