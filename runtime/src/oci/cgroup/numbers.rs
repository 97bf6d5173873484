//! What a container uses, for `events --stats`: the shape that runc prints and containerd reads.

use super::Groups;
use corebox_sys::fs;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// cpu, memory and pids as JSON.
pub(crate) fn numbers(groups: &Groups) -> Value {
    let file = |controller: &str, name: &str| -> Option<PathBuf> {
        groups.with(controller).map(|index| groups.directories[index].path.join(name))
    };
    let text = |controller: &str, name: &str| file(controller, name).and_then(|f| fs::read_to_string(f).ok());
    let number = |controller: &str, name: &str| text(controller, name).and_then(|t| t.trim().parse::<u64>().ok());
    let keyed = |controller: &str, name: &str| -> Map<String, Value> {
        let text = text(controller, name).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.filter_map(|(key, value)| Some((key.to_owned(), json!(value.trim().parse::<u64>().ok()?)))).collect()
    };
    let (usage, limit, peak) = if groups.unified {
        ("memory.current", "memory.max", "memory.peak")
    } else {
        ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    };
    let cpu = if groups.unified {
        let usage = keyed("cpu", "cpu.stat");
        let nanoseconds = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0) * 1000;
        json!({"total": nanoseconds("usage_usec"), "user": nanoseconds("user_usec"), "kernel": nanoseconds("system_usec")})
    } else {
        json!({
            "total": number("cpuacct", "cpuacct.usage").unwrap_or(0),
            "user": number("cpuacct", "cpuacct.usage_user").unwrap_or(0),
            "kernel": number("cpuacct", "cpuacct.usage_sys").unwrap_or(0),
        })
    };
    let mut memory =
        json!({"usage": {"usage": number("memory", usage).unwrap_or(0)}, "raw": keyed("memory", "memory.stat")});
    for (key, name) in [("limit", limit), ("max", peak)] {
        if let Some(value) = number("memory", name) {
            memory["usage"][key] = json!(value);
        }
    }
    let mut pids = json!({"current": number("pids", "pids.current").unwrap_or(0)});
    if let Some(limit) = number("pids", "pids.max") {
        pids["limit"] = json!(limit);
    }
    json!({"cpu": {"usage": cpu, "throttling": keyed("cpu", "cpu.stat")}, "memory": memory, "pids": pids})
}
