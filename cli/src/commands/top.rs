//! `meshctl top`.

use crate::error::{Context, Result};
use crate::output::{Format, milliseconds, percent, table};
use crate::place::{Place, Scope, Workload};
use crate::resource;
use crate::selector::Labels;
use crate::tapping::{self, Filter, address, method_name, micros};
use futures_util::StreamExt;
use linkerd2_proxy_api::tap::tap_event::http::{Event, StreamId};
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection};
use linkerd2_proxy_api::tap::{TapEvent, eos};
use ratatui::crossterm::event::{self as terminal, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::widgets::{Block, Paragraph, Row, Table};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

/// Show the busiest paths, live
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl top                       all calls between services
  meshctl top web --to catalog
  meshctl top deploy/web -n shop
  meshctl top -l tier=front -n shop
  meshctl top --duration 10s -o json

Keys: q ends, s changes the order.")]
pub struct Args {
    /// Workloads whose proxies are tapped: deploy/web, pods, web (default: all, seen from their clients)
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    filter: Filter,
    /// Leave out who calls
    #[arg(long)]
    hide_sources: bool,
    /// End after this time (default: with q; 5s where there is no terminal)
    #[arg(long, value_parser = tapping::limit)]
    duration: Option<Duration>,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Where there is no terminal, somebody waits for the end.
const PLAIN_DURATION: Duration = Duration::from_secs(5);
/// Paths shown; the rest is too much for a screen, and paths may be endless.
const PATHS: usize = 1000;
/// Requests whose end has not been seen.
const PENDING: usize = 10_000;
/// Between two pictures.
const FRAME: Duration = Duration::from_millis(250);

/// Shows it.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let workloads = place.labelled(&args.scope, &resource::parse(&args.resources)?, &args.labels.selector()).await?;
    let mut events = tapping::open(&place, &args.scope, &workloads, &args.filter, false).await?;
    // Names for addresses: of everybody if one may list them, else of those at hand.
    let everybody = place.all(None).await;
    let everybody = everybody.as_deref().unwrap_or(&workloads);
    let mut board = Board::new(everybody, args.resources.is_empty() && !args.labels.is_given(), args.hide_sources);
    let live = args.output != Format::Json && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if live {
        let mut screen = Screen::open()?;
        let ended = screen.run(&mut events, &mut board, args.duration).await;
        screen.close();
        ended?;
        return Ok(ExitCode::SUCCESS);
    }
    let over = tokio::time::sleep(args.duration.unwrap_or(PLAIN_DURATION));
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            event = events.next() => match event {
                Some((_, event)) => board.add(&event),
                None => break,
            },
        }
    }
    if args.output == Format::Json {
        println!("{:#}", board.json());
    } else {
        print!("{}", table(&HEAD, &board.rows(), |column| column >= 4));
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 9] = ["SOURCE", "DESTINATION", "METHOD", "PATH", "COUNT", "BEST", "WORST", "LAST", "SUCCESS"];

/// Source, destination, method, path.
type Call = (String, String, String, String);

/// A stream's number is its proxy's own; the source's address and the direction make it unique.
type Key = (Option<SocketAddr>, i32, u32, u64);

#[derive(Default)]
struct Seen {
    count: u64,
    success: u64,
    best: u64,
    worst: u64,
    last: u64,
}

/// What has been seen since the start.
struct Board {
    names: HashMap<std::net::IpAddr, String>,
    outbound_only: bool,
    hide_sources: bool,
    /// What is in flight, and whether it has succeeded so far.
    pending: HashMap<Key, (Call, bool)>,
    calls: BTreeMap<Call, Seen>,
    by_worst: bool,
}

impl Board {
    fn new(workloads: &[Workload], outbound_only: bool, hide_sources: bool) -> Board {
        let name = |w: &Workload| Some((w.address.parse().ok()?, w.owner_text()));
        let names = workloads.iter().filter_map(name).collect();
        let (pending, calls) = Default::default();
        Board { names, outbound_only, hide_sources, pending, calls, by_worst: false }
    }

