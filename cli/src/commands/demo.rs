//! `meshctl demo`.

use crate::demo::{app, services};
use crate::error::{CommandError, Context, Result, causes};
use crate::node::Node;
use crate::output::{Format, paint, paint_err};
use crate::plane::{Directory, Lease, Plane};
use crate::replica::{Replica, Words, tap_socket, terminate};
use crate::sandbox::dns::Resolve;
use crate::sandbox::state::State;
use crate::scrape::{self, Golden};
use crate::view::{self, Columns, Row};
use futures_util::future::try_join_all;
use gossamer_api::process::stop::Stop;
use gossamer_api::wire::mesh::Registered;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Run a small application with the mesh around it, and watch its golden metrics
///
/// Seven services of thirteen replicas, each in a network namespace of its own with a proxy of its own: HTTP/1, gRPC, a
/// TCP protocol whose server speaks first, and TLS of its own. One replica of `catalog` is slow, one of `orders`
/// fails now and then: watch how little the others notice. Needs no root and leaves nothing behind.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl demo
  meshctl demo --duration 30s -o json | jq .total
  meshctl demo --unmeshed          the same programs without proxies, to compare")]
pub struct Args {
    /// End after this time (default: with Ctrl-C)
    #[arg(long, value_parser = app::duration)]
    duration: Option<Duration>,
    /// Requests per second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How to print the summary
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The same programs without proxies, to compare
    #[arg(long)]
    unmeshed: bool,
}

fn columns(format: Format) -> Columns {
    if format == Format::Wide { Columns::Bytes } else { Columns::Golden }
}

/// How long the proxies may finish what is in flight.
const DRAIN: Duration = Duration::from_secs(3);
/// Between two looks at the proxies.
const TICK: Duration = Duration::from_secs(1);
/// The live table shows the last seconds, not everything since the start.
const WINDOW: usize = 10;

/// Runs it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let started = Instant::now();
    let stop = Stop::new();
    let mut demo = tokio::select! {
        demo = Demo::start(&args, &stop) => demo?,
        () = signals.next() => return Ok(ExitCode::from(130)),
    };
    progress(&format!("ready after {:.1} s", started.elapsed().as_secs_f64()));
    let whole = demo.watch(&args, &mut signals).await?;
    let code = demo.summary(&args, &whole);
    tokio::select! {
        () = demo.end() => {}
        () = signals.next() => {}
    }
    stop.stop();
    Ok(code)
}

struct Demo {
    // In the order in which they end.
    apps: Vec<(String, Child)>,
    replicas: Vec<Replica>,
    _leases: Vec<Lease>,
    node: Node,
    meshed: bool,
}

type Scraped = (Instant, Vec<Option<Golden>>);

impl Demo {
    async fn start(args: &Args, stop: &Stop) -> Result<Demo> {
        let state = State::take_any("demo")?;
        std::fs::create_dir_all(state.file("logs")).context("the folder for logs")?;
        progress("making a private network");
        let (node, registry) = if args.unmeshed {
            let directory = Directory::default();
            let names = directory.clone();
            let resolve: Resolve = Arc::new(move |name| names.resolve(name));
            let mut node = Node::start(state).await?;
            node.answer(resolve);
            (node, Registry::Directory(directory))
        } else {
            progress("starting the control plane");
            let plane = Plane::prepare(None, stop.clone())?;
            let mut node = Node::start(state).await?;
            plane.serve(&node).await?;
            node.answer(plane.resolver());
            (node, Registry::Plane(plane))
        };
        let services = services::all(args.rate, args.unmeshed)?;
        let (resolv, logs) = (node.resolv_conf(services::NAMESPACE)?, node.state.file("logs"));

        let (mut wanted, mut leases) = (Vec::new(), Vec::new());
        for service in &services {
            for arguments in &service.replicas {
                let (registered, lease) = registry.register(service)?;
                leases.extend(lease);
                wanted.push((service, arguments, registered));
            }
        }
        let what = if args.unmeshed { "workloads" } else { "workloads, each with its proxy" };
        progress(&format!("starting {} {what}", wanted.len()));
        let start = wanted.into_iter().map(|(service, arguments, registered)| {
            let (resolv, logs, folder) = (resolv.clone(), logs.clone(), node.state.file(""));
            async move {
                let mut replica = Replica::new(service.name, &registered, resolv).await?;
                let log = |kind: &str| Words::File(logs.join(format!("{}{kind}.log", registered.replica)));
                if !args.unmeshed {
                    replica.start_proxy(&registered, log("-proxy")).await?;
                    replica.serve_tap(tap_socket(&folder, services::NAMESPACE, &registered.replica))?;
                }
                let own = ["demo-app".into()].into_iter().chain(arguments.iter().map(Into::into));
                let own: Vec<OsString> = own.collect();
                let env = service.env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
                let app = replica.start("/proc/self/exe".as_ref(), &own, env, log("")).await?;
                if let Some(port) = service.port {
                    replica.listening(port).await?;
                }
                Ok::<_, CommandError>((replica, app))
            }
        });
        let all = try_join_all(start).await.map_err(|error| with_logs(error, &logs))?;
        let mut demo = Demo { apps: Vec::new(), replicas: Vec::new(), _leases: leases, node, meshed: !args.unmeshed };
        for (replica, app) in all {
            demo.apps.push((replica.name.clone(), app));
            demo.replicas.push(replica);
        }
        demo.node.publish()?;
        Ok(demo)
    }

