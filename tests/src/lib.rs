//! The whole mesh, tested.
