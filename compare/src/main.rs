//! `corebox-compare`: interleaved rounds of two or more commands, a table of medians and ratios, raw CSV.
#![forbid(unsafe_code)]

use clap::Parser;
use corebox_compare::rounds::{Quantity, Sample, Subject, run};
use corebox_compare::statistics::{paired_ratio, summary};
use corebox_spec::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures commands side by side in interleaved rounds and prints medians and ratios to the first.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  corebox-compare --rounds 20 --raw launch.csv 'native=mpirun -n 2 ./a' 'corebox=corebox mpirun -n 2 env ./a'"
)]
struct Arguments {
    /// Kept rounds.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Rounds before them that are not kept.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Compare the number that follows this text in the output instead of the wall time.
    #[arg(long, value_name = "TEXT")]
    after: Option<String>,
    /// Write every sample to this CSV file.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// `NAME=COMMAND`; the first is what the others are compared with.
    #[arg(required = true, num_args = 2.., value_parser = subject)]
    subjects: Vec<Subject>,
}

fn subject(text: &str) -> Result<Subject, String> {
    let (name, command) = text.split_once('=').ok_or("say NAME=COMMAND")?;
    Ok(Subject { name: name.into(), command: command.into() })
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), Failure> {
    let mut raw: Box<dyn std::io::Write> = match &arguments.raw {
        None => Box::new(std::io::sink()),
        Some(path) => Box::new(
            std::fs::File::create(path)
                .map_err(|e| Failure::new("cannot write the raw data", format!("{}: {e}", path.display())))?,
        ),
    };
    let quantity = arguments.after.clone().map_or(Quantity::Wall, Quantity::After);
    let unit = if arguments.after.is_none() { " (ms)" } else { "" };
    let samples = run(&arguments.subjects, &quantity, arguments.warmup, arguments.rounds, &mut *raw)?;
    println!(
        "| what | rounds | median{unit} | min{unit} | deviation{unit} | ratio of medians | ratio in a round (95 %) |"
    );
    println!("|---|---|---|---|---|---|---|");
    let base = series(&samples, 0);
    let base_median = summary(&base).map_or(f64::NAN, |s| s.median);
    for (index, subject) in arguments.subjects.iter().enumerate() {
        let values = series(&samples, index);
        let (Some(summary), Some(ratio)) = (summary(&values), paired_ratio(&values, &base)) else { continue };
        let interval = ratio.interval.map(|(low, high)| format!(" ({low:.3}-{high:.3})")).unwrap_or_default();
        println!(
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.3} | {:.3}{interval} |",
            subject.name,
            summary.count,
            summary.median,
            summary.min,
            summary.deviation,
            summary.median / base_median,
            ratio.median
        );
    }
    Ok(())
}

/// A subject's values, one a round, in the order of the rounds.
fn series(samples: &[Sample], subject: usize) -> Vec<f64> {
    samples.iter().filter(|s| s.subject == subject).map(|s| s.value).collect()
}
