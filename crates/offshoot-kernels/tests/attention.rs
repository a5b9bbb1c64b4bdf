//! Attention and its cache, held against sums over all visible positions and against themselves.

#![allow(clippy::unwrap_used)] // test code

use std::num::NonZeroUsize;

use half::f16;
use offshoot_kernels::{
    Activations, AttentionScratch, Cpu, Forms, HeadNorms, Heads, Isa, KvCache, KvType,
    SequenceRows, attend, rms_norm, rotate,
};
use proptest::prelude::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Positions that a row sees; 0 for all.
    window: usize,
    /// What keys and values are kept as.
    kind: KvType,
}

/// The q, k, v of some tokens; a token's are a function of its number, as in a model.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn rows(shape: Shape, tokens: &[u64]) -> Rows {
    let mut rows = Rows { q: vec![], k: vec![], v: vec![] };
    for &token in tokens {
        let mut random = Random(token * 77 + 5);
        rows.q.extend(random.floats(shape.heads * shape.head_dim).iter().map(|x| x * 4.0));
        rows.k.extend(random.floats(shape.kv_heads * shape.head_dim));
        rows.v.extend(random.floats(shape.kv_heads * shape.head_dim));
    }
    rows
}

/// A sequence's rows in a step.
struct Step<'a> {
    cache: &'a mut KvCache,
    tokens: &'a [u64],
    parents: &'a [Option<u32>],
}

impl SequenceRows for Step<'_> {
    fn cache(&self) -> &KvCache {
        self.cache
    }

    fn cache_mut(&mut self) -> &mut KvCache {
        self.cache
    }

    fn parents(&self) -> &[Option<u32>] {
        self.parents
    }
}

