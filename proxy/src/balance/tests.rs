//! The balancer without a network: who is picked, who waits, and for how long.

use super::*;
use gossamer_api::policy::Backoff;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

fn balancer(rules: Rules, addresses: &[&str]) -> Balancer {
    let connector = Connector { mark: 0, timeout: Duration::from_secs(1), credentials: watch::channel(None).1 };
    let balancer = Balancer::new(Meta::named("test"), "web.demo:80".into(), rules, Rc::new(connector));
    balancer.set(addresses.iter().map(|addr| Arc::new(Info::new(addr.parse().unwrap()))));
    balancer
}

fn pick(balancer: &Balancer) -> Pick {
    balancer.pick(Instant::now(), &[]).unwrap()
}

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";

#[tokio::test(start_paused = true)]
async fn the_faster_endpoint_gets_the_requests() {
    let balancer = balancer(Rules::default(), &[A, B]);
    let mut slow = 0;
    for _ in 0..100 {
        let pick = pick(&balancer);
        let is_slow = pick.info.addr.to_string() == B;
        tokio::time::advance(Duration::from_millis(if is_slow { 100 } else { 5 })).await;
        pick.observe(200, None, Instant::now());
        slow += u32::from(is_slow);
    }
    assert!(slow <= 10, "{slow} of 100 went to the slow one");
}

const C: &str = "10.0.0.3:80";

/// One request after the other, each answered after `latency(addr)`: how many each endpoint got.
async fn one_by_one(
    balancer: &Balancer,
    count: u32,
    latency: impl Fn(&str) -> Duration,
) -> std::collections::HashMap<String, u32> {
    let mut got = std::collections::HashMap::new();
    for _ in 0..count {
        let pick = pick(balancer);
        let addr = pick.info.addr.to_string();
        tokio::time::advance(latency(&addr)).await;
        pick.observe(200, None, Instant::now());
        *got.entry(addr).or_default() += 1;
    }
    got
}

