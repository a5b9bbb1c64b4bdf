use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Every id below is a token; this one stands between documents.
const VOCAB: u32 = 4;

/// A shard of `documents` by sorting all suffixes.
fn shard(documents: &[Vec<u32>], width: TokenWidth, stride: usize) -> Shard<Vec<u8>> {
    let text = joined(documents);
    let mut ranks: Vec<u32> = (0..text.len() as u32).collect();
    ranks.sort_by_key(|&at| &text[at as usize..]);
    let mut parts = ShardParts {
        vocab_size: VOCAB,
        width,
        tokens: Vec::new(),
        suffixes: ranks.iter().flat_map(|at| at.to_le_bytes()).collect(),
        buckets: Vec::new(),
        keys: Vec::new(),
        stride,
    };
    text.iter().for_each(|&token| width.push(token, &mut parts.tokens));
    for id in 0..VOCAB + 2 {
        let below = text.iter().filter(|&&token| token < id).count() as u32;
        parts.buckets.extend(below.to_le_bytes());
    }
    for &at in ranks.iter().step_by(stride) {
        for i in 0..SAMPLED_TOKENS {
            let key = text.get(at as usize + i).map_or(0, |token| token + 1);
            parts.keys.extend(key.to_le_bytes());
        }
    }
    Shard::new(parts).unwrap()
}

fn joined(documents: &[Vec<u32>]) -> Vec<u32> {
    documents.iter().flat_map(|d| d.iter().copied().chain([VOCAB])).collect()
}

/// How often `query` stands in the documents.
fn occurrences(documents: &[Vec<u32>], query: &[u32]) -> usize {
    documents.iter().map(|d| d.windows(query.len()).filter(|w| *w == query).count()).sum()
}

fn longest_by_scan(documents: &[Vec<u32>], context: &[u32], options: &RetrieverOptions) -> usize {
    let lengths = (options.shortest..=options.longest.min(context.len())).rev();
    let mut found = lengths.filter(|n| occurrences(documents, &context[context.len() - n..]) > 0);
    found.next().unwrap_or(0)
}

/// The draft by looking at everything: all paths with their probabilities, best first.
fn draft_by_scan(
    documents: &[Vec<u32>],
    context: &[u32],
    options: &RetrieverOptions,
    max_nodes: usize,
) -> Vec<(Vec<u32>, f32)> {
    let len = longest_by_scan(documents, context, options);
    if len == 0 {
        return Vec::new();
    }
    let count = |n: usize, path: &[u32]| {
        let query = [&context[context.len() - n..], path].concat();
        occurrences(documents, &query) as f32
    };
    let mut levels = vec![len];
    let mut n = len;
    while (n / 2).max(options.shortest) != n && levels.len() < options.levels {
        n = (n / 2).max(options.shortest);
        let last = count(*levels.last().unwrap(), &[]);
        if last >= ENOUGH as f32 {
            break;
        }
        if count(n, &[]) > last {
            levels.push(n);
        }
    }
    let estimate = |path: &[u32]| {
        let parent = &path[..path.len() - 1];
        levels.iter().rev().fold(0f32, |shorter, &n| {
            let of = count(n, parent) + options.alpha;
            if of == 0.0 { shorter } else { (count(n, path) + options.alpha * shorter) / of }
        })
    };
    // The paths to look at with their order among equals, and the nodes in the order of the draft.
    let mut open: Vec<(Vec<u32>, f32, usize)> = Vec::new();
    let mut nodes: Vec<(Vec<u32>, f32)> = Vec::new();
    let extend = |open: &mut Vec<(Vec<u32>, f32, usize)>, path: &[u32], pi: f32, parent: usize| {
        for token in 0..VOCAB {
            let path = [path, &[token]].concat();
            let pi = pi * estimate(&path);
            if pi > 0.0 && pi >= options.least && path.len() <= options.depth.max(len) {
                open.push((path, pi, parent));
            }
        }
    };
    extend(&mut open, &[], 1.0, usize::MAX);
    while nodes.len() < max_nodes && !open.is_empty() {
        open.sort_by(|a, b| {
            let rest = |x: &(Vec<u32>, f32, usize)| (x.0.len(), x.2, x.0.last().copied());
            b.1.total_cmp(&a.1).then_with(|| rest(a).cmp(&rest(b)))
        });
        let (path, pi, _) = open.remove(0);
        nodes.push((path.clone(), pi));
        extend(&mut open, &path, pi, nodes.len() - 1);
    }
    nodes
}

