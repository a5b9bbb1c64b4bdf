//! The packed executor against transformers: every branch of the families, on float weights.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use logits::{MODELS, checkpoint, max_error, packed, reference};
use offshoot_kernels::{Cpu, Isa, KvCache};
use offshoot_models::{
    LogitRows, NoHooks, PackedExecutor, PackedModel, Recipe, RopeId, Segment, VariantId, chain,
};

/// Keys and values are halves, which err by up to 2^-11 of their size; these random models, whose
/// attention is sharp, make of it up to 1.6e-3 of the greatest logit. A wrong rotation, bias or norm
/// moves logits by tenths of it.
const CLOSE: f32 = 2.5e-3;

/// Logits of all tokens, read in chunks of `chunk`.
fn run(name: &str, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
    packed(checkpoint(name), Cpu::new(isa, threads), &reference(name).tokens, chunk)
}

/// The same of the model quantised to 8 bits, whose inputs have two planes of them.
fn run_at_8_bits(name: &str, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
    let checkpoint = checkpoint(name).quantized(Recipe::Q8_0);
    packed(checkpoint, Cpu::new(isa, threads), &reference(name).tokens, chunk)
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        let error = max_error(&run(name, Isa::best(), 2, 1000), &reference(name).logits);
        let greatest = reference(name).logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        println!("{name}: {:e} of the greatest", error / greatest);
        assert!(error < CLOSE * greatest, "{name}: {error} of {greatest}");
    }
}

#[test]
fn bits_do_not_depend_on_instructions_threads_or_chunks() {
    for name in MODELS {
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for run in [run, run_at_8_bits] {
            let expected = bits(run(name, Isa::PORTABLE, 1, 1000));
            for isa in Isa::available() {
                for (threads, chunk) in [(1, 1), (2, 3), (3, 1000)] {
                    let found = bits(run(name, isa, threads, chunk));
                    assert!(found == expected, "{name} {isa} {chunk}");
                }
            }
        }
    }
}

#[test]
fn nothing_asked_is_nothing_given() {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(checkpoint(MODELS[0])), &cpu, None).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    assert!(executor.step(&model, &mut [], &mut NoHooks).unwrap().is_empty());
    assert!(executor.step_greatest(&model, &mut [], &mut NoHooks).unwrap().is_empty());
    let mut cache = model.new_cache(4);
    let segment = Segment {
        cache: &mut cache,
        tokens: &[1],
        parents: &chain(1),
        positions: &[0],
        rope: RopeId::default(),
        variant: VariantId::default(),
        logits: LogitRows::Last,
    };
    assert_eq!(executor.step_greatest(&model, &mut [segment], &mut NoHooks).unwrap().len(), 1);
    assert!(executor.logits_mut().is_empty(), "logits that no step gave");
}

/// ```text
/// 0 - 1 - 3
///   \ 2 - 4 - 6
/// 5
/// ```
const PARENTS: [Option<u32>; 7] = [None, Some(0), Some(0), Some(1), Some(2), None, Some(4)];
const PATHS: [&[usize]; 3] = [&[0, 1, 3], &[0, 2, 4, 6], &[5]];

#[test]
fn a_row_has_the_bits_of_its_path_alone_in_a_tree_and_beside_another_sequence() {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for name in MODELS {
        let model =
            PackedModel::load(Arc::new(checkpoint(name)), &Cpu::new(Isa::best(), 2), None).unwrap();
        let mut executor = PackedExecutor::new(Cpu::new(Isa::best(), 2), model.config());
        let (text, vocab) = (reference(name).tokens, model.config().vocab_size);
        for cached in [0, 3, 11] {
            let (prefix, rest) = text.split_at(cached);
            let tree = &rest[..PARENTS.len()];
            let depth = |mut row: usize| {
                let mut depth = 0;
                while let Some(parent) = PARENTS[row] {
                    (row, depth) = (parent as usize, depth + 1);
                }
                depth
            };
            let depths: Vec<u32> =
                (0..tree.len()).map(|row| (cached + depth(row)) as u32).collect();
            let mut step = |cache: &mut KvCache, tokens: &[u32], other: Option<&[u32]>| {
                let mut second = model.new_cache(text.len());
                let (start, n) = (cache.len() as u32, tokens.len() as u32);
                let in_tree = other.is_some();
                let (parents, positions) = match in_tree {
                    true => (PARENTS.to_vec(), depths.clone()),
                    false => (chain(tokens.len()), (start..start + n).collect()),
                };
                let mut segments = vec![segment(cache, tokens, &parents, &positions)];
                let beside = other.unwrap_or_default();
                let chained = chain(beside.len());
                let count: Vec<u32> = (0..beside.len() as u32).collect();
                if in_tree {
                    segments.insert(0, segment(&mut second, beside, &chained, &count));
                }
                executor.step(&model, &mut segments, &mut NoHooks).unwrap().to_vec()
            };
            let mut cache = model.new_cache(text.len());
            if cached > 0 {
                step(&mut cache, prefix, None);
                cache.commit_chain(cached);
            }
            let together = step(&mut cache, tree, Some(&text[..9]));
            let (beside, in_tree) = together.split_at(9 * vocab);
            let mut fresh = model.new_cache(text.len());
            assert!(bits(beside) == bits(&step(&mut fresh, &text[..9], None)), "{name}");
            for path in PATHS {
                let mut alone = model.new_cache(text.len());
                let branch: Vec<u32> = path.iter().map(|&row| tree[row]).collect();
                // One token a step, so that the cut into steps is another one too.
                let mut last = Vec::new();
                for token in prefix.iter().chain(&branch) {
                    last = step(&mut alone, &[*token], None);
                    alone.commit_chain(1);
                }
                let row = path[path.len() - 1];
                let ours = &in_tree[row * vocab..(row + 1) * vocab];
                assert!(bits(ours) == bits(&last), "{name}: row {row} behind {cached}");
            }
        }
    }
}

