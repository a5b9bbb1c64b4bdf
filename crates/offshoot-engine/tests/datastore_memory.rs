//! Building a datastore takes the memory that it was given, however long the text is.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::alloc::System;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;

use offshoot_engine::datastore::{
    BuildEvent, BuildOptions, Builder, DatastoreError, Libsais, Notes, SuffixSorter,
};
use offshoot_models::TokenizerId;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const VOCAB: u32 = 50_000;
/// Tokens of a document.
const DOCUMENT: u64 = 1000;
/// What may come beside the memory that is given: how often each token comes, 200 kB, room that the
/// sorter asks for whatever the text, 24 kB, a document, and lists that the first build fills.
const BESIDE: i64 = 400 << 10;
/// By how much two builds of the same shards may differ: the names of their files.
const SLACK: i64 = 64 << 10;

fn live_bytes() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

/// The most bytes in use at any moment that was looked at.
#[derive(Default)]
struct Peak(Cell<i64>);

impl Peak {
    fn look(&self) {
        self.0.set(self.0.get().max(live_bytes()));
    }
}

/// Looks when the most is in use: where a shard's tokens, text and suffixes stand side by side.
struct Watched<'p>(&'p Peak);

impl SuffixSorter for Watched<'_> {
    fn name(&self) -> &str {
        Libsais.name()
    }

    fn sort(&self, text: &mut [i32]) -> Result<Vec<u32>, DatastoreError> {
        self.0.look();
        let sorted = Libsais.sort(text)?;
        self.0.look();
        Ok(sorted)
    }
}

/// Builds a store of `tokens` tokens within `memory` bytes: the most that were in use, beside those
/// before, and how many shards it has.
fn built(memory: u64, tokens: u64) -> (i64, usize) {
    let folder = tempfile::tempdir().unwrap();
    let peak = Peak::default();
    let sorter = Watched(&peak);
    let options = BuildOptions {
        folder: folder.path().to_owned(),
        append: false,
        tokenizer: TokenizerId::from_bytes([7; 32]),
        vocab_size: VOCAB,
        memory,
        limit: None,
        notes: Notes {
            built_by: "a test".to_owned(),
            sorter: sorter.name().to_owned(),
            share: None,
            sources: Vec::new(),
        },
    };
    let before = live_bytes();
    let mut look = |_: BuildEvent<'_>| {
        peak.look();
        ControlFlow::Continue(())
    };
    let mut builder = Builder::new(options, &sorter, &mut look).unwrap();
    let mut document = vec![0; DOCUMENT as usize];
    for number in 0..tokens / DOCUMENT {
        for (i, token) in (number * DOCUMENT..).zip(&mut document) {
            *token = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % VOCAB;
        }
        assert!(builder.add(Path::new("d"), &document).unwrap().is_continue());
    }
    let summary = builder.finish().unwrap();
    assert!(summary.tokens >= tokens);
    (peak.0.get() - before, summary.files.len())
}

/// Alone in its program, as tests run side by side.
#[test]
fn a_build_takes_the_memory_that_it_was_given_however_long_the_text_is() {
    const MEMORY: u64 = 4 << 20;
    const TOKENS: u64 = 1_000_000;
    // Threads that take digests, and their queues, come with the first shard.
    built(MEMORY, TOKENS / 10);
    let (once, shards) = built(MEMORY, TOKENS);
    let (fourfold, more) = built(MEMORY, 4 * TOKENS);
    assert!(shards >= 3 && more > 3 * shards, "{shards} and {more} shards");
    let most = MEMORY as i64 + BESIDE;
    assert!(once <= most && fourfold <= most, "{once} and {fourfold} bytes of {most}");
    assert!((fourfold - once).abs() <= SLACK, "{once} bytes, {fourfold} for four times the text");
    // Twice the memory is used, in half as many shards, and no more than that.
    let (twice, fewer) = built(2 * MEMORY, 4 * TOKENS);
    assert!(fewer < more, "{fewer} and {more} shards");
    let grown = twice - fourfold;
    let given = MEMORY as i64;
    assert!((given / 2..=given + SLACK).contains(&grown), "{grown} bytes more for {given} more");
}
