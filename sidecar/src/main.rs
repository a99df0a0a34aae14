//! `tikv-pitr`: the command line.
fn main() {}
