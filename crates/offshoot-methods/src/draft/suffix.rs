//! The suffix automaton of a growing text: what followed the longest earlier occurrence of its end.
//!
//! Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; as a drafter Hu
//! et al. 2024, SAM Decoding, section 3, <https://arxiv.org/abs/2411.10666>, and Oliaro et al. 2024,
//! SuffixDecoding, <https://arxiv.org/abs/2411.04975>.
//! ```text
//! state = the set of places where a string of the text ends; its edges are the tokens that followed
//! link  = the state of the longest suffix that ends at more places
//! count = how many places those are
//! ```
//! A context is matched by one walk over the edges; where the longest match has no continuation its
//! links lead to shorter ones. Departs from the papers: every state counts its places as the text
//! grows, so that a continuation has a share, as in prediction by partial matching with method D of
//! Howard 1993, "The design and analysis of efficient lossless data compression systems":
//! ```text
//! share(t | v) = left(v) (count(v t) - 1/2) / n(v)      n(v) = sum of the counts behind v
//! left(link v) = left(v) kinds(v) / (2 n(v))            1 of the longest match
//! ```
//! What a share is worth at which length of match is learned by the caller. An update reaches
//! [`COUNT_HOPS`] links, so that a text of one repeated token stays linear.
//!
//! Options: none but how many continuations are asked for; `--spec suffix` asks for 3 behind each
//! node. A match may be of any length from 1 on: SAM Decoding asks for 5 or more, SuffixDecoding
//! for a chance of 0.1, and here the planner takes what pays.
//!
//! Cost: O(1) amortised for each token, about 100 bytes of memory each.
//!
//! | published | | times plain |
//! |---|---|---|
//! | SuffixDecoding, with past outputs | 8B, H100, AgenticSQL | 5.3, at 6.3 tokens a step |
//! | SuffixDecoding, with past outputs | 8B, H100, SWE-Bench | 2.5 |
//! | prompt lookup, its forerunner | Vicuna-7B, A100, Spec-Bench | 1.66, at 1.75 tokens a step |
//!
//! | ours (`bench --spec --arms suffix`, 2 cores, LOG.md 2026-11-24) | | |
//! |---|---|---|
//! | Qwen2.5-Coder 0.5B | copying | 3.43, at 3.88 tokens a step |
//! | Qwen2.5-Coder 0.5B | HumanEval | 1.36, at 1.41 |
//! | SmolLM2 135M | chat | 1.22, at 1.29 |
//!
//! Prompt lookup's numbers are Spec-Bench's (<https://github.com/hemingkx/Spec-Bench>).
//!
//! When not to use it: it guesses hardly anything in text that repeats neither itself nor its
//! prompt, and costs next to nothing there, so that there is seldom a reason to leave it out. What
//! repeats other texts is for [`super::Retriever`].

use std::collections::HashMap;

/// Links that an update of counts follows.
const COUNT_HOPS: usize = 64;
/// Edges of a state that are looked at for continuations.
const EDGES: usize = 64;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct State {
    /// Length of its longest string.
    len: u32,
    link: u32,
    /// The newest of its edges, the head of a list.
    edges: u32,
    /// Places where its strings end, and the last of them.
    count: u32,
    last_end: u32,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    token: u32,
    target: u32,
    next: u32,
}

/// A place in the automaton: a state, and how much of a context it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    state: u32,
    /// Tokens of the context that were matched.
    pub len: u32,
}

/// A token that followed an earlier occurrence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Continuation {
    /// The token.
    pub token: u32,
    /// How many tokens of context it followed on.
    pub len: u32,
    /// Its share of what followed there, half an occurrence off, of what longer matches leave.
    pub share: f32,
}

/// The automaton of all substrings of one text.
#[derive(Debug, Clone)]
pub struct SuffixAutomaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    /// From state and token to the edge.
    index: HashMap<(u32, u32), u32>,
    /// The state of the whole text.
    whole: u32,
    ranked: Vec<(u32, u32, u32)>,
}

