//! What is written about the code is true: generated tables, and the files that ARCHITECTURE.md names.
//!
//! `MESH_UPDATE=1 cargo test -p gossamer-tests --test tidy` writes the tables anew.

#![allow(clippy::unwrap_used)]

use clap::CommandFactory;
use gossamer_injector::linkerd::Means;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Vertical bars would end a cell.
fn row(cells: &[&str]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn commands() -> String {
    let mut table = row(&["command", ""]) + &row(&["---", "---"]);
    for command in meshctl::commands::Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        table += &row(&[&code(&format!("meshctl {}", command.get_name())), &about]);
    }
    table
}

fn settings() -> String {
    let mut table = row(&["variable", "per workload", "default", "what it is"]) + &row(&["---"; 4]);
    for setting in gossamer_api::settings::PROXY {
        let per_workload = if setting.annotation { "yes" } else { "" };
        let help = format!("{} ({})", setting.help, setting.form);
        table += &row(&[&code(&setting.env()), per_workload, &code(&(setting.default)()), &help]);
    }
    table
}

fn injection() -> String {
    let mut table = row(&["name", "default", "what it is"]) + &row(&["---"; 3]);
    for setting in gossamer_injector::settings::INJECTION {
        let help = format!("{} ({})", setting.help, setting.form);
        table += &row(&[&code(setting.name), &code(&(setting.default)()), &help]);
    }
    table
}

fn linkerd() -> String {
    let mut table = row(&["annotation of Linkerd's", "here"]) + &row(&["---"; 2]);
    for theirs in gossamer_injector::linkerd::LINKERD {
        let here = match theirs.means {
            Means::Same(ours) => code(ours),
            Means::Words(ours, words) => {
                let words: Vec<_> = words.iter().map(|(theirs, ours)| format!("{theirs} is {ours}")).collect();
                format!("{}: {}", code(ours), words.join(", "))
            }
            Means::Seconds(ours) => format!("{}, with a unit", code(ours)),
            Means::Nothing(why) => format!("no effect: {why}"),
        };
        table += &row(&[&code(theirs.key), &here]);
    }
    table
}

fn reasons() -> String {
    let mut table = row(&["code", "what happened", "what to do"]) + &row(&["---"; 3]);
    for (name, what, remedy) in gossamer_proxy::error::REASONS {
        table += &row(&[&code(name), what, remedy]);
    }
    table
}

/// The text with the part between `<!-- NAME: generated -->` and the next `<!-- end -->` replaced.
fn with_table(text: &str, name: &str, table: &str) -> String {
    let marker = format!("<!-- {name}: generated -->\n");
    let start = text.find(&marker).unwrap_or_else(|| panic!("no {marker}")) + marker.len();
    let end = start + text[start..].find("<!-- end -->").unwrap_or_else(|| panic!("{name} has no end"));
    format!("{}{table}{}", &text[..start], &text[end..])
}

#[test]
fn the_tables_of_the_readme_are_those_of_the_code() {
    check("README.md", &[("commands", commands()), ("settings", settings()), ("reasons", reasons())]);
}

#[test]
fn the_tables_of_what_can_be_said_about_a_workload_are_those_of_the_code() {
    check("manifests/settings.md", &[("injection", injection()), ("linkerd", linkerd())]);
}

fn check(page: &str, tables: &[(&str, String)]) {
    let path = root().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let wanted = tables.iter().fold(text.clone(), |text, (name, table)| with_table(&text, name, table));
    if std::env::var_os("MESH_UPDATE").is_some() {
        return fs::write(path, wanted).unwrap();
    }
    let changed: Vec<_> = wanted.lines().filter(|line| !text.lines().any(|present| present == *line)).collect();
    let hint = "write them anew with MESH_UPDATE=1 cargo test -p gossamer-tests --test tidy";
    assert!(text == wanted, "{page} is out of date in {changed:#?}\n{hint}");
}

#[test]
fn architecture_is_short_and_names_files_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 200, "{} lines", text.lines().count());
    let mut found = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let is_path = name.contains('/') && !name.contains([' ', '*', '<', ':', '{']) && !name.starts_with('/');
        if is_path {
            assert!(root().join(name).exists(), "ARCHITECTURE.md names {name}");
            found += 1;
        }
    }
    assert!(found > 30, "only {found} paths");
}

/// Every room of the proxy is one that a newcomer can find.
#[test]
fn architecture_names_every_room_of_the_proxy() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root().join("proxy/src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let known = text.contains(&format!("proxy/src/{name}.rs")) || text.contains(&format!("proxy/src/{name}/"));
        assert!(known || name == "main", "ARCHITECTURE.md does not name {}", path.display());
    }
}
