//! balance

pub mod breaker;
pub mod ewma;
