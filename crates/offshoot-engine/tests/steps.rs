//! What the step promises, kept on a real model: bits that depend on nothing but the sequence.

#![allow(clippy::unwrap_used)] // test code

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{Control, FinishReason, GenerateOptions, LoadOptions, Model, Session};
use offshoot_kernels::{Compute, Cpu, Entries, Forming, Greatest, Isa, KvCache, Term, argmax};
use offshoot_methods::SamplingOptions;
use offshoot_models::{
    Checkpoint, Hooks, LinearId, LogitRows, NoHooks, PackedExecutor, PackedModel, RopeId, Segment,
    SegmentRows, Site, VariantId, WeightCache, chain,
};

fn path() -> PathBuf {
    let store = Store::from_env().unwrap();
    store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path
}

fn model() -> &'static PackedModel {
    static MODEL: OnceLock<PackedModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let checkpoint = Arc::new(Checkpoint::open(&path()).unwrap());
        PackedModel::load(checkpoint, &Cpu::new(Isa::best(), 2), None).unwrap()
    })
}

fn executor(threads: usize) -> PackedExecutor {
    PackedExecutor::new(Cpu::new(Isa::best(), threads), model().config())
}

struct Sequence {
    cache: KvCache,
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
}

impl Sequence {
    /// `n` tokens behind an empty cache.
    fn new(seed: u32, n: usize) -> Self {
        Self {
            cache: model().new_cache(n + 16),
            tokens: (0..n as u32).map(|i| (seed * 7919 + i * 104_729) % 49_000).collect(),
            parents: chain(n),
            positions: (0..n as u32).collect(),
        }
    }

