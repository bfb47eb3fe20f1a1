//! What a command failed with: a kind (the exit code), what happened, and the next step as a hint.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of every command; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1: it could not be done.
    Failed,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: it was done, and found problems.
    Problems,
}

/// Printed as `error: …` and `hint: …` lines.
#[derive(Debug)]
pub struct CommandError {
    /// Gives the exit code.
    pub kind: Kind,
    /// What happened, with the value.
    pub message: String,
    /// What to do next, most useful first.
    pub hints: Vec<String>,
}

/// What commands return.
pub type Result<T, E = CommandError> = std::result::Result<T, E>;

impl CommandError {
    /// It could not be done.
    pub fn failed(message: impl fmt::Display) -> Self {
        CommandError { kind: Kind::Failed, message: message.to_string(), hints: Vec::new() }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl fmt::Display) -> Self {
        CommandError { kind: Kind::Usage, ..Self::failed(message) }
    }

    /// Problems were found; they have been printed already if `message` is empty.
    pub fn problems(message: impl fmt::Display) -> Self {
        CommandError { kind: Kind::Problems, ..Self::failed(message) }
    }

    /// Adds a next step.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Problems => 3,
        }
    }

    /// Prints it on standard error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let (error, hint) = (crate::output::paint_err("error:", "1;31"), crate::output::paint_err("hint:", "1;36"));
        if !self.message.is_empty() {
            eprintln!("{error} {}", self.message);
        }
        for text in &self.hints {
            eprintln!("{hint} {text}");
        }
        ExitCode::from(self.code())
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CommandError {}

/// `context` for results: the message, then the causes in one line.
pub trait Context<T> {
    /// Says what was being done.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| CommandError::failed(format!("{what}: {}", causes(&error))))
    }
}

/// An error and its sources in one line, without repetition.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