fn run(cpu: &Cpu, shape: Shape, steps: &mut [Step<'_>]) -> Vec<Vec<f32>> {
    let tokens: Vec<u64> = steps.iter().flat_map(|s| s.tokens.iter().copied()).collect();
    let r = rows(shape, &tokens);
    let scale = (shape.head_dim as f32).powf(-0.5);
    let half = tokens.len() * (shape.head_dim / 2);
    let (cos, sin) = (vec![1.0; half], vec![0.0; half]);
    let heads = Heads {
        q: &r.q,
        k: &r.k,
        v: &r.v,
        heads: shape.heads,
        scale,
        window: NonZeroUsize::new(shape.window),
        norms: None,
        cos: &cos,
        sin: &sin,
    };
    let mut out = Activations::new();
    let to = (Forms::default(), &mut out);
    attend(cpu, 1, steps, heads, &mut AttentionScratch::new(), to);
    out.x().chunks_exact(shape.heads * shape.head_dim).map(<[f32]>::to_vec).collect()
}

/// One sequence's step.
fn run_one(
    cpu: &Cpu,
    shape: Shape,
    cache: &mut KvCache,
    tokens: &[u64],
    parents: &[Option<u32>],
) -> Vec<Vec<f32>> {
    run(cpu, shape, &mut [Step { cache, tokens, parents }])
}

fn chain(n: usize) -> Vec<Option<u32>> {
    (0..n).map(|i| i.checked_sub(1).map(|p| p as u32)).collect()
}

fn cache(shape: Shape, room: usize) -> KvCache {
    KvCache::typed(shape.kind, 2, shape.kv_heads, shape.head_dim, room)
}

/// The result for the last token of `path`, summed in double precision over rows as they are kept.
fn brute_force(shape: Shape, path: &[u64]) -> Vec<f64> {
    let r = rows(shape, path);
    let (hd, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let kept = |x: f32| match shape.kind {
        KvType::Half => f64::from(f16::from_f32(x).to_f32()),
        KvType::Single => f64::from(x),
    };
    let mut out = vec![];
    for head in 0..shape.heads {
        let q = &r.q[((path.len() - 1) * shape.heads + head) * hd..][..hd];
        let at = |p: usize| (p * shape.kv_heads + head / group) * hd;
        let first = if shape.window == 0 { 0 } else { path.len().saturating_sub(shape.window) };
        let scores: Vec<f64> = (first..path.len())
            .map(|p| {
                let k = &r.k[at(p)..][..hd];
                let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * kept(*k)).sum();
                dot * (hd as f64).powf(-0.5)
            })
            .collect();
        let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = scores.iter().map(|s| (s - m).exp()).collect();
        let l: f64 = e.iter().sum();
        for d in 0..hd {
            let at = |p: usize| kept(r.v[at(first + p) + d]);
            out.push(e.iter().enumerate().map(|(p, e)| e / l * at(p)).sum());
        }
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn shapes() -> impl Strategy<Value = Shape> {
    let widths = prop::sample::select(vec![12, 16, 24, 32, 48, 64, 80, 128]);
    // Half of them without a window; others shorter than a block, than a chunk, and longer.
    let windows = prop_oneof![3 => Just(0), 1 => 1usize..20, 1 => 20usize..128, 1 => 128usize..400];
    let kinds = prop::sample::select(vec![KvType::Half, KvType::Single]);
    (1usize..4, 1usize..8, widths, windows, kinds).prop_map(
        |(kv_heads, group, head_dim, window, kind)| Shape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            window,
            kind,
        },
    )
}

/// As many cases, or as few as PROPTEST_CASES asks for where an emulator is slow.
fn cases(n: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.min(n), ..config }
}

proptest! {
    #![proptest_config(cases(48))]

    /// A tree's node sees exactly its path, and gets the bits that decoding the path token by token
    /// gives, on every instruction set and any number of threads.
    #[test]
    fn a_tree_node_equals_its_path(
        seed in any::<u32>(),
        shape in shapes(),
        prefix in 0usize..300,
        nodes in prop_oneof![9 => 1usize..24, 1 => 120usize..200],
        threads in 1usize..4,
    ) {
        let mut random = Random(u64::from(seed));
        let prefix: Vec<u64> = (0..prefix as u64).map(|i| i + 1000 * u64::from(seed % 7)).collect();
        let tokens: Vec<u64> = (0..nodes).map(|_| 10_000 + random.next() % 500).collect();
        let parents: Vec<Option<u32>> = (0..nodes)
            .map(|i| {
                // Mostly chains, so that long paths occur; sometimes a new root.
                match random.next() % 8 {
                    _ if i == 0 => None,
                    0 => None,
                    1 | 2 => Some((random.next() % i as u64) as u32),
                    _ => Some(i as u32 - 1),
                }
            })
            .collect();
        let oracle = Cpu::new(Isa::PORTABLE, 1);
        let mut expected = None;
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, threads);
            let mut c = cache(shape, prefix.len() + nodes);
            if !prefix.is_empty() {
                run_one(&cpu, shape, &mut c, &prefix, &chain(prefix.len()));
                c.commit(&(0..prefix.len()).collect::<Vec<_>>());
            }
            let got = run_one(&cpu, shape, &mut c, &tokens, &parents);
            let all: Vec<Vec<u32>> = got.iter().map(|x| bits(x)).collect();
            prop_assert_eq!(expected.get_or_insert_with(|| all.clone()), &all, "{}", isa);
            if isa != Isa::best() {
                continue;
            }
            let node = (seed as usize) % nodes;
            let mut path = vec![node];
            while let Some(parent) = parents[path[path.len() - 1]] {
                path.push(parent as usize);
            }
            path.reverse();
            // The path by itself, one token a step, on the portable lanes.
            let mut plain = cache(shape, prefix.len() + nodes);
            plain.copy_prefix(&c, prefix.len());
            let mut last = vec![];
            for &i in &path {
                last = run_one(&oracle, shape, &mut plain, &[tokens[i]], &[None]).remove(0);
                plain.commit(&[0]);
            }
            prop_assert_eq!(bits(&last), all[node].clone());
            let whole: Vec<u64> =
                prefix.iter().copied().chain(path.iter().map(|&i| tokens[i])).collect();
            for (x, y) in last.iter().zip(brute_force(shape, &whole)) {
                prop_assert!((f64::from(*x) - y).abs() < 2e-5, "{} for {}", x, y);
            }
            // Committing the path leaves the very cache that decoding it does.
            c.commit(&path);
            prop_assert_eq!(c.len(), plain.len());
            for position in 0..c.len() {
                for head in 0..shape.kv_heads {
                    prop_assert_eq!(c.read(1, head, position), plain.read(1, head, position));
                }
            }
        }
    }

    /// A sequence's bits do not depend on its neighbours in the step or on how a prompt is cut, nor on
    /// whether its cache keeps them.
    #[test]
    fn neighbours_and_chunks_do_not_matter(
        shape in shapes(),
        lengths in prop::collection::vec(1usize..150, 1..6),
        cut in 1usize..150,
        threads in 1usize..4,
    ) {
        let cpu = Cpu::new(Isa::best(), threads);
        let prompts: Vec<Vec<u64>> = lengths
            .iter()
            .enumerate()
            .map(|(s, &n)| (0..n as u64).map(|i| 1000 * s as u64 + i).collect())
            .collect();
        let alone: Vec<Vec<Vec<u32>>> = prompts
            .iter()
            .map(|p| {
                let mut c = cache(shape, p.len());
                let mut out = vec![];
                for piece in p.chunks(cut) {
                    let got = run_one(&cpu, shape, &mut c, piece, &chain(piece.len()));
                    out.extend(got.iter().map(|x| bits(x)));
                    c.commit(&(0..piece.len()).collect::<Vec<_>>());
                }
                out
            })
            .collect();
        let passing = |p: &Vec<u64>| {
            KvCache::passing(shape.kind, 2, shape.kv_heads, shape.head_dim, p.len())
        };
        let kept: Vec<KvCache> = prompts.iter().map(|p| cache(shape, p.len())).collect();
        let chains: Vec<_> = prompts.iter().map(|p| chain(p.len())).collect();
        for mut caches in [kept, prompts.iter().map(passing).collect()] {
            let mut steps: Vec<Step<'_>> = caches
                .iter_mut()
                .zip(&prompts)
                .zip(&chains)
                .map(|((cache, tokens), parents)| Step { cache, tokens, parents })
                .collect();
            let together = run(&cpu, shape, &mut steps);
            let together: Vec<Vec<u32>> = together.iter().map(|x| bits(x)).collect();
            prop_assert_eq!(alone.concat(), together);
        }
    }
}

