//! What the kernel knows about processes: run time from the scheduler, memory, and what else the machine is doing.

use std::fs;
use std::time::Duration;

/// Time that the scheduler gave to all threads of these processes, user and system together.
pub(crate) fn run_time(pids: &[u32]) -> Duration {
    let of_task = |path: std::path::PathBuf| -> u64 {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    let of_process = |pid: &u32| -> u64 {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
        tasks.flatten().map(|task| of_task(task.path())).sum()
    };
    Duration::from_nanos(pids.iter().map(of_process).sum())
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// All of it, with the pages of the program's file.
    pub rss: u64,
    /// What the process itself has made.
    pub anon: u64,
}

/// The memory of some processes together.
pub(crate) fn memory(pids: &[u32]) -> Memory {
    let mut sum = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_ascii_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
        };
        sum.rss += field("VmRSS:");
        sum.anon += field("RssAnon:");
    }
    sum
}

/// A process and what it has started.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// Time that all processors together have spent in processes, since boot.
pub(crate) fn machine_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = first.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, steal; in hundredths of a second.
    let busy: u64 = [0, 1, 2, 7].iter().filter_map(|i| fields.get(*i)).sum();
    Duration::from_millis(busy * 10)
}
