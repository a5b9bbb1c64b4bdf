//! Drafting from a store and by heads allocates nothing, once the first drafts have made room.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/stores.rs"]
mod stores;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::alloc::System;
use std::path::Path;

use offshoot_engine::datastore::StoreFile;
use offshoot_engine::{LoadOptions, Model};
use offshoot_kernels::BlockType;
use offshoot_methods::{Retriever, RetrieverOptions};
use offshoot_models::medusa::{Head, HeadMatrix, HeadsFile, MedusaHeads, ResBlock};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

use tiny::{HIDDEN, TOKENS, Tiny};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NODES: usize = 24;

fn count(stats: Stats) -> (usize, usize, usize) {
    (stats.allocations, stats.reallocations, stats.deallocations)
}

/// What drafts from a store allocate, once there was one behind each place.
fn retrieval() -> Stats {
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
    assert!(drafted > 5000, "{drafted}");
    change
}

/// Heads of two blocks over all tokens or some of them, with output matrices of their own or not.
fn heads(own: bool, vocabulary: Option<Vec<u32>>) -> HeadsFile {
    let matrix = |rows: usize, seed: usize| {
        let value = |i: usize| ((i * 37 + seed * 11) % 17) as f32 / 40.0 - 0.2;
        let values: Vec<f32> = (0..rows * HIDDEN).map(value).collect();
        HeadMatrix::new(BlockType::F32, (rows, HIDDEN), &values)
    };
    let block = |k| ResBlock { weight: matrix(HIDDEN, k), bias: matrix(1, k) };
    let head = |k| Head {
        blocks: vec![block(k), block(k + 7)],
        output: own.then(|| matrix(TOKENS.len(), k + 3)),
    };
    HeadsFile { hidden_size: HIDDEN, heads: (0..4).map(head).collect(), vocabulary, card: None }
}

/// What evaluations of `file` allocate behind the first.
fn evaluations(file: &HeadsFile, threads: usize) -> Stats {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, Tiny::qwen2().bytes()).unwrap();
    let options = LoadOptions { threads, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let mut heads = MedusaHeads::new(&cpu, model.packed().unwrap(), file, 8).unwrap();
    let mut state = [0.0; HIDDEN];
    let mut evaluate = |i: usize| {
        state.iter_mut().enumerate().for_each(|(j, s)| *s = ((i * 7 + j * 5) % 13) as f32 - 6.0);
        heads.evaluate(&cpu, &state, 1).unwrap()[0].probability
    };
    let first = evaluate(0);
    let region = Region::new(ALLOCATOR);
    let differ = (1..200).filter(|&i| evaluate(i) != first).count();
    let change = region.change();
    assert!(differ > 10, "{differ}");
    change
}

/// Alone in its program, as tests run side by side.
#[test]
fn a_draft_allocates_nothing() {
    assert_eq!(count(retrieval()), (0, 0, 0), "from a store");
    for threads in [1, 2] {
        for (own, vocabulary) in [(false, None), (true, None), (false, Some(vec![3, 4, 7, 9]))] {
            let about = format!("{threads} threads, own output: {own}, of {vocabulary:?}");
            let stats = evaluations(&heads(own, vocabulary), threads);
            assert_eq!(count(stats), (0, 0, 0), "{about}");
        }
    }
}
