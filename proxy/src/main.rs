//! proxy

fn main() {}