#[tokio::test(start_paused = true)]
async fn equally_fast_endpoints_share_requests_that_come_one_by_one() {
    let balancer = balancer(Rules::default(), &[A, B, C]);
    // A little jitter, as networks have.
    let got = one_by_one(&balancer, 3000, |_| Duration::from_micros(200 + fastrand::u64(..50))).await;
    assert!([A, B, C].iter().all(|addr| got.get(*addr).is_some_and(|count| *count >= 300)), "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_at_once_and_no_flood() {
    let balancer = balancer(Rules::default(), &[A, B]);
    one_by_one(&balancer, 100, |_| Duration::from_micros(300)).await;
    balancer.set([A, B, C].iter().map(|addr| Arc::new(Info::new(addr.parse().unwrap()))));
    let got = one_by_one(&balancer, 30, |_| Duration::from_micros(300)).await;
    assert!(got.get(C).is_some_and(|count| *count >= 1), "the new one is tried: {got:?}");
    // It hangs: what is in flight keeps the others' requests away from it.
    balancer.set([A, B].iter().map(|addr| Arc::new(Info::new(addr.parse().unwrap()))));
    balancer.set([A, B, C].iter().map(|addr| Arc::new(Info::new(addr.parse().unwrap()))));
    let mut hanging = Vec::new();
    for _ in 0..100 {
        let pick = pick(&balancer);
        if pick.info.addr.to_string() == C {
            hanging.push(pick);
        } else {
            tokio::time::advance(Duration::from_micros(300)).await;
            pick.observe(200, None, Instant::now());
        }
    }
    assert_eq!(hanging.len(), 1, "one request finds out");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_only_breaks_is_not_tried_first_again_and_again() {
    let balancer = balancer(Rules::default(), &[A, B]);
    let mut broken = 0;
    for _ in 0..100 {
        let pick = pick(&balancer);
        tokio::time::advance(Duration::from_micros(300)).await;
        if pick.info.addr.to_string() == B {
            broken += 1;
            pick.fail(Instant::now());
        } else {
            pick.observe(200, None, Instant::now());
        }
    }
    assert_eq!(broken, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_counts() {
    let balancer = balancer(Rules::default(), &[A, B]);
    let held: Vec<_> = (0..10).map(|_| pick(&balancer)).collect();
    let on_a = held.iter().filter(|pick| pick.info.addr.to_string() == A).count();
    assert_eq!(on_a, 5);
    drop(held);
    assert_eq!(pick(&balancer).in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_elsewhere_while_there_is_an_elsewhere() {
    let both = balancer(Rules::default(), &[A, B]);
    for _ in 0..20 {
        let other = both.pick(Instant::now(), &[A.parse().unwrap()]).unwrap();
        assert_eq!(other.info.addr.to_string(), B);
    }
    let one = balancer(Rules::default(), &[A]);
    assert!(one.pick(Instant::now(), &[A.parse().unwrap()]).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_rests_but_never_the_last() {
    let backoff =
        Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.0, respect_retry_after: false };
    let breaker = policy::Breaker { max_failures: 3, backoff, success_rate: None, min_ready: 1 };
    let balancer = balancer(Rules { breaker: Some(breaker), ..Rules::default() }, &[A, B]);
    let fail_all = |addr: &str| {
        for _ in 0..200 {
            let pick = pick(&balancer);
            if pick.info.addr.to_string() == addr { pick.fail(Instant::now()) } else { pick.succeed(Instant::now()) }
        }
    };
    fail_all(A);
    for _ in 0..20 {
        assert_eq!(pick(&balancer).info.addr.to_string(), B);
    }
    fail_all(B);
    assert!(balancer.pick(Instant::now(), &[]).is_some(), "somebody must serve");
    tokio::time::advance(Duration::from_secs(2)).await;
    let seen: std::collections::HashSet<_> = (0..50).map(|_| pick(&balancer).info.addr).collect();
    assert_eq!(seen.len(), 2, "both are tried again after their rest");
}

#[tokio::test(start_paused = true)]
async fn a_service_without_endpoints_fails_at_once() {
    let balancer = balancer(Rules::default(), &[]);
    let started = Instant::now();
    let Err(error) = balancer.ready(Wants::Stream, &[]).await else { panic!("there is nobody") };
    assert_eq!(error.to_string(), "web.demo:80 has no endpoints");
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_endpoints_that_come() {
    let balancer = balancer(Rules::default(), &[A]);
    balancer.endpoints.borrow()[0].refused(Instant::now());
    let mut waiting = pin!(balancer.ready(Wants::Stream, &[]));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    balancer.update(Discovered::Known(Arc::new(EndpointSet {
        endpoints: [(B.parse().unwrap(), Arc::new(Info::new(B.parse().unwrap())))].into(),
        exists: true,
    })));
    let started = Instant::now();
    let Ok(pick) = waiting.await else { panic!("an endpoint came") };
    assert_eq!((pick.info.addr.to_string().as_str(), started.elapsed()), (B, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn nobody_accepts_so_requests_fail_in_time_and_then_at_once() {
    let balancer = balancer(Rules::default(), &[A]);
    let refuse = |endpoint: &Endpoint| {
        for _ in 0..20 {
            endpoint.refused(Instant::now());
        }
    };
    refuse(&balancer.endpoints.borrow()[0]);
    let started = Instant::now();
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::NotReady(..))));
    assert_eq!(started.elapsed(), defaults::REFUSED_FAILFAST);
    let later = Instant::now();
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::NotReady(..))));
    assert_eq!(later.elapsed(), Duration::ZERO, "who comes later does not wait for what is known to be gone");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let rules = Rules { queue: Queue { capacity: 2, failfast: Duration::from_secs(3) }, ..Rules::default() };
    let balancer = balancer(rules, &[A]);
    balancer.endpoints.borrow()[0].refused(Instant::now());
    let mut first = pin!(balancer.ready(Wants::Stream, &[]));
    let mut second = pin!(balancer.ready(Wants::Stream, &[]));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::Overloaded(_))));
    assert!(first.await.is_ok(), "the endpoint's rest is shorter than the wait");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_how_long_to_wait_for_who_refuses_is_obeyed() {
    for seconds in [0, 1, 2, 5] {
        let queue = Queue { capacity: 2, failfast: Duration::from_secs(seconds) };
        let balancer = balancer(Rules { queue, ..Rules::default() }, &[A]);
        (0..20).for_each(|_| balancer.endpoints.borrow()[0].refused(Instant::now()));
        // Longer than any wait.
        balancer.endpoints.borrow()[0].refuse_until(Instant::now() + Duration::from_secs(60));
        let started = Instant::now();
        assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::NotReady(..))));
        assert_eq!(started.elapsed().as_secs(), seconds);
    }
}

