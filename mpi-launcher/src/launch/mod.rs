//! The launcher: `corebox mpirun`, a line per stage.

mod agents;
mod decide;
mod event;
mod input;
mod link;
mod output;
mod remote;
mod report;
mod show;
mod watch;
mod wiring;

use crate::protocol::{Frame, FromAgent, NodePlan, ToAgent};
use agents::{Agents, Greeting};
use corebox_images::Store;
use corebox_spec::{Failure, HostSlots, IdSet, ImageFacts, JobSpec};
use event::Event;
pub use input::block_signals;
use output::Output;
use std::sync::Arc;
use std::time::Instant;
use watch::{Reason, Watch};

/// What is shown beside the ranks' output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// Print the plan as JSON and stop.
    pub plan: bool,
    /// Print which rank goes where, before the start.
    pub table: bool,
    /// Print the wall time of each stage at the end.
    pub timing: bool,
}

/// Runs a job to its end; the result is the exit code of the launcher.
///
/// Call [`block_signals`] first, while the process has one thread.
///
/// # Errors
/// Whatever stops the job before its ranks run; nothing is left behind then. What happens to running ranks is reported on
/// stderr and in the exit code.
pub fn run(spec: &JobSpec, show: Show) -> Result<u8, Failure> {
    let mut stages = Stages::new(show.timing);
    let image = find_image(spec)?;
    let pmi = wiring::choose(spec, &image.facts)?;
    let hosts = allocate(spec)?;
    let mut output = Output::open(&spec.output)?;
    let job = job_id();
    let names: Vec<String> = hosts.iter().map(|h| h.host.clone()).collect();
    let mut agents = Agents::start(spec, &names, &Greeting { job: &job, image: &image.name, pmi })?;
    let facts = agents.facts()?;
    stages.done("agents");
    let plans = match decide::decide(spec, &hosts, &facts, &image.facts) {
        Ok(plans) => plans,
        Err(failure) => {
            agents.dismiss();
            return Err(failure);
        }
    };
    stages.done("map and bind");
    if show.plan {
        agents.dismiss();
        println!("{}", show::plan(&names, pmi, &plans));
        return Ok(0);
    }
    if show.table {
        eprint!("{}", show::table(&names, &plans));
    }
    let mut watch = watch_of(&plans, spec);
    agents.send_plans(plans);
    attend(spec, &names, &mut agents, &mut watch, &mut output, &mut stages);
    agents.dismiss();
    stages.done("ranks");
    let (code, failures) = report::end_of_job(&watch, &names);
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    stages.print();
    Ok(code)
}

/// The image as the launcher knows it.
struct FoundImage {
    name: String,
    facts: ImageFacts,
}

fn find_image(spec: &JobSpec) -> Result<FoundImage, Failure> {
    let image = Store::open()?.find(&spec.image)?;
    Ok(FoundImage { name: image.digest.clone(), facts: image.facts })
}

/// The nodes of the job: those named, else this one.
fn allocate(spec: &JobSpec) -> Result<Vec<HostSlots>, Failure> {
    let refused = |cause: String| Failure::new("cannot allocate nodes", cause);
    if spec.apps.iter().any(|app| app.ranks == Some(0)) {
        return Err(refused("-n 0: a job has at least one rank".into()));
    }
    if let Some(app) = spec.apps.iter().find(|app| app.argv.is_empty()) {
        return Err(refused(format!("a program is missing (one of {} programs has no name)", spec.apps.len())).hint(
            format!(
                "as in `corebox mpirun -n 2 {} ./program`{}",
                spec.image,
                if app.ranks.is_some() { "" } else { "; -n is optional" }
            ),
        ));
    }
    if !spec.hosts.is_empty() {
        if spec.remote_shell == corebox_spec::RemoteShell::Local && spec.hosts.iter().any(|h| !remote::is_here(&h.host))
        {
            return Err(refused("--rsh local starts agents on this node only, and --host names another one".into()));
        }
        return Ok(spec.hosts.clone());
    }
    let own = nix::unistd::gethostname().map_err(|e| refused(format!("gethostname: {}", e.desc())))?;
    Ok(vec![HostSlots { host: own.to_string_lossy().into_owned(), slots: None }])
}

fn job_id() -> String {
    let mut random = [0; 4];
    // only uniqueness is wanted here, and the process id is most of it; the secret is made elsewhere
    let _ = getrandom::fill(&mut random);
    format!("cb-{}-{:08x}", std::process::id(), u32::from_le_bytes(random))
}

