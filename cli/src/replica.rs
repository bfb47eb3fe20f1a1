//! One replica of a workload: its cell, its proxy's process, its own process, in the order in which they start and end.

use crate::error::{CommandError, Context, Result};
use crate::sandbox::cell::{Cell, Files};
use crate::sandbox::enter::{PRIVATE_VARIABLES, USER};
use gossamer_api::defaults;
use gossamer_api::wire::mesh::Registered;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::NamedTempFile;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A proxy is ready when it has its certificate; a loaded machine needs seconds for a dozen.
const READY: Duration = Duration::from_secs(20);
/// Between looks at something that is starting.
const LOOK: Duration = Duration::from_millis(20);

/// A replica in the making, or running.
pub struct Replica {
    /// The service.
    pub service: String,
    /// This one of it.
    pub name: String,
    /// Where it is reached.
    pub address: Ipv4Addr,
    cell: Cell,
    proxy: Option<Child>,
    // Read by the proxy for every certificate that it asks for.
    token: Option<NamedTempFile>,
    tap: Option<TapSocket>,
}

/// Where the tap of a replica's proxy is reached: a socket in the mesh's folder, for its owner alone. (The proxy itself
/// serves taps to its own network namespace only.)
pub fn tap_socket(mesh: &Path, namespace: &str, replica: &str) -> PathBuf {
    mesh.join(format!("{namespace}.{replica}.tap"))
}

struct TapSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for TapSocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where a process's words go.
pub enum Words {
    /// Where this process's go.
    Terminal,
    /// Into a file.
    File(PathBuf),
}

impl Words {
    fn stdio(&self) -> Result<(Stdio, Stdio)> {
        match self {
            Words::Terminal => Ok((Stdio::inherit(), Stdio::inherit())),
            Words::File(path) => {
                let file = File::options().create(true).append(true).open(path).context(path.display())?;
                Ok((file.try_clone().context(path.display())?.into(), file.into()))
            }
        }
    }
}

impl Replica {
    /// Makes the replica's namespaces at the address that it was registered with.
    pub async fn new(service: &str, registered: &Registered, resolv_conf: PathBuf) -> Result<Replica> {
        let address: Ipv4Addr = registered.address.parse().context(format!("address {:?}", registered.address))?;
        // The name of an interface has at most 15 bytes; the address is unique in the mesh.
        let [_, _, high, low] = address.octets();
        let cable = format!("mesh-{high}-{low}");
        let cell = Cell::new(&cable, address, Files { resolv_conf: Some(resolv_conf) }).await?;
        let name = registered.replica.clone();
        Ok(Replica { service: service.into(), name, address, cell, proxy: None, token: None, tap: None })
    }

    /// Where its proxy (or, without one, itself) is asked for metrics.
    pub fn admin(&self) -> String {
        format!("{}:{}", self.address, defaults::ADMIN_PORT)
    }

    /// Starts the proxy and waits until it has its certificate.
    pub async fn start_proxy(&mut self, registered: &Registered, words: Words) -> Result<()> {
        let mut file = NamedTempFile::new_in(crate::sandbox::state::directory()?).context("the token's file")?;
        file.write_all(registered.token.as_bytes()).context("the token's file")?;
        let (out, err) = words.stdio()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("meshctl")
            .arg("proxy")
            .env_clear()
            .envs(&registered.proxy_env)
            .env("MESH_TOKEN_FILE", file.path())
            .env("MESH_REDIRECT", "true")
            .env("MESH_SOCKET_MARK", defaults::SOCKET_MARK.to_string())
            // The terminal's Ctrl-C is for the workload; the proxy ends after it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        self.token = Some(file);
        self.proxy = Some(self.cell.spawn(command).await?);
        self.proxy_ready().await
    }

