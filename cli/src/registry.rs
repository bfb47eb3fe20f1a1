//! The registry on the mesh's Unix socket: who registers, and for how long; who is there. The socket's folder lets only
//! its owner in, which is all the authentication there is.
//!
//! **Invariant:** a workload is registered exactly as long as its stream is open, so that a killed one is gone at once.

use crate::error::{CommandError, Context, Result};
use crate::output::paint_err;
use crate::plane::Plane;
use crate::sandbox::state::Mesh;
use futures_util::{Stream, StreamExt, stream};
use gossamer_api::process::grpc;
use gossamer_api::process::stop::Stop;
use gossamer_api::wire::mesh::registry_client::RegistryClient;
use gossamer_api::wire::mesh::registry_server::{self, RegistryServer};
use gossamer_api::wire::mesh::{ListWorkloads, RegisterWorkload, Registered, WorkloadInfo, Workloads};
use hyper_util::rt::TokioIo;
use std::future;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Serves it until `stop`.
pub fn serve(plane: Plane, socket: PathBuf, stop: Stop) -> Result<()> {
    let listener = UnixListener::bind(&socket).context(format!("the mesh's socket {}", socket.display()))?;
    let routes = Routes::new(RegistryServer::new(Service(plane)));
    stop.clone().spawn(grpc::serve_unix(routes, listener, stop));
    Ok(())
}

struct Service(Plane);

#[tonic::async_trait]
impl registry_server::Registry for Service {
    type RegisterStream = Pin<Box<dyn Stream<Item = Result<Registered, Status>> + Send>>;

    async fn register(&self, request: Request<RegisterWorkload>) -> Result<Response<Self::RegisterStream>, Status> {
        let registered = self.0.register(request.into_inner());
        let (registered, lease) = registered.map_err(|error| Status::failed_precondition(error.message))?;
        let once = stream::once(future::ready(Ok(registered)));
        // The lease goes with the stream.
        let hold = stream::once(async move {
            let _lease = lease;
            future::pending().await
        });
        Ok(Response::new(once.chain(hold).boxed()))
    }

    async fn list(&self, _: Request<ListWorkloads>) -> Result<Response<Workloads>, Status> {
        Ok(Response::new(Workloads { workloads: self.0.workloads() }))
    }
}

/// The registry of a mesh on this machine, from another process.
pub struct Client(RegistryClient<Channel>);

/// Registered for as long as this lives.
pub struct Lease(JoinHandle<()>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds the stream open. When the control plane ends it, people are told: what is known keeps working.
async fn hold(mut stream: tonic::Streaming<Registered>, replica: String) {
    while let Ok(Some(_)) = stream.message().await {}
    let warning = paint_err("warning:", "1;33");
    eprintln!("{warning} the mesh has ended; {replica} goes on with what it knows, and nobody new finds it");
}

impl Client {
    /// Connects to the mesh's socket.
    pub async fn connect(mesh: &Mesh) -> Result<Client> {
        let channel = unix_channel(mesh.socket.clone()).await.context(format!("mesh {:?}", mesh.name))?;
        Ok(Client(RegistryClient::new(channel)))
    }

    /// Registers a workload.
    pub async fn register(&mut self, workload: RegisterWorkload) -> Result<(Registered, Lease)> {
        let refused = |status: Status| CommandError::failed(status.message());
        let mut stream = self.0.register(workload).await.map_err(refused)?.into_inner();
        let first = stream.message().await.map_err(refused)?;
        let registered = first.ok_or_else(|| CommandError::failed("the mesh is ending"))?;
        let held = tokio::spawn(hold(stream, registered.replica.clone()));
        Ok((registered, Lease(held)))
    }

    /// Everything registered, by name.
    pub async fn list(&mut self) -> Result<Vec<WorkloadInfo>> {
        let answer = self.0.list(ListWorkloads {}).await.map_err(|s| CommandError::failed(s.message()))?;
        Ok(answer.into_inner().workloads)
    }
}

/// A gRPC channel over a Unix socket.
pub(crate) async fn unix_channel(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connect = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is not used.
    Endpoint::from_static("http://mesh").connect_with_connector(connect).await
}