fn watch_of(plans: &[NodePlan], spec: &JobSpec) -> Watch {
    let ranks = plans.iter().enumerate().flat_map(|(node, plan)| {
        let binding = move |rank: &crate::protocol::RankPlan| -> (u32, u32, IdSet, IdSet) {
            (rank.rank, node as u32, rank.binding.cpus.clone(), rank.binding.mems.clone())
        };
        plan.ranks.iter().map(binding)
    });
    Watch::new(plans.len() as u32, ranks, spec.grace)
}

/// Watches the job until every node is done or lost.
fn attend(
    spec: &JobSpec,
    names: &[String],
    agents: &mut Agents,
    watch: &mut Watch,
    output: &mut Output,
    stages: &mut Stages,
) {
    let window = Arc::new(input::Window::default());
    let stdin_node = watch.node_of(0).unwrap_or(0);
    input::forward_signals(agents.sender());
    input::forward_stdin(agents.sender(), window.clone());
    let timeout = spec.timeout.map(|after| (Instant::now() + after, after));
    while !watch.over() {
        let deadline =
            [watch.deadline, timeout.map(|t| t.0).filter(|_| watch.reason.is_none())].into_iter().flatten().min();
        let now = Instant::now();
        let orders: Vec<ToAgent> = match agents.next(deadline) {
            Some(Event::Agent(_, Frame::Output { rank, stream, bytes })) => {
                let written = output.write(rank, stream, &bytes);
                written.err().and_then(|e| watch.end(unwritable(&e), now)).into_iter().collect()
            }
            Some(Event::Agent(_, Frame::Message(FromAgent::StdinTaken(bytes)))) => {
                window.taken(bytes);
                Vec::new()
            }
            Some(Event::Agent(node, Frame::Message(message))) => {
                let order = watch.on_message(node, &names[node as usize], message, now);
                if watch.all_started(names.len() as u32) {
                    stages.once("start");
                }
                order.into_iter().collect()
            }
            Some(Event::Agent(_, Frame::Input(_))) => Vec::new(), // agents have no input for us
            Some(Event::AgentGone(node, why)) => watch.on_gone(node, why, now).into_iter().collect(),
            Some(Event::Signal(signal)) => on_signal(signal, agents, watch, now),
            Some(Event::Input(bytes)) => {
                agents.link(stdin_node).send_raw(crate::protocol::encode_input(&bytes));
                Vec::new()
            }
            Some(Event::InputEnd) => {
                agents.link(stdin_node).send(&ToAgent::StdinEnd);
                Vec::new()
            }
            None => on_deadline(timeout, watch),
        };
        for order in orders {
            agents.broadcast(&order);
        }
    }
}

/// Ctrl-Z stops the ranks, then the launcher as its shell expects; everything else is the job's affair.
fn on_signal(signal: i32, agents: &Agents, watch: &mut Watch, now: Instant) -> Vec<ToAgent> {
    use nix::sys::signal::{Signal, raise};
    if signal == Signal::SIGTSTP as i32 {
        agents.broadcast(&ToAgent::Signal(Signal::SIGSTOP as i32));
        let _ = raise(Signal::SIGSTOP); // cannot fail for the calling process
        return Vec::new();
    }
    watch.on_signal(signal, now)
}

fn on_deadline(timeout: Option<(Instant, std::time::Duration)>, watch: &mut Watch) -> Vec<ToAgent> {
    let now = Instant::now();
    match (watch.deadline, timeout) {
        (Some(deadline), _) if now >= deadline => {
            // agents had their time to kill and report: those still open are lost
            for node in watch.open_nodes().clone() {
                watch.on_gone(node, "its agent did not end the ranks in time".into(), now);
            }
            vec![ToAgent::Kill]
        }
        (None, Some((at, after))) if now >= at => watch.end(Reason::TimedOut(after), now).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn unwritable(error: &std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Reason::Output(String::new()),
        _ => Reason::Output(error.to_string()),
    }
}

/// Times of the launcher's stages, for `--timing`.
struct Stages {
    wanted: bool,
    last: Instant,
    lines: Vec<(&'static str, u128)>,
}

impl Stages {
    fn new(wanted: bool) -> Self {
        Self { wanted, last: Instant::now(), lines: Vec::new() }
    }
    fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.lines.push((name, (now - self.last).as_micros()));
        self.last = now;
    }
    fn once(&mut self, name: &'static str) {
        if !self.lines.iter().any(|line| line.0 == name) {
            self.done(name);
        }
    }
    fn print(&self) {
        for (name, micros) in self.lines.iter().filter(|_| self.wanted) {
            eprintln!("timing: {micros:>9} us  {name}");
        }
    }
}
