//! The registry on the mesh's Unix socket: who registers, and for how long; who is there. The socket's folder lets only
//! its owner in, which is all the authentication there is.
//!
//! **Invariant:** a workload is registered exactly as long as its stream is open, so that a killed one is gone at once. Who
//! outlives the control plane opens another one at the next.

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
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

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

/// Registered for as long as this lives, with every control plane that comes.
pub struct Lease {
    task: JoinHandle<()>,
    /// What a later control plane has said; its token is another one.
    pub again: watch::Receiver<Option<Registered>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Between two looks for a new control plane.
const LOOK: Duration = Duration::from_millis(100);

/// Holds the stream open. When the control plane ends, people are told; the next one is told what there is, as it was.
async fn hold(
    socket: PathBuf,
    mut workload: RegisterWorkload,
    first: (Registered, Streaming<Registered>),
    again: watch::Sender<Option<Registered>>,
) {
    let (registered, mut stream) = first;
    (workload.replica, workload.address) = (registered.replica.clone(), registered.address);
    let replica = registered.replica;
    loop {
        while let Ok(Some(_)) = stream.message().await {}
        let warning = paint_err("warning:", "1;33");
        eprintln!(
            "{warning} the control plane has ended; {replica} goes on with what it knows until there is a new one"
        );
        let mut refused = None;
        stream = loop {
            tokio::time::sleep(LOOK).await;
            let Ok(mut client) = Client::at(socket.clone()).await else { continue };
            match client.open(workload.clone()).await {
                Ok((registered, stream)) => {
                    again.send_replace(Some(registered));
                    break stream;
                }
                Err(error) if refused.as_ref() != Some(&error.message) => {
                    tracing::debug!("{replica} can't come back yet: {}", error.message);
                    refused = Some(error.message);
                }
                Err(_) => {}
            }
        };
        eprintln!("{} the new control plane knows {replica}", paint_err("mesh:", "1;32"));
    }
}

impl Client {
    /// Connects to the mesh's socket.
    pub async fn connect(mesh: &Mesh) -> Result<Client> {
        Client::at(mesh.socket.clone()).await.context(format!("mesh {:?}", mesh.name))
    }

    async fn at(socket: PathBuf) -> Result<Client, tonic::transport::Error> {
        Ok(Client(RegistryClient::new(unix_channel(socket).await?)))
    }

    /// Registers a workload, and again when there is a new control plane.
    pub async fn register(&mut self, mesh: &Mesh, workload: RegisterWorkload) -> Result<(Registered, Lease)> {
        let (registered, stream) = self.open(workload.clone()).await?;
        let (sender, again) = watch::channel(None);
        let task = tokio::spawn(hold(mesh.socket.clone(), workload, (registered.clone(), stream), sender));
        Ok((registered, Lease { task, again }))
    }

    async fn open(&mut self, workload: RegisterWorkload) -> Result<(Registered, Streaming<Registered>)> {
        let refused = |status: Status| CommandError::failed(status.message());
        let mut stream = self.0.register(workload).await.map_err(refused)?.into_inner();
        let first = stream.message().await.map_err(refused)?;
        Ok((first.ok_or_else(|| CommandError::failed("the mesh is ending"))?, stream))
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
