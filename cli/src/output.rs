//! How results look: tables for people, JSON for programs, colour only on a terminal and never with `NO_COLOR`.

use std::ffi::OsString;
use std::io::IsTerminal;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// More columns
    Wide,
    /// Stable, for programs
    Json,
}

/// True when standard output may be coloured.
pub fn colour() -> bool {
    may_colour(std::env::var_os("NO_COLOR"), std::io::stdout().is_terminal())
}

/// Source: no-color.org, which an empty variable does not mean.
fn may_colour(no_color: Option<OsString>, terminal: bool) -> bool {
    terminal && no_color.is_none_or(|value| value.is_empty())
}

/// Text with an SGR code for standard output, or as it is.
pub fn paint(text: impl std::fmt::Display, sgr: &str) -> String {
    if colour() { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_string() }
}

/// The same for standard error.
pub fn paint_err(text: &str, sgr: &str) -> String {
    match may_colour(std::env::var_os("NO_COLOR"), std::io::stderr().is_terminal()) {
        true => format!("\x1b[{sgr}m{text}\x1b[0m"),
        false => text.to_string(),
    }
}

/// Rows in columns as wide as their widest cell, two blanks apart. The columns named in `right` are right-aligned.
pub fn table(head: &[&str], rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible(cell));
        }
    }
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|h| h.to_string()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - visible(cell).min(*width));
            let gap = if i > 0 { "  " } else { "" };
            if right(i) { line.extend([gap, &pad, cell]) } else { line.extend([gap, cell, &pad]) }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Characters that take room: not those of SGR sequences.
fn visible(cell: &str) -> usize {
    let mut count = 0;
    let mut chars = cell.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(|&c| c == 'm');
        } else {
            count += 1;
        }
    }
    count
}

/// Milliseconds for people.
pub fn milliseconds(ms: Option<f64>) -> String {
    match ms {
        None => "-".into(),
        Some(ms) if ms >= 1000.0 => format!("{:.1}s", ms / 1000.0),
        Some(ms) if ms >= 10.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{ms:.1}ms"),
    }
}

/// A share of 0 to 1 for people.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.2}%", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_and_for_those_who_want_it() {
        assert!(may_colour(None, true) && may_colour(Some("".into()), true));
        assert!(!may_colour(Some("1".into()), true) && !may_colour(None, false));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["web".into(), "1.0".into()], vec!["\x1b[1mcatalog\x1b[0m".into(), "100.5".into()]];
        let text = table(&["NAME", "RPS"], &rows, |i| i == 1);
        assert_eq!(text, "NAME       RPS\nweb        1.0\n\x1b[1mcatalog\x1b[0m  100.5\n");
    }
}
