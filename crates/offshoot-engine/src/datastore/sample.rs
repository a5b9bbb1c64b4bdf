//! What drafting from a store takes and gives, measured on text that the store need not hold.

use std::time::{Duration, Instant};

use offshoot_methods::{DraftNode, Retriever};

use super::Datastore;

/// Tokens of context that a draft is given.
const CONTEXT: usize = 64;

/// Drafts at places of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleReport {
    /// Contexts that were looked up.
    pub contexts: usize,
    /// Share of them with a match.
    pub hit_rate: f64,
    /// Tokens matched, mean over the hits.
    pub matched: f64,
    /// Nodes drafted, mean over all.
    pub nodes: f64,
    /// Drafted tokens that the text goes on with, mean over all.
    pub accepted: f64,
    /// What the estimates promised of that.
    pub expected: f64,
    /// Time of a draft that half of the contexts keep.
    pub p50: Duration,
    /// Time of a draft that 95 of 100 contexts keep.
    pub p95: Duration,
    /// The longest time.
    pub longest: Duration,
}

impl Datastore {
    /// Drafts `max_nodes` tokens at `contexts` places of `text`, evenly spread; `None` if the text is
    /// too short to have any. All are drafted once before the clock runs, so that what they touch is
    /// in memory.
    pub fn sample(
        &self,
        retriever: &mut Retriever,
        text: &[u32],
        contexts: usize,
        max_nodes: usize,
    ) -> Option<SampleReport> {
        let places = text.len().checked_sub(1).filter(|&n| n > 0 && contexts > 0)?;
        let contexts = contexts.min(places);
        let ends = (0..contexts).map(|i| 1 + i * places / contexts);
        let context = |end: usize| &text[end.saturating_sub(CONTEXT)..end];
        let mut out = Vec::new();
        for end in ends.clone() {
            retriever.draft(context(end), self.shards(), max_nodes, &mut out);
        }
        let mut times = Vec::with_capacity(contexts);
        let (mut hits, mut matched, mut nodes, mut accepted, mut expected) = (0, 0, 0, 0, 0.0);
        for end in ends {
            let begin = Instant::now();
            let found = retriever.draft(context(end), self.shards(), max_nodes, &mut out);
            times.push(begin.elapsed());
            hits += usize::from(found.is_some());
            matched += found.map_or(0, |found| found.len);
            nodes += out.len();
            accepted += agreed(&out, &text[end..]);
            expected += promised(&out);
        }
        times.sort_unstable();
        let mean = |sum: f64, of: usize| sum / of.max(1) as f64;
        Some(SampleReport {
            contexts,
            hit_rate: mean(hits as f64, contexts),
            matched: mean(matched as f64, hits),
            nodes: mean(nodes as f64, contexts),
            accepted: mean(accepted as f64, contexts),
            expected: mean(expected, contexts),
            p50: times[contexts / 2],
            p95: times[contexts * 95 / 100],
            longest: times[contexts - 1],
        })
    }
}

/// How many tokens `text` goes down the draft.
fn agreed(nodes: &[DraftNode], text: &[u32]) -> usize {
    let mut at = None;
    for (depth, &token) in text.iter().enumerate() {
        let child = nodes.iter().position(|node| node.parent == at && node.token == token);
        match child {
            Some(child) => at = Some(child),
            None => return depth,
        }
    }
    text.len()
}

/// The sum of the paths' probabilities.
fn promised(nodes: &[DraftNode]) -> f64 {
    let mut paths: Vec<f64> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let before = node.parent.map_or(1.0, |parent| paths[parent]);
        paths.push(before * f64::from(node.probability));
    }
    paths.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_followed_down_the_draft_and_paths_are_summed() {
        let node = |parent, token, probability| DraftNode {
            parent,
            token,
            probability,
            support: 1,
            matched: 2,
            depth: 1,
        };
        let nodes = [node(None, 5, 0.5), node(None, 6, 0.25), node(Some(0), 7, 0.5)];
        assert_eq!(agreed(&nodes, &[5, 7, 7]), 2);
        assert_eq!(agreed(&nodes, &[6, 7]), 1);
        assert_eq!(agreed(&nodes, &[7]), 0);
        assert_eq!(agreed(&[], &[7]), 0);
        assert_eq!(promised(&nodes), 1.0);
    }
}
