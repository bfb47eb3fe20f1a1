//! What all proxies count: asked at once, and for figures of a time asked again over the connections of the first time.
//!
//! A port-forward costs a cluster 10 ms of processor time, what is asked over it next to nothing. Not every connection is
//! kept, and none for long: those that are not there any more are opened anew.

use crate::fan;
use crate::place::{Place, Port, Workload};
use crate::scrape::{self, Pages};
use crate::stats::{Answer, Scrape};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Connections that wait to be asked again. Each holds a file descriptor, of which a process often has 1,024, and 120 KiB
/// of a WebSocket's buffers; the cluster holds as many.
const KEPT: usize = 320;
/// Whoever is between us and a pod may close what is idle for longer.
const KEPT_FOR: Duration = Duration::from_secs(15);

/// Everybody's samples, in the same order; one without a proxy has none. Who does not answer is told on standard error.
pub async fn once(place: &Place, workloads: &[Workload]) -> Vec<Scrape> {
    tell(workloads, ask(place, workloads, |_| true, &Kept::at_most(0)).await)
}

/// The same twice, this long after each other. Each proxy's time is its own: those asked last the first time are asked last
/// again. Who was silent the first time is not waited for again, only told.
pub async fn twice(place: &Place, workloads: &[Workload], window: Duration) -> (Vec<Answer>, Vec<Scrape>) {
    let started = Instant::now();
    let kept = Kept::during(window);
    fan::allow_connections(workloads.len().min(kept.most));
    let before = ask(place, workloads, |_| true, &kept).await;
    tokio::time::sleep_until(started + window).await;
    let silent = |index: usize| matches!(before[index], Some(Err(_)));
    let mut after = ask(place, workloads, |index| !silent(index), &kept).await;
    for (answer, before) in after.iter_mut().zip(&before).filter(|(_, before)| matches!(before, Some(Err(_)))) {
        answer.clone_from(before);
    }
    let after = tell(workloads, after);
    (before, after)
}

/// Those with a proxy that are `wanted`; the others' answer is `None`.
async fn ask(place: &Place, workloads: &[Workload], wanted: impl Fn(usize) -> bool, kept: &Kept) -> Vec<Answer> {
    let asked: Vec<(usize, &Workload)> =
        workloads.iter().enumerate().filter(|(index, workload)| workload.meshed && wanted(*index)).collect();
    let answers = fan::out("proxies", &asked, |_, &(index, workload)| async move {
        let text = match kept.take(index) {
            // It may have been closed meanwhile, and to ask again changes nothing.
            Some(mut pages) => pages.fetch(METRICS).await.ok(),
            None => None,
        };
        let text = match text {
            Some(text) => text,
            None => {
                let mut pages = Pages::open(place.dial(workload, Port::Admin).await?).await?;
                let text = pages.fetch(METRICS).await?;
                kept.put(index, pages);
                text
            }
        };
        Ok((Instant::now(), scrape::parse(&text)))
    });
    let mut all: Vec<Answer> = workloads.iter().map(|_| None).collect();
    for (answer, (index, _)) in answers.await.into_iter().zip(&asked) {
        all[*index] = Some(answer);
    }
    all
}

fn tell(workloads: &[Workload], answers: Vec<Answer>) -> Vec<Scrape> {
    let told = workloads.iter().zip(&answers).filter_map(|(w, answer)| Some((w.full_name(), answer.as_ref()?)));
    let (names, told): (Vec<String>, Vec<_>) =
        told.map(|(name, answer)| (name, answer.as_ref().map_err(String::clone))).unzip();
    fan::warn("proxies", names, &told);
    answers.into_iter().map(|answer| answer?.ok()).collect()
}

/// Connections by whom they go to.
struct Kept {
    most: usize,
    pages: Mutex<HashMap<usize, Pages>>,
}

impl Kept {
    fn at_most(most: usize) -> Kept {
        Kept { most, pages: Mutex::default() }
    }

    /// Until they are asked again.
    fn during(window: Duration) -> Kept {
        Kept::at_most(if window <= KEPT_FOR { KEPT } else { 0 })
    }

    fn take(&self, index: usize) -> Option<Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).remove(&index)
    }

    fn put(&self, index: usize, one: Pages) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() < self.most {
            pages.insert(index, one);
        }
    }
}

const METRICS: &str = "/metrics";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Reach;
    use crate::sandbox::state::Mesh;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A proxy that answers what it has been asked so often, and closes after `requests` of a connection; and how many
    /// connections it had.
    async fn proxy(requests: usize) -> (Workload, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        tokio::spawn(async move {
            let mut asked = 0;
            loop {
                let (mut io, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                for _ in 0..requests {
                    if io.read(&mut [0; 1024]).await.unwrap_or(0) == 0 {
                        break;
                    }
                    asked += 1;
                    let body = format!("asked_total {asked}\n");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    io.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        let reach = Reach::Here { admin, tap: String::new() };
        (Workload { meshed: true, reach, ..Workload::default() }, opened)
    }

    fn here() -> Place {
        Place::Here(Mesh { name: String::new(), pid: 0, socket: "".into() })
    }

    /// Two looks; how many connections they took.
    async fn connections(requests: usize) -> usize {
        let (workload, opened) = proxy(requests).await;
        let plain = Workload::default();
        let (before, after) = twice(&here(), &[plain, workload], Duration::ZERO).await;
        assert!(before[0].is_none() && after[0].is_none(), "who has no proxy is not asked");
        let (then, now) = (before[1].as_ref().unwrap().as_ref().unwrap(), after[1].as_ref().unwrap());
        assert_eq!((then.1[0].value, now.1[0].value), (1.0, 2.0));
        opened.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_second_look_takes_no_second_connection() {
        assert_eq!(connections(2).await, 1);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_opened_anew() {
        assert_eq!(connections(1).await, 2);
    }

    #[test]
    fn none_is_kept_for_long() {
        assert_eq!((Kept::during(KEPT_FOR).most, Kept::during(KEPT_FOR * 2).most), (KEPT, 0));
    }

    #[tokio::test]
    async fn more_than_is_kept_is_asked_all_the_same() {
        let kept = Kept::at_most(1);
        let (one, other) = (proxy(2).await, proxy(2).await);
        let workloads = [one.0, other.0];
        for _ in 0..2 {
            assert!(ask(&here(), &workloads, |_| true, &kept).await.iter().all(|answer| matches!(answer, Some(Ok(_)))));
        }
        assert_eq!(one.1.load(Ordering::Relaxed) + other.1.load(Ordering::Relaxed), 3);
    }
}
