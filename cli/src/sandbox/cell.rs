//! One replica's part of the private network: a network and a mount namespace, held open by a thread that starts the
//! replica's processes in them.

use super::{enter, network};
use crate::error::{CommandError, Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A replica's namespaces. They vanish when all clones are dropped and its processes have ended.
#[derive(Clone)]
pub struct Cell {
    jobs: mpsc::Sender<Job>,
    /// Where the replica is reached.
    pub address: Ipv4Addr,
}

/// What a replica's processes see as their own files.
#[derive(Clone, Default)]
pub struct Files {
    /// In place of `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
}

impl Cell {
    /// Makes the namespaces and plugs them into the bridge of the calling thread's namespace. `cable` is the name of
    /// the bridge's end, at most 15 bytes, unique in the mesh.
    pub async fn new(cable: &str, address: Ipv4Addr, files: Files) -> Result<Cell> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (ready, made) = oneshot::channel();
        let hold = move || {
            let namespace = make(files);
            let failed = namespace.is_err();
            if ready.send(namespace).is_err() || failed {
                return;
            }
            while let Ok(job) = todo.recv() {
                job();
            }
        };
        std::thread::Builder::new().name(format!("cell {cable}")).spawn(hold).context("a thread for a replica")?;
        let namespace = made.await.map_err(|_| lost())??;
        network::plug(cable, namespace.as_fd())?;
        let cell = Cell { jobs, address };
        cell.run(move || network::configure(address)).await??;
        Ok(cell)
    }

    /// Runs something short on the thread that is inside.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = move || drop(done.send(job()));
        self.jobs.send(Box::new(job)).map_err(|_| lost())?;
        result.await.map_err(|_| lost())
    }

    /// Starts a process inside. It is killed when its `Child` is dropped.
    pub async fn spawn(&self, mut command: Command) -> Result<Child> {
        let runtime = Handle::current();
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let start = move || {
            let _entered = runtime.enter();
            command.kill_on_drop(true).spawn()
        };
        self.run(start).await?.map_err(|error| {
            let failed = CommandError::failed(format!("{name} can't be started: {error}"));
            match error.kind() {
                std::io::ErrorKind::NotFound => failed.hint("is it installed, and on the PATH?"),
                _ => failed,
            }
        })
    }
}

fn lost() -> CommandError {
    CommandError::failed("a replica's thread has ended")
}

fn make(files: Files) -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("a replica's namespaces")?;
    enter::keep_mounts_private()?;
    if let Some(file) = &files.resolv_conf {
        // The file may be a link into a folder of systemd's; what it leads to is covered.
        let target = std::fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| "/etc/resolv.conf".into());
        mount(Some(file), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("covering /etc/resolv.conf")?;
    }
    let namespace = File::open("/proc/thread-self/ns/net").context("a replica's network namespace");
    // Programs that look themselves up by number need the /proc of their PID namespace. Where a container hides parts
    // of /proc the kernel refuses; the one of outside is then better than none.
    let _ = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>);
    namespace
}
