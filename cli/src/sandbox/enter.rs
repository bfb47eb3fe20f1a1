//! Moves this process into a private network, or into an existing one.
//!
//! Three processes: the *outer* one that the user started makes the namespaces and waits; *init* is number one of the
//! new PID namespace and buries orphans; the *inner* one does the work. Each dies with its parent (`PDEATHSIG`), and
//! the kernel ends a PID namespace with its init, so that SIGKILL to any of them leaves nothing behind.
//! All but one step here happens before the process has a second thread.

use super::{outside, state};
use crate::error::{CommandError, Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getgid, getuid};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Which of the three processes this is; set by the one before it.
const STAGE: &str = "MESHCTL_STAGE";
/// The parent's id as `/proc` shows it, to notice that it died before `PDEATHSIG` was set.
const PARENT: &str = "MESHCTL_PARENT";

/// `UID:GID` of who started the mesh, where a user namespace hides it.
pub const USER: &str = "MESHCTL_USER";

/// What the stages tell each other by, which programs that are started inside must not inherit.
pub const PRIVATE_VARIABLES: &[&str] = &[STAGE, PARENT, USER, state::DIRECTORY, outside::VARIABLE];

/// What to do now.
pub enum Entered {
    /// This is the inner process: go on.
    Inside,
    /// This was the outer process or init, and the inner one has ended.
    Ended(ExitCode),
}

/// What the outer process does while the inner one works.
pub type Beside = Box<dyn FnOnce() + Send>;

/// Which private network.
pub enum Network {
    /// A new one.
    New,
    /// A new one with a way out.
    Open,
    /// That of this process.
    Of(u32),
    /// That of this process, whose control plane has ended; perhaps with a new way out.
    Left(u32, bool),
}

/// True in the process that the user started.
pub fn is_outer() -> bool {
    std::env::var_os(STAGE).is_none()
}

/// Goes into a private network, with everything that will be started. When an existing one is joined, the outer process
/// does `beside` in there, on a thread of its own.
pub fn enter(network: Network, beside: Option<Beside>) -> Result<Entered> {
    let stage = std::env::var(STAGE).unwrap_or_default();
    match stage.as_str() {
        "inner" => {
            die_with_parent()?;
            Ok(Entered::Inside)
        }
        "init" => {
            die_with_parent()?;
            Ok(Entered::Ended(start_and_wait("inner", Vec::new(), None)?))
        }
        _ => {
            // Inside, this user looks like root.
            let (state, user) = (state::directory()?, format!("{}:{}", getuid(), getgid()));
            let before = fs::read_link("/proc/self/ns/user").ok();
            let mut way_out = None;
            match network {
                Network::New => unshare_all()?,
                Network::Open => {
                    way_out = Some(outside::start()?);
                    unshare_all()?;
                }
                Network::Of(pid) => {
                    join(pid)?;
                    start_beside(beside)?;
                    unshare_pids()?;
                }
                Network::Left(pid, open) => {
                    way_out = if open { Some(outside::start()?) } else { None };
                    join(pid)?;
                    unshare_pids()?;
                }
            }
            keep_mounts_private()?;
            let hidden = fs::read_link("/proc/self/ns/user").ok() != before;
            let mut tell = vec![(state::DIRECTORY, state.into_os_string())];
            tell.extend(hidden.then(|| (USER, user.into())));
            tell.extend(way_out.is_some().then(|| (outside::VARIABLE, "stdin".into())));
            Ok(Entered::Ended(start_and_wait("init", tell, way_out)?))
        }
    }
}

/// Goes into the user and network namespaces of a process and stays this process.
pub fn join(pid: u32) -> Result<()> {
    let gone = |error: std::io::Error| {
        CommandError::failed(format!("the mesh's process {pid} can't be reached: {error}"))
            .hint("it belongs to another user, or has just ended")
    };
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).map_err(gone);
    let same = |kind: &str| {
        Some(
            fs::read_link(format!("/proc/self/ns/{kind}")).ok()?
                == fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?,
        )
    };
    // Both are opened first: after the first step the second might not be allowed from outside.
    let (user, net) = (open("user")?, open("net")?);
    if same("user") != Some(true) {
        setns(user, CloneFlags::CLONE_NEWUSER).map_err(|e| gone(e.into()))?;
    }
    setns(net, CloneFlags::CLONE_NEWNET).map_err(|e| gone(e.into()))
}

/// No mount made in here is seen outside.
pub fn keep_mounts_private() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("private mounts")
}

fn unshare_pids() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).context("new PID namespace")
}

