//! corebox: see docs/design/house.md.
fn main() {}