    fn add(&mut self, event: &TapEvent) {
        if self.outbound_only && event.proxy_direction() == ProxyDirection::Inbound {
            return;
        }
        let source = address(&event.source);
        let key = |id: &Option<StreamId>| {
            let id = id.as_ref()?;
            Some((source, event.proxy_direction, id.base, id.stream))
        };
        let Some(tap_event::Event::Http(http)) = &event.event else { return };
        match &http.event {
            Some(Event::RequestInit(request)) => {
                let path = request.path.split('?').next().unwrap_or_default();
                let path: String = path.chars().filter(|c| !c.is_control()).take(80).collect();
                let from = if self.hide_sources { String::new() } else { self.name(source) };
                let call = (from, self.name(address(&event.destination)), method_name(&request.method), path);
                if let Some(key) = key(&request.id).filter(|_| self.pending.len() < PENDING) {
                    self.pending.insert(key, (call, true));
                }
            }
            Some(Event::ResponseInit(response)) => {
                if let Some((call, success)) = key(&response.id).and_then(|key| self.pending.get_mut(&key)) {
                    *success = response.http_status < 500;
                    // Only now the endpoint is sure.
                    let destination = address(&event.destination).and_then(|a| self.names.get(&a.ip()));
                    if let Some(name) = destination {
                        call.1.clone_from(name);
                    }
                }
            }
            Some(Event::ResponseEnd(end)) => {
                let Some((call, success)) = key(&end.id).and_then(|key| self.pending.remove(&key)) else { return };
                let failed = match end.eos.as_ref().and_then(|eos| eos.end.as_ref()) {
                    Some(eos::End::GrpcStatusCode(code)) => *code != 0,
                    Some(eos::End::ResetErrorCode(_)) => true,
                    None => false,
                };
                self.count(call, micros(&end.since_request_init), success && !failed);
            }
            None => {}
        }
    }

    fn count(&mut self, call: Call, took: u64, success: bool) {
        if self.calls.len() >= PATHS && !self.calls.contains_key(&call) {
            return;
        }
        let seen = self.calls.entry(call).or_default();
        seen.best = if seen.count == 0 { took } else { seen.best.min(took) };
        seen.worst = seen.worst.max(took);
        seen.last = took;
        seen.count += 1;
        seen.success += u64::from(success);
    }

    fn name(&self, address: Option<SocketAddr>) -> String {
        let Some(address) = address else { return "?".into() };
        self.names.get(&address.ip()).cloned().unwrap_or_else(|| address.ip().to_string())
    }

    fn sorted(&self) -> Vec<(&Call, &Seen)> {
        let mut calls: Vec<_> = self.calls.iter().collect();
        calls.sort_by_key(|(_, seen)| std::cmp::Reverse(if self.by_worst { seen.worst } else { seen.count }));
        calls
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let ms = |us: u64| milliseconds(Some(us as f64 / 1000.0));
        let row = |((from, to, method, path), seen): (&Call, &Seen)| {
            let success = percent(Some(seen.success as f64 / seen.count.max(1) as f64));
            let figures = [seen.count.to_string(), ms(seen.best), ms(seen.worst), ms(seen.last), success];
            [from, to, method, path].into_iter().cloned().chain(figures).collect()
        };
        self.sorted().into_iter().map(row).collect()
    }

    fn json(&self) -> serde_json::Value {
        let one = |((from, to, method, path), seen): (&Call, &Seen)| {
            json!({
                "source": from, "destination": to, "method": method, "path": path, "count": seen.count,
                "success": seen.success, "best_us": seen.best, "worst_us": seen.worst, "last_us": seen.last,
            })
        };
        self.sorted().into_iter().map(one).collect()
    }
}

struct Screen {
    terminal: ratatui::DefaultTerminal,
    keys: mpsc::Receiver<terminal::KeyEvent>,
}

