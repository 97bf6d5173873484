//! The log file that podman, conmon and containerd read errors from.

use super::Format;
use corebox_spec::Failure;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

/// Appends a failure. What cannot be written there is still on standard error.
pub fn write(file: Option<&Path>, format: Format, failure: &Failure) {
    let Some(file) = file else { return };
    let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(file) else { return };
    let time = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    let line = match format {
        Format::Json => serde_json::json!({"level": "error", "msg": one_line(failure), "time": time}).to_string(),
        Format::Text => format!("time=\"{time}\" level=error msg={:?}", one_line(failure)),
    };
    let _ = writeln!(log, "{line}");
}

/// The whole chain in one line, as its readers show it.
pub fn one_line(failure: &Failure) -> String {
    let mut text = failure.goal.clone();
    if let Some((_, step)) = &failure.step {
        text.push_str(&format!(" (step `{step}`)"));
    }
    text.push_str(&format!(": {}", failure.cause.replace('\n', "; ")));
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("; hint: {}", hint.replace('\n', " ")));
    }
    text
}
