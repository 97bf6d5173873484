//! corebox: see docs/design/house.md.