impl Default for SuffixAutomaton {
    fn default() -> Self {
        Self::new()
    }
}

impl SuffixAutomaton {
    /// The automaton of the empty text.
    pub fn new() -> Self {
        let mut automaton = Self {
            states: Vec::new(),
            edges: Vec::new(),
            index: HashMap::new(),
            whole: 0,
            ranked: Vec::new(),
        };
        automaton.clear();
        automaton
    }

    /// Forgets the text.
    pub fn clear(&mut self) {
        self.states.clear();
        self.edges.clear();
        self.index.clear();
        self.whole = 0;
        self.states.push(State { len: 0, link: NONE, edges: NONE, count: 0, last_end: 0 });
    }

    /// Tokens of the text.
    pub fn len(&self) -> usize {
        self.states[self.whole as usize].len as usize
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.whole == 0
    }

    /// Appends `token` to the text.
    pub fn push(&mut self, token: u32) {
        let end = self.states[self.whole as usize].len + 1;
        let new = self.add_state(State { len: end, link: 0, edges: NONE, count: 0, last_end: end });
        let mut at = self.whole;
        while at != NONE && !self.index.contains_key(&(at, token)) {
            self.add_edge(at, token, new);
            at = self.states[at as usize].link;
        }
        if at != NONE {
            let next = self.edges[self.index[&(at, token)] as usize].target;
            let len = self.states[at as usize].len + 1;
            let link = if self.states[next as usize].len == len {
                next
            } else {
                self.split(at, token, next, len)
            };
            self.states[new as usize].link = link;
        }
        self.whole = new;
        let mut at = new;
        for _ in 0..COUNT_HOPS {
            if at == 0 {
                break;
            }
            let state = &mut self.states[at as usize];
            state.count += 1;
            state.last_end = end;
            at = state.link;
        }
    }

    /// Gives the strings of `next` up to length `len` a state of their own, where the edges from `at`
    /// and its links then lead.
    fn split(&mut self, mut at: u32, token: u32, next: u32, len: u32) -> u32 {
        let old = self.states[next as usize];
        let copy = self.add_state(State { len, edges: NONE, ..old });
        let mut edge = old.edges;
        while edge != NONE {
            let Edge { token, target, next } = self.edges[edge as usize];
            self.add_edge(copy, token, target);
            edge = next;
        }
        while at != NONE {
            match self.index.get(&(at, token)) {
                Some(&edge) if self.edges[edge as usize].target == next => {
                    self.edges[edge as usize].target = copy;
                }
                _ => break,
            }
            at = self.states[at as usize].link;
        }
        self.states[next as usize].link = copy;
        copy
    }

    fn add_state(&mut self, state: State) -> u32 {
        self.states.push(state);
        self.states.len() as u32 - 1
    }

    fn add_edge(&mut self, from: u32, token: u32, target: u32) {
        let edge = self.edges.len() as u32;
        let state = &mut self.states[from as usize];
        self.edges.push(Edge { token, target, next: state.edges });
        state.edges = edge;
        self.index.insert((from, token), edge);
    }

    /// The longest end of the text that occurs earlier in it.
    pub fn repeated_end(&self) -> Place {
        match self.states[self.whole as usize].link {
            NONE => Place::default(),
            state => Place { state, len: self.states[state as usize].len },
        }
    }

    /// The longest end of `context` and `token` that occurs in the text, where `context` is that of
    /// `at`.
    pub fn step(&self, at: Place, token: u32) -> Place {
        let Place { mut state, mut len } = at;
        loop {
            if let Some(&edge) = self.index.get(&(state, token)) {
                return Place { state: self.edges[edge as usize].target, len: len + 1 };
            }
            state = self.states[state as usize].link;
            if state == NONE {
                return Place::default();
            }
            len = self.states[state as usize].len;
        }
    }

