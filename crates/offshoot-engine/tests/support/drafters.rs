//! What the drafters need of a model of a few kilobytes: a store and heads.

use std::path::Path;
use std::sync::Arc;

use offshoot_engine::datastore::{Datastore, StoreFile};
use offshoot_engine::{Model, Session};
use offshoot_kernels::BlockType;
use offshoot_models::medusa::{Head, HeadMatrix, HeadsFile, MedusaHeads, ResBlock};

use crate::stores;
use crate::tiny::{HIDDEN, TOKENS};

/// A store of a text of the tiny vocabulary.
pub(crate) fn store() -> Arc<Datastore> {
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<u32> = (0..3000u32).map(|i| 3 + (i * i / 7 + i / 64) % 9).collect();
    let short = stores::built(folder.path(), TOKENS.len() as u32, &[&text]);
    let file = StoreFile::from_bytes(Path::new("x.store"), stores::expand(&short)).unwrap();
    Arc::new(Datastore::of(vec![file]).unwrap())
}

/// Heads of the tiny model, as wrong as chance makes them.
pub(crate) fn heads(model: &Model, session: &Session) -> MedusaHeads {
    let values = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 17) as f32 / 40.0 - 0.2).collect()
    };
    let matrix = |shape: (usize, usize), seed| {
        HeadMatrix::new(BlockType::F32, shape, &values(shape.0 * shape.1, seed))
    };
    let head = |k| Head {
        blocks: vec![ResBlock {
            weight: matrix((HIDDEN, HIDDEN), k),
            bias: matrix((1, HIDDEN), k),
        }],
        output: None,
    };
    let heads = (0..3).map(head).collect();
    let file = HeadsFile { hidden_size: HIDDEN, heads, vocabulary: None, card: None };
    MedusaHeads::new(session.cpu(), model.packed().unwrap(), &file, 8).unwrap()
}
