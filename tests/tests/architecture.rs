//! What must stay true of the code's shape: who may import whom, where tasks begin and sockets are made, and how a file
//! opens. A rule that turns out wrong is changed here, in the commit that breaks it, with the reason.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 9] =
    ["api", "proxy", "proxy/engine", "identity", "destination", "injector", "cli", "tests", "benches"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// Files of production code below a folder, by their path in the project, without their tests and comments.
fn production(folder: &str) -> BTreeMap<String, String> {
    let mut files = Vec::new();
    sources(&root().join(folder), &mut files);
    let is_test = |path: &Path| {
        let within = path.strip_prefix(root()).unwrap();
        within.components().skip(2).any(|part| part.as_os_str() == "tests")
            || path.file_stem().is_some_and(|name| name == "tests" || name == "testing")
    };
    let files = files.into_iter().filter(|path| !is_test(path));
    files
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
            let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            (name, lines.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// The rooms of the own crate that a text names.
fn imports(text: &str) -> BTreeSet<String> {
    let word = regex::Regex::new(r"crate::(?:\{([^}]*)\}|([a-z_0-9]+))").unwrap();
    let first = |part: &str| part.trim().split("::").next().unwrap_or_default().to_string();
    word.captures_iter(text)
        .flat_map(|found| match found.get(1) {
            Some(list) => list.as_str().split(',').map(first).collect::<Vec<_>>(),
            None => vec![found[2].to_string()],
        })
        .collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut files = Vec::new();
    for folder in CRATES {
        for part in ["src", "tests", "benches", "examples"] {
            sources(&root().join(folder).join(part), &mut files);
        }
    }
    assert!(files.len() > 150, "{}", files.len());
    let silent: Vec<_> = files
        .into_iter()
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//! "))
        .filter(|path| !path.components().any(|part| part.as_os_str() == "target"))
        .collect();
    assert!(silent.is_empty(), "without a first line that starts with `//! `: {silent:#?}");
}

/// LAYOUT: decisions are pure, transport knows nothing of requests, nobody below knows who is above.
#[test]
fn rooms_of_the_proxy_import_only_what_is_below_them() {
    // Rooms, and what they must not name.
    let above = ["accept", "inbound", "outbound"];
    let rules: &[(&str, &[&str])] = &[
        (
            "policy",
            &["accept", "inbound", "outbound", "request", "control", "balance", "record", "shard", "metrics", "net"],
        ),
        (
            "detect.rs",
            &["accept", "inbound", "outbound", "request", "control", "balance", "record", "shard", "metrics", "net"],
        ),
        ("balance", &["accept", "inbound", "outbound", "request", "policy", "shard", "tap"]),
        ("control", &["accept", "inbound", "outbound", "request", "policy", "balance", "record", "shard"]),
        (
            "metrics",
            &["accept", "inbound", "outbound", "request", "policy", "balance", "record", "shard", "control", "tap"],
        ),
        ("tap", &["accept", "inbound", "outbound", "request", "balance", "record", "shard", "control"]),
        ("net.rs", &["accept", "inbound", "outbound", "request", "policy", "balance", "record", "shard", "control"]),
        ("error.rs", &["accept", "inbound", "outbound", "request", "policy", "balance", "record", "shard", "control"]),
        ("request", &above),
        ("tcp.rs", &above),
        ("record", &above),
        ("shard", &above),
    ];
    let files = production("proxy/src");
    let mut wrong = Vec::new();
    for (room, forbidden) in rules {
        let prefix = format!("proxy/src/{}", room.trim_end_matches(".rs"));
        let of_room = |name: &str| {
            name.strip_prefix(&prefix)
                .is_some_and(|rest| rest == ".rs" || (rest.starts_with('/') && !room.ends_with(".rs")))
        };
        let mut seen = false;
        for (name, text) in files.iter().filter(|(name, _)| of_room(name)) {
            seen = true;
            let named = imports(text);
            wrong.extend(
                forbidden.iter().filter(|room| named.contains(**room)).map(|room| format!("{name} names {room}")),
            );
        }
        assert!(seen, "no file for the rule of {room}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pure rooms take the time as an argument, and touch neither sockets nor tasks.
#[test]
fn decisions_have_no_effects() {
    let pure =
        ["policy/", "detect.rs", "balance/ewma.rs", "balance/breaker.rs", "balance/transport.rs", "request/retry.rs"];
    let mut wrong = Vec::new();
    for (name, text) in production("proxy/src") {
        if !pure.iter().any(|room| name.strip_prefix("proxy/src/").unwrap().starts_with(room)) {
            continue;
        }
        for effect in [
            "tokio::net",
            "tokio::io",
            "tokio::task",
            "tokio::spawn",
            "tokio::sync",
            "sleep(",
            ".await",
            "Instant::now",
        ] {
            if text.contains(effect) {
                wrong.push(format!("{name}: {effect}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tasks_begin_in_few_places() {
    let allowed = [
        "proxy/src/lib.rs",
        "proxy/src/accept.rs",
        "proxy/src/request/serve.rs",
        "proxy/src/balance/pool.rs",
        "proxy/src/shard.rs",
        "proxy/src/shard/",
        "proxy/src/control/",
        "api/src/process/",
        "identity/src/command.rs",
        "destination/src/command.rs",
        "injector/src/command.rs",
        // Copies outlive their request; their number is bounded.
        "proxy/src/request/mirror.rs",
        // One per thread, for ten milliseconds.
        "proxy/src/net/plain.rs",
        "cli/src/",
    ];
    // `Stop`, `TaskTracker` and `JoinSet` have a `spawn` as well, but wait for what they began.
    let loose = ["tokio::spawn(", "task::spawn(", "spawn_local(", "spawn_blocking("];
    let mut wrong = Vec::new();
    for folder in CRATES.iter().filter(|folder| !["tests", "benches"].contains(folder)) {
        for (name, text) in production(&format!("{folder}/src")) {
            if allowed.iter().any(|place| name.starts_with(place)) {
                continue;
            }
            wrong.extend(loose.iter().filter(|spawn| text.contains(**spawn)).map(|spawn| format!("{name}: {spawn}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sockets_are_made_in_one_file_of_the_proxy() {
    for (name, text) in production("proxy/src") {
        for making in ["TcpStream::connect", "TcpListener::bind", "TcpSocket", "Socket::new", "UdpSocket"] {
            assert!(
                // A program of its own for a pod's lifecycle asks whether the proxy listens.
                name == "proxy/src/net.rs"
                    || name == "proxy/src/pod.rs"
                    || name.starts_with("proxy/src/redirect")
                    || !text.contains(making),
                "{name}: {making}"
            );
        }
    }
}

#[test]
fn nothing_panics_outside_of_tests() {
    let mut wrong = Vec::new();
    for folder in CRATES.iter().filter(|folder| !["tests", "benches"].contains(folder)) {
        for (name, text) in production(&format!("{folder}/src")) {
            for panic in [".unwrap()", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!("] {
                if text.contains(panic) {
                    wrong.push(format!("{name}: {panic}"));
                }
            }
            // What gives memory back to the system has to say so to the allocator and the kernel.
            if text.contains("allow(unsafe_code)") && name != "api/src/process/memory.rs" {
                wrong.push(format!("{name}: unsafe code"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The components share `api` and nothing else; Kubernetes and Linkerd's words stay behind it.
#[test]
fn components_do_not_know_each_other() {
    for (component, allowed) in [
        ("api", &[][..]),
        ("proxy/engine", &[]),
        ("proxy", &["gossamer-api", "gossamer-engine"]),
        ("identity", &["gossamer-api"]),
        ("destination", &["gossamer-api"]),
        ("injector", &["gossamer-api"]),
    ] {
        let text = fs::read_to_string(root().join(component).join("Cargo.toml")).unwrap();
        // Tests may know more.
        let text = text.split("[dev-dependencies]").next().unwrap();
        for line in text.lines().filter(|line| line.starts_with("gossamer-") || line.starts_with("meshctl")) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(allowed.contains(&name), "{component} depends on {name}");
        }
        assert!(component != "proxy" || !text.lines().any(|line| line.starts_with("kube")), "{component}");
    }
}

/// One word for header, metric, log and tap, and `meshctl why` knows each.
#[test]
fn every_reason_is_explained_and_every_explanation_has_a_reason() {
    let text = fs::read_to_string(root().join("proxy/src/error.rs")).unwrap();
    let start = text.find("fn reason(&self)").unwrap();
    let body = &text[start..start + text[start..].find("\n    }\n").unwrap()];
    let word = regex::Regex::new("=> \"([a-z0-9-]+)\"").unwrap();
    let given: BTreeSet<_> = word.captures_iter(body).map(|found| found[1].to_string()).collect();
    let explained: BTreeSet<_> = gossamer_proxy::error::REASONS.iter().map(|(name, ..)| name.to_string()).collect();
    assert!(given.len() > 15, "{given:?}");
    assert_eq!(given, explained);
    for (name, what, remedy) in gossamer_proxy::error::REASONS {
        assert!(what.ends_with('.') && remedy.ends_with(['.', '?']), "{name}");
    }
}

#[test]
fn every_setting_is_documented_once() {
    let mut names = BTreeSet::new();
    for setting in gossamer_api::settings::PROXY {
        assert!(names.insert(setting.name), "{} twice", setting.name);
        assert!(setting.help.len() > 10 && !setting.form.is_empty(), "{}", setting.name);
        assert!(setting.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", setting.name);
    }
    // A setting that no configuration reads does nothing.
    let config = fs::read_to_string(root().join("proxy/src/config.rs")).unwrap();
    for name in names {
        // Services' addresses and names are read by one function.
        let part = ["-addr", "-name"].iter().find_map(|end| name.strip_suffix(end));
        let read = |name: &str| config.contains(&format!("\"{name}\""));
        assert!(read(name) || part.is_some_and(read), "{name} is read by nobody");
    }
}
