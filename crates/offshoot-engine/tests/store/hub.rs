//! Downloads from a hub: redirects, resuming, and what happens to the bytes.

use crate::bench::*;
use crate::server::{Answer, Request, Server};
use offshoot_engine::store::{EntryState, ModelRef, Origin, StoreError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const RESOLVE: &str = "/org/repo/resolve/main/tiny.gguf";
const TREE: &str = "/api/models/org/repo/tree/main?recursive=true";

fn is_download(request: &Request) -> bool {
    request.path.contains("/resolve/") || request.path.starts_with("/blob")
}

#[test]
fn a_redirect_to_another_host_is_followed_without_the_token() {
    let bytes = model_bytes(300_000);
    let body = bytes.clone();
    let cdn = Server::start(move |request, _| Answer::ranged(request, &body));
    let target = format!("{}/blob?X-Signature=secret", cdn.url());
    let listing = tree(&[(FILE, &bytes)]);
    let hub = Server::start(move |request, _| match request.path.as_str() {
        TREE => Answer::ok(&listing),
        RESOLVE => Answer::redirect("/moved/here"),
        "/moved/here" => Answer::redirect(&target).with("x-repo-commit", "c0ffee"),
        _ => Answer::status(404),
    });
    let bench = Bench::new(&hub.url()).with_token();
    let found = resolve(&bench.store(), FILE_REF).unwrap();
    assert_holds(&found.path, &bytes);
    assert_eq!((found.origin, found.sha256), (Origin::Store, Some(sha256(&bytes))));
    for request in hub.seen() {
        assert_eq!(request.header("authorization"), Some("Bearer hf_test"), "{}", request.path);
    }
    assert_eq!(cdn.seen().len(), 1);
    assert_eq!(cdn.seen()[0].header("authorization"), None);
    let EntryState::Ready { manifest, .. } = bench.store().show(FILE_REF).unwrap().state else {
        panic!("not ready");
    };
    assert_eq!(manifest.source, "hf:org/repo/tiny.gguf@c0ffee");
}

#[test]
fn endless_redirects_end() {
    let hub = Server::start(|_, _| Answer::redirect("/again"));
    let error = resolve(&Bench::new(&hub.url()).hub_store_of(b"abc"), "tiny").unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(hub.seen().len() < 12);
}

#[test]
fn a_cut_connection_is_continued_where_it_broke() {
    let bytes = model_bytes(900_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, number| match number {
        0 | 1 => Answer::ranged(request, &body).cut_after(200_000),
        _ => Answer::ranged(request, &body),
    });
    let bench = Bench::new(&hub.url());
    let found = resolve(&bench.hub_store_of(&bytes), "tiny").unwrap();
    assert_holds(&found.path, &bytes);
    let starts: Vec<_> = hub.seen().iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(200_000), Some(400_000)]);
}

#[test]
fn a_pull_that_failed_is_continued_by_the_next_one() {
    let bytes = model_bytes(500_000);
    let body = bytes.clone();
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let hub = Server::start(move |request, number| match is_broken.load(Ordering::SeqCst) {
        true if number == 0 => Answer::ranged(request, &body).cut_after(123_456),
        true => Answer::status(500),
        false => Answer::ranged(request, &body),
    });
    let bench = Bench::new(&hub.url());
    let error = resolve(&bench.hub_store_of(&bytes), "tiny").unwrap_err();
    assert!(matches!(error, StoreError::Network { .. }), "{error}");
    let store = bench.hub_store_of(&bytes);
    bench.assert_nothing_ready(&store);
    assert_eq!(std::fs::metadata(bench.partial()).unwrap().len(), 123_456);
    broken.store(false, Ordering::SeqCst);
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
    assert_eq!(hub.seen().last().unwrap().range_start(), Some(123_456));
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let bytes = model_bytes(300_000);
    let body = bytes.clone();
    let hub = Server::start(move |_, number| match number {
        0 => Answer::ok(&body).cut_after(100_000),
        _ => Answer::ok(&body),
    });
    let bench = Bench::new(&hub.url());
    assert_holds(&resolve(&bench.hub_store_of(&bytes), "tiny").unwrap().path, &bytes);
    assert_eq!(hub.seen()[1].range_start(), Some(100_000));
}

#[test]
fn a_server_that_refuses_or_mistakes_the_range_is_read_from_the_start() {
    let bytes = model_bytes(300_000);
    for mistake in [
        Answer::status(416),
        Answer { status: 206, ..Answer::ok(&bytes[7..]) }
            .with("content-range", "bytes 7-299999/300000"),
        Answer { status: 206, ..Answer::ok(&bytes) },
    ] {
        let body = bytes.clone();
        let hub = Server::start(move |request, number| match number {
            0 => Answer::ok(&body).cut_after(100_000),
            1 => mistake.clone(),
            _ => Answer::ranged(request, &body),
        });
        let bench = Bench::new(&hub.url());
        assert_holds(&resolve(&bench.hub_store_of(&bytes), "tiny").unwrap().path, &bytes);
        assert_eq!(hub.seen().last().unwrap().range_start(), None);
    }
}

