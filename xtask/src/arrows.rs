//! Which crate may use which: the picture in `docs/design/house.md`, as a table.

use serde_json::Value;
use std::process::Command;

/// Crate, and the crates of ours it may depend on. Every arrow points to a crate with less in it, so there is no cycle.
const ARROWS: [(&str, &[&str]); 15] = [
    ("corebox-spec", &[]),
    ("corebox-sys", &[]),
    ("corebox-host", &["spec", "sys"]),
    ("corebox-images", &["spec", "sys"]),
    ("corebox-net", &["spec", "sys"]),
    ("corebox-rdma", &["spec", "sys", "host"]),
    ("corebox-runtime", &["spec", "sys", "host", "images", "net", "rdma"]),
    ("corebox-mpi", &["spec", "sys", "host", "images", "net", "rdma", "runtime"]),
    ("corebox-schedulers", &["spec", "sys"]),
    ("corebox-compare", &["spec", "sys", "host"]),
    ("corebox", &["spec", "sys", "host", "images", "net", "rdma", "runtime", "mpi", "schedulers"]),
    ("corebox-tests", &["spec", "sys", "host"]),
    ("corebox-vm-tests", &["spec", "sys", "host", "tests"]),
    ("corebox-xtask", &[]),
    ("corebox-fuzz", &["spec", "sys", "images", "runtime", "mpi"]),
];

/// One line per dependency that is not in the picture.
pub fn broken() -> Result<Vec<String>, String> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    Ok(judge(&metadata))
}

fn judge(metadata: &Value) -> Vec<String> {
    let none = Vec::new();
    let list = |value: &'_ Value| value.as_array().unwrap_or(&none).clone();
    let mut lines = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            lines.push(format!("crate {name} has no place in the house: xtask/src/arrows.rs, docs/design/house.md"));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let other = dependency["name"].as_str().unwrap_or_default();
            let ours = dependency["path"].is_string() || other == "corebox" || other.starts_with("corebox-");
            let short = other.strip_prefix("corebox-").unwrap_or(other);
            if ours && !allowed.contains(&short) {
                lines.push(format!("crate {name} must not depend on {other}: not an arrow of docs/design/house.md"));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let list: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "dependencies": list })
    }

    #[test]
    fn arrows_have_no_cycle() {
        for (index, (name, allowed)) in ARROWS.iter().enumerate() {
            let below = ARROWS[..index].iter().map(|(name, _)| name.trim_start_matches("corebox-")).collect::<Vec<_>>();
            assert!(allowed.iter().all(|other| below.contains(other)), "{name} points upwards");
        }
    }

    #[test]
    fn wrong_arrows_are_named() {
        let fine = json!({ "packages": [package("corebox-host", &["corebox-sys", "serde"])] });
        assert_eq!(judge(&fine), Vec::<String>::new());
        let bad =
            json!({ "packages": [package("corebox-images", &["corebox-runtime"]), package("corebox-attic", &[])] });
        let lines = judge(&bad);
        assert!(lines[0].contains("corebox-images must not depend on corebox-runtime"), "{lines:?}");
        assert!(lines[1].contains("corebox-attic has no place"), "{lines:?}");
    }
}