    /// Up to `n` tokens that followed the context of `at`, the most frequent first, then the latest;
    /// shorter contexts fill what longer ones leave. A context of no tokens proposes nothing.
    pub fn continuations(&mut self, at: Place, n: usize, out: &mut Vec<Continuation>) {
        let first = out.len();
        let Place { mut state, mut len } = at;
        let mut left = 1.0;
        while state != 0 && state != NONE && out.len() < first + n {
            self.ranked.clear();
            let mut total = 0;
            let mut edge = self.states[state as usize].edges;
            for _ in 0..EDGES {
                if edge == NONE {
                    break;
                }
                let Edge { token, target, next } = self.edges[edge as usize];
                let State { count, last_end, .. } = self.states[target as usize];
                self.ranked.push((count, last_end, token));
                total += count;
                edge = next;
            }
            self.ranked.sort_unstable_by(|a, b| b.cmp(a));
            for &(count, _, token) in &self.ranked {
                if out.len() < first + n && !out[first..].iter().any(|c| c.token == token) {
                    let share = left * (count as f32 - 0.5).max(0.0) / total as f32;
                    out.push(Continuation { token, len, share });
                }
            }
            left *= 0.5 * self.ranked.len() as f32 / total.max(1) as f32;
            state = self.states[state as usize].link;
            len = self.states.get(state as usize).map_or(0, |s| s.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn automaton(text: &[u32]) -> SuffixAutomaton {
        let mut automaton = SuffixAutomaton::new();
        text.iter().for_each(|&token| automaton.push(token));
        automaton
    }

    /// Where `what` occurs in `text`: the places behind it.
    fn ends(text: &[u32], what: &[u32]) -> Vec<usize> {
        (what.len()..=text.len()).filter(|&end| text[..end].ends_with(what)).collect()
    }

    /// What followed the last `len` tokens of `text`, wherever they stand.
    fn followers(text: &[u32], len: usize) -> Vec<u32> {
        let ends = ends(text, &text[text.len() - len..]);
        ends.iter().filter_map(|&end| text.get(end).copied()).collect()
    }

    /// What the matches longer than `len`, down from `longest`, leave: of each that stands at other
    /// places than the one before, half of its kinds over its occurrences.
    fn left_by_longer(text: &[u32], longest: usize, len: usize) -> f32 {
        let places = |n: usize| ends(text, &text[text.len() - n..]).len();
        let longer = (len + 1..=longest).filter(|&n| n == longest || places(n) > places(n + 1));
        let left = longer.map(|n| {
            let mut kinds = followers(text, n);
            let all = kinds.len();
            kinds.sort_unstable();
            kinds.dedup();
            0.5 * kinds.len() as f32 / all as f32
        });
        left.product()
    }

    /// Texts long enough that the bounds on what is looked at act.
    #[test]
    fn a_long_repetition_is_found_and_its_shares_are_shares() {
        for period in [1, 2, 7, 40] {
            let text: Vec<u32> = (0..400).map(|i| (i % period) * (i % period) % 97).collect();
            let mut automaton = automaton(&text);
            let at = automaton.repeated_end();
            assert_eq!(at.len as usize, 400 - period as usize, "period {period}");
            let mut found = Vec::new();
            automaton.continuations(at, 3, &mut found);
            assert_eq!(found[0].token, text[400 % period as usize], "period {period}");
            let sum: f32 = found.iter().map(|c| c.share).sum();
            assert!(found.iter().all(|c| c.share >= 0.0) && sum <= 1.0, "{found:?}");
        }
        // Many kinds behind one token, more than are looked at.
        let text: Vec<u32> = (0..300).flat_map(|i| [0, 1 + i]).chain([0]).collect();
        let mut automaton = automaton(&text);
        let at = automaton.repeated_end();
        assert_eq!(at.len, 1);
        let mut found = Vec::new();
        automaton.continuations(at, 3, &mut found);
        assert!(found.len() <= 3 && found.iter().map(|c| c.share).sum::<f32>() <= 1.0, "{found:?}");
    }

    proptest! {
        #[test]
        fn the_repeated_end_is_the_longest_that_occurred(
            text in prop::collection::vec(0u32..3, 1..60),
        ) {
            let longest = (0..text.len())
                .rev()
                .find(|&n| ends(&text, &text[text.len() - n..]).len() > 1)
                .unwrap_or(0);
            prop_assert_eq!(automaton(&text).repeated_end().len as usize, longest);
        }

        #[test]
        fn what_was_cleared_leaves_no_trace(
            before in prop::collection::vec(0u32..4, 0..60),
            text in prop::collection::vec(0u32..3, 1..60),
        ) {
            let (mut used, mut fresh) = (automaton(&before), SuffixAutomaton::new());
            used.clear();
            prop_assert!(used.is_empty());
            for &token in &text {
                used.push(token);
                fresh.push(token);
                let mut at = fresh.repeated_end();
                prop_assert_eq!(used.repeated_end(), at);
                // Behind the text and behind what is guessed there.
                for _ in 0..3 {
                    let (mut found, mut expected) = (Vec::new(), Vec::new());
                    used.continuations(at, 3, &mut found);
                    fresh.continuations(at, 3, &mut expected);
                    prop_assert_eq!(&found, &expected);
                    let next = expected.first().map_or(3, |first| first.token);
                    prop_assert_eq!(used.step(at, next), fresh.step(at, next));
                    at = fresh.step(at, next);
                }
            }
            prop_assert_eq!(used.len(), text.len());
        }

        #[test]
        fn a_step_keeps_the_longest_match(
            text in prop::collection::vec(0u32..3, 1..40),
            context in prop::collection::vec(0u32..4, 1..12),
        ) {
            let automaton = automaton(&text);
            let mut at = Place::default();
            for (i, &token) in context.iter().enumerate() {
                at = automaton.step(at, token);
                let longest = (0..=i + 1)
                    .rev()
                    .find(|n| !ends(&text, &context[i + 1 - n..=i]).is_empty())
                    .unwrap_or(0);
                prop_assert_eq!(at.len as usize, longest);
            }
        }

        #[test]
        fn continuations_have_the_shares_that_a_scan_finds(
            text in prop::collection::vec(0u32..3, 1..60),
        ) {
            let mut automaton = automaton(&text);
            let at = automaton.repeated_end();
            let mut found = Vec::new();
            automaton.continuations(at, 3, &mut found);
            for c in &found {
                let context = &text[text.len() - c.len as usize..];
                let mut with = context.to_vec();
                with.push(c.token);
                let followed = followers(&text, c.len as usize).len();
                let of_all = (ends(&text, &with).len() as f32 - 0.5) / followed as f32;
                let expected = of_all * left_by_longer(&text, at.len as usize, c.len as usize);
                prop_assert!((c.share - expected).abs() < 1e-6, "{c:?}: {expected}");
            }
            let mut tokens: Vec<u32> = found.iter().map(|c| c.token).collect();
            tokens.sort_unstable();
            tokens.dedup();
            prop_assert_eq!(tokens.len(), found.len(), "no token twice");
            prop_assert!(found.is_sorted_by(|a, b| a.len >= b.len));
            prop_assert!(found.iter().map(|c| c.share).sum::<f32>() < 1.0);
        }
    }

    #[test]
    fn a_text_of_one_token_stays_linear() {
        let automaton = automaton(&vec![5; 100_000]);
        assert_eq!(automaton.states.len(), 100_001);
        assert_eq!(automaton.repeated_end().len, 99_999);
    }

    #[test]
    fn the_copied_text_goes_on() {
        let mut automaton = automaton(&[1, 2, 3, 4, 5, 9, 2, 3, 4]);
        let mut at = automaton.repeated_end();
        assert_eq!(at.len, 3);
        for expected in [5, 9, 2] {
            let mut found = Vec::new();
            automaton.continuations(at, 1, &mut found);
            assert_eq!(found[0].token, expected);
            at = automaton.step(at, expected);
        }
    }
}
