//! What the launcher's one loop waits for.

use crate::protocol::{Frame, FromAgent};

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// An agent sent something.
    Agent(u32, Frame<FromAgent>),
    /// An agent's stream ended or fell silent; why, in words.
    AgentGone(u32, String),
    /// A signal for the launcher.
    Signal(i32),
    /// Bytes of standard input.
    Input(Vec<u8>),
    /// Standard input ended.
    InputEnd,
}
