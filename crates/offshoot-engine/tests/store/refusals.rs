//! Servers that refuse, ask for patience, fail or fall silent.

use crate::bench::*;
use crate::server::{Answer, Server};
use offshoot_engine::store::{StoreError, StoreErrorKind};
use std::time::{Duration, Instant};

fn error_of(answer: Answer, name: &str, token: bool) -> (StoreError, usize) {
    let hub = Server::start(move |_, _| answer.clone());
    let bench = Bench::new(&hub.url());
    let bench = if token { bench.with_token() } else { bench };
    let error = resolve(&bench.hub_store_of(b"abc"), name).unwrap_err();
    (error, hub.seen().len())
}

#[test]
fn a_401_without_a_token_says_to_set_one() {
    let (error, requests) = error_of(Answer::status(401), "tiny", false);
    assert_eq!(error.kind(), StoreErrorKind::Denied);
    assert!(error.to_string().contains("set HF_TOKEN"), "{error}");
    assert_eq!(requests, 1);
}

#[test]
fn a_gated_403_with_a_token_says_where_to_accept_the_licence() {
    let gated = Answer::status(403).with("x-error-code", "GatedRepo");
    let (error, requests) = error_of(gated, "hf:org/repo", true);
    assert_eq!(error.kind(), StoreErrorKind::Denied);
    assert!(error.to_string().contains("accept the model's licence at http://"), "{error}");
    assert!(error.to_string().contains("/org/repo"), "{error}");
    assert_eq!(requests, 1);
}

#[test]
fn the_token_never_shows_in_an_error() {
    for status in [401, 403, 404, 418] {
        let (error, _) = error_of(Answer::status(status), "tiny", true);
        assert!(!format!("{error} {error:?}").contains("hf_test"), "{error:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let (error, _) = error_of(Answer::status(404), "tiny", false);
    assert_eq!(error.kind(), StoreErrorKind::NotFound);
    assert!(error.to_string().contains("tiny.gguf in org/repo at main"), "{error}");
    let (error, _) = error_of(Answer::status(404), "hf:org/repo@v9", false);
    assert!(error.to_string().contains("org/repo at revision v9"), "{error}");
    // The hub answers 401 for what does not exist, and says so in a header.
    let unknown = Answer::status(401).with("x-error-code", "RepoNotFound");
    let (error, _) = error_of(unknown, "hf:org/repo", false);
    assert_eq!(error.kind(), StoreErrorKind::NotFound);
}

#[test]
fn a_429_is_waited_out() {
    let bytes = model_bytes(1000);
    let body = bytes.clone();
    let hub = Server::start(move |request, number| match number {
        0 => Answer::status(429).with("retry-after", "1"),
        _ => Answer::ranged(request, &body),
    });
    let bench = Bench::new(&hub.url());
    let (recorder, begun) = (Recorder::default(), Instant::now());
    let store = bench.hub_store_of(&bytes);
    let found = store.pull(&"tiny".parse().unwrap(), &recorder).unwrap();
    assert_holds(&found.path, &bytes);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(recorder.saw("Retry"));
}

#[test]
fn a_429_that_asks_for_too_long_or_never_ends_is_an_error() {
    let (error, requests) =
        error_of(Answer::status(429).with("retry-after", "3600"), "tiny", false);
    assert!(error.to_string().contains("3600 s"), "{error}");
    assert_eq!(requests, 1);
    let (error, requests) = error_of(Answer::status(429), "tiny", false);
    assert!(matches!(error, StoreError::RateLimited { .. }), "{error}");
    assert_eq!(requests, 4, "one try and three more");
}

#[test]
fn a_failing_server_is_asked_a_bounded_number_of_times() {
    for answer in [Answer::status(503), Answer::ok(b"abc").cut_after(0)] {
        let (error, requests) = error_of(answer, "tiny", false);
        assert_eq!(error.kind(), StoreErrorKind::Network, "{error}");
        assert_eq!(requests, 4, "one try and three more");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let hub = Server::start(|_, _| Answer { stall: Duration::from_secs(3), ..Answer::ok(b"abc") });
    let mut bench = Bench::new(&hub.url());
    bench.config.limits.idle = Duration::from_millis(100);
    bench.config.limits.retries = 1;
    let begun = Instant::now();
    let error = resolve(&bench.hub_store_of(b"abc"), "tiny").unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Network, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn an_unreachable_server_is_not_insisted_on() {
    // Nothing listens on port 1, and no other test can be given it; RFC 2606 reserves `.invalid`
    // so that no such name resolves.
    for gone in ["http://127.0.0.1:1", "http://hub.invalid"] {
        let bench = Bench::new(gone);
        let recorder = Recorder::default();
        let store = bench.hub_store_of(b"abc");
        let error = store.pull(&"tiny".parse().unwrap(), &recorder).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Network, "{error}");
        assert!(error.to_string().contains(gone), "{error}");
        assert!(!recorder.saw("Retry"), "{gone}");
    }
}

#[test]
fn a_listing_that_is_not_one_is_an_error() {
    for body in ["<html>", "{}", "[{\"type\":1}]", ""] {
        let (error, _) = error_of(Answer::ok(body.as_bytes()), "hf:org/repo", false);
        assert!(error.to_string().contains("list of files"), "{body}: {error}");
    }
}
