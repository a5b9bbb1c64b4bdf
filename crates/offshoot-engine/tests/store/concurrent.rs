//! Pulls of one model at the same time.

use crate::bench::*;
use crate::server::{Answer, Server};
use offshoot_engine::store::PullPolicy;
use std::time::Duration;

#[test]
fn two_pulls_of_one_model_fetch_it_once() {
    let bytes = model_bytes(500_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| Answer {
        stall: Duration::from_millis(300),
        ..Answer::ranged(request, &body)
    });
    let bench = Bench::new(&hub.url());
    // Locks belong to open files, so two stores stand for two processes.
    let recorders = [Recorder::default(), Recorder::default(), Recorder::default()];
    std::thread::scope(|scope| {
        for recorder in &recorders {
            let (store, bytes) = (bench.hub_store_of(&bytes), &bytes);
            scope.spawn(move || {
                let name = "tiny".parse().unwrap();
                let found = store.resolve(&name, PullPolicy::Allow, recorder).unwrap();
                assert_holds(&found.path, bytes);
            });
        }
    });
    assert_eq!(hub.seen().len(), 1);
    assert_eq!(recorders.iter().filter(|r| r.saw("Waiting")).count(), 2);
}

#[test]
fn when_the_first_pull_fails_the_waiting_one_continues_it() {
    let bytes = model_bytes(500_000);
    let body = bytes.clone();
    let hub = Server::start(move |request, number| match number {
        0 => Answer {
            stall: Duration::from_millis(300),
            ..Answer::ranged(request, &body).cut_after(250_000)
        },
        _ => Answer::ranged(request, &body),
    });
    let mut bench = Bench::new(&hub.url());
    bench.config.limits.retries = 0;
    let results: Vec<bool> = std::thread::scope(|scope| {
        let pull = || resolve(&bench.hub_store_of(&bytes), "tiny").is_ok();
        let threads = [scope.spawn(pull), scope.spawn(pull)];
        threads.map(|t| t.join().unwrap()).to_vec()
    });
    assert_eq!(results.iter().filter(|&&ok| ok).count(), 1);
    assert_eq!(hub.seen()[1].range_start(), Some(250_000));
    assert_holds(&resolve(&bench.hub_store_of(&bytes), "tiny").unwrap().path, &bytes);
}
