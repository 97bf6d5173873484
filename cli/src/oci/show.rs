//! `state`, `list`, `ps`.

use super::Global;
use super::lifecycle::IdArgs;
use clap::ValueEnum;
use corebox_runtime::oci;
use corebox_spec::Failure;
use serde_json::Value;
use std::io::Write as _;
use std::process::Command;

/// List containers.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// How.
    #[arg(short, long, value_enum, default_value_t = Table::Table, value_name = "FORMAT")]
    format: Table,
    /// Print only the names.
    #[arg(short, long)]
    quiet: bool,
}

/// List the processes of a container.
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    /// How.
    #[arg(short, long, value_enum, default_value_t = Table::Table, value_name = "FORMAT")]
    format: Table,
    /// Name of the container.
    id: String,
    /// Options for ps(1) [default: -ef].
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    Table,
    Json,
}

/// Prints JSON; a reader that closes the pipe has seen enough.
pub fn print_pretty(value: &Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints JSON in one line.
pub fn print_line(value: &Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

/// Runs `state`.
pub fn state(global: &Global, args: &IdArgs) -> Result<u8, Failure> {
    print_pretty(&oci::state(&global.root(), &args.id)?);
    Ok(0)
}

/// Runs `list`.
pub fn list(global: &Global, args: &ListArgs) -> Result<u8, Failure> {
    let all = oci::list(&global.root())?;
    let text = |state: &Value, key: &str| state[key].as_str().unwrap_or_default().to_owned();
    if args.quiet {
        all.iter().for_each(|state| println!("{}", text(state, "id")));
        return Ok(0);
    }
    if args.format == Table::Json {
        print_pretty(&Value::Array(all));
        return Ok(0);
    }
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for state in &all {
        let column = |key: &str| text(state, key);
        let row = [
            column("id"),
            state["pid"].to_string(),
            column("status"),
            column("bundle"),
            column("created"),
            column("owner"),
        ];
        rows.push(row);
    }
    let widths: Vec<usize> = (0..6).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("   ").trim_end());
    }
    Ok(0)
}

/// Runs `ps`.
pub fn ps(global: &Global, args: &PsArgs) -> Result<u8, Failure> {
    let pids = oci::processes(&global.root(), &args.id)?;
    if args.format == Table::Json {
        print_pretty(&pids.into());
        return Ok(0);
    }
    let default = ["-ef".to_owned()];
    let options = if args.options.is_empty() { &default[..] } else { &args.options[..] };
    let failed = |cause: String| Failure::new(format!("cannot list the processes of container `{}`", args.id), cause);
    let output = Command::new("ps").args(options).output().map_err(|e| failed(format!("run ps: {e}")))?;
    if !output.status.success() {
        return Err(failed(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| failed("the output of ps has no column PID".to_owned()))?;
    println!("{header}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(0)
}