/// Trees of up to 40 nodes that chance grows, of few tokens so that many are equal, behind prefixes of
/// up to 200: every node has the logits of its path alone.
#[test]
fn every_node_of_a_grown_tree_has_the_bits_of_its_path() {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut state = 9u64;
    let mut below = move |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for name in MODELS {
        let model =
            PackedModel::load(Arc::new(checkpoint(name)), &Cpu::new(Isa::best(), 2), None).unwrap();
        let mut executor = PackedExecutor::new(Cpu::new(Isa::best(), 2), model.config());
        let vocab = model.config().vocab_size;
        let longest = model.config().max_position_embeddings.min(240) - 40;
        for (nodes, prefix) in [(40, longest), (17, 0), (29, longest / 3)] {
            let text: Vec<u32> = (0..prefix).map(|_| below(vocab) as u32).collect();
            let mut parents = vec![None];
            parents.extend((1..nodes).map(|row| match below(12) {
                0 => None,
                _ => Some(below(row) as u32),
            }));
            let tokens: Vec<u32> = (0..nodes).map(|_| below(3.min(vocab)) as u32).collect();
            let path = |mut row: usize| {
                let mut path = vec![row];
                while let Some(parent) = parents[row] {
                    row = parent as usize;
                    path.insert(0, row);
                }
                path
            };
            let positions: Vec<u32> =
                (0..nodes).map(|row| (prefix + path(row).len() - 1) as u32).collect();
            let mut cache = model.new_cache(prefix + nodes);
            if prefix > 0 {
                let count: Vec<u32> = (0..prefix as u32).collect();
                let chained = chain(prefix);
                let mut first = [segment(&mut cache, &text, &chained, &count)];
                executor.step(&model, &mut first, &mut NoHooks).unwrap();
                cache.commit_chain(prefix);
            }
            let mut prefix_alone = model.new_cache(prefix + nodes);
            prefix_alone.copy_prefix(&cache, prefix);
            let mut tree = [segment(&mut cache, &tokens, &parents, &positions)];
            let together = executor.step(&model, &mut tree, &mut NoHooks).unwrap().to_vec();
            for row in 0..nodes {
                let path = path(row);
                let branch: Vec<u32> = path.iter().map(|&row| tokens[row]).collect();
                let count: Vec<u32> = (prefix..prefix + path.len()).map(|at| at as u32).collect();
                let mut alone = model.new_cache(prefix + nodes);
                alone.copy_prefix(&prefix_alone, prefix);
                let chained = chain(branch.len());
                let mut chained = [segment(&mut alone, &branch, &chained, &count)];
                let last = executor.step(&model, &mut chained, &mut NoHooks).unwrap();
                let last = &last[(branch.len() - 1) * vocab..];
                let ours = &together[row * vocab..(row + 1) * vocab];
                assert!(bits(ours) == bits(last), "{name}: node {row} of {nodes} behind {prefix}");
            }
        }
    }
}

fn segment<'a>(
    cache: &'a mut KvCache,
    tokens: &'a [u32],
    parents: &'a [Option<u32>],
    positions: &'a [u32],
) -> Segment<'a, KvCache> {
    let (rope, variant) = (RopeId::default(), VariantId::default());
    Segment { cache, tokens, parents, positions, rope, variant, logits: LogitRows::All }
}
