//! Logs to stderr, as text or as JSON lines; the level changes at run time through a [`LogLevel`].
//!
//! Stdout is left to results. Colour only where a person reads, and never with `NO_COLOR`.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "plain" => Ok(Format::Plain),
            "json" => Ok(Format::Json),
            other => Err(LogError(format!("unknown log format {other:?}; there are plain and json"))),
        }
    }
}

/// Why logging can't be set up or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogError(String);

/// What is logged now; cheap to clone.
#[derive(Clone)]
pub struct LogLevel {
    current: Arc<Mutex<String>>,
    apply: Arc<dyn Fn(Targets) -> Result<(), LogError> + Send + Sync>,
}

impl LogLevel {
    /// Changes it, e.g. `info` or `warn,gossamer_proxy=debug`. A filter that can't be read changes nothing.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let filter = filter.trim();
        (self.apply)(parse(filter)?)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    /// The filter as it was given.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A level that is remembered and has no effect, for processes that set up logging themselves, and for tests.
    pub fn detached(filter: &str) -> Self {
        LogLevel { current: Arc::new(Mutex::new(filter.to_owned())), apply: Arc::new(|_| Ok(())) }
    }
}

/// Sets up the process's logging. To be called once; a second call fails.
pub fn init(format: Format, filter: &str) -> Result<LogLevel, LogError> {
    let (layer, handle) = reload::Layer::<Targets, Registry>::new(parse(filter)?);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let lines = match format {
        Format::Plain => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer)
        .with(lines)
        .try_init()
        .map_err(|error| LogError(format!("logging is set up already: {error}")))?;
    Ok(LogLevel {
        current: Arc::new(Mutex::new(filter.to_owned())),
        apply: Arc::new(move |filter| handle.reload(filter).map_err(|error| LogError(error.to_string()))),
    })
}

/// Fails with what is wrong in a filter.
pub fn check(filter: &str) -> Result<(), LogError> {
    parse(filter.trim()).map(drop)
}

fn parse(filter: &str) -> Result<Targets, LogError> {
    // A filter comes over the network as well; no sane one is longer.
    if filter.len() > MAX_FILTER_BYTES {
        return Err(LogError(format!("a log level has at most {MAX_FILTER_BYTES} bytes")));
    }
    if filter.is_empty() {
        return Err(LogError("a log level is needed, e.g. info or warn,gossamer_proxy=debug".to_owned()));
    }
    filter.parse::<Targets>().map_err(|error| LogError(format!("invalid log level {filter:?}: {error}")))
}

const MAX_FILTER_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_changes_while_running() {
        let level = init(Format::Plain, "warn").unwrap();
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        level.set("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert_eq!(level.current(), "debug");
        assert!(level.set("a=b=c").unwrap_err().to_string().contains("invalid log level"));
        assert!(level.set("").unwrap_err().to_string().contains("is needed"));
        assert!(level.set(&"x".repeat(2000)).unwrap_err().to_string().contains("at most"));
        assert_eq!(level.current(), "debug", "a bad level changes nothing");
    }
}