#[test]
fn without_a_digest_a_changed_file_is_not_joined_to_the_old_one() {
    let (old, new) = (model_bytes(300_000), vec![7; 250_000]);
    let (first, second) = (old.clone(), new.clone());
    let hub = Server::start(move |request, _| {
        if !is_download(request) {
            return Answer::status(404); // a mirror that serves files and lists nothing
        }
        match request.header("if-range") {
            None => Answer::ok(&first).with("etag", "\"v1\"").cut_after(90_000),
            Some("\"v1\"") => Answer::ok(&second).with("etag", "\"v2\""),
            Some(_) => Answer::status(400),
        }
    });
    let bench = Bench::new(&hub.url());
    let found = resolve(&bench.store(), FILE_REF).unwrap();
    assert_holds(&found.path, &new);
    let downloads: Vec<Request> = hub.seen().into_iter().filter(is_download).collect();
    assert_eq!(downloads[1].range_start(), Some(90_000));
}

#[test]
fn without_a_digest_or_a_strong_etag_nothing_is_continued() {
    let bytes = model_bytes(300_000);
    let body = bytes.clone();
    let count = Mutex::new(0);
    let hub = Server::start(move |request, _| {
        if !is_download(request) {
            return Answer::status(404);
        }
        let mut count = count.lock().unwrap();
        *count += 1;
        let answer = Answer::ranged(request, &body).with("etag", "W/\"weak\"");
        if *count == 1 { answer.cut_after(90_000) } else { answer }
    });
    let bench = Bench::new(&hub.url());
    assert_holds(&resolve(&bench.store(), FILE_REF).unwrap().path, &bytes);
    assert!(hub.seen().iter().all(|r| r.range_start().is_none()));
}

#[test]
fn the_hubs_own_digest_is_checked_when_there_is_no_listing() {
    let hub = Server::start(|request, _| match is_download(request) {
        false => Answer::status(404),
        true => {
            let promised = sha256(b"the real file").to_string();
            Answer::ok(b"another file!").with("x-linked-etag", &format!("\"{promised}\""))
        }
    });
    let bench = Bench::new(&hub.url());
    let error = resolve(&bench.store(), FILE_REF).unwrap_err();
    assert!(matches!(error, StoreError::Verification { .. }), "{error}");
    bench.assert_nothing_ready(&bench.store());
}

#[test]
fn a_wrong_file_of_the_right_size_is_deleted_and_named() {
    let (right, wrong) = (model_bytes(200_000), vec![0; 200_000]);
    let hub = Server::start(move |request, _| Answer::ranged(request, &wrong));
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&right);
    let error = resolve(&store, "tiny").unwrap_err();
    let StoreError::Verification { expected, .. } = &error else { panic!("{error}") };
    assert!(expected.contains(&sha256(&right).to_string()));
    bench.assert_nothing_ready(&store);
    assert_eq!(std::fs::metadata(bench.partial()).unwrap().len(), 0);
}

#[test]
fn a_file_of_the_wrong_size_is_refused_before_it_is_fetched() {
    let right = model_bytes(1000);
    for wrong in [999, 1001] {
        let body = model_bytes(wrong);
        let hub = Server::start(move |request, _| Answer::ranged(request, &body));
        let error = resolve(&Bench::new(&hub.url()).hub_store_of(&right), "tiny").unwrap_err();
        let StoreError::Verification { got, .. } = &error else { panic!("{error}") };
        assert_eq!(got, &format!("{wrong} bytes"));
        assert_eq!(hub.seen().len(), 1);
    }
}

#[test]
fn kept_bytes_that_went_bad_are_fetched_again() {
    let bytes = model_bytes(400_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer::ranged(request, &body));
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&bytes);
    let stopped = store.pull(&"tiny".parse().unwrap(), &Recorder::stopping_at(1)).unwrap_err();
    assert!(matches!(stopped, StoreError::Cancelled), "{stopped}");
    let mut kept = std::fs::read(bench.partial()).unwrap();
    kept[0] ^= 1;
    std::fs::write(bench.partial(), &kept).unwrap();
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
    let starts: Vec<_> = hub.seen().iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(kept.len()), None]);
}

#[test]
fn a_pull_can_be_stopped_and_its_bytes_stay() {
    let bytes = model_bytes(2_000_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer::ranged(request, &body));
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&bytes);
    let error = store.pull(&"tiny".parse().unwrap(), &Recorder::stopping_at(300_000)).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let EntryState::Partial { bytes: kept } = store.show("tiny").unwrap().state else {
        panic!("not partial");
    };
    assert!((300_000..2_000_000).contains(&kept), "{kept}");
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
    assert!(hub.seen()[1].range_start().unwrap() >= 300_000);
}

