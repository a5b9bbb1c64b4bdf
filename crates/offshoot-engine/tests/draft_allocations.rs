//! Drafting from a store allocates nothing, once the first drafts have made room.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/stores.rs"]
mod stores;

use std::alloc::System;
use std::path::Path;

use offshoot_engine::datastore::StoreFile;
use offshoot_methods::{Retriever, RetrieverOptions};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NODES: usize = 24;

#[test]
fn a_draft_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<u32> = (0..9000u32).map(|i| (i * i / 7 + i / 64) % 9).collect();
    let short = stores::built(folder.path(), 9, &[&text]);
    let file = StoreFile::from_bytes(Path::new("x.store"), stores::expand(&short)).unwrap();
    let shards = [file.shard().clone(), file.shard().clone()];
    let mut retriever = Retriever::new(RetrieverOptions::default()).unwrap();
    let (mut out, mut drafted) = (Vec::with_capacity(NODES), 0);
    let mut all = || {
        for end in (1..text.len()).step_by(31) {
            retriever.draft(&text[..end], &shards, NODES, &mut out);
            drafted += out.len();
        }
    };
    all();
    let region = Region::new(ALLOCATOR);
    all();
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations, change.deallocations), (0, 0, 0));
    assert!(drafted > 5000, "{drafted}");
}
