//! Asks many at once: with a bound, a patience for each, progress when it takes long, and a summary of who did not
//! answer and why. One that hangs costs the others nothing.

use crate::output::paint_err;
use futures_util::{StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::time::Instant;

/// Asked at once. A port-forward costs the API server and the kubelet a connection each.
pub const AT_ONCE: usize = 32;
/// For one answer, connecting included.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Before that, progress would only flicker.
const QUIET: Duration = Duration::from_secs(1);
/// Between two states of the progress line.
const REFRESH: Duration = Duration::from_millis(250);

/// Asks all; the answers keep the order. `what` is who is asked, for people: `proxies`.
pub async fn out<'a, T, R, F>(what: &str, all: &'a [T], ask: impl Fn(usize, &'a T) -> F) -> Vec<Result<R, String>>
where
    F: Future<Output = Result<R, String>>,
{
    within(PATIENCE, what, all, ask).await
}

/// Before so many connections are held at once: programs are started with room for 1,024 files, and mostly may have more.
pub fn allow_connections(number: usize) {
    let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let needed = number as u64 + BESIDE;
    if now < needed {
        // What does not fit is told by those that could not be opened.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed.min(most), most);
    }
}

/// Files beside those connections: those that are just being opened, and what any program has.
const BESIDE: u64 = 256;

async fn within<'a, T, R, F>(
    patience: Duration,
    what: &str,
    all: &'a [T],
    ask: impl Fn(usize, &'a T) -> F,
) -> Vec<Result<R, String>>
where
    F: Future<Output = Result<R, String>>,
{
    let mut progress = Progress { what, all: all.len(), started: Instant::now(), shown: false };
    let mut answers: Vec<Option<Result<R, String>>> = all.iter().map(|_| None).collect();
    let asked = all.iter().enumerate().map(|(index, one)| {
        let answer = ask(index, one);
        async move {
            let answer = tokio::time::timeout(patience, answer).await;
            (index, answer.unwrap_or_else(|_| Err(format!("no answer within {patience:?}"))))
        }
    });
    let mut answering = stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut refresh = tokio::time::interval_at(progress.started + QUIET, REFRESH);
    let mut done = 0;
    loop {
        tokio::select! {
            answer = answering.next() => match answer {
                Some((index, answer)) => {
                    answers[index] = Some(answer);
                    done += 1;
                }
                None => break,
            },
            _ = refresh.tick() => progress.show(done),
        }
    }
    progress.clear();
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err("was not asked".into()))).collect()
}

struct Progress<'a> {
    what: &'a str,
    all: usize,
    started: Instant,
    shown: bool,
}

impl Progress<'_> {
    /// A line that is overwritten; none where nobody sees it.
    fn show(&mut self, done: usize) {
        if std::io::stderr().is_terminal() {
            self.shown = true;
            let seconds = self.started.elapsed().as_secs();
            eprint!("\r\x1b[K{done} of {} {} have answered ({seconds} s)", self.all, self.what);
            // Nobody to tell if it fails.
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Who did not answer and why, as one line of warning per reason; `None` when all did.
pub fn summary<R>(
    what: &str,
    names: impl IntoIterator<Item = String>,
    answers: &[Result<R, String>],
) -> Option<String> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, answer) in names.into_iter().zip(answers) {
        if let Err(reason) = answer {
            reasons.entry(reason).or_default().push(name);
        }
    }
    if reasons.is_empty() {
        return None;
    }
    let failed: usize = reasons.values().map(Vec::len).sum();
    let mut text = format!("{failed} of {} {what} did not answer", answers.len());
    for (reason, names) in reasons {
        let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
        text.push_str(&format!("\n  {shown}{more}: {reason}"));
    }
    Some(text)
}

/// Prints the summary on standard error, if there is one.
pub fn warn<R>(what: &str, names: impl IntoIterator<Item = String>, answers: &[Result<R, String>]) {
    if let Some(text) = summary(what, names, answers) {
        eprintln!("{} {text}", paint_err("warning:", "1;33"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn three_hundred_pods_are_asked_with_a_bound_and_hanging_ones_are_left() {
        let pods: Vec<usize> = (0..300).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (now, most) = (&now, &most);
        let answers = within(Duration::from_millis(200), "proxies", &pods, |_, &pod| async move {
            let slot = Slot(now);
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            // Every hundredth hangs, and one refuses.
            if pod % 100 == 99 {
                std::future::pending::<()>().await;
            }
            drop(slot);
            if pod == 7 { Err("refused".to_string()) } else { Ok(pod * 2) }
        })
        .await;
        assert_eq!(answers[298], Ok(596));
        assert_eq!((answers.len(), most.load(Ordering::Relaxed)), (300, AT_ONCE));
        let text = summary("proxies", pods.iter().map(|n| format!("web-{n}")), &answers).unwrap();
        assert_eq!(
            text,
            "4 of 300 proxies did not answer\n  web-99, web-199, web-299: no answer within 200ms\n  web-7: refused"
        );
    }

    struct Slot<'a>(&'a AtomicUsize);

    impl Drop for Slot<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn nobody_to_ask_is_no_warning() {
        let answers = out("proxies", &[] as &[u8], |_, _| async { Ok(()) }).await;
        assert_eq!(summary("proxies", Vec::new(), &answers), None);
    }
}
