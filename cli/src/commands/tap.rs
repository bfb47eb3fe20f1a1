//! `meshctl tap`.

use crate::error::Result;
use crate::output::{Format, paint};
use crate::place::{Place, Scope};
use crate::resource;
use crate::selector::Labels;
use crate::tapping::{self, Filter, address, method_name, micros};
use futures_util::StreamExt;
use gossamer_api::request_id::RequestId;
use gossamer_proxy::tap::ERROR_LABEL;
use linkerd2_proxy_api::http_types::{self, headers::Header};
use linkerd2_proxy_api::tap::tap_event::http::{Event, StreamId};
use linkerd2_proxy_api::tap::tap_event::{self, EndpointMeta, ProxyDirection};
use linkerd2_proxy_api::tap::{TapEvent, eos};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Show requests as they happen
///
/// Three lines for each: its request, the head of the response, the end of it. Their id is what `meshctl why ID` explains
/// for a while afterwards. The proxies themselves tell; on a cluster they are reached by port-forward, so who may do that
/// may tap.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl tap web
  meshctl tap deploy/web -n shop --to svc/orders --path /orders
  meshctl tap web --from traffic              only what that client asks
  meshctl tap -l app=web,canary -n shop       only pods with these labels
  meshctl tap pod/web-5d8f9c-x2x7l --method POST --max-rps 10
  meshctl tap web -o json | jq 'select(.responseInitEvent.httpStatus >= 500)'")]
