//! `meshctl why`.

use crate::error::{CommandError, Result};
use crate::output::{Format, paint, table};
use gossamer_proxy::error::REASONS;
use serde_json::json;
use std::process::ExitCode;

/// Explain why a proxy refused or failed a request
///
/// The code is what the proxy put into the `l5d-proxy-error` header; the `error` label of metrics, the access log and tap have the same.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl why no-endpoints\n  meshctl why                  all codes")]
pub struct Args {
    /// The code, or the whole header (default: list all)
    code: Vec<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Explains it.
pub fn run(args: Args) -> Result<ExitCode> {
    let text = args.code.join(" ").to_ascii_lowercase();
    let found: Vec<_> = REASONS.iter().filter(|(code, ..)| text.is_empty() || is_code(&text, code)).collect();
    if found.is_empty() {
        let start: String = text.chars().take(3).collect();
        let close = REASONS
            .iter()
            .find(|(code, what, _)| code.starts_with(&start) || what.to_ascii_lowercase().contains(&text));
        let error = CommandError::failed(format!("no reason has the code {text:?}"));
        return Err(match close {
            Some((code, ..)) => error.hint(format!("did you mean {code}?")),
            None => error.hint("`meshctl why` lists all"),
        });
    }
    match (args.output, text.is_empty()) {
        (Format::Json, _) => {
            let list =
                found.iter().map(|(code, what, remedy)| json!({ "code": code, "meaning": what, "remedy": remedy }));
            println!("{:#}", serde_json::Value::Array(list.collect()));
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