    fn segment<'a>(&'a mut self, logits: LogitRows<'a>) -> Segment<'a, KvCache> {
        Segment {
            cache: &mut self.cache,
            tokens: &self.tokens,
            parents: &self.parents,
            positions: &self.positions,
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits,
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn sixteen_sequences_in_one_step_equal_sixteen_steps() {
    let lengths: Vec<usize> = (0..16).map(|i| if i % 3 == 0 { 1 } else { 1 + 5 * i }).collect();
    let mut alone = Vec::new();
    for (i, &n) in lengths.iter().enumerate() {
        let mut s = Sequence::new(i as u32, n);
        let mut one = executor(1);
        alone.extend(bits(
            one.step(model(), &mut [s.segment(LogitRows::Last)], &mut NoHooks).unwrap(),
        ));
    }
    let mut all: Vec<Sequence> =
        lengths.iter().enumerate().map(|(i, &n)| Sequence::new(i as u32, n)).collect();
    let mut segments: Vec<_> = all.iter_mut().map(|s| s.segment(LogitRows::Last)).collect();
    let together = bits(executor(3).step(model(), &mut segments, &mut NoHooks).unwrap());
    assert!(alone == together, "a sequence's logits depend on its neighbours");
}

#[test]
fn a_draft_tree_gives_the_bits_of_plain_decoding() {
    let mut s = Sequence::new(5, 20);
    let mut e = executor(2);
    e.step(model(), &mut [s.segment(LogitRows::None)], &mut NoHooks).unwrap();
    s.cache.commit_chain(20);
    // A root with two branches, the second of two tokens.
    s.tokens = vec![10, 20, 30, 40];
    s.parents = vec![None, Some(0), Some(0), Some(2)];
    s.positions = vec![20, 21, 21, 22];
    let vocab = model().config().vocab_size;
    let tree = bits(e.step(model(), &mut [s.segment(LogitRows::All)], &mut NoHooks).unwrap());
    s.cache.commit(&[0, 2, 3]);
    let mut plain = Sequence::new(5, 20);
    let mut one = executor(1);
    one.step(model(), &mut [plain.segment(LogitRows::None)], &mut NoHooks).unwrap();
    plain.cache.commit_chain(20);
    for (i, (token, row)) in [(10, 0), (30, 2), (40, 3)].into_iter().enumerate() {
        (plain.tokens, plain.parents, plain.positions) =
            (vec![token], vec![None], vec![20 + i as u32]);
        let got = one.step(model(), &mut [plain.segment(LogitRows::Last)], &mut NoHooks).unwrap();
        assert!(bits(got) == tree[row * vocab..(row + 1) * vocab], "row {row}");
        plain.cache.commit_chain(1);
    }
    assert_eq!(s.cache.len(), plain.cache.len());
    for position in 0..s.cache.len() {
        assert_eq!(s.cache.read(29, 1, position), plain.cache.read(29, 1, position));
    }
}

/// Watches the last hidden state, adds a constant to one matrix's product for one variant, and
/// perturbs another matrix.
#[derive(Default)]
struct Trivial<'a> {
    seen: Vec<(Site, usize)>,
    added: usize,
    perturb: Option<[Term<'a>; 1]>,
}

/// A constant for every weight, as a matrix of rank 1.
struct Constant {
    left: Vec<f32>,
    right: Vec<f32>,
}

impl Constant {
    /// Of the matrix that [`Trivial`] perturbs.
    fn new(x: f32) -> Self {
        Self { left: vec![x; 192], right: vec![1.0; 576] }
    }

    fn terms(&self) -> [Term<'_>; 1] {
        let (left, right) = (&self.left, &self.right);
        let entries = Entries::LowRank { left, right, rank: 1, factor: 1.0 };
        [Term { scale: 1.0, entries, mask: None }]
    }
}

fn linear(name: &str) -> LinearId {
    model().blueprint().linear_id(name).unwrap()
}

impl Hooks for Trivial<'_> {
    fn taps(&self, site: Site) -> bool {
        matches!(site, Site::Final | Site::Block(3))
    }

    fn tap(&mut self, site: Site, rows: &[f32], width: usize) {
        assert!(rows.iter().all(|x| x.is_finite()));
        self.seen.push((site, rows.len() / width));
    }

    fn adds(&self, id: LinearId, variant: VariantId) -> bool {
        variant == VariantId(7) && id == linear("model.layers.2.mlp.down_proj")
    }

    fn addend(&mut self, _: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        assert_eq!((rows.segment, rows.rows), (1, 4));
        assert_eq!((x.len(), y.len()), (4 * 1536, 4 * 576));
        y.iter_mut().for_each(|y| *y += 0.5);
        self.added += 1;
    }

    fn forming(&self, id: LinearId) -> Option<Forming<'_>> {
        let here = id == linear("model.layers.1.self_attn.v_proj");
        let terms = self.perturb.as_ref().filter(|_| here)?;
        Some(Forming { terms, compute: Compute::Single, ..Forming::default() })
    }
}

#[test]
fn hooks_see_add_and_perturb_where_they_ask_to_and_nowhere_else() {
    let run = |variant: u32, hooks: &mut dyn Hooks| {
        let (mut a, mut b) = (Sequence::new(1, 3), Sequence::new(2, 4));
        let mut second = b.segment(LogitRows::Last);
        second.variant = VariantId(variant);
        let mut segments = [a.segment(LogitRows::Last), second];
        let out = executor(2).step(model(), &mut segments, hooks).unwrap().to_vec();
        let (a, b) = out.split_at(out.len() / 2);
        (a.to_vec(), b.to_vec())
    };
    let (a, b) = run(0, &mut NoHooks);
    let mut trivial = Trivial::default();
    let (watched_a, watched_b) = run(0, &mut trivial);
    assert_eq!((bits(&a), bits(&b)), (bits(&watched_a), bits(&watched_b)));
    assert_eq!(trivial.seen, [(Site::Block(3), 7), (Site::Final, 7)]);
    assert_eq!(trivial.added, 0);
    let mut adding = Trivial::default();
    let (same_a, other_b) = run(7, &mut adding);
    assert_eq!(adding.added, 1);
    assert_eq!(bits(&a), bits(&same_a), "the base's rows are as they were");
    assert!(b != other_b, "the variant's rows changed");
    // A perturbation of zero runs on float activations: near, not equal. One of size moves more.
    let distance =
        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    let [none, one] = [0.0, 1.0].map(Constant::new);
    let (zero, _) = run(0, &mut Trivial { perturb: Some(none.terms()), ..Trivial::default() });
    let (moved, _) = run(0, &mut Trivial { perturb: Some(one.terms()), ..Trivial::default() });
    let (near, far) = (distance(&a, &zero), distance(&zero, &moved));
    assert!(near < 1.0 && far > 4.0 * near, "{near} and {far}");
}

#[test]
fn packed_weights_come_back_the_same_and_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.pack");
    let cpu = Cpu::new(Isa::best(), 2);
    let load = |key: u8| {
        let checkpoint = Arc::new(Checkpoint::open(&path()).unwrap());
        let cache = WeightCache { path: &file, key: [key; 32] };
        PackedModel::load(checkpoint, &cpu, Some(cache)).unwrap()
    };
    let logits = |model: &PackedModel| {
        let mut s = Sequence::new(9, 5);
        let out = executor(2)
            .step(model, &mut [s.segment(LogitRows::Last)], &mut NoHooks)
            .unwrap()
            .to_vec();
        bits(&out)
    };
    let first = load(1);
    assert!(!first.from_cache());
    let second = load(1);
    assert!(second.from_cache());
    assert_eq!(logits(&first), logits(&second));
    assert!(!load(2).from_cache(), "weights of another file");
    drop(second);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let repaired = load(2);
    assert!(!repaired.from_cache(), "a damaged cache");
    assert_eq!(logits(&first), logits(&repaired));
    assert!(load(2).from_cache(), "it was written anew");
    std::fs::write(&file, &bytes[..1000]).unwrap();
    assert!(!load(2).from_cache(), "a cut cache");
}