impl Screen {
    fn open() -> Result<Screen> {
        let terminal = ratatui::try_init().context("the terminal")?;
        let (send, keys) = mpsc::channel(16);
        // Reading keys blocks; the thread ends with the process.
        std::thread::spawn(move || {
            while let Ok(event) = terminal::read() {
                if let terminal::Event::Key(key) = event
                    && send.blocking_send(key).is_err()
                {
                    return;
                }
            }
        });
        Ok(Screen { terminal, keys })
    }

    fn close(&mut self) {
        ratatui::restore();
    }

    async fn run(
        &mut self,
        events: &mut (impl futures_util::Stream<Item = tapping::Event> + Unpin),
        board: &mut Board,
        duration: Option<Duration>,
    ) -> Result<()> {
        let over = async {
            match duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let mut frames = tokio::time::interval(FRAME);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                _ = frames.tick() => {
                    self.terminal.draw(|frame| draw(frame, board)).context("the terminal")?;
                }
                key = self.keys.recv() => match key.map(|key| (key.code, key.modifiers)) {
                    Some((KeyCode::Char('s'), _)) => board.by_worst = !board.by_worst,
                    Some((KeyCode::Char('q') | KeyCode::Esc, _)) | None => return Ok(()),
                    Some((KeyCode::Char('c'), KeyModifiers::CONTROL)) => return Ok(()),
                    Some(_) => {}
                },
                event = events.next() => match event {
                    Some((_, event)) => board.add(&event),
                    None => return Ok(()),
                },
            }
        }
    }
}

fn draw(frame: &mut ratatui::Frame, board: &Board) {
    let [body, foot] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let rows = board.rows().into_iter().map(|cells| {
        let failing = cells.last().is_some_and(|success| success != "100.00%");
        let style = if failing && colour { Style::new().fg(Color::Yellow) } else { Style::new() };
        Row::new(cells).style(style)
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths).header(Row::new(HEAD).bold()).block(Block::new());
    frame.render_widget(table, body);
    let order = if board.by_worst { "worst" } else { "count" };
    frame.render_widget(Paragraph::new(format!("by {order} · s: order · q: end")).dim(), foot);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_its_best_worst_and_last() {
        let mut board = Board::new(&[], true, false);
        let call = || ("web".to_string(), "orders".to_string(), "GET".to_string(), "/".to_string());
        for (took, success) in [(2000, true), (9000, false), (1000, true), (3000, true)] {
            board.count(call(), took, success);
        }
        assert_eq!(board.rows()[0][4..], ["4", "1.0ms", "9.0ms", "3.0ms", "75.00%"]);
    }

    #[test]
    fn the_screen_has_a_line_for_each_path_and_the_order_can_be_changed() {
        let call = |path: &str| ("web".to_string(), "orders".to_string(), "GET".to_string(), path.to_string());
        let mut board = Board::new(&[], true, false);
        (0..3).for_each(|_| board.count(call("/often"), 1000, true));
        board.count(call("/slow"), 900_000, false);
        let screen = |board: &Board| {
            let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(100, 6)).unwrap();
            terminal.draw(|frame| draw(frame, board)).unwrap();
            terminal.backend().to_string()
        };
        let before = |text: &str, one: &str, two: &str| text.find(one).unwrap() < text.find(two).unwrap();
        let text = screen(&board);
        assert!(text.contains("by count") && before(&text, "/often", "/slow") && text.contains("0.00%"), "{text}");
        board.by_worst = true;
        let text = screen(&board);
        assert!(text.contains("by worst") && before(&text, "/slow", "/often"), "{text}");
    }

    #[test]
    fn endless_paths_take_bounded_room() {
        let mut board = Board::new(&[], true, false);
        for n in 0..PATHS + 10 {
            board.count((String::new(), String::new(), String::new(), n.to_string()), 1, true);
        }
        assert_eq!(board.calls.len(), PATHS);
    }
}
