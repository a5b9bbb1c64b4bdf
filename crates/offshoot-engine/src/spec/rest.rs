//! A datastore as a drafter.

use std::sync::Arc;

use offshoot_methods::draft::{DraftNode, Guess, Prior, Retriever, RetrieverOptions, TokenTree};

use super::drafter::{Drafter, View};
use super::prior;
use crate::Error;
use crate::datastore::Datastore;

/// Guesses that the text goes on as stored text did.
#[derive(Debug)]
pub struct RestDrafter {
    store: Arc<Datastore>,
    retriever: Retriever,
    found: Vec<DraftNode>,
    /// For each node of the tree the place in `found` that it is, `ROOT` of the root.
    places: Vec<Option<usize>>,
}

impl RestDrafter {
    /// Nodes that a step retrieves, of which the planner takes what pays.
    pub const NODES: u16 = 24;

    /// A drafter from `store`, which must be of the model's tokenizer.
    ///
    /// # Errors
    /// None with the options that are built in.
    pub fn new(store: Arc<Datastore>) -> Result<Self, Error> {
        store.populate_beside();
        let retriever = Retriever::new(RetrieverOptions::default())?;
        Ok(Self { store, retriever, found: Vec::new(), places: Vec::new() })
    }
}

impl Drafter for RestDrafter {
    fn name(&self) -> &'static str {
        "rest"
    }

    fn prior(&self) -> Prior {
        prior::shipped("rest")
    }

    fn begin(&mut self, _: &[u32]) {}

    fn extend(&mut self, _: &[u32]) {}

    fn prepare(&mut self, view: View<'_>) -> Result<(), Error> {
        self.places.clear();
        let nodes = usize::from(Self::NODES);
        self.retriever.draft(view.text, self.store.shards(), nodes, &mut self.found);
        Ok(())
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let place = match tree.parents()[node] {
            None => Some(None),
            Some(parent) => self.place_of(parent as usize, tree.tokens()[node]).map(Some),
        };
        self.places.push(place.flatten());
        let Some(place) = place else { return };
        let children = self.found.iter().filter(|n| n.parent == place);
        out.extend(children.map(|n| Guess {
            token: n.token,
            score: n.probability,
            class: class_of(n.matched as usize + n.depth as usize - 1, n.support),
        }));
    }
}

impl RestDrafter {
    /// The retrieved node that continues tree node `parent` with `token`.
    fn place_of(&self, parent: usize, token: u32) -> Option<usize> {
        let parent = match parent {
            0 => None,
            _ => Some((*self.places.get(parent)?)?),
        };
        self.found.iter().position(|n| n.parent == parent && n.token == token)
    }
}

/// By the length of what was matched so far, and whether more than a few places agree.
fn class_of(matched: usize, support: u32) -> u8 {
    let length = match matched {
        0..=3 => 0,
        4..=6 => 1,
        7..=10 => 2,
        _ => 3,
    };
    2 * length + u8::from(support > 3)
}