/// `/dev/full` answers every write with ENOSPC, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_the_pull_and_leaves_no_model() {
    let bytes = model_bytes(300_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer::ranged(request, &body));
    let bench = Bench::new(&hub.url());
    let sources = format!("{HUB_SOURCE},{HUB_SOURCE}");
    let store = bench.store_of(&bytes, &sources);
    std::fs::create_dir_all(bench.partial().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", bench.partial()).unwrap();
    let error = resolve(&store, "tiny").unwrap_err();
    let StoreError::DiskFull { needed, .. } = &error else { panic!("{error}") };
    assert_eq!(*needed, Some(300_000));
    assert!(error.to_string().contains("OFFSHOOT_HOME"), "{error}");
    bench.assert_nothing_ready(&store);
    assert_eq!(hub.seen().len(), 1, "another source cannot mend a full disk");
}

#[test]
fn a_repository_without_a_file_named_gives_its_q4_k_m_and_keeps_it() {
    let (q4, q8) = (model_bytes(1000), model_bytes(2000));
    let listing = tree(&[("a-Q8_0.gguf", &q8), ("a-Q4_K_M.gguf", &q4), ("README.md", b"x")]);
    let body = q4.clone();
    let hub = Server::start(move |request, _| match request.path.as_str() {
        TREE => Answer::ok(&listing),
        "/org/repo/resolve/main/a-Q4_K_M.gguf" => Answer::ranged(request, &body),
        _ => Answer::status(404),
    });
    let bench = Bench::new(&hub.url());
    let found = resolve(&bench.store(), "hf:org/repo").unwrap();
    assert_eq!(found.name, "hf:org/repo/a-Q4_K_M.gguf");
    assert_holds(&found.path, &q4);
    let before = hub.seen().len();
    assert_eq!(resolve(&bench.store(), "hf:org/repo").unwrap(), found);
    assert_eq!(hub.seen().len(), before, "what is here is not asked for again");
}

#[test]
fn files_behind_the_first_page_of_a_listing_are_found() {
    let bytes = model_bytes(1000);
    let (first, body) = (tree(&[("README.md", b"x")]), bytes.clone());
    let last = tree(&[("a-Q4_K_M.gguf", &bytes)]);
    let hub = Server::start(move |request, number| match request.path.as_str() {
        TREE => Answer::ok(&first).with("link", &format!("<{TREE}&cursor=one>; rel=\"next\"")),
        _ if number == 1 => Answer::status(503),
        path if path == format!("{TREE}&cursor=one") => {
            Answer::ok(b"[]").with("link", "<main?cursor=two>; rel=\"next\"")
        }
        "/api/models/org/repo/tree/main?cursor=two" => Answer::ok(&last),
        "/org/repo/resolve/main/a-Q4_K_M.gguf" => Answer::ranged(request, &body),
        _ => Answer::status(404),
    });
    let bench = Bench::new(&hub.url());
    let found = resolve(&bench.store(), "hf:org/repo").unwrap();
    assert_eq!(found.name, "hf:org/repo/a-Q4_K_M.gguf");
    assert_holds(&found.path, &bytes);
    assert_eq!(hub.seen().len(), 5, "a page that failed is asked for again, the others once");
}

#[test]
fn a_listing_without_end_ends() {
    let hub = Server::start(|_, _| Answer::ok(b"[]").with("link", "<main>; rel=\"next\""));
    let error = resolve(&Bench::new(&hub.url()).store(), "hf:org/repo").unwrap_err();
    assert!(error.to_string().contains("pages"), "{error}");
    assert_eq!(hub.seen().len(), 256);
}

#[test]
fn a_repository_with_an_open_choice_lists_it() {
    let listing = tree(&[("a-Q8_0.gguf", b"8"), ("a-Q5_0.gguf", b"5")]);
    let hub = Server::start(move |_, _| Answer::ok(&listing));
    let error = resolve(&Bench::new(&hub.url()).store(), "hf:org/repo").unwrap_err();
    let StoreError::Choice { choices, .. } = &error else { panic!("{error}") };
    assert_eq!(choices, &["a-Q8_0.gguf", "a-Q5_0.gguf"]);
}

#[test]
fn a_revision_and_a_folder_are_part_of_the_address_and_the_name() {
    let bytes = model_bytes(100);
    let (listing, body) = (tree(&[("d/tiny.gguf", &bytes)]), bytes.clone());
    let hub = Server::start(move |request, _| match request.path.as_str() {
        "/api/models/org/repo/tree/refs%2Fpr%2F1?recursive=true" => Answer::ok(&listing),
        "/org/repo/resolve/refs%2Fpr%2F1/d/tiny.gguf" => Answer::ranged(request, &body),
        _ => Answer::status(404),
    });
    let bench = Bench::new(&hub.url());
    let name = "hf:org/repo/d/tiny.gguf@refs/pr/1";
    let found = resolve(&bench.store(), name).unwrap();
    assert_holds(&found.path, &bytes);
    assert_eq!(found.path.file_name().unwrap(), FILE);
    assert_eq!(found.name.parse::<ModelRef>().unwrap(), name.parse().unwrap());
    assert_eq!(bench.store().list().unwrap()[0].name, name);
    bench.store().remove(name).unwrap();
    assert!(bench.store().list().unwrap().is_empty());
}
