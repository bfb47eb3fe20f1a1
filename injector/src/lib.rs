//! Puts the proxy into pods.
