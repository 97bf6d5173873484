//! `update`, `events`.

use super::Global;
use super::show::print_line;
use corebox_runtime::oci;
use corebox_spec::Failure;
use serde_json::{Map, Value, json};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

/// Change the limits of a container.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// JSON of `linux.resources`; `-` reads standard input. Other options are not used then.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O (10 to 1000).
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// Microseconds of a CPU period.
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// Microseconds of CPU in a period; -1 is no limit.
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds that may be saved up.
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Relative weight of CPU time.
    #[arg(long, value_name = "N", visible_alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Microseconds of a real-time period.
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Microseconds of real-time CPU in a period.
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Only when others are idle (1).
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// CPUs.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// NUMA nodes.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Bytes of memory; -1 is no limit.
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Bytes that are kept when memory is short.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Bytes of memory and swap together.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processes and threads; -1 is no limit.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Name of the container.
    id: String,
}

/// Print what a container uses, as JSON, until it ends.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Once.
    #[arg(long)]
    stats: bool,
    /// Time between two.
    #[arg(long, value_name = "SECONDS", default_value = "5s")]
    interval: String,
    /// Name of the container.
    id: String,
}

/// Runs `update`.
pub fn update(global: &Global, args: &UpdateArgs) -> Result<u8, Failure> {
    let failed = |cause: String| Failure::new(format!("cannot update container `{}`", args.id), cause);
    let text = match &args.resources {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).map_err(|e| failed(format!("read standard input: {e}")))?;
            text
        }
        Some(path) => corebox_sys::fs::read(path).map_err(|e| failed(e.to_string()))?,
        None => asked(args).map_err(failed)?.to_string().into_bytes(),
    };
    oci::update(&global.root(), &args.id, &text)?;
    Ok(0)
}

/// The options as JSON of `linux.resources`.
fn asked(args: &UpdateArgs) -> Result<Value, String> {
    fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            map.insert(key.to_owned(), value.into());
        }
    }
    let (mut cpu, mut memory, mut all) = (Map::new(), Map::new(), Map::new());
    put(&mut cpu, "shares", args.cpu_share);
    put(&mut cpu, "quota", args.cpu_quota);
    put(&mut cpu, "period", args.cpu_period);
    put(&mut cpu, "burst", args.cpu_burst);
    put(&mut cpu, "realtimeRuntime", args.cpu_rt_runtime);
    put(&mut cpu, "realtimePeriod", args.cpu_rt_period);
    put(&mut cpu, "idle", args.cpu_idle);
    put(&mut cpu, "cpus", args.cpuset_cpus.clone());
    put(&mut cpu, "mems", args.cpuset_mems.clone());
    put(&mut memory, "limit", bytes(args.memory.as_deref())?);
    put(&mut memory, "reservation", bytes(args.memory_reservation.as_deref())?);
    put(&mut memory, "swap", bytes(args.memory_swap.as_deref())?);
    put(&mut all, "cpu", (!cpu.is_empty()).then_some(Value::Object(cpu)));
    put(&mut all, "memory", (!memory.is_empty()).then_some(Value::Object(memory)));
    put(&mut all, "pids", args.pids_limit.map(|limit| json!({"limit": limit})));
    put(&mut all, "blockIO", args.blkio_weight.map(|weight| json!({"weight": weight})));
    Ok(Value::Object(all))
}

/// `512m`, `-1`, `1073741824`.
fn bytes(text: Option<&str>) -> Result<Option<i64>, String> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Some(number));
    }
    let bytes = corebox_spec::parse_size(text).map_err(|e| e.to_string())?;
    i64::try_from(bytes).map(Some).map_err(|_| format!("{text} is too large"))
}

/// Runs `events`.
pub fn events(global: &Global, args: &EventsArgs) -> Result<u8, Failure> {
    let root = global.root();
    let seconds = args.interval.trim_end_matches('s').parse::<u64>().ok().filter(|s| *s > 0);
    let seconds = seconds.ok_or_else(|| {
        Failure::new("cannot show events", format!("`--interval {}` is not a number of seconds", args.interval))
    })?;
    loop {
        let stats = match oci::stats(&root, &args.id) {
            // It ended while we watched.
            Err(_) if !args.stats && oci::state(&root, &args.id).is_ok_and(|s| s["status"] == "stopped") => {
                return Ok(0);
            }
            other => other?,
        };
        print_line(&stats);
        if args.stats || oci::wait_for_end(&root, &args.id, Some(Duration::from_secs(seconds)))? {
            return Ok(0);
        }
    }
}
