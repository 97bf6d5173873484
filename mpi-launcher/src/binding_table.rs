//! Which rank is where, as a table for people (`--display map,bind`, the start record) and as JSON (`--plan`).

use crate::bind::Binding;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Rank in the job.
    pub rank: u32,
    /// Its node.
    pub node: String,
    /// What it is bound to.
    pub binding: Binding,
    /// HCA that it should use, if one was chosen.
    pub hca: Option<String>,
}

/// The table; printed with columns `rank node core cpu numa hca`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingTable {
    /// One row per rank, in the order of printing.
    pub rows: Vec<Row>,
}

impl BindingTable {
    /// A table of these ranks, sorted by rank.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        rows.sort_by_key(|row| row.rank);
        Self { rows }
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let Binding { cores, cpus, numa, shared, .. } = &self.binding;
        let mark = if *shared { "*" } else { "" };
        let hca = self.hca.as_deref().unwrap_or("-");
        [
            self.rank.to_string(),
            self.node.clone(),
            format!("{cores}{mark}"),
            cpus.to_string(),
            numa.to_string(),
            hca.to_owned(),
        ]
    }
}

impl fmt::Display for BindingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["rank", "node", "core", "cpu", "numa", "hca"].map(str::to_owned);
        let lines: Vec<[String; 6]> = std::iter::once(header).chain(self.rows.iter().map(Row::cells)).collect();
        let mut widths = [0; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.len());
            }
        }
        for line in &lines {
            let [rank, rest @ ..] = line;
            let mut text = format!("{rank:>width$}", width = widths[0]);
            for (cell, width) in rest.iter().zip(&widths[1..]) {
                text.push_str(&format!("  {cell:<width$}"));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        if self.rows.iter().any(|row| row.binding.shared) {
            writeln!(f, "* shared with another rank")?;
        }
        Ok(())
    }
}
