//! destination

fn main() {}
