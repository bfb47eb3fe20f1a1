//! identity

fn main() {}
