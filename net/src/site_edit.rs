//! `corebox net create` and `rm`: the site's file, changed without losing what people wrote in it.

use crate::site::{self, Site};
use crate::{Error, Result};
use corebox_sys::fs;
use std::path::{Path, PathBuf};
use toml_edit::{Array, DocumentMut, Item, Table, value};

/// A network to add.
#[derive(Clone, Debug, Default)]
pub struct New {
    /// Its name.
    pub name: String,
    /// As in `--net`: `KIND[:OPTION,…]`.
    pub interface: String,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Containers per node.
    pub per_node: Option<u32>,
    /// Who may use it.
    pub users: Vec<String>,
    /// Whose members may use it.
    pub groups: Vec<String>,
    /// Limit of `rate=`.
    pub max_rate: Option<String>,
}

fn file() -> PathBuf {
    site::FILES.iter().map(PathBuf::from).find(|file| file.exists()).unwrap_or_else(|| site::FILES[0].into())
}

fn read(file: &Path) -> Result<DocumentMut> {
    let text = if file.exists() { fs::read_to_string(file)? } else { String::new() };
    text.parse()
        .map_err(|e: toml_edit::TomlError| Error::Config { place: file.display().to_string(), reason: e.to_string() })
}

/// Writes the file if it is a good one; else it stays as it was.
fn write(file: &Path, document: &DocumentMut) -> Result<()> {
    let text = document.to_string();
    Site::parse(&text, &file.display().to_string())?;
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = file.with_extension("toml.new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&new); // the old file is the file
    }
    Ok(written?)
}

/// Adds a network; the place it was written to.
///
/// # Errors
/// One of this name is there, or it is not a good one.
pub fn create(new: &New) -> Result<PathBuf> {
    let file = file();
    let mut document = read(&file)?;
    let networks = document.entry("network").or_insert(Item::Table(implicit()));
    let wrong = |reason: &str| Error::Config { place: file.display().to_string(), reason: reason.to_owned() };
    let networks = networks.as_table_mut().ok_or_else(|| wrong("`network` is no table"))?;
    if networks.contains_key(&new.name) {
        return Err(Error::refused(
            format!("there is a network `{}` already", new.name),
            format!("`corebox net rm {}` removes it.", new.name),
        ));
    }
    let (kind, options) = new.interface.split_once(':').unwrap_or((&new.interface, ""));
    let mut table = Table::new();
    let list = |items: &[String]| value(items.iter().collect::<Array>());
    table["kind"] = value(kind);
    if !options.is_empty() {
        table["options"] = value(options);
    }
    for (name, items) in [("subnet", &new.subnets), ("users", &new.users), ("groups", &new.groups)] {
        if !items.is_empty() {
            table[name] = list(items);
        }
    }
    if let Some(per_node) = new.per_node {
        table["per_node"] = value(i64::from(per_node));
    }
    if let Some(rate) = &new.max_rate {
        table["max_rate"] = value(rate);
    }
    networks.insert(&new.name, Item::Table(table));
    write(&file, &document)?;
    Ok(file)
}

fn implicit() -> Table {
    let mut table = Table::new();
    table.set_implicit(true);
    table
}

/// Removes a network that nobody uses.
///
/// # Errors
/// It is not there, or containers have addresses of it.
pub fn remove(name: &str) -> Result<PathBuf> {
    let file = file();
    let mut document = read(&file)?;
    let there = document.get("network").and_then(Item::as_table).is_some_and(|networks| networks.contains_key(name));
    if !there {
        Site::read()?.network(name)?;
        return Err(Error::refused(
            format!("network `{name}` is built in"),
            "a network of the same name in the site's file takes its place.",
        ));
    }
    let leases = crate::lease::Store::of(name).list()?;
    if let Some(lease) = leases.first() {
        return Err(Error::refused(
            format!(
                "network `{name}` is in use: container `{}` (pid {}) and {} more",
                lease.container,
                lease.owner.pid,
                leases.len() - 1
            ),
            "wait until they have ended.",
        ));
    }
    if let Some(networks) = document.get_mut("network").and_then(Item::as_table_mut) {
        networks.remove(name);
    }
    write(&file, &document)?;
    Ok(file)
}
