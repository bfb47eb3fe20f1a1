//! Where the meshes on this machine are found: one folder each, owned by its user, locked while the mesh lives.
//!
//! A lock is released by the kernel when its holder dies, so a folder without one is left over and is reused. Workloads
//! leave a locked file each: while one of them lives, the mesh's network does, and a new control plane takes it over.

use crate::error::{CommandError, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Overrides where the folders are; also tells the inner process, which can't know the user's id any more.
pub const DIRECTORY: &str = "MESHCTL_STATE";
/// The mesh that `meshctl run` joins.
pub const DEFAULT: &str = "default";

/// The folder of all meshes of this user. Made if it is missing.
pub fn directory() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(DIRECTORY).filter(|p| !p.is_empty()) {
        return private(path.into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute() && p.is_dir());
    let uid = nix::unistd::getuid();
    let path = match runtime {
        Some(runtime) => runtime.join("gossamer"),
        None if uid.is_root() && Path::new("/run").is_dir() => "/run/gossamer".into(),
        None => std::env::temp_dir().join(format!("gossamer-{uid}")),
    };
    private(path)
}

/// A folder that only its owner enters. A folder of somebody else's under our name is refused.
fn private(path: PathBuf) -> Result<PathBuf> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.context(format!("the state folder {}", path.display()))?;
    let found = fs::symlink_metadata(&path).context(format!("the state folder {}", path.display()))?;
    let uid = nix::unistd::getuid().as_raw();
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        return Err(CommandError::failed(format!("{} must be a folder that only you can enter", path.display()))
            .hint(format!("remove it, or choose another with {DIRECTORY}")));
    }
    Ok(path)
}

/// A mesh's folder, ours for as long as this lives.
pub struct State {
    /// The mesh's name.
    pub name: String,
    path: PathBuf,
    // Held, not read.
    _lock: Flock<File>,
}

impl State {
    /// Takes the folder of the mesh `name`, or None when a living mesh has it.
    pub fn take(name: &str) -> Result<Option<State>> {
        check_name(name)?;
        let path = private(directory()?.join(name))?;
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path.join("lock"));
        let file = open.context("the mesh's lock")?;
        match lock(file) {
            Ok(lock) => {
                let inode = |found: std::io::Result<fs::Metadata>| found.map(|m| m.ino()).ok();
                if inode(lock.metadata()) != inode(fs::metadata(path.join("lock"))) {
                    // Its owner was just leaving and has removed it.
                    return State::take(name);
                }
                clear(&path);
                Ok(Some(State { name: name.into(), path, _lock: lock }))
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).context("the mesh's lock"),
        }
    }

    /// Takes the first free one of `name`, `name-2`, `name-3`…
    pub fn take_any(name: &str) -> Result<State> {
        for n in 1..100 {
            let name = if n == 1 { name.to_string() } else { format!("{name}-{n}") };
            if let Some(state) = State::take(&name)? {
                return Ok(state);
            }
        }
        Err(CommandError::failed(format!("99 meshes called {name} run already")))
    }

    /// Workloads of an earlier control plane that still run.
    pub fn survivors(&self) -> Vec<Survivor> {
        survivors(&self.path)
    }

    /// A file of the mesh.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Lets others find the mesh: written last, when the socket is there.
    pub fn publish(&self, pid: u32) -> Result<()> {
        fs::write(self.file("pid.new"), pid.to_string()).context("the mesh's pid file")?;
        fs::rename(self.file("pid.new"), self.file("pid")).context("the mesh's pid file")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Best effort; a later mesh of the same name cleans up otherwise.
        match survivors(&self.path).is_empty() {
            true => drop(fs::remove_dir_all(&self.path)),
            false => clear(&self.path),
        }
    }
}

