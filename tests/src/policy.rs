//! A policy service that says what a test wants it to: for what no object of ours expresses yet.

use gossamer_api::authorization::Server;
use gossamer_api::policy::OutboundPolicy;
use gossamer_api::process::grpc;
use gossamer_api::process::stop::Stop;
use gossamer_api::wire::outbound_policy_to_proto;
use gossamer_api::wire::server_to_proto;
use linkerd2_proxy_api::inbound as inbound_api;
use linkerd2_proxy_api::inbound::inbound_server_policies_server as inbound;
use linkerd2_proxy_api::outbound as outbound_api;
use linkerd2_proxy_api::outbound::outbound_policies_server as outbound;
use std::net::SocketAddr;
use std::pin::Pin;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// What every proxy is told of every port and every target; `None`: not found.
#[derive(Clone, Default)]
pub struct Policy {
    /// For all inbound ports.
    pub server: Option<Server>,
    /// For all targets.
    pub outbound: Option<OutboundPolicy>,
}

type Watched<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Once, and never anything else.
fn once<T: Send + 'static>(answer: T) -> Response<Watched<T>> {
    Response::new(Box::pin(tokio_stream::once(Ok(answer)).chain(tokio_stream::pending())))
}

fn unknown() -> Status {
    Status::not_found("the test says nothing about it")
}

impl Policy {
    /// Serves it, without TLS, until `stop`. For a proxy's settings `policy-addr` (with an empty `policy-name`).
    pub async fn serve(self, stop: &Stop) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = tonic::service::Routes::new(inbound::InboundServerPoliciesServer::new(self.clone()))
            .add_service(outbound::OutboundPoliciesServer::new(self));
        tokio::spawn(grpc::serve(routes, listener, None, stop.clone()));
        addr
    }
}

#[tonic::async_trait]
impl inbound::InboundServerPolicies for Policy {
    type WatchPortStream = Watched<inbound_api::Server>;

    async fn get_port(&self, _: Request<inbound_api::PortSpec>) -> Result<Response<inbound_api::Server>, Status> {
        self.server.as_ref().map(|server| Response::new(server_to_proto(server))).ok_or_else(unknown)
    }

    async fn watch_port(&self, _: Request<inbound_api::PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        self.server.as_ref().map(|server| once(server_to_proto(server))).ok_or_else(unknown)
    }
}

#[tonic::async_trait]
impl outbound::OutboundPolicies for Policy {
    type WatchStream = Watched<outbound_api::OutboundPolicy>;

    async fn get(
        &self,
        _: Request<outbound_api::TrafficSpec>,
    ) -> Result<Response<outbound_api::OutboundPolicy>, Status> {
        let policy = self.outbound.as_ref().map(outbound_policy_to_proto);
        policy.map(Response::new).ok_or_else(unknown)
    }

    async fn watch(&self, _: Request<outbound_api::TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        self.outbound.as_ref().map(|policy| once(outbound_policy_to_proto(policy))).ok_or_else(unknown)
    }
}
