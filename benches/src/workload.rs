//! What the drivers are put through.

use crate::control::SERVICES;
use crate::load::Kind;
use crate::server::{BULK, GRPC, HTTP, HTTP2};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// For `--only`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is sent.
    pub kind: Kind,
    /// Where.
    pub port: u16,
    /// How many.
    pub connections: usize,
    /// The request's path.
    pub path: &'static str,
    /// Of the open loop.
    pub rate: u64,
    /// Measured with `--quick`, too.
    pub quick: bool,
    /// What the cost is counted in.
    pub unit: Unit,
    /// Services that the connections are spread over. Like endpoints, more than one is for meshes only.
    pub services: usize,
    /// Endpoints of the service.
    pub endpoints: usize,
}

impl Workload {
    /// True where only a mesh can be measured.
    pub(crate) fn needs_mesh(&self) -> bool {
        self.services > 1 || self.endpoints > 1
    }
}

/// Endpoints of the row that has many.
pub(crate) const ENDPOINTS: usize = 500;

/// What the cost is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// CPU-µs per request.
    Request,
    /// CPU-s per GiB.
    Gibibyte,
}

const HTTP1: Workload = Workload {
    name: "",
    title: "",
    kind: Kind::Http1,
    port: HTTP,
    connections: 1,
    path: "/",
    rate: 0,
    quick: true,
    unit: Unit::Request,
    services: 1,
    endpoints: 1,
};

/// All rows.
pub(crate) const ALL: [Workload; 13] = [
    Workload { name: "h1-1", title: "HTTP/1.1, 1 connection", ..HTTP1 },
    Workload { name: "h1-32", title: "HTTP/1.1, 32 connections", connections: 32, ..HTTP1 },
    Workload { name: "h1-256", title: "HTTP/1.1, 256 connections", connections: 256, ..HTTP1 },
    Workload { name: "h2", title: "HTTP/2, 4 x 32 streams", kind: Kind::Http2, port: HTTP2, connections: 4, ..HTTP1 },
    Workload { name: "grpc", title: "gRPC unary, 4 x 32", kind: Kind::Unary, port: GRPC, connections: 4, ..HTTP1 },
    Workload {
        name: "grpc-stream",
        title: "gRPC streaming, 4 x 32, per message",
        kind: Kind::Streaming,
        port: GRPC,
        connections: 4,
        quick: false,
        ..HTTP1
    },
    Workload {
        name: "open-1000",
        title: "1,000 req/s open loop",
        kind: Kind::Open,
        connections: 32,
        rate: 1000,
        ..HTTP1
    },
    Workload {
        name: "open-2000",
        title: "2,000 req/s open loop",
        kind: Kind::Open,
        connections: 32,
        rate: 2000,
        quick: false,
        ..HTTP1
    },
    Workload { name: "connect", title: "new connection per request", kind: Kind::Connect, connections: 8, ..HTTP1 },
    Workload {
        name: "big",
        title: "1 MiB answers, 8 connections, per request",
        connections: 8,
        path: "/big",
        quick: false,
        ..HTTP1
    },
    Workload {
        name: "bulk",
        title: "opaque TCP bulk, CPU-s per GiB",
        kind: Kind::Bulk,
        port: BULK,
        connections: 4,
        unit: Unit::Gibibyte,
        ..HTTP1
    },
    Workload {
        name: "services-200",
        title: "HTTP/1.1, 200 connections to 200 services",
        connections: 200,
        services: SERVICES,
        quick: false,
        ..HTTP1
    },
    Workload {
        name: "endpoints-500",
        title: "HTTP/1.1, 32 connections, 500 endpoints",
        connections: 32,
        endpoints: ENDPOINTS,
        quick: false,
        ..HTTP1
    },
];
