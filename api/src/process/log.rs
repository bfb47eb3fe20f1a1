//! Logs to stderr, as text or as JSON lines; the level changes at run time through a [`LogLevel`].
//!
//! Stdout is left to results. Colour only where a person reads, and never with `NO_COLOR`.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};
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
    /// Changes it, e.g. `info` or `warn,gossamer_proxy=debug`: levels by the beginning of a module's name. A filter that
    /// can't be read changes nothing.
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
        return Err(LogError(format!("a log level is needed: {FORM}")));
    }
    let mut targets = Targets::new();
    for directive in filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let wrong = |what: &str| LogError(format!("invalid log level {filter:?}: {what}; understood is {FORM}"));
        // Not as RUST_LOG, where a level with a slip of the pen is a target of which everything is logged.
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive),
        };
        let named =
            |target: &str| !target.is_empty() && target.chars().all(|c| c.is_alphanumeric() || "_:-.".contains(c));
        if directive.contains(['[', '{']) {
            return Err(wrong(&format!("{directive:?} asks for spans or fields")));
        }
        if target.is_some_and(|target| !named(target)) {
            return Err(wrong(&format!("{directive:?} has no target")));
        }
        let level = match level.is_empty() {
            true => None,
            false => level.parse::<LevelFilter>().ok(),
        };
        let Some(level) = level else { return Err(wrong(&format!("{directive:?} has no level"))) };
        targets = match target {
            Some(target) => targets.with_target(target, level),
            None => targets.with_default(level),
        };
    }
    Ok(targets)
}

/// What can be said, for people.
const FORM: &str = "a level (off, error, warn, info, debug, trace), or TARGET=LEVEL for modules whose names begin so, \
                    comma-separated, as warn,gossamer_proxy::balance=debug";
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
        assert!(level.set("").unwrap_err().to_string().contains("is needed: a level (off, "));
        assert!(level.set(&"x".repeat(2000)).unwrap_err().to_string().contains("at most"));
        assert_eq!(level.current(), "debug", "a bad level changes nothing");
    }

    #[test]
    fn levels_by_target_are_understood_and_nothing_else() {
        use tracing::Level;
        let enabled = |filter: &str, target: &str, level: Level| parse(filter).unwrap().would_enable(target, &level);
        for filter in ["warn,gossamer=info", "gossamer=INFO, warn", "warn,gossamer=3,"] {
            assert!(enabled(filter, "gossamer_proxy::balance", Level::INFO), "{filter}");
            assert!(!enabled(filter, "gossamer_proxy", Level::DEBUG) && !enabled(filter, "hyper", Level::INFO));
            assert!(enabled(filter, "hyper", Level::WARN), "{filter}");
        }
        let longest = "info,gossamer_proxy=off,gossamer_proxy::balance=debug";
        assert!(enabled(longest, "gossamer_proxy::balance::pool", Level::DEBUG));
        assert!(!enabled(longest, "gossamer_proxy::tap", Level::ERROR) && enabled(longest, "x", Level::INFO));
        assert!(!enabled("x=info", "gossamer", Level::ERROR), "nothing but what is named");
        for (filter, why) in [
            ("inof", "\"inof\" has no level"),
            ("warn,gossamer_proxy", "\"gossamer_proxy\" has no level"),
            ("warn,=debug", "no target"),
            ("x=", "no level"),
            ("warn,[request]=debug", "spans or fields"),
            ("gossamer[{client}]=trace", "spans or fields"),
            ("a=b=c", "no target"),
            ("a b=info", "no target"),
        ] {
            let error = check(filter).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("gossamer_proxy::balance=debug"), "{error}");
        }
    }
}
