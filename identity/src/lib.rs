//! Signs the certificates of workloads.
