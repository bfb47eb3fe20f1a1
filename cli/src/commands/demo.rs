//! `meshctl demo`.

use crate::demo::app;
use crate::error::Result;
use crate::sandbox::cell::{Cell, Files};
use crate::sandbox::{dns, network};
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Run a small application with the mesh around it, and watch its golden metrics
#[derive(clap::Args, Debug)]
pub struct Args {
    /// End after this time (default: with Ctrl-C)
    #[arg(long, value_parser = app::duration)]
    duration: Option<Duration>,
    /// Requests per second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// The same programs without proxies, to compare
    #[arg(long, hide = true)]
    unmeshed: bool,
}

/// Runs it.
pub async fn run(args: Args) -> Result<ExitCode> {
    network::make_bridge()?;
    let ip = Ipv4Addr::new(10, 77, 0, 10);
    let resolve: dns::Resolve =
        Arc::new(move |n| (n == "catalog.demo.svc.cluster.local").then(|| vec![IpAddr::V4(ip)]));
    tokio::spawn(dns::serve(dns::bind(network::NODE).await?, resolve));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dns::resolv_conf(network::NODE, "demo", "cluster.local")).unwrap();
    let a = Cell::new("catalog-1", ip, Files { resolv_conf: Some(file.path().into()) }).await?;
    let b = Cell::new("x-1", Ipv4Addr::new(10, 77, 0, 11), Files { resolv_conf: Some(file.path().into()) }).await?;
    let mut c = tokio::process::Command::new("/proc/self/exe");
    c.args(["demo-app", "catalog"]);
    let _s = a.spawn(c).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut c = tokio::process::Command::new("sh");
    c.args(["-c", "ip a; ip r; ip -6 r; cat /etc/resolv.conf; getent hosts catalog; getent ahosts catalog.demo; curl -s http://catalog:8080/; ps ax | head; id; ping -c1 -W1 fd77:676f:7373::0a4d:000a"]);
    let mut k = b.spawn(c).await?;
    println!("{:?}", k.wait().await);
    tokio::time::sleep(args.duration.unwrap_or_default()).await;
    println!("{} {}", args.rate, args.unmeshed);
    Ok(ExitCode::from(7))
}