/// Adds to the output head of one variant.
struct OnHead;

impl Hooks for OnHead {
    fn adds(&self, id: LinearId, variant: VariantId) -> bool {
        variant == VariantId(7) && id == linear("model.embed_tokens")
    }

    fn addend(&mut self, _: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        assert_eq!((rows.segment, rows.rows), (1, 2));
        assert_eq!((x.len(), y.len()), (2 * 576, 2 * 49152));
        y.chunks_exact_mut(49152).for_each(|row| row[4242] += 1000.0);
    }
}

#[test]
fn the_greatest_logit_is_that_of_all_logits_with_and_without_an_addend_on_the_head() {
    for variant in [0, 7] {
        let mut sequences = [Sequence::new(1, 3), Sequence::new(2, 4), Sequence::new(3, 1)];
        let [a, b, c] = &mut sequences;
        let mut second = b.segment(LogitRows::These(&[1, 3]));
        second.variant = VariantId(variant);
        let mut segments = [a.segment(LogitRows::All), second, c.segment(LogitRows::None)];
        let mut executor = executor(2);
        let logits = executor.step(model(), &mut segments, &mut OnHead).unwrap();
        let expected: Vec<_> = logits
            .chunks_exact(49152)
            .map(|row| {
                let index = argmax(row).unwrap();
                Ok(Greatest { index: index as u32, value: row[index] })
            })
            .collect();
        assert_eq!(expected.len(), 5);
        let found = executor.step_greatest(model(), &mut segments, &mut OnHead).unwrap();
        assert_eq!(found, expected);
        let added = found.iter().filter(|found| found.unwrap().index == 4242).count();
        assert_eq!(added, if variant == 7 { 2 } else { 0 });
    }
}

fn session(threads: usize) -> (Model, Session) {
    let options = LoadOptions { threads, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path(), &options).unwrap();
    let session = Session::new(&model, cpu, 512).unwrap();
    (model, session)
}

#[test]
fn the_same_seed_gives_the_same_text_on_any_number_of_threads() {
    let mut texts = Vec::new();
    for threads in [1, 2, 3] {
        let (model, mut session) = session(threads);
        let prompt = model.encode_text("The three largest rivers of Europe are").unwrap();
        for seed in [1, 2] {
            let sampling = SamplingOptions { seed: Some(seed), ..SamplingOptions::default() };
            let options = GenerateOptions { sampling, max_tokens: Some(24), ..Default::default() };
            let answer =
                session.generate(&model, &prompt, &options, |_| Control::Continue).unwrap();
            texts.push(answer.text);
        }
    }
    assert_eq!(texts[0..2], texts[2..4]);
    assert_eq!(texts[0..2], texts[4..6]);
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn answers_end_where_they_should_and_prefixes_are_reused() {
    let (model, mut session) = session(2);
    let prompt = model.encode_text("One, two, three, four,").unwrap();
    let greedy = GenerateOptions { sampling: SamplingOptions::greedy(), ..Default::default() };
    let limited = GenerateOptions { max_tokens: Some(12), ..greedy.clone() };
    let mut pieces = String::new();
    let answer = session
        .generate(&model, &prompt, &limited, |piece| {
            pieces.push_str(piece.text);
            Control::Continue
        })
        .unwrap();
    assert_eq!(answer.finish, FinishReason::MaxTokens);
    assert_eq!((answer.tokens.len(), &answer.text), (12, &pieces));
    assert!(answer.text.contains("five"), "{}", answer.text);
    let again = session.generate(&model, &prompt, &limited, |_| Control::Continue).unwrap();
    assert_eq!(again.reused_tokens, prompt.len() - 1);
    assert_eq!(again.tokens, answer.tokens);
    let stop = GenerateOptions { stop: vec!["six".to_owned()], ..limited.clone() };
    let stopped = session.generate(&model, &prompt, &stop, |_| Control::Continue).unwrap();
    assert_eq!(stopped.finish, FinishReason::StopText(0));
    assert!(stopped.text.contains("five") && !stopped.text.contains("six"));
    let long = GenerateOptions { ignore_eos: true, ..greedy };
    let full = session.generate(&model, &prompt, &long, |_| Control::Continue).unwrap();
    assert_eq!(full.finish, FinishReason::ContextFull);
    assert_eq!(prompt.len() + full.tokens.len(), 512 + 1);
    assert!(session.generate(&model, &[0; 512], &limited, |_| Control::Continue).is_err());
    assert!(session.generate(&model, &[], &limited, |_| Control::Continue).is_err());
}
