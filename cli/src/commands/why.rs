//! `meshctl why`: a reason code, or what became of one request.

use crate::error::{CommandError, Result, causes};
use crate::fan;
use crate::output::{Format, milliseconds, paint, table};
use crate::place::{Place, Port, Scope, Workload};
use crate::{resource, tapping};
use gossamer_api::request_id::RequestId;
use gossamer_api::wire::mesh::requests_client::RequestsClient;
use gossamer_api::wire::mesh::{RequestName, RequestStory};
use gossamer_proxy::error::REASONS;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};
use tonic::Code;

/// Explain a reason code, or what became of one request, and say what to do
///
/// The code is what the proxy put into the `l5d-proxy-error` header; the `error` label of metrics, the access log and tap have
/// the same. A request's id is in the lines of `meshctl tap`, in the `gossamer-request` header of every answer that a proxy made
/// itself, and in the access log. Each proxy remembers its newest 512 requests that failed or were tapped.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl why no-endpoints
  meshctl why 3f9a01bc-42                     the request with that id, wherever it was
  meshctl why 3f9a01bc-42 deploy/web -n shop  only these proxies are asked
  meshctl why                                 all codes")]
pub struct Args {
    /// The code, or the whole header; or a request's id, and perhaps workloads to ask (default: list all codes)
    #[arg(value_name = "CODE|ID")]
    what: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Args {
    /// The request that is meant, if it is one.
    pub fn request(&self) -> Option<RequestId> {
        self.what.first()?.trim().parse().ok()
    }
}

/// Explains a code.
pub fn run(args: Args) -> Result<ExitCode> {
    let text = args.what.join(" ").to_ascii_lowercase();
    let found: Vec<_> = REASONS.iter().filter(|(code, ..)| text.is_empty() || is_code(&text, code)).collect();
    if found.is_empty() {
        let start: String = text.chars().take(3).collect();
        let close = REASONS
            .iter()
            .find(|(code, what, _)| code.starts_with(&start) || what.to_ascii_lowercase().contains(&text));
        let error = CommandError::failed(format!("no reason has the code {text:?}"));
        return Err(match close {
            Some((code, ..)) => error.hint(format!("did you mean {code}?")),
            None => error.hint("`meshctl why` lists all; a request's id looks like 3f9a01bc-42"),
        });
    }
    match (args.output, text.is_empty()) {
        (Format::Json, _) => {
            let list =
                found.iter().map(|(code, what, remedy)| json!({ "code": code, "meaning": what, "remedy": remedy }));
            println!("{:#}", Value::Array(list.collect()));
        }
        (_, true) => {
            let rows: Vec<_> = found.iter().map(|(code, what, _)| vec![paint(code, "1"), what.to_string()]).collect();
            print!("{}", table(&["CODE", "MEANING"], &rows, |_| false));
        }
        (_, false) => {
            for (code, what, remedy) in found {
                println!("{}: {what}\n{} {remedy}", paint(code, "1"), paint("→", "36"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The code itself, or a header that begins with it.
fn is_code(text: &str, code: &str) -> bool {
    let header = text.trim_start_matches("l5d-proxy-error:").trim();
    header == code || header.strip_prefix(code).is_some_and(|rest| rest.starts_with([':', ';', ' ']))
}

/// Asks the proxies for a request; where another proxy answered it, for that one's story as well.
pub async fn request(args: Args, id: RequestId, place: Place) -> Result<ExitCode> {
    let workloads = place.workloads(&args.scope, &resource::parse(&args.what[1..])?).await?;
    let within = args.scope.within(&place);
    if !workloads.iter().any(|workload| workload.meshed) {
        return Err(place.no_proxy(within.as_deref()));
    }
    let Some(first) = find(&place, &workloads, id, true).await else {
        let error = CommandError::failed(format!("no proxy remembers request {id}"))
            .hint("each keeps its newest 512 requests that failed or were tapped, until it ends");
        return Err(match (&place, within) {
            (Place::Cluster(_), Some(namespace)) => {
                error.hint(format!("only namespace {namespace:?} was asked; elsewhere with -n NAMESPACE or -A"))
            }
            _ => error,
        });
    };
    let mut stories = vec![first];
    if let Ok(there) = stories[0].story.answered_as.parse() {
        stories.extend(find(&place, &workloads, there, false).await);
    }
    if args.output == Format::Json {
        println!("{:#}", Value::Array(stories.iter().map(json_of).collect()));
    } else {
        let texts: Vec<String> = stories.iter().map(text_of).collect();
        print!("{}", texts.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A story and who tells it.
struct Told {
    id: RequestId,
    /// The pod, with its namespace.
    proxy: String,
    story: RequestStory,
}

/// The proxy that knows it, if one does.
async fn find(place: &Place, workloads: &[Workload], id: RequestId, warn: bool) -> Option<Told> {
    let meshed: Vec<&Workload> = workloads.iter().filter(|workload| workload.meshed).collect();
    let answers = fan::out("proxies", &meshed, |_, workload| async move {
        let channel = tapping::channel(place.dial(workload, Port::Tap).await?).await.map_err(|error| causes(&error))?;
        let name = RequestName { base: id.base, stream: id.stream };
        match RequestsClient::new(channel).explain(name).await {
            Ok(story) => Ok(Some(story.into_inner())),
            // A linkerd2-proxy remembers nothing.
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(status.message().to_string()),
        }
    })
    .await;
    let at = answers.iter().position(|answer| matches!(answer, Ok(Some(_))));
    if at.is_none() && warn {
        fan::warn("proxies", meshed.iter().map(|workload| workload.full_name()), &answers);
    }
    let story = answers.into_iter().find_map(|answer| answer.ok().flatten())?;
    Some(Told { id, proxy: meshed[at?].full_name(), story })
}

/// What happened, in a sentence, and what to do.
fn verdict(story: &RequestStory) -> (String, String) {
    // Another proxy's answer begins with the code.
    let code = match story.reason.as_str() {
        "" => story.message.split(':').next().unwrap_or_default(),
        reason => reason,
    };
    if let Some((code, what, remedy)) = REASONS.iter().find(|(known, ..)| *known == code) {
        return (format!("{code}: {what}"), remedy.to_string());
    }
    let status = match story.grpc_status {
        Some(code) => format!("gRPC status {code}"),
        None => story.status.to_string(),
    };
    let remedy = match (story.status, story.grpc_status) {
        (500.., _) => "Look at the endpoint's log: the proxies only passed its answer on.",
        (_, Some(1..)) | (400..500, _) => "The endpoint means that; look at the request, then at the endpoint's log.",
        _ => "Nothing to do.",
    };
    (format!("answered: The endpoint answered by itself: {status}."), remedy.to_string())
}

fn text_of(told: &Told) -> String {
    let Told { id, proxy, story } = told;
    let (what, remedy) = verdict(story);
    let mut text = match what.split_once(':') {
        Some((code, rest)) => format!("{}:{rest}\n{} {remedy}\n\n", paint(code, "1"), paint("→", "36")),
        None => format!("{what}\n\n"),
    };
    let (rows, known) = (rows(told), |(_, value): &(&str, String)| !value.is_empty());
    let rows: Vec<_> = [("request", id.to_string()), ("proxy", format!("{proxy}, {}", side(story)))]
        .into_iter()
        .chain(rows)
        .filter(known)
        .map(|(name, value)| vec![paint(name, "2"), clean(&value)])
        .collect();
    // Without a head of its own.
    text.extend(table(&["", ""], &rows, |_| false).lines().skip(1).map(|line| format!("  {line}\n")));
    text
}

fn side(story: &RequestStory) -> &'static str {
    if story.outbound { "outbound" } else { "inbound" }
}

fn rows(told: &Told) -> Vec<(&'static str, String)> {
    let story = &told.story;
    let with = |text: &str, more: &str| match (text, more) {
        ("", _) => String::new(),
        (text, "") => text.to_string(),
        (text, more) => format!("{text}, {more}"),
    };
    let time = |us: u64| milliseconds(Some(us as f64 / 1000.0));
    let limits = [
        ("request", story.request_timeout_us),
        ("response", story.response_timeout_us),
        ("idle", story.idle_timeout_us),
    ];
    let limits: Vec<_> =
        limits.iter().filter(|(_, us)| *us > 0).map(|(name, us)| format!("{name} {}", time(*us))).collect();
    let status = match (story.status, story.grpc_status) {
        (499, _) => "none: the client was gone".to_string(),
        (status, Some(code)) => format!("{status}, gRPC status {code}"),
        (status, None) => status.to_string(),
    };
    let by = match (story.reason.as_str(), story.answered_as.as_str()) {
        ("", "") => "by the endpoint".to_string(),
        ("", there) => format!("by the proxy there, as request {there}"),
        _ => "by this proxy".to_string(),
    };
    let mut rows = vec![
        ("when", when(story.unix_ms)),
        ("asked", format!("{} {}{}", story.method, story.authority, story.path)),
        ("trace", story.trace.clone()),
        ("from", with(&story.client, &story.client_id)),
        ("to", story.target.clone()),
        ("answer", if story.status == 499 { status } else { format!("{status}, {by}") }),
        ("because", story.message.clone()),
        ("decided by", story.decided_by.clone()),
        ("policy", story.policy.clone()),
        ("route", story.route.clone()),
        ("let in by", story.authorization.clone()),
        ("endpoint", with(&with(&story.endpoint, &story.endpoint_pod), &story.endpoint_id)),
        ("took", format!("{} to the answer, {} in all", time(story.head_us), time(story.total_us))),
        ("timeouts", limits.join(", ")),
        ("body", if story.reason.is_empty() { format!("{} bytes", story.response_bytes) } else { String::new() }),
        ("retries", if story.retries > 0 { story.retries.to_string() } else { String::new() }),
    ];
    rows.extend(story.failed.iter().map(|one| ("tried", format!("{}: {}", one.endpoint, one.message))));
    rows
}

/// UTC, and how long ago.
fn when(unix_ms: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(unix_ms);
    let text = time::OffsetDateTime::from(then).format(&time::format_description::well_known::Rfc3339);
    let ago = then.elapsed().map(|ago| format!(", {} s ago", ago.as_secs())).unwrap_or_default();
    format!("{}{ago}", text.unwrap_or_default())
}

/// What a peer wrote must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn json_of(told: &Told) -> Value {
    let Told { id, proxy, story } = told;
    let (meaning, remedy) = verdict(story);
    let attempt =
        |one: &gossamer_api::wire::mesh::FailedAttempt| json!({ "endpoint": one.endpoint, "message": one.message });
    json!({
        "request": id.to_string(), "proxy": proxy, "direction": side(story), "meaning": meaning, "remedy": remedy,
        "unixMillis": story.unix_ms, "method": story.method, "authority": story.authority, "path": story.path,
        "trace": story.trace, "client": story.client, "clientId": story.client_id, "target": story.target,
        "status": story.status, "grpcStatus": story.grpc_status, "code": story.reason, "message": story.message,
        "decidedBy": story.decided_by, "policy": story.policy, "route": story.route,
        "authorization": story.authorization, "endpoint": story.endpoint, "endpointPod": story.endpoint_pod,
        "endpointId": story.endpoint_id, "headMicros": story.head_us, "totalMicros": story.total_us,
        "responseBytes": story.response_bytes, "retries": story.retries,
        "failedAttempts": story.failed.iter().map(attempt).collect::<Vec<_>>(),
        "requestTimeoutMicros": story.request_timeout_us, "responseTimeoutMicros": story.response_timeout_us,
        "idleTimeoutMicros": story.idle_timeout_us, "answeredAs": story.answered_as,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(story: RequestStory) -> String {
        let id = RequestId { base: 42, stream: 7 };
        text_of(&Told { id, proxy: "shop/web-1".into(), story })
    }

    #[test]
    fn a_refusal_names_who_decided_and_what_to_do() {
        let text = told(RequestStory {
            reason: "denied".into(),
            message: "client a is not authorized on b".into(),
            decided_by: "Server/shop/web".into(),
            status: 403,
            path: "/\x1b[2J".into(),
            ..RequestStory::default()
        });
        for word in ["denied: No authorization", "→ Check", "0000002a-7", "shop/web-1, inbound", "Server/shop/web"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(text.contains("403, by this proxy") && !text.contains("\x1b[2J"), "{text}");
    }

    #[test]
    fn an_answer_of_the_other_proxy_is_told_with_its_code() {
        let text = told(RequestStory {
            outbound: true,
            message: "rate-limited: rate limit of web exceeded".into(),
            answered_as: "0000002b-1".into(),
            status: 429,
            ..RequestStory::default()
        });
        assert!(text.starts_with("rate-limited: ") && text.contains("as request 0000002b-1"), "{text}");
    }

    #[test]
    fn what_the_endpoint_says_is_not_the_meshs_doing() {
        let text = told(RequestStory { status: 500, ..RequestStory::default() });
        assert!(text.contains("by itself: 500") && text.contains("endpoint's log"), "{text}");
        assert!(told(RequestStory { status: 200, ..RequestStory::default() }).contains("Nothing to do"));
    }
}
