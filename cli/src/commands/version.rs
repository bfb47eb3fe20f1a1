//! `meshctl version`.

use crate::error::Result;
use crate::output::Format;
use std::process::ExitCode;

/// Print the version
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints it.
pub fn run(args: Args) -> Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Format::Json => println!("{}", serde_json::json!({ "meshctl": version })),
        _ => println!("meshctl {version}"),
    }
    Ok(ExitCode::SUCCESS)
}
