//! A process that is small at rest: without huge pages from the first one on, and with memory given back when it falls
//! idle, both what the allocator keeps and the code that start and load needed.
//!
//! Pages of files are mapped sixteen at a time and stay, so that a proxy at rest would hold nearly all of its program and
//! of the libraries that it is linked with. What is dropped here is still in the page cache; what is needed again comes
//! back with a minor fault.
//!
//! **Invariant:** only ranges of files are dropped that cannot be written and of which no page ever was.

use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::Instant;

/// To be called first in `main`, before anything is loaded that could be unloaded again.
pub fn small_from_the_start() {
    without_huge_pages();
    let _ = UNWRITTEN.set(unwritten(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()));
}

/// What the loader has mapped, for as long as the process lives.
static UNWRITTEN: OnceLock<Vec<Range>> = OnceLock::new();

/// Starts this program again where it may not have huge pages. The allocator asks for them before `main`, and its
/// first 4 MiB would be resident from the start: three times what is needed at rest.
pub fn without_huge_pages() {
    // A kernel without the call has no huge pages either; one that does not keep the setting must not make a loop.
    if prctl::get_thp_disable() != Ok(false) || prctl::set_thp_disable(true).is_err() {
        return;
    }
    let mut args = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), args.next())
        && prctl::get_thp_disable() == Ok(true)
    {
        // Returns only if it failed: then it goes on, with more memory.
        let _ = std::process::Command::new(program).arg0(name).args(args).exec();
    }
}

/// Work since the last time that makes another worth its cost, as page faults do: to free memory takes none.
const WORK: Duration = Duration::from_millis(20);
/// How much the process may do while it is watched to be called idle.
const IDLE: Duration = Duration::from_millis(1);
/// What the start and the first requests needed shall not stay for long.
const YOUNG: Duration = Duration::from_secs(15);

/// After a burst connections and buffers go little by little, by work that is not worth it by itself: so once more after
/// so long, again after twice that, and so on.
const AGAIN: Duration = Duration::from_secs(2);
/// The last time. Source: [`crate::defaults::POOL_IDLE`], and pools that are halved every second.
const AGAIN_LAST: Duration = Duration::from_secs(8);

/// So many page faults may have brought half a MiB.
const FEW: i64 = 8;
/// What looking for idleness and other work of each second need comes back at once, some 20 page faults: it counts as if
/// it had stayed.
const SETTLED: Duration = Duration::from_secs(1);
/// What a few faults have brought goes no more often than that: whoever is asked something more often keeps it. To fetch
/// it again takes the next request a tenth of a millisecond.
const RARELY: Duration = Duration::from_secs(5);

/// How idleness is looked for.
struct Looks {
    /// How long the process is watched at a time.
    watched: Duration,
    /// How often it must be idle in turn.
    times: u32,
    /// Between looks when there is nothing to give back.
    pause: Duration,
    /// Page faults since the last time that make another worth its cost. Each may have brought 64 KiB of the program.
    worth: i64,
}

const FIRST: Looks =
    Looks { watched: Duration::from_millis(100), times: 1, pause: Duration::from_millis(100), worth: 32 };
/// The first requests come a few at a time: what they needed goes after each burst.
const EARLY: Looks = Looks { times: 3, worth: FEW, ..FIRST };
/// Who is asked something every second keeps what it needs.
const LATER: Looks = Looks { watched: Duration::from_millis(250), times: 4, pause: Duration::from_secs(1), worth: 64 };

/// What the process has done at a moment, or since one.
#[derive(Clone, Copy)]
struct Done {
    /// Page faults that needed no disk.
    faults: i64,
    /// Of the processor, by all threads.
    worked: Duration,
    /// Since the start.
    elapsed: Duration,
}

impl Done {
    /// Where the kernel does not say, the process is taken for busy.
    fn by_now(start: Instant) -> Done {
        let elapsed = start.elapsed();
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Done { faults: 0, worked: elapsed, elapsed } };
        let worked = usage.user_time() + usage.system_time();
        let worked = Duration::from_micros(worked.num_microseconds().try_into().unwrap_or_default());
        Done { faults: usage.minor_page_faults(), worked, elapsed }
    }

    fn since(self, then: Done) -> Done {
        Done {
            faults: self.faults - then.faults,
            worked: self.worked.saturating_sub(then.worked),
            elapsed: self.elapsed.saturating_sub(then.elapsed),
        }
    }
}

/// Why memory shall be given back once the process is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It has worked.
    Burst,
    /// It has worked a while ago.
    Again,
    /// Little was needed, long ago.
    Little,
}

/// `since`: what was done since the last time, if there was one. `again`: how long after that one another follows.
fn due(looks: &Looks, since: Option<Done>, again: Option<Duration>) -> Option<Due> {
    let Some(Done { faults, worked, elapsed }) = since else { return Some(Due::Burst) };
    if faults >= looks.worth || worked >= WORK {
        Some(Due::Burst)
    } else if again.is_some_and(|after| elapsed >= after) {
        Some(Due::Again)
    } else {
        (faults >= FEW && elapsed >= RARELY).then_some(Due::Little)
    }
}

/// How long after one that was due for this reason another follows.
fn next(due: Due, again: Option<Duration>) -> Option<Duration> {
    match due {
        Due::Burst => Some(AGAIN),
        Due::Again => again.map(|after| after * 2).filter(|after| *after <= AGAIN_LAST),
        Due::Little => again,
    }
}

