//! What the kernel says about this process (`process_*`), read on a scrape. What cannot be read is left out.

use super::Family;
use super::registry::Exposition;
use std::fs;

pub(super) fn collect(out: &mut Exposition) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if let Some((cpu, start)) = stat(&read("/proc/self/stat")) {
        out.value(Family::ProcessCpu, "", cpu);
        if let Some(boot) = boot_time(&read("/proc/stat")) {
            out.value(Family::ProcessStart, "", boot + start);
        }
    }
    if let Some(bytes) = resident(&read("/proc/self/status")) {
        out.value(Family::ProcessRss, "", bytes);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        out.value(Family::ProcessOpenFds, "", entries.count().saturating_sub(1));
    }
    if let Some(max) = max_fds(&read("/proc/self/limits")) {
        out.value(Family::ProcessMaxFds, "", max);
    }
}

/// Linux shows times in hundredths of a second to users, on every architecture that we build for (`USER_HZ`).
const TICKS: f64 = 100.0;

/// CPU seconds, and seconds from boot to start. The name in parentheses may contain anything.
fn stat(text: &str) -> Option<(f64, f64)> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(((field(14)? + field(15)?) as f64 / TICKS, field(22)? as f64 / TICKS))
}

fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident(text: &str) -> Option<u64> {
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

fn max_fds(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        let line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 1234 99 1";
        assert_eq!(stat(line), Some((2.0, 12.34)));
        assert_eq!(stat("42 (x) S 1"), None);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\n"), Some(1.7e9));
        assert_eq!(resident("Name: x\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(
            max_fds("Limit x\nMax open files            1024                 4096                 files\n"),
            Some(1024)
        );
        assert_eq!((resident(""), max_fds(""), boot_time("")), (None, None, None));
    }

    #[test]
    fn this_process_is_shown() {
        let mut out = Exposition::new();
        collect(&mut out);
        let text = out.finish();
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"] {
            assert!(text.contains(&format!("\nprocess_{name} ")), "{name} in {text}");
        }
    }
}
