//! Gives up everything that setting the redirection needed: the user, the groups, every capability and the way back.
//!
//! In a pod the proxy starts as root with four capabilities, sets its rules, and calls [`give_up`] before it has a
//! second thread or has read a byte from the network.
//!
//! **Invariant:** fails closed. What the kernel says afterwards is read and compared; a process that kept anything ends.

use caps::CapSet;
use nix::unistd::{Gid, Uid, getegid, geteuid};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Why a privilege is still there.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A system call was refused.
    #[error("privileges could not be given up: {step}: {reason}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The system's words.
        reason: String,
    },
    /// Every call succeeded, and yet.
    #[error("privileges could not be given up: /proc/self/status still says {0}")]
    Kept(String),
}

/// Becomes `uid`, with the group of the same number, no capability and no way to get one.
///
/// `token` is the file that proves the workload's identity: where a group alone may read it, that group stays.
pub fn give_up(uid: u32, token: &Path) -> Result<(), PrivilegeError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    let groups: Vec<Gid> = reader_of(token).into_iter().collect();
    // While it may: the bounding set needs CAP_SETPCAP, the groups CAP_SETGID, the user CAP_SETUID.
    for capability in caps::all() {
        // One that this kernel does not know can't be there.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            step("bounding set", caps::drop(None, CapSet::Bounding, capability))?;
        }
    }
    if geteuid() != user || getegid() != group {
        step("groups", nix::unistd::setgroups(&groups))?;
        step("group", nix::unistd::setresgid(group, group, group))?;
        step("user", nix::unistd::setresuid(user, user, user))?;
    }
    step("ambient capabilities", caps::clear(None, CapSet::Ambient))?;
    step("inheritable capabilities", caps::clear(None, CapSet::Inheritable))?;
    step("effective capabilities", caps::clear(None, CapSet::Effective))?;
    step("permitted capabilities", caps::clear(None, CapSet::Permitted))?;
    step("no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    // No core file holds the key, and nobody of the same user reads this process's memory.
    step("dumpable", nix::sys::prctl::set_dumpable(false))?;
    let status = std::fs::read_to_string("/proc/self/status");
    let status = status.map_err(|error| refused("reading /proc/self/status", error))?;
    match kept(&status, uid, &groups) {
        None => Ok(()),
        Some(line) => Err(PrivilegeError::Kept(line)),
    }
}

/// The group that may read a file which not everybody may. A pod's `fsGroup` makes tokens so.
fn reader_of(file: &Path) -> Option<Gid> {
    const GROUP_READS: u32 = 0o040;
    const ALL_READ: u32 = 0o004;
    let metadata = std::fs::metadata(file).ok()?;
    let only_group = metadata.mode() & GROUP_READS != 0 && metadata.mode() & ALL_READ == 0;
    (only_group && metadata.gid() != 0).then(|| Gid::from_raw(metadata.gid()))
}

/// The first line of `/proc/PID/status` that tells of a privilege.
fn kept(status: &str, uid: u32, groups: &[Gid]) -> Option<String> {
    let ids = [uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join("\t");
    let none = "0000000000000000".to_string();
    let groups = groups.iter().map(|group| group.to_string()).collect::<Vec<_>>().join(" ");
    let capabilities = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| (name, &none));
    let no_new = "1".to_string();
    let expected = [("Uid", &ids), ("Gid", &ids), ("Groups", &groups), ("NoNewPrivs", &no_new)];
    expected.into_iter().chain(capabilities).find_map(|(name, wanted)| {
        let line = status.lines().find(|line| line.split(':').next() == Some(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        (value != Some(wanted.as_str())).then(|| line.unwrap_or(name).to_string())
    })
}

fn step<T, E: std::fmt::Display>(step: &'static str, result: Result<T, E>) -> Result<(), PrivilegeError> {
    result.map(drop).map_err(|error| refused(step, error))
}

fn refused(step: &'static str, error: impl std::fmt::Display) -> PrivilegeError {
    PrivilegeError::Refused { step, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "Name:\tproxy\nUid:\t2102\t2102\t2102\t2102\nGid:\t2102\t2102\t2102\t2102\nGroups:\t \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

    #[test]
    fn what_was_kept_is_seen() {
        assert_eq!(kept(CLEAN, 2102, &[]), None);
        for (from, to, line) in [
            ("Uid:\t2102\t2102\t2102", "Uid:\t2102\t2102\t0", "Uid:\t2102\t2102\t0\t2102"),
            ("Groups:\t ", "Groups:\t0 ", "Groups:\t0 "),
            ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000001000", "CapBnd:\t0000000000001000"),
            ("CapAmb:\t0000000000000000\n", "", "CapAmb"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs:\t0"),
        ] {
            assert_eq!(kept(&CLEAN.replace(from, to), 2102, &[]).as_deref(), Some(line));
        }
        let group = CLEAN.replace("Groups:\t ", "Groups:\t7 ");
        assert_eq!(kept(&group, 2102, &[Gid::from_raw(7)]), None);
    }

    #[test]
    fn the_group_that_alone_reads_the_token_stays() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let set = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let own = Some(Gid::from_raw(std::fs::metadata(file.path()).unwrap().gid())).filter(|gid| gid.as_raw() != 0);
        for (mode, group) in [(0o644, None), (0o600, None), (0o640, own)] {
            set(mode);
            assert_eq!(reader_of(file.path()), group, "{mode:o}");
        }
        assert_eq!(reader_of(Path::new("/nowhere")), None);
    }
}
