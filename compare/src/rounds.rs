//! Running commands in interleaved rounds.

use corebox_spec::Failure;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A command under measurement.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Short name for the table.
    pub name: String,
    /// Shell command line.
    pub command: String,
}

/// What is measured.
#[derive(Clone, Debug)]
pub enum Quantity {
    /// Wall time in milliseconds.
    Wall,
    /// The number that follows this text in the command's output.
    After(String),
}

/// One measured value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Round, from 0; rounds of the warm-up are not kept.
    pub round: usize,
    /// Index of the subject.
    pub subject: usize,
    /// The value.
    pub value: f64,
}

/// Runs `warmup + rounds` rounds; round i starts with subject i mod n. `raw` gets a CSV line per kept sample.
///
/// # Errors
/// When a command fails or prints no number: a benchmark of failures measures nothing.
pub fn run(
    subjects: &[Subject],
    quantity: &Quantity,
    warmup: usize,
    rounds: usize,
    raw: &mut dyn Write,
) -> Result<Vec<Sample>, Failure> {
    let csv = |e: std::io::Error| Failure::new("cannot write the raw data", e);
    writeln!(raw, "round,subject,value").map_err(csv)?;
    let mut samples = Vec::new();
    for turn in 0..warmup + rounds {
        for position in 0..subjects.len() {
            let subject = (turn + position) % subjects.len();
            let value = measure(&subjects[subject], quantity)?;
            if let Some(round) = turn.checked_sub(warmup) {
                writeln!(raw, "{round},{},{value}", subjects[subject].name).map_err(csv)?;
                samples.push(Sample { round, subject, value });
            }
        }
    }
    Ok(samples)
}

fn measure(subject: &Subject, quantity: &Quantity) -> Result<f64, Failure> {
    let goal = format!("cannot measure `{}`", subject.name);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec {}", subject.command)).stdin(Stdio::null());
    let start = Instant::now();
    let output = command.output().map_err(|e| Failure::new(&goal, format!("run sh: {e}")))?;
    let wall = start.elapsed().as_secs_f64() * 1e3;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(goal, format!("it ended with {}\n{text}{errors}", output.status)));
    }
    match quantity {
        Quantity::Wall => Ok(wall),
        Quantity::After(label) => number_after(&text, label)
            .ok_or_else(|| Failure::new(goal, format!("no number after `{label}` in\n{text}"))),
    }
}

/// The first number behind a label, white space and one of `=:` between them allowed.
pub fn number_after(text: &str, label: &str) -> Option<f64> {
    let rest = &text[text.find(label)? + label.len()..];
    let rest = rest.trim_start_matches([' ', '\t', '=', ':']);
    let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str, command: &str) -> Subject {
        Subject { name: name.into(), command: command.into() }
    }

    #[test]
    fn rounds_interleave_and_rotate() {
        let subjects = [subject("a", "echo x = 1"), subject("b", "echo x = 2.5e1")];
        let mut raw = Vec::new();
        let samples = run(&subjects, &Quantity::After("x".into()), 1, 2, &mut raw).unwrap();
        let order: Vec<_> = samples.iter().map(|s| (s.round, s.subject, s.value)).collect();
        assert_eq!(order, [(0, 1, 25.0), (0, 0, 1.0), (1, 0, 1.0), (1, 1, 25.0)]);
        assert_eq!(String::from_utf8(raw).unwrap(), "round,subject,value\n0,b,25\n0,a,1\n1,a,1\n1,b,25\n");
    }

    #[test]
    fn a_failing_command_is_no_sample() {
        let fails = [subject("a", "sh -c 'exit 3'")];
        assert!(run(&fails, &Quantity::Wall, 0, 1, &mut Vec::new()).unwrap_err().cause.contains('3'));
        let silent = [subject("a", "echo nothing")];
        assert!(run(&silent, &Quantity::After("x".into()), 0, 1, &mut Vec::new()).is_err());
    }
}
