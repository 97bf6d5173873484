//! Side-by-side measurement: commands in interleaved rounds, medians and ratios, raw data kept.
//!
//! Machines drift; what is measured minutes apart cannot be compared. Every round runs every command once, each round
//! begins with another one, and only ratios within one run are quoted.
#![forbid(unsafe_code)]

pub mod rounds;
pub mod statistics;