/// Watches the process, which has [begun small](small_from_the_start), until the future is dropped. The allocator keeps
/// memory for each thread: to be run on the one that allocates most.
pub async fn when_idle() {
    let unwritten = UNWRITTEN.get().map_or(&[][..], Vec::as_slice);
    let start = Instant::now();
    let (mut last, mut again, mut idle) = (None, None, 0);
    loop {
        let looks = match last {
            None => FIRST,
            Some(_) if start.elapsed() < YOUNG => EARLY,
            Some(_) => LATER,
        };
        let before = Done::by_now(start);
        let Some(due) = due(&looks, last.map(|last| before.since(last)), again) else {
            tokio::time::sleep(looks.pause).await;
            continue;
        };
        tokio::time::sleep(looks.watched).await;
        idle = if Done::by_now(start).since(before).worked <= IDLE { idle + 1 } else { 0 };
        if idle >= looks.times {
            give_back(unwritten);
            (last, again, idle) = (Some(settled(start).await), next(due, again), 0);
        }
    }
}

/// What was done until all was given back, and what had to come back after that.
async fn settled(start: Instant) -> Done {
    let given = Done::by_now(start);
    tokio::time::sleep(SETTLED).await;
    let now = Done::by_now(start);
    // A request in between may bring more.
    if now.since(given).worked <= IDLE { now } else { given }
}

/// Part of the address space: start and length.
type Range = (NonZeroUsize, usize);

/// The parts of the program and of its libraries that cannot be written and were not: code and constants, but not what the
/// linker has relocated and then protected.
fn unwritten(smaps: &str) -> Vec<Range> {
    let mut found: Vec<Range> = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            // 55d0c0e00000-55d0c1000000 r-xp 00200000 08:01 1234  /gossamer-proxy
            let rights = words.next().unwrap_or_default();
            // What others can write (`s`) may have changed since; what is of no file would be lost.
            let kept = rights.contains('w') || !rights.ends_with('p');
            let of_file = words.nth(2).is_some_and(|inode| inode != "0");
            let parse = |text| usize::from_str_radix(text, 16).ok();
            current = (of_file && !kept).then(|| parse(start).and_then(NonZeroUsize::new).zip(parse(end))).flatten();
        } else if let ("Anonymous:", Some("0"), Some((start, end))) = (first, words.next(), current) {
            found.push((start, end.saturating_sub(start.get())));
        }
    }
    found
}

#[allow(unsafe_code)]
fn give_back(unwritten: &[Range]) {
    // SAFETY: frees what is free already; callable at any time from any thread of which it is the allocator.
    unsafe { libmimalloc_sys::mi_collect(true) };
    for (start, length) in unwritten {
        let start = NonNull::<c_void>::without_provenance(*start).cast();
        // SAFETY: a private mapping of a file that the loader made for as long as the process lives. It cannot be written,
        // and no page of it differs from the file's, so that what is dropped is read again with the same contents.
        let _ = unsafe { madvise(start, *length, MmapAdvise::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_given_back() {
        let map = |range: &str, rights: &str, inode: &str, anonymous: u32| {
            format!(
                "{range} {rights} 00000000 08:01 {inode} /p\nRss: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd ex\n"
            )
        };
        let smaps = [
            map("1000-3000", "r--p", "7", 0),
            map("3000-9000", "r-xp", "7", 0),
            map("9000-a000", "r--p", "7", 4),
            map("a000-b000", "rw-p", "7", 0),
            map("b000-c000", "rw-p", "0", 4),
            map("d000-e000", "r-xp", "8", 0),
            map("e000-f000", "r--s", "8", 0),
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\nAnonymous: 0 kB\n".into(),
        ];
        let range = |start, length| (NonZeroUsize::new(start).unwrap(), length);
        assert_eq!(unwritten(&smaps.concat()), [range(0x1000, 0x2000), range(0x3000, 0x6000), range(0xd000, 0x1000)]);
        assert_eq!(unwritten("x-y\n-\n\nAnonymous:\n"), []);
    }

    #[test]
    fn what_makes_giving_back_due() {
        let seconds = Duration::from_secs;
        let done = |faults, worked, elapsed| Some(Done { faults, worked, elapsed });
        let idle = Duration::ZERO;
        assert_eq!(due(&FIRST, None, None), Some(Due::Burst), "what the start needed");
        assert_eq!(due(&LATER, done(FEW - 1, idle, seconds(3600)), None), None, "next to nothing");
        // A burst, however lately; and what it held a little later.
        assert_eq!(due(&LATER, done(0, WORK, idle), None), Some(Due::Burst));
        assert_eq!(due(&LATER, done(LATER.worth, idle, idle), None), Some(Due::Burst));
        assert_eq!(due(&LATER, done(0, idle, seconds(1)), Some(AGAIN)), None);
        assert_eq!(due(&LATER, done(0, idle, seconds(2)), Some(AGAIN)), Some(Due::Again));
        // A request now and then; more of them keep what they need.
        assert_eq!(due(&LATER, done(FEW, idle, seconds(5)), None), Some(Due::Little));
        assert_eq!(due(&LATER, done(FEW, idle, seconds(4)), None), None);
        // At first even few are enough.
        assert_eq!(due(&EARLY, done(FEW, idle, idle), None), Some(Due::Burst));

        let after = |again| next(Due::Again, Some(seconds(again)));
        assert_eq!(next(Due::Burst, Some(AGAIN_LAST)), Some(seconds(2)));
        assert_eq!((after(2), after(4), after(8)), (Some(seconds(4)), Some(seconds(8)), None));
        assert_eq!(next(Due::Little, Some(AGAIN)), Some(AGAIN), "what is to come still comes");
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let own = unwritten(&std::fs::read_to_string("/proc/self/smaps").unwrap());
        assert!(own.iter().map(|(_, length)| length).sum::<usize>() > 100_000, "{own:?}");
        for _ in 0..3 {
            give_back(&own);
            assert_eq!(format!("{:?}", vec!["still"; 2]), r#"["still", "still"]"#);
        }
    }
}
