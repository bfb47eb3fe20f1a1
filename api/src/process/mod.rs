//! The shell of every binary.