pub struct Args {
    /// Workloads whose proxies are tapped, as for kubectl: deploy/web, pods, web (default: all)
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    filter: Filter,
    /// End after this time (default: with Ctrl-C)
    #[arg(long, value_parser = tapping::limit)]
    duration: Option<Duration>,
    /// wide adds labels, json has headers as well
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints until the time is over, or for ever.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let workloads = place.labelled(&args.scope, &resource::parse(&args.resources)?, &args.labels.selector()).await?;
    let mut events = tapping::open(&place, &args.scope, &workloads, &args.filter, args.output == Format::Json).await?;
    let over = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    loop {
        let event = tokio::select! {
            () = &mut over => return Ok(ExitCode::SUCCESS),
            event = events.next() => event,
        };
        let Some((_, event)) = event else { return Ok(ExitCode::SUCCESS) };
        let line = match args.output {
            Format::Json => json_of(&event).map(|value| value.to_string()),
            format => text_of(&event, format == Format::Wide),
        };
        // A closed pipe (`| head`) is the end.
        if let Some(line) = line
            && writeln!(std::io::stdout(), "{line}").is_err()
        {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn direction(event: &TapEvent) -> &'static str {
    match event.proxy_direction() {
        ProxyDirection::Inbound => "in",
        ProxyDirection::Outbound => "out",
        ProxyDirection::Unknown => "?",
    }
}

fn labels(meta: &Option<EndpointMeta>) -> BTreeMap<&String, &String> {
    meta.as_ref().map(|meta| meta.labels.iter().collect()).unwrap_or_default()
}

/// `true`, or why not. On the side where the other proxy is.
fn tls(event: &TapEvent) -> String {
    let meta = match event.proxy_direction() {
        ProxyDirection::Outbound => &event.destination_meta,
        _ => &event.source_meta,
    };
    labels(meta).get(&"tls".to_string()).map(|tls| tls.to_string()).unwrap_or_else(|| "no_tls".into())
}

fn http(event: &TapEvent) -> Option<&Event> {
    match event.event.as_ref()? {
        tap_event::Event::Http(http) => http.event.as_ref(),
    }
}

/// What `meshctl why` takes.
fn name(id: &StreamId) -> String {
    RequestId { base: id.base, stream: id.stream }.to_string()
}

fn id(id: &Option<StreamId>) -> String {
    id.as_ref().map_or_else(|| "?".into(), name)
}

/// The reason code, where a proxy answered instead of the endpoint.
fn error(event: &TapEvent) -> Option<&String> {
    event.destination_meta.as_ref().and_then(|meta| meta.labels.get(ERROR_LABEL))
}

/// The line that linkerd prints.
fn text_of(event: &TapEvent, wide: bool) -> Option<String> {
    let at = |end| address(end).map_or_else(|| "?".into(), |address| address.to_string());
    let flow = format!(
        "proxy={} src={} dst={} tls={}",
        direction(event),
        at(&event.source),
        at(&event.destination),
        tls(event)
    );
    let mut line = match http(event)? {
        Event::RequestInit(request) => format!(
            "{} id={} {flow} :method={} :authority={} :path={}",
            paint("req", "36"),
            id(&request.id),
            method_name(&request.method),
            clean(&request.authority),
            clean(&request.path)
        ),
        Event::ResponseInit(response) => {
            let colour = if response.http_status >= 500 { "31" } else { "32" };
            let status = paint(response.http_status, colour);
            let latency = micros(&response.since_request_init);
            format!("{} id={} {flow} :status={status} latency={latency}µs", paint("rsp", "36"), id(&response.id))
        }
        Event::ResponseEnd(end) => {
            let eos = match end.eos.as_ref().and_then(|eos| eos.end.as_ref()) {
                Some(eos::End::GrpcStatusCode(code)) => format!(" grpc-status={code}"),
                Some(eos::End::ResetErrorCode(code)) => format!(" reset-error={code}"),
                None => String::new(),
            };
            let duration = micros(&end.since_response_init);
            let length = end.response_bytes;
            format!(
                "{} id={} {flow}{eos} duration={duration}µs response-length={length}B",
                paint("end", "36"),
                id(&end.id)
            )
        }
    };
    if let Some(error) = error(event) {
        line.push_str(&format!(" error={}", paint(clean(error), "31")));
    }
    if wide {
        for (end, meta) in [("src", &event.source_meta), ("dst", &event.destination_meta)] {
            for (key, value) in
                labels(meta).into_iter().filter(|(key, _)| !["tls", ERROR_LABEL].contains(&key.as_str()))
            {
                line.push_str(&format!(" {end}_{key}={}", clean(value)));
            }
        }
        let route = event.route_meta.as_ref().map(|meta| meta.labels.iter().collect::<BTreeMap<_, _>>());
        for (key, value) in route.unwrap_or_default() {
            line.push_str(&format!(" rt_{key}={}", clean(value)));
        }
    }
    Some(line)
}

/// What a peer wrote must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The object that linkerd prints, with the names of requests.
fn json_of(event: &TapEvent) -> Option<Value> {
    let end = |address_: &Option<_>, meta| match address(address_) {
        Some(at) => json!({ "ip": at.ip().to_string(), "port": at.port(), "metadata": labels(meta) }),
        None => Value::Null,
    };
    let mut value = json!({
        "source": end(&event.source, &event.source_meta),
        "destination": end(&event.destination, &event.destination_meta),
        "routeMeta": event.route_meta.as_ref().map(|meta| &meta.labels),
        "proxyDirection": event.proxy_direction().as_str_name(),
    });
    let id =
        |id: &Option<StreamId>| id.as_ref().map(|id| json!({ "base": id.base, "stream": id.stream, "name": name(id) }));
    let (key, inner) = match http(event)? {
        Event::RequestInit(request) => (
            "requestInitEvent",
            json!({
                "id": id(&request.id), "method": method_name(&request.method), "authority": request.authority,
                "path": request.path, "headers": headers(&request.headers),
            }),
        ),
        Event::ResponseInit(response) => (
            "responseInitEvent",
            json!({
                "id": id(&response.id), "sinceRequestInitMicros": micros(&response.since_request_init),
                "httpStatus": response.http_status, "headers": headers(&response.headers),
            }),
        ),
        Event::ResponseEnd(end) => {
            let (grpc, reset) = match end.eos.as_ref().and_then(|eos| eos.end.as_ref()) {
                Some(eos::End::GrpcStatusCode(code)) => (Some(*code), None),
                Some(eos::End::ResetErrorCode(code)) => (None, Some(*code)),
                None => (None, None),
            };
            (
                "responseEndEvent",
                json!({
                    "id": id(&end.id), "sinceRequestInitMicros": micros(&end.since_request_init),
                    "sinceResponseInitMicros": micros(&end.since_response_init), "responseBytes": end.response_bytes,
                    "grpcStatusCode": grpc, "resetErrorCode": reset, "trailers": headers(&end.trailers),
                }),
            )
        }
    };
    value[key] = inner;
    Some(value)
}

fn headers(headers: &Option<http_types::Headers>) -> Vec<Value> {
    let one = |header: &Header| json!({ "name": header.name, "value": String::from_utf8_lossy(&header.value) });
    headers.as_ref().map(|headers| headers.headers.iter().map(one).collect()).unwrap_or_default()
}