    /// Shows figures until the time is over, a person ends it, or a process does. Gives the first and last scrape.
    async fn watch(&mut self, args: &Args, signals: &mut Signals) -> Result<(Scraped, Scraped)> {
        let live = std::io::stdout().is_terminal() && args.output != Format::Json;
        let end = args.duration.map(|d| Instant::now() + d);
        let mut ticks = tokio::time::interval(TICK);
        let mut history = vec![self.scrape().await];
        let first = history[0].clone();
        let mut drawn = 0;
        loop {
            let over = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = ticks.tick() => {}
                () = over => break,
                () = signals.next() => break,
            }
            self.all_alive()?;
            history.push(self.scrape().await);
            if history.len() > WINDOW {
                history.remove(0);
            }
            if live && let (Some(then), Some(now)) = (history.first(), history.last()) {
                drawn = redraw(&self.live_text(then, now, args), drawn);
            }
        }
        if live {
            println!();
        }
        let last = self.scrape().await;
        Ok((first, last))
    }

    async fn scrape(&self) -> Scraped {
        let texts = scrape::all(self.replicas.iter().map(Replica::admin).collect()).await;
        let golden = texts.into_iter().zip(&self.replicas).map(|(text, replica)| {
            let direction = services::direction(&replica.service);
            let mut golden = Golden::default();
            golden.add(&text.ok()?, |s| s.label("direction") == direction);
            Some(golden)
        });
        (Instant::now(), golden.collect())
    }

    fn all_alive(&mut self) -> Result<()> {
        for (name, app) in &mut self.apps {
            if let Some(status) = app.try_wait().context("a workload")? {
                let error = CommandError::failed(format!("{name} has ended: {status}"));
                return Err(with_logs(error, &self.node.state.file("logs")));
            }
        }
        for replica in &mut self.replicas {
            let name = replica.name.clone();
            if let Some(proxy) = replica.proxy()
                && let Some(status) = proxy.try_wait().context("a proxy")?
            {
                let error = CommandError::failed(format!("the proxy of {name} has ended: {status}"));
                return Err(with_logs(error, &self.node.state.file("logs")));
            }
        }
        Ok(())
    }

    /// A row per service, in the order of their story.
    fn rows(&self, (then, before): &Scraped, (now, after): &Scraped) -> Vec<Row> {
        let window = now.duration_since(*then);
        let mut rows: Vec<Row> = Vec::new();
        for ((replica, before), after) in self.replicas.iter().zip(before).zip(after) {
            if rows.last().is_none_or(|row| row.name != replica.service) {
                let namespace = services::NAMESPACE.to_string();
                rows.push(Row { namespace, name: replica.service.clone(), window, ..Row::default() });
            }
            let Some(row) = rows.last_mut() else { continue };
            row.replicas += 1;
            if let Some(after) = after {
                row.meshed += usize::from(self.meshed);
                row.golden.merge(&after.since(&before.clone().unwrap_or_default()));
            }
        }
        rows
    }

    fn live_text(&self, then: &Scraped, now: &Scraped, args: &Args) -> String {
        let table = view::rows(&self.rows(then, now), columns(args.output), false);
        let mesh = &self.node.state.name;
        let mesh = if mesh == "demo" { String::new() } else { format!(" --mesh {mesh}") };
        let what = if self.meshed { "The last 10 s." } else { "The last 10 s, without the mesh." };
        // No line is longer than 80 columns: a wrapped one could not be drawn over.
        let next = format!("Elsewhere: meshctl stat{mesh}, top{mesh}, tap{mesh} web, edges{mesh}");
        format!("\n{table}\n{}\n{}\n", paint(format!("{what} Ctrl-C ends the demo."), "2"), paint(next, "2"))
    }

    fn summary(&self, args: &Args, (first, last): &(Scraped, Scraped)) -> ExitCode {
        let rows = self.rows(first, last);
        let total = rows.iter().find(|row| row.name == services::USERS);
        let worked = total.is_some_and(|row| row.golden.success > 0.0);
        if args.output == Format::Json {
            let services: BTreeMap<&str, _> = rows.iter().map(|row| (row.name.as_str(), row.json())).collect();
            let total = total.map(Row::json);
            let summary = serde_json::json!({ "meshed": self.meshed, "services": services, "total": total });
            println!("{summary:#}");
        } else {
            print!("\n{}", view::rows(&rows, columns(args.output), false));
            if let Some(row) = total {
                let (all, failed) = (row.golden.responses(), row.golden.failure);
                let seconds = row.window.as_secs_f64();
                println!("\n{all:.0} requests of users in {seconds:.0} s, {failed:.0} failed.");
            }
        }
        ExitCode::from(u8::from(!worked))
    }

    /// Users first, then the services, then the proxies once they have drained.
    async fn end(&mut self) {
        for (_, app) in &self.apps {
            terminate(app);
        }
        let drains = self.replicas.iter_mut().map(|replica| replica.stop_proxy(DRAIN));
        futures_util::future::join_all(drains).await;
    }
}