/// The path and its probability for each node.
fn paths(nodes: &[DraftNode]) -> Vec<(Vec<u32>, f32)> {
    let mut all: Vec<(Vec<u32>, f32)> = Vec::new();
    for node in nodes {
        let (mut path, pi) = node.parent.map_or((Vec::new(), 1.0), |parent| all[parent].clone());
        path.push(node.token);
        assert_eq!(path.len(), node.depth as usize);
        all.push((path, pi * node.probability));
    }
    all
}

fn drafted(
    context: &[u32],
    shards: &[Shard<Vec<u8>>],
    options: &RetrieverOptions,
    max_nodes: usize,
) -> (Option<Match>, Vec<DraftNode>) {
    let mut out = Vec::new();
    let found = Retriever::new(options.clone()).unwrap();
    let found = { found }.draft(context, shards, max_nodes, &mut out);
    (found, out)
}

/// Options without a budget, so that the draft is exact.
fn unbounded() -> impl Strategy<Value = RetrieverOptions> {
    let alphas = prop_oneof![Just(0.0f32), Just(1.0), Just(2.5)];
    let least = prop_oneof![Just(0.0f32), Just(0.05)];
    (1usize..4, 4usize..20, 1usize..6, alphas, 1usize..4, least).prop_map(
        |(shortest, longest, depth, alpha, levels, least)| RetrieverOptions {
            longest,
            shortest,
            depth,
            alpha,
            levels,
            least,
            probes: usize::MAX,
        },
    )
}

fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0..VOCAB, 0..40), 0..8)
}

fn widths() -> impl Strategy<Value = TokenWidth> {
    prop_oneof![Just(TokenWidth::Two), Just(TokenWidth::Three), Just(TokenWidth::Four)]
}