/// The lock, unless it is taken for longer than the microseconds in which others look whether it is.
fn lock(mut file: File) -> std::result::Result<Flock<File>, (File, Errno)> {
    for _ in 0..3 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            other => return other,
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

/// Removes everything of an earlier mesh but the lock, and what workloads that still run depend on: the keys that signed
/// their certificates, and where they are tapped.
fn clear(path: &Path) {
    let survive = !survivors(path).is_empty();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let needed = name == "identity" || name == MEMBERS || path.extension().is_some_and(|end| end == "tap");
        if name != "lock" && !(survive && needed) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// The folder of the files that workloads leave.
const MEMBERS: &str = "members";

/// Says that a process keeps the mesh's network alive, for as long as this lives. A killed one is not believed any more.
pub struct Member {
    mesh: String,
    path: PathBuf,
    // Held, not read.
    lock: Option<Flock<File>>,
}

/// A process with workloads that has outlived the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// In whose namespaces the mesh's network is.
    pub pid: u32,
    /// Namespace, name and address of each replica.
    pub replicas: Vec<(String, String, Ipv4Addr)>,
}

impl Member {
    /// Of the process `pid`, which has these replicas: namespace, name, address.
    pub fn new(mesh: &Mesh, pid: u32, replicas: &[(&str, &str, &str)]) -> Result<Member> {
        let folder = mesh.socket.parent().map(|folder| folder.join(MEMBERS)).unwrap_or_default();
        let text = replicas.iter().map(|(namespace, name, address)| format!("{namespace} {name} {address}\n"));
        let write = || -> std::io::Result<(PathBuf, Flock<File>)> {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let (new, path) = (folder.join(format!("{pid}.new")), folder.join(pid.to_string()));
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(text.collect::<String>().as_bytes())?;
            let lock = lock(file).map_err(|(_, error)| std::io::Error::from(error))?;
            // Complete and locked before anybody looks.
            fs::rename(new, &path)?;
            Ok((path, lock))
        };
        let (path, lock) = write().context("the workload's file in the mesh's folder")?;
        Ok(Member { mesh: mesh.name.clone(), path, lock: Some(lock) })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        drop(self.lock.take());
        // The last one out, where no control plane is left to tidy up.
        if matches!(is_taken(&self.mesh), Ok(false)) {
            drop(State::take(&self.mesh));
        }
    }
}

/// A process of the mesh `name` that lives, with its control plane or without.
pub fn survivor(name: &str) -> Result<Option<u32>> {
    check_name(name)?;
    Ok(survivors(&directory()?.join(name)).first().map(|survivor| survivor.pid))
}

/// Workloads that live in the mesh with this folder, with a control plane or without.
pub fn survivors(path: &Path) -> Vec<Survivor> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path.join(MEMBERS)).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !is_locked(&path) {
            let _ = fs::remove_file(&path);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let replica = |line: &str| {
            let (mut words, owned) = (line.split(' '), str::to_string);
            Some((owned(words.next()?), owned(words.next()?), words.next()?.parse().ok()?))
        };
        found.push(Survivor { pid, replicas: text.lines().filter_map(replica).collect() });
    }
    found.sort_by_key(|survivor| survivor.pid);
    found
}

/// A mesh that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Its name.
    pub name: String,
    /// The process in whose namespaces it is.
    pub pid: u32,
    /// Where its registry is reached.
    pub socket: PathBuf,
}

/// All living meshes of this user, by name.
pub fn meshes() -> Result<Vec<Mesh>> {
    let directory = directory()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).context("the state folder")?.flatten() {
        let path = entry.path();
        if !is_locked(&path.join("lock")) {
            // A killed mesh left it. One that is just starting has not been published yet.
            if path.join("pid").exists()
                && let Ok(name) = entry.file_name().into_string()
            {
                drop(State::take(&name));
            }
            continue;
        }
        let pid = fs::read_to_string(path.join("pid")).ok().and_then(|text| text.trim().parse().ok());
        if let (Some(pid), Ok(name)) = (pid, entry.file_name().into_string()) {
            found.push(Mesh { name, pid, socket: path.join("registry.sock") });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The mesh that is meant: the named one, else `default`, else the only one.
pub fn find(name: Option<&str>) -> Result<Mesh> {
    let meshes = meshes()?;
    let named = |wanted: &str| meshes.iter().find(|m| m.name == wanted).cloned();
    let names = || meshes.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    if meshes.is_empty()
        && let Some(left) = orphaned(name)
    {
        return Err(CommandError::failed(format!(
            "the control plane of mesh {left:?} has ended, its workloads still run"
        ))
        .hint(format!("`meshctl control --mesh {left}` takes them over")));
    }
    if let Some(name) = name {
        return named(name).ok_or_else(|| {
            let error = CommandError::failed(format!("no mesh called {name:?} runs here"));
            if meshes.is_empty() {
                error.hint("start one with `meshctl demo`")
            } else {
                error.hint(format!("these do: {}", names()))
            }
        });
    }
    match &meshes[..] {
        [] => Err(CommandError::failed("no mesh runs here").hint("start one with `meshctl demo` or `meshctl run`")),
        [one] => Ok(one.clone()),
        _ => named(DEFAULT).ok_or_else(|| {
            CommandError::usage("several meshes run here").hint(format!("choose one with --mesh: {}", names()))
        }),
    }
}

/// True when a mesh of this user runs, even if only its workloads do.
pub fn any() -> bool {
    meshes().is_ok_and(|meshes| !meshes.is_empty()) || orphaned(None).is_some()
}

/// A mesh, or this one, of which only workloads are left.
fn orphaned(name: Option<&str>) -> Option<String> {
    let entries = fs::read_dir(directory().ok()?).ok()?.flatten();
    let names =
        entries.filter(|entry| !survivors(&entry.path()).is_empty()).filter_map(|e| e.file_name().into_string().ok());
    names.filter(|found| name.is_none_or(|name| name == found)).min()
}

/// True when a mesh of that name lives, or is starting or ending.
pub fn is_taken(name: &str) -> Result<bool> {
    Ok(is_locked(&directory()?.join(name).join("lock")))
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(fine) {
        return Err(CommandError::usage(format!("{name:?} is no name for a mesh: lower case, digits, hyphens")));
    }
    Ok(())
}