    /// Each control plane gives a token of its own.
    pub fn renew_token(&self, mut again: watch::Receiver<Option<Registered>>) {
        let Some(path) = self.token.as_ref().map(|file| file.path().to_path_buf()) else { return };
        tokio::spawn(async move {
            while again.changed().await.is_ok() {
                let Some(token) = again.borrow_and_update().as_ref().map(|registered| registered.token.clone()) else {
                    continue;
                };
                // In one step: the proxy may read it at any time.
                let new = path.with_extension("new");
                if let Err(error) = std::fs::write(&new, token).and_then(|()| std::fs::rename(&new, &path)) {
                    tracing::warn!(%error, "the proxy's new token");
                }
            }
        });
    }

    async fn proxy_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            if let Some(proxy) = &mut self.proxy
                && let Some(status) = proxy.try_wait().context("the proxy")?
            {
                return Err(CommandError::failed(format!("the proxy of {} has ended: {status}", self.name)));
            }
            if ready(&self.admin()).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                let secs = READY.as_secs();
                return Err(CommandError::failed(format!("the proxy of {} is not ready after {secs} s", self.name)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts the workload's process, as the user who started the mesh.
    pub async fn start(
        &self,
        program: &OsStr,
        arguments: &[OsString],
        env: Vec<(String, String)>,
        words: Words,
    ) -> Result<Child> {
        let mut command = match std::env::var_os(USER) {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("/proc/self/exe");
                command.arg0("meshctl").arg("as-user").arg(user).arg("--").arg(program);
                command
            }
        };
        command.args(arguments).envs(env);
        for name in PRIVATE_VARIABLES {
            command.env_remove(name);
        }
        if let Words::File(_) = words {
            let (out, err) = words.stdio()?;
            command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        }
        self.cell.spawn(command).await
    }

    /// Lets the mesh's owner tap the proxy.
    pub fn serve_tap(&mut self, path: PathBuf) -> Result<()> {
        let listener = UnixListener::bind(&path).context(path.display())?;
        let task = tokio::spawn(relay_taps(listener, self.cell.clone()));
        self.tap = Some(TapSocket { path, task });
        Ok(())
    }

    /// Waits until the workload listens. Asked from inside its own namespace, where nothing is redirected.
    pub async fn listening(&self, port: u16) -> Result<()> {
        let target = SocketAddr::from((self.address, port));
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            let connected = self.cell.run(move || TcpStream::connect_timeout(&target, Duration::from_secs(1))).await?;
            if connected.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(CommandError::failed(format!("{} does not listen on port {port}", self.name)))
    }

    /// Lets the proxy finish what is in flight, at most this long.
    pub async fn stop_proxy(&mut self, grace: Duration) -> Option<ExitStatus> {
        let mut proxy = self.proxy.take()?;
        terminate(&proxy);
        match tokio::time::timeout(grace, proxy.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                let _ = proxy.kill().await;
                None
            }
        }
    }

    /// The proxy's process, to notice its end.
    pub fn proxy(&mut self) -> Option<&mut Child> {
        self.proxy.as_mut()
    }
}

/// Asks a process to end.
pub fn terminate(child: &Child) {
    signal(child, nix::sys::signal::Signal::SIGTERM);
}

/// Sends a signal to a process that has not been waited for.
pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    if let Some(pid) = child.id() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
    }
}

/// Every connection is continued from inside the cell. As many at once as the proxy serves.
async fn relay_taps(listener: UnixListener, cell: Cell) {
    let places = Arc::new(Semaphore::new(defaults::TAP_SESSIONS));
    while let Ok((mut from, _)) = listener.accept().await {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let cell = cell.clone();
        tokio::spawn(async move {
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, defaults::TAP_PORT));
            let connect = move || {
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
                stream.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(stream)
            };
            if let Ok(Ok(stream)) = cell.run(connect).await
                && let Ok(mut to) = tokio::net::TcpStream::from_std(stream)
            {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
            drop(place);
        });
    }
}

async fn ready(admin: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(admin).await?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        Ok::<bool, std::io::Error>(head.starts_with(b"HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}
