//! A watched folder of the same YAML objects that Kubernetes takes.
//!
//! The folder is looked at twice a second: that costs a few system calls, works on every file system (bind mounts,
//! network shares, the symbolic links of a ConfigMap), and is faster than a human who saves and looks.
//!
//! **Invariant:** what is wrong never takes effect, not even in part: the last good state of its file stays.

use crate::registry::{Change, Origin, Registry};
use gossamer_api::kubernetes::{InvalidObject, Key, parse_yaml};
use gossamer_api::process::stop::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

/// A folder (with folders in it) or a single file.
pub struct Files {
    root: PathBuf,
    registry: Registry,
    seen: BTreeMap<PathBuf, Seen>,
    /// Said once.
    unreadable: bool,
}

#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    /// Of what was read.
    digest: u64,
    /// Another change would have another stamp.
    settled: bool,
    keys: BTreeSet<Key>,
}

/// What changes when a file changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Stamp {
    /// False for a file that was changed a moment ago: changed again, to as many bytes, it may get the same stamp.
    fn is_settled(&self) -> bool {
        let since = SystemTime::now().duration_since(self.modified).unwrap_or_else(|ahead| ahead.duration());
        since > GRANULARITY
    }
}

impl Files {
    /// Nothing is read yet.
    pub fn new(root: impl Into<PathBuf>, registry: Registry) -> Self {
        Files { root: root.into(), registry, seen: BTreeMap::new(), unreadable: false }
    }

    /// Looks until the process stops.
    pub async fn watch(mut self, stop: Stop) {
        loop {
            // Reading some small files blocks for less than handing them to another thread would take.
            for problem in self.look() {
                tracing::error!("{problem}");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.stopping() => return,
            }
        }
    }

    /// Takes what has changed since the last time. Gives what is wrong, as `FILE:LINE: FIELD: WHAT`.
    pub fn look(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut found = BTreeMap::new();
        match list(&self.root, 0, &mut found) {
            Ok(()) => self.unreadable = false,
            Err(error) => {
                // Gone for a moment, or for good: what is known stays.
                if !self.unreadable {
                    problems.push(format!("{}: {error}; what was read before stays in force", self.root.display()));
                }
                self.unreadable = true;
                return problems;
            }
        }
        for (path, stamp) in &found {
            let seen = self.seen.entry(path.clone()).or_default();
            if seen.stamp == Some(*stamp) && seen.settled {
                continue;
            }
            // Before it is read, so that a change meanwhile is not taken for settled.
            let settled = stamp.is_settled();
            let text = read(path);
            let digest = digest(&text);
            if seen.stamp.replace(*stamp).is_some() && seen.digest == digest {
                seen.settled = settled;
                continue;
            }
            (seen.digest, seen.settled) = (digest, settled);
            match text.and_then(|text| parse(&text)) {
                Ok(objects) => {
                    let keys: BTreeSet<_> = objects.iter().map(|object| object.key()).collect();
                    let gone = seen.keys.difference(&keys).cloned().map(Change::Delete);
                    // One step for who asks: no moment between an old and a new name.
                    let changes: Vec<_> = gone.chain(objects.into_iter().map(Change::Apply)).collect();
                    seen.keys = keys;
                    tracing::info!(file = %path.display(), objects = seen.keys.len(), "read");
                    self.registry.change(&Origin::File(path.clone()), changes);
                }
                Err(errors) => {
                    let state = if seen.keys.is_empty() {
                        "nothing of it is in force"
                    } else {
                        "its last good state stays in force"
                    };
                    problems.extend(errors.iter().map(|error| format!("{}:{error} ({state})", path.display())));
                }
            }
        }
        let gone: Vec<_> = self.seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        for path in gone {
            let keys = self.seen.remove(&path).map(|seen| seen.keys).unwrap_or_default();
            self.registry.change(&Origin::File(path), keys.into_iter().map(Change::Delete));
        }
        problems
    }
}

fn read(path: &Path) -> Result<String, Vec<InvalidObject>> {
    let wrong = |reason: String| vec![InvalidObject { line: 1, field: String::new(), reason }];
    let bytes = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > MAX_BYTES {
        return Err(wrong(format!("has {bytes} bytes; the limit is {MAX_BYTES}")));
    }
    fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}