#[test]
fn a_pool_keeps_neither_old_connections_nor_the_room_that_they_had() {
    let balancer = balancer(Rules::default(), &[A]);
    let pool = &balancer.endpoints.borrow()[0].pool;
    let give_back = |count| {
        let client = |_| gossamer_engine::h1::Client::new(tokio::io::duplex(1).0.into(), super::pool::limits());
        (0..count).map(client).for_each(|client| pool.give_back(client));
    };
    give_back(256);
    let given = Instant::now();
    pool.sweep(given);
    assert_eq!(pool.idle().0, 256);
    pool.sweep(given + gossamer_api::defaults::POOL_IDLE);
    assert_eq!(pool.idle(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_has_no_stream_left_gets_no_request_while_another_has() {
    let balancer = balancer(Rules::default(), &[A, B]);
    let _streams = balancer.endpoints.borrow()[0].pool.fill();
    for _ in 0..20 {
        assert_eq!(pick(&balancer).info.addr.to_string(), B);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_queue_for_streams_and_fail_in_time() {
    let queue = Queue { capacity: 2, failfast: Duration::from_secs(3) };
    let balancer = balancer(Rules { queue, ..Rules::default() }, &[A]);
    let served = pick(&balancer);
    let mut streams = balancer.endpoints.borrow()[0].pool.fill();
    assert_eq!(streams.iter().map(Vec::len).sum::<usize>(), 8 * 100);
    assert!(balancer.pick(Instant::now(), &[]).is_none());
    // Connections of one's own are another matter.
    assert!(balancer.pick_for(Wants::Connection, Instant::now(), &[]).is_some());
    let cx = &mut Context::from_waker(Waker::noop());
    let mut first = Box::pin(balancer.ready(Wants::Stream, &[]));
    let mut second = Box::pin(balancer.ready(Wants::Stream, &[]));
    assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::Overloaded(_))), "two wait already");

    // A request is over: the first in the queue has its turn, and not by the clock.
    streams[3].pop();
    drop(served);
    let started = Instant::now();
    let Poll::Ready(Ok(third)) = first.as_mut().poll(cx) else { panic!("there is room") };
    drop(first);
    let one_more = balancer.endpoints.borrow()[0].pool.fill();
    assert!(second.as_mut().poll(cx).is_pending());
    let Err(error) = second.await else { panic!("there is no room") };
    assert_eq!((error.reason(), started.elapsed()), ("overloaded", Duration::from_secs(3)));
    drop((third, one_more));
}

#[tokio::test(start_paused = true)]
async fn the_last_endpoint_is_missed_for_a_moment() {
    let nobody = || std::iter::empty::<Arc<Info>>();
    let balancer = balancer(Rules::default(), &[A]);
    balancer.set(nobody());
    let started = Instant::now();
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        balancer.set([Arc::new(Info::new(B.parse().unwrap()))].into_iter());
        balancer.waiting.changed.notify_waiters();
    };
    let (pick, ()) = tokio::join!(balancer.ready(Wants::Stream, &[]), back);
    assert_eq!((pick.unwrap().info.addr, started.elapsed()), (B.parse().unwrap(), Duration::from_millis(300)));
    balancer.set(nobody());
    let started = Instant::now();
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::NoEndpoints(_))));
    assert_eq!(started.elapsed(), defaults::EMPTIED_FAILFAST);
    // Whoever comes later hears it at once.
    assert!(matches!(balancer.ready(Wants::Stream, &[]).await, Err(Error::NoEndpoints(_))));
    assert_eq!(started.elapsed(), defaults::EMPTIED_FAILFAST);
}
