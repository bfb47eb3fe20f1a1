//! The examples that we ship are taken, without a complaint.

#![allow(clippy::unwrap_used)]

use gossamer_api::kubernetes::parse_yaml;
use gossamer_destination::index::{Cluster, Index};
use std::path::Path;

#[test]
fn examples_are_read_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let objects = parse_yaml(&text).unwrap_or_else(|errors| panic!("{}: {errors:?}", path.display()));
        // Every document is of a kind that the mesh reads.
        assert_eq!(objects.len(), text.split("\n---").count(), "{}", path.display());
        let mut index = Index::new(Cluster::default());
        for (_, object) in objects {
            let key = object.key();
            index.apply(object);
            assert_eq!(index.problems(&key), [] as [String; 0], "{}: {key}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}
