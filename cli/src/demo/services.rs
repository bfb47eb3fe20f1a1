//! Which programs the demo runs, and how many of each.

use super::app::{GRPC_PORT, HTTP_PORT, LEDGER_PORT, VAULT_PORT};
use super::vault;
use crate::error::Result;
use gossamer_api::wire::mesh::{Port, RegisterWorkload};

/// The namespace of all of them.
pub const NAMESPACE: &str = "demo";
/// The service whose view is that of users.
pub const USERS: &str = "traffic";

/// A service of the demo.
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Where it listens.
    pub port: Option<u16>,
    /// Every replica's arguments to `demo-app`.
    pub replicas: Vec<Vec<String>>,
    /// For all replicas.
    pub env: Vec<(&'static str, String)>,
}

/// All services, users first.
pub fn all(rate: f64, unmeshed: bool) -> Result<Vec<Service>> {
    let (certificate, key) = vault::make_certificate()?;
    let service = |name: &'static str, port: Option<u16>, replicas: &[&[&str]]| {
        let arguments = |own: &&[&str]| {
            let mut all = vec![name.to_string()];
            all.extend(own.iter().map(|a| a.to_string()));
            all.extend(unmeshed.then(|| "--unmeshed".to_string()));
            all
        };
        Service { name, port, replicas: replicas.iter().map(arguments).collect(), env: Vec::new() }
    };
    let mut services = vec![
        service(USERS, None, &[&["--rate", &rate.to_string()]]),
        service("web", Some(HTTP_PORT), &[&[], &[]]),
        service("catalog", Some(HTTP_PORT), &[&[], &[], &["--slow", "100ms"]]),
        service("orders", Some(HTTP_PORT), &[&[], &["--fail", "0.2"]]),
        service("prices", Some(GRPC_PORT), &[&[], &[]]),
        service("ledger", Some(LEDGER_PORT), &[&[], &[]]),
        service("vault", Some(VAULT_PORT), &[&[]]),
    ];
    for service in &mut services {
        if matches!(service.name, "orders" | "vault") {
            service.env.push((vault::CERTIFICATE, certificate.clone()));
        }
        if service.name == "vault" {
            service.env.push((vault::KEY, key.clone()));
        }
    }
    Ok(services)
}

/// The side from which a service's figures are seen.
pub fn direction(service: &str) -> &'static str {
    if service == USERS { "outbound" } else { "inbound" }
}

impl Service {
    /// What the control plane is told of a replica.
    pub fn registration(&self) -> RegisterWorkload {
        let port = |port: u16| Port { port: port.into(), ..Port::default() };
        RegisterWorkload {
            namespace: NAMESPACE.into(),
            name: self.name.into(),
            ports: self.port.map(port).into_iter().collect(),
            ..RegisterWorkload::default()
        }
    }
}
