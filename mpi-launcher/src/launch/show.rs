//! The decided job for people and for programs.

use crate::binding_table::{BindingTable, Row};
use crate::protocol::{NodePlan, Pmi};
use serde_json::json;

/// The table of `--display map,bind`: `rank node core cpu numa hca`.
pub fn table(names: &[String], plans: &[NodePlan]) -> BindingTable {
    let row = |(name, plan): (&String, &NodePlan)| -> Vec<Row> {
        let of_rank = |rank: &crate::protocol::RankPlan| Row {
            rank: rank.rank,
            node: name.clone(),
            binding: rank.binding.clone(),
            hca: rank.hca.clone(),
        };
        plan.ranks.iter().map(of_rank).collect()
    };
    BindingTable::new(names.iter().zip(plans).flat_map(row))
}

/// The JSON of `--plan`: wire-up, then per node its ranks and its container.
pub fn plan(names: &[String], pmi: Pmi, plans: &[NodePlan]) -> String {
    let node =
        |(name, plan): (&String, &NodePlan)| json!({ "node": name, "ranks": plan.ranks, "container": plan.container });
    let nodes: Vec<_> = names.iter().zip(plans).map(node).collect();
    let text = serde_json::to_string_pretty(&json!({ "pmi": pmi, "nodes": nodes }));
    text.unwrap_or_else(|e| unreachable!("a plan that JSON cannot hold: {e}"))
}