fn unshare_all() -> Result<()> {
    let rest = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let (uid, gid) = (getuid(), getgid());
    match unshare(rest) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(forbidden(error)),
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(forbidden)?;
    // Without this the kernel refuses a group map from an ordinary user.
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    let mapped = map("setgroups", "deny".into())
        .and_then(|()| map("uid_map", format!("0 {uid} 1")))
        .and_then(|()| map("gid_map", format!("0 {gid} 1")));
    mapped.map_err(|e| forbidden(e.raw_os_error().map_or(Errno::EPERM, Errno::from_raw)))?;
    unshare(rest).map_err(forbidden)
}

/// Looks for the switch that is off.
fn forbidden(error: Errno) -> CommandError {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).map(|v| v.trim().to_string()).ok();
    let switches = [
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=10000"),
    ];
    let off = switches.iter().find(|(name, off, _)| read(name).as_deref() == Some(off));
    let fix = match off {
        Some((_, _, command)) => {
            format!("this machine forbids user namespaces; allow them with `{command}`, or use sudo")
        }
        None => "run it with sudo, or allow user namespaces (in a container: its seccomp profile)".to_string(),
    };
    // What the kernel says where the number of user namespaces is limited.
    let why = if error == Errno::ENOSPC { "no more user namespaces may be made" } else { error.desc() };
    CommandError::failed(format!("a private network is not allowed here: {why}"))
        .hint(fix)
        .hint("without one, start `gossamer-proxy` with MESH_FORWARD: explicit local ports instead of redirection")
}

fn die_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
    // /proc is still the one of outside, where every process has its number.
    let parent = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        let after_name = stat.rsplit_once(')')?.1.to_string();
        after_name.split_whitespace().nth(1).map(str::to_string)
    });
    if parent != std::env::var(PARENT).ok() {
        return Err(CommandError::failed("the process that started this one has ended"));
    }
    Ok(())
}

/// This process's id as outside sees it.
pub fn outer_pid() -> Result<u32> {
    let link = fs::read_link("/proc/self").context("/proc/self")?;
    link.to_string_lossy().parse().context("/proc/self")
}

/// `input`: what the stage and those after it have as standard input.
fn start_and_wait(stage: &str, tell: Vec<(&str, OsString)>, input: Option<OwnedFd>) -> Result<ExitCode> {
    let child = Command::new("/proc/self/exe")
        .arg0("meshctl")
        .stdin(input.map_or_else(Stdio::inherit, Stdio::from))
        .args(std::env::args_os().skip(1))
        .envs(tell)
        .env(STAGE, stage)
        .env(PARENT, outer_pid()?.to_string())
        .spawn()
        .context("starting the process inside the private network")?;
    let child = Pid::from_raw(child.id() as i32);
    wait(child).context("waiting for the process inside the private network")
}

/// Buries every child that ends; returns with the given one's exit code. Signals that a person or a supervisor sent to
/// this process alone are passed on, SIGINT as SIGTERM; those of the terminal reached the child as well. So inside,
/// SIGINT always means that everybody has got it.
fn wait(child: Pid) -> nix::Result<ExitCode> {
    const FROM_KERNEL: i32 = 0x80;
    let signals = waited_for();
    // Only after the child has started, which would inherit it.
    signals.thread_block()?;
    let incoming = SignalFd::new(&signals)?;
    loop {
        while let Some(code) = buried(child)? {
            if let Some(code) = code {
                return Ok(code);
            }
        }
        let Some(info) = incoming.read_signal()? else { continue };
        let signal = Signal::try_from(info.ssi_signo as i32)?;
        if signal != Signal::SIGCHLD && info.ssi_code != FROM_KERNEL {
            let signal = if signal == Signal::SIGINT { Signal::SIGTERM } else { signal };
            // It may have ended in this moment.
            let _ = kill(child, signal);
        }
    }
}

fn waited_for() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals
}

/// Starts a thread that ends with the process. It has the network of this moment; after a new PID namespace has been
/// made there can be no further threads. Signals are left to the main thread.
fn start_beside(beside: Option<Beside>) -> Result<()> {
    let Some(beside) = beside else { return Ok(()) };
    waited_for().thread_block().context("signals")?;
    let started = std::thread::Builder::new().spawn(beside).context("a thread");
    waited_for().thread_unblock().context("signals")?;
    started.map(drop)
}

/// None: nobody has ended. Some(None): an orphan. Some(code): the child.
fn buried(child: Pid) -> nix::Result<Option<Option<ExitCode>>> {
    let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::Exited(pid, code) => (pid, code),
        WaitStatus::Signaled(pid, signal, _) => (pid, 128 + signal as i32),
        WaitStatus::StillAlive => return Ok(None),
        _ => return Ok(Some(None)),
    };
    Ok(Some((pid == child).then(|| ExitCode::from(code as u8))))
}