proptest! {
    #[test]
    fn a_range_holds_exactly_the_suffixes_that_begin_so(
        documents in documents(), query in prop::collection::vec(0..VOCAB, 1..20),
        width in widths(), stride in 1usize..20,
    ) {
        let shard = shard(&documents, width, stride);
        let range = shard.find(&query);
        prop_assert_eq!(range.len(), occurrences(&documents, &query));
        prop_assert_eq!(shard.contains(&query), !range.is_empty());
        for rank in range {
            let got = (0..query.len()).map(|i| shard.token_of(rank, i).unwrap());
            prop_assert_eq!(got.collect::<Vec<_>>(), query.clone());
        }
    }

    #[test]
    fn the_longest_suffix_is_that_of_a_scan(
        documents in documents(), context in prop::collection::vec(0..VOCAB + 1, 0..30),
        options in unbounded(), stride in 1usize..9,
    ) {
        let shards = [shard(&documents, TokenWidth::Two, stride)];
        let got = Retriever::new(options.clone()).unwrap().longest_match(&context, &shards);
        prop_assert_eq!(got.unwrap_or(0), longest_by_scan(&documents, &context, &options));
    }

    #[test]
    fn the_draft_is_that_of_a_scan_and_the_same_over_several_shards(
        documents in documents(), context in prop::collection::vec(0..VOCAB, 0..20),
        options in unbounded(), max_nodes in 0usize..40, cut in 0usize..9, stride in 1usize..9,
    ) {
        let whole = [shard(&documents, TokenWidth::Three, stride)];
        let (found, nodes) = drafted(&context, &whole, &options, max_nodes);
        prop_assert_eq!(paths(&nodes), draft_by_scan(&documents, &context, &options, max_nodes));
        if let Some(found) = found {
            let suffix = &context[context.len() - found.len..];
            prop_assert_eq!(found.count, occurrences(&documents, suffix));
        }
        for (node, (path, _)) in nodes.iter().zip(paths(&nodes)) {
            let suffix = &context[context.len() - node.matched as usize..];
            let query = [suffix, &path[..]].concat();
            prop_assert_eq!(node.support as usize, occurrences(&documents, &query));
        }
        let (left, right) = documents.split_at(cut.min(documents.len()));
        let parts = [left, right, &[]].map(|part| shard(part, TokenWidth::Two, stride));
        prop_assert_eq!(drafted(&context, &parts, &options, max_nodes), (found, nodes));
    }

    #[test]
    fn without_smoothing_the_nodes_are_the_most_frequent_paths(
        documents in documents(), context in prop::collection::vec(0..VOCAB, 2..6),
        max_nodes in 1usize..20,
    ) {
        let options = RetrieverOptions {
            alpha: 0.0, levels: 1, least: 0.0, probes: usize::MAX, depth: 3, longest: 4,
            ..RetrieverOptions::default()
        };
        let shards = [shard(&documents, TokenWidth::Two, 4)];
        let (found, nodes) = drafted(&context, &shards, &options, max_nodes);
        let Some(found) = found else { return Ok(()) };
        let mut counts: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        let suffix = &context[context.len() - found.len..];
        for document in &documents {
            for start in 0..document.len() {
                let rest = &document[start..];
                if let Some(behind) = rest.strip_prefix(suffix) {
                    for n in 1..=behind.len().min(options.depth.max(found.len)) {
                        *counts.entry(behind[..n].to_vec()).or_default() += 1;
                    }
                }
            }
        }
        let mut best: Vec<usize> = counts.values().copied().collect();
        best.sort_unstable_by(|a, b| b.cmp(a));
        best.truncate(max_nodes);
        let mut got: Vec<usize> = nodes.iter().map(|node| node.support as usize).collect();
        got.sort_unstable_by(|a, b| b.cmp(a));
        prop_assert_eq!(got, best);
    }

    #[test]
    fn a_budget_of_probes_shortens_a_draft_and_never_changes_what_it_holds(
        documents in documents(), context in prop::collection::vec(0..VOCAB, 2..20),
        probes in 0usize..200,
    ) {
        let options = RetrieverOptions { probes, least: 0.0, ..RetrieverOptions::default() };
        let shards = [shard(&documents, TokenWidth::Two, 4)];
        let (found, nodes) = drafted(&context, &shards, &options, 64);
        let exact = RetrieverOptions { probes: usize::MAX, ..options };
        let (all, every) = drafted(&context, &shards, &exact, usize::MAX);
        prop_assert_eq!(found, all);
        let every = paths(&every);
        for path in paths(&nodes) {
            prop_assert!(every.contains(&path), "{:?}", path);
        }
    }

    #[test]
    fn bytes_of_any_content_are_searched_to_an_end_and_give_tokens_of_the_vocabulary(
        tokens in prop::collection::vec(0u32..8, 0..64),
        words in prop::collection::vec(0u32..80, 256),
        context in prop::collection::vec(0u32..8, 0..20),
    ) {
        let n = tokens.len();
        let mut words = words.iter().cycle().flat_map(|word| word.to_le_bytes());
        let mut fill = |n: usize| words.by_ref().take(4 * n).collect();
        let mut parts = ShardParts {
            vocab_size: VOCAB,
            width: TokenWidth::Two,
            tokens: Vec::new(),
            suffixes: fill(n),
            buckets: fill(VOCAB as usize + 2),
            keys: fill(SAMPLED_TOKENS * n.div_ceil(5)),
            stride: 5,
        };
        tokens.iter().for_each(|&token| TokenWidth::Two.push(token, &mut parts.tokens));
        let shards = [Shard::new(parts).unwrap()];
        let (_, nodes) = drafted(&context, &shards, &RetrieverOptions::default(), 64);
        prop_assert!(nodes.len() <= 64);
        prop_assert!(nodes.iter().all(|node| node.token < VOCAB));
    }
}

