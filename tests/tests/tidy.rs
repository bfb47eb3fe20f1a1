//! What is written about the code is true: the README's tables, and the files that ARCHITECTURE.md names.
//!
//! `MESH_UPDATE=1 cargo test -p gossamer-tests --test tidy` writes the tables anew.

#![allow(clippy::unwrap_used)]

use clap::CommandFactory;
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
    let path = root().join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let mut wanted = with_table(&text, "commands", &commands());
    wanted = with_table(&wanted, "settings", &settings());
    wanted = with_table(&wanted, "reasons", &reasons());
    if std::env::var_os("MESH_UPDATE").is_some() {
        return fs::write(path, wanted).unwrap();
    }
    let changed: Vec<_> = wanted.lines().filter(|line| !text.lines().any(|present| present == *line)).collect();
    let hint = "write them anew with MESH_UPDATE=1 cargo test -p gossamer-tests --test tidy";
    assert!(text == wanted, "README.md is out of date in {changed:#?}\n{hint}");
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