enum Registry {
    Plane(Plane),
    Directory(Directory),
}

impl Registry {
    fn register(&self, service: &services::Service) -> Result<(Registered, Option<Lease>)> {
        match self {
            Registry::Plane(plane) => plane.register(service.registration()).map(|(r, lease)| (r, Some(lease))),
            Registry::Directory(directory) => Ok((directory.register(service.name, services::NAMESPACE)?, None)),
        }
    }
}

/// The wish to end, from a person or a supervisor.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    first: Option<Instant>,
}

impl Signals {
    fn new() -> Result<Signals> {
        let of = |kind| signal(kind).context("signal handler");
        Ok(Signals { interrupt: of(SignalKind::interrupt())?, terminate: of(SignalKind::terminate())?, first: None })
    }

    /// The next one. One that comes with the first is its echo: a terminal sends to all processes, and so may its
    /// supervisor.
    async fn next(&mut self) {
        const ECHO: Duration = Duration::from_millis(500);
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
            if self.first.is_none_or(|first| first.elapsed() > ECHO) {
                self.first = Some(Instant::now());
                return;
            }
        }
    }
}

fn progress(text: &str) {
    eprintln!("{} {text}", paint_err("demo:", "1;32"));
}

/// Draws over what was drawn before; gives the number of lines.
fn redraw(text: &str, before: usize) -> usize {
    let up = if before > 0 { format!("\x1b[{before}A\x1b[J") } else { String::new() };
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{up}{text}");
    let _ = out.flush();
    text.lines().count()
}

/// Adds the last words of processes that have said any.
fn with_logs(mut error: CommandError, logs: &std::path::Path) -> CommandError {
    let files = std::fs::read_dir(logs).map(|entries| entries.flatten().collect::<Vec<_>>());
    for entry in files.unwrap_or_else(|e| {
        error.message.push_str(&format!(" ({})", causes(&e)));
        Vec::new()
    }) {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let tail: Vec<&str> = text.lines().filter(|l| l.contains("rror") || l.contains("WARN")).collect();
        for line in tail.iter().rev().take(2).rev() {
            error = error.hint(format!("{}: {line}", entry.file_name().to_string_lossy()));
        }
    }
    error.hints.truncate(8);
    error
}