#[test]
fn special_texts_are_searched_like_others() {
    let mut fibonacci = (vec![0], vec![0, 1]);
    for _ in 0..8 {
        fibonacci = (fibonacci.1.clone(), [fibonacci.1, fibonacci.0].concat());
    }
    let texts = [vec![], vec![3], vec![3; 50], [0, 1, 2].repeat(20), fibonacci.1];
    let options = RetrieverOptions { probes: usize::MAX, ..RetrieverOptions::default() };
    for text in texts {
        let documents = [text.clone()];
        let shards = [shard(&documents, TokenWidth::Four, 7)];
        for end in 0..=text.len() {
            let (_, nodes) = drafted(&text[..end], &shards, &options, 9);
            let expected = draft_by_scan(&documents, &text[..end], &options, 9);
            assert_eq!(paths(&nodes), expected, "{:?}", &text[..end]);
        }
    }
}

#[test]
fn a_seldom_seen_suffix_is_followed_down_and_a_shorter_one_adds_to_it() {
    let documents = [vec![0, 1, 2, 3, 0, 0, 1], vec![3, 2, 1], vec![3, 2, 2], vec![2, 2, 2, 2, 3]];
    let shards = [shard(&documents, TokenWidth::Two, 4)];
    let options = RetrieverOptions { shortest: 1, least: 0.1, ..RetrieverOptions::default() };
    let (found, nodes) = drafted(&[3, 0, 1, 2], &shards, &options, 6);
    assert_eq!(found, Some(Match { len: 3, count: 1 }));
    assert_eq!((nodes[0].token, nodes[0].support, nodes[0].matched), (3, 1, 3));
    let other = nodes.iter().find(|node| node.depth == 1 && node.token == 2).unwrap();
    assert_eq!((other.support, other.matched), (4, 1));
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let sound = shard(&[vec![0, 1]], TokenWidth::Two, 4).parts().clone();
    assert_eq!(Shard::new(sound.clone()).unwrap().len(), 3);
    type Break = fn(&mut ShardParts<Vec<u8>>);
    let breaks: [(&str, Break); 6] = [
        ("tokens", |p| p.tokens.push(0)),
        ("suffixes", |p| p.suffixes.truncate(4)),
        ("buckets", |p| p.buckets.push(0)),
        ("keys", |p| p.keys.clear()),
        ("stride", |p| p.stride = 0),
        ("vocabulary", |p| p.vocab_size = u32::MAX),
    ];
    for (part, change) in breaks {
        let mut parts = sound.clone();
        change(&mut parts);
        let error = Shard::new(parts).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the shard's {part}: ")), "{error}");
    }
}

#[test]
fn options_out_of_bounds_are_named() {
    assert_eq!(RetrieverOptions::default().validate(), Ok(()));
    let refused = |options: RetrieverOptions, field: &str| {
        let error = options.validate().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field} is ")), "{error}");
    };
    let d = RetrieverOptions::default;
    refused(RetrieverOptions { longest: 0, ..d() }, "longest");
    refused(RetrieverOptions { shortest: 17, ..d() }, "shortest");
    refused(RetrieverOptions { depth: 0, ..d() }, "depth");
    refused(RetrieverOptions { alpha: f32::NAN, ..d() }, "alpha");
    refused(RetrieverOptions { levels: 9, ..d() }, "levels");
    refused(RetrieverOptions { least: 1.5, ..d() }, "least");
}