#[test]
fn gathered_and_truncated_rows_are_the_same_rows() {
    let shape = Shape { heads: 2, kv_heads: 2, head_dim: 32, window: 0, kind: KvType::Half };
    let cpu = Cpu::new(Isa::best(), 2);
    let tokens: Vec<u64> = (0..70).collect();
    let mut c = cache(shape, 80);
    run_one(&cpu, shape, &mut c, &tokens, &chain(70));
    c.commit(&(0..70).collect::<Vec<_>>());
    let before: Vec<_> = (0..70).map(|p| c.read(1, 1, p)).collect();
    let kept: Vec<usize> = (0..70).filter(|p| p % 3 != 1).collect();
    c.gather(&kept);
    assert_eq!(c.len(), kept.len());
    for (to, &from) in kept.iter().enumerate() {
        assert_eq!(c.read(1, 1, to), before[from]);
    }
    c.truncate(10);
    assert_eq!(c.len(), 10);
    c.truncate(20);
    assert_eq!(c.len(), 10);
}

#[test]
fn norms_and_rotations_on_the_way_in_equal_those_before() {
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 48, window: 0, kind: KvType::Half };
    let tokens: Vec<u64> = (0..37).collect();
    let parents = chain(tokens.len());
    // Whole heads, and the first elements of each, in whole registers and not.
    let halves = [24, 16, 9];
    for (isa, half) in Isa::available().into_iter().flat_map(|isa| halves.map(|half| (isa, half))) {
        let cpu = Cpu::new(isa, 2);
        let mut r = rows(shape, &tokens);
        let angles = Random(3).floats(tokens.len() * half);
        let turn: (Vec<f32>, Vec<f32>) = angles.iter().map(|x| (x.cos(), x.sin())).unzip();
        let still = (vec![1.0; tokens.len() * 24], vec![0.0; tokens.len() * 24]);
        let run = |r: &Rows, norms, (cos, sin): &(Vec<f32>, Vec<f32>)| {
            let mut c = cache(shape, tokens.len());
            let mut steps = [Step { cache: &mut c, tokens: &tokens, parents: &parents }];
            let heads = Heads {
                q: &r.q,
                k: &r.k,
                v: &r.v,
                heads: shape.heads,
                scale: 0.2,
                window: None,
                norms,
                cos,
                sin,
            };
            let mut out = Activations::new();
            let to = (Forms { q8: true, ..Forms::default() }, &mut out);
            attend(&cpu, 1, &mut steps, heads, &mut AttentionScratch::new(), to);
            bits(out.x())
        };
        let weights = [Random(5).floats(48), Random(6).floats(48)];
        let norms = HeadNorms { query: &weights[0], key: &weights[1], eps: 1e-3 };
        let fused = run(&r, Some(norms), &turn);
        assert_ne!(run(&r, None, &turn), fused);
        for (x, weight) in [(&mut r.q, norms.query), (&mut r.k, norms.key)] {
            for head in x.chunks_exact_mut(48) {
                let before = head.to_vec();
                rms_norm(isa, &before, weight, norms.eps, head);
            }
        }
        for (row, (cos, sin)) in turn.0.chunks(half).zip(turn.1.chunks(half)).enumerate() {
            let q = r.q[row * 6 * 48..][..6 * 48].chunks_mut(48);
            let k = r.k[row * 2 * 48..][..2 * 48].chunks_mut(48);
            q.chain(k).for_each(|head| rotate(isa, &mut head[..2 * half], cos, sin));
        }
        assert_eq!(run(&r, None, &still), fused, "{isa}, {half} pairs");
    }
}