fn parse(text: &str) -> Result<Vec<gossamer_api::kubernetes::Object>, Vec<InvalidObject>> {
    Ok(parse_yaml(text)?.into_iter().map(|(_, object)| object).collect())
}

/// Says whether it is the same as the last time.
fn digest(text: &Result<String, Vec<InvalidObject>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match text {
        Ok(text) => text.hash(&mut hasher),
        Err(errors) => errors.iter().for_each(|error| error.reason.hash(&mut hasher)),
    }
    hasher.finish()
}

/// All YAML and JSON files, also in folders below; hidden ones are left out, editors make them.
fn list(path: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        if let Some(stamp) = stamp(&metadata) {
            found.insert(path.to_path_buf(), stamp);
        }
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        if hidden || found.len() >= MAX_FILES {
            continue;
        }
        // One that vanishes between listing and looking is as good as not there.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && depth < MAX_DEPTH => list(&path, depth + 1, found)?,
            Ok(metadata) if metadata.is_file() && yaml => {
                found.extend(stamp(&metadata).map(|stamp| (path, stamp)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn stamp(metadata: &fs::Metadata) -> Option<Stamp> {
    Some(Stamp {
        modified: metadata.modified().ok()?,
        bytes: metadata.len(),
        #[cfg(unix)]
        inode: std::os::unix::fs::MetadataExt::ino(metadata),
    })
}

/// Faster than a human who saves and looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// The coarsest of file systems (FAT) count changes in steps of two seconds; others in those of the kernel's clock.
const GRANULARITY: Duration = Duration::from_secs(2);
/// A file of 4 MiB holds some 5,000 objects.
const MAX_BYTES: u64 = 4 << 20;
/// Beyond that a folder is not configuration.
const MAX_FILES: usize = 10_000;
/// Folders in folders.
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Cluster;

    fn service(name: &str, port: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{{port: {port}}}]\n"
        )
    }

    #[test]
    fn a_wrong_file_keeps_its_last_good_state() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::new(Cluster::default(), None);
        let mut files = Files::new(folder.path(), registry.clone());
        let path = folder.path().join("web.yaml");
        let services = || registry.read(|index| index.len().0);

        fs::write(&path, service("web", "80")).unwrap();
        assert!(files.look().is_empty());
        assert_eq!(services(), 1);

        fs::write(&path, service("web", "eighty")).unwrap();
        let problems = files.look();
        assert_eq!(problems.len(), 1);
        let place = format!("{}:6: spec.ports[0].port: ", path.display());
        assert!(problems[0].starts_with(&place), "{}", problems[0]);
        assert_eq!(services(), 1);
        assert!(files.look().is_empty(), "said once");

        fs::write(&path, service("shop", "8080")).unwrap();
        assert!(files.look().is_empty());
        assert!(registry.read(|index| index.address_of("web", "default")).is_none());
        assert!(registry.read(|index| index.address_of("shop", "default")).is_some());

        fs::remove_file(&path).unwrap();
        files.look();
        assert_eq!(services(), 0);
    }

    #[test]
    fn a_change_within_one_tick_of_the_clock_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::new(Cluster::default(), None);
        let mut files = Files::new(folder.path(), registry.clone());
        let path = folder.path().join("objects.yaml");
        let tick = SystemTime::now();
        for name in ["one", "two", "six"] {
            fs::write(&path, service(name, "80")).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(tick).unwrap();
            assert!(files.look().is_empty());
            assert!(registry.read(|index| index.address_of(name, "default")).is_some(), "{name}");
        }
        assert_eq!(registry.read(|index| index.len().0), 1);
    }

    #[test]
    fn the_same_object_in_two_files_survives_one() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::new(Cluster::default(), None);
        let mut files = Files::new(folder.path(), registry.clone());
        for name in ["a.yaml", "b.yaml"] {
            fs::write(folder.path().join(name), service("web", "80")).unwrap();
        }
        files.look();
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        files.look();
        assert_eq!(registry.read(|index| index.len().0), 1);
    }
}
