//! The dense executor against transformers, and against itself: how a text is cut into steps,
//! segments and trees changes nothing.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use logits::{MODELS, checkpoint, max_error, reference};
use offshoot_models::{
    DenseCache, DenseHooks, DenseModel, Error, LinearId, LogitRows, NoHooks, RopeId, Segment,
    SegmentRows, Site, VariantId, chain,
};

/// Two orders of summation in f32 over these models' few hundred terms differ by some 1e-5; a wrong
/// rotation, mask, bias or norm by 0.1 and more.
const CLOSE: f32 = 1e-4;

fn load(name: &str) -> DenseModel {
    DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F32).unwrap()
}

/// Rows of one sequence, and which of them give logits.
struct Part<'a> {
    cache: &'a mut DenseCache,
    tokens: &'a [u32],
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
    logits: LogitRows<'a>,
    variant: u32,
}

impl<'a> Part<'a> {
    /// The next tokens of a sequence.
    fn next(cache: &'a mut DenseCache, tokens: &'a [u32]) -> Self {
        let start = cache.len() as u32;
        let positions = (start..start + tokens.len() as u32).collect();
        let parents = chain(tokens.len());
        Self { cache, tokens, parents, positions, logits: LogitRows::All, variant: 0 }
    }

    /// A tree whose depths follow from its parents.
    fn tree(cache: &'a mut DenseCache, tokens: &'a [u32], parents: &[Option<u32>]) -> Self {
        let start = cache.len() as u32;
        let mut positions: Vec<u32> = Vec::new();
        for parent in parents {
            positions.push(parent.map_or(start, |p| positions[p as usize] + 1));
        }
        let (parents, logits) = (parents.to_vec(), LogitRows::All);
        Self { cache, tokens, parents, positions, logits, variant: 0 }
    }
}

fn try_step(
    model: &DenseModel,
    parts: &mut [Part<'_>],
    hooks: &mut dyn DenseHooks,
) -> Result<Tensor, Error> {
    let mut segments: Vec<_> = parts
        .iter_mut()
        .map(|part| Segment {
            cache: &mut *part.cache,
            tokens: part.tokens,
            parents: &part.parents,
            positions: &part.positions,
            rope: RopeId::default(),
            variant: VariantId(part.variant),
            logits: part.logits,
        })
        .collect();
    model.step(&mut segments, hooks)
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn step(model: &DenseModel, parts: &mut [Part<'_>]) -> Vec<f32> {
    numbers(&try_step(model, parts, &mut NoHooks).unwrap())
}

/// Logits of a text whose positions are all new, `[tokens, vocab_size]`.
fn whole(model: &DenseModel, tokens: &[u32]) -> Vec<f32> {
    step(model, &mut [Part::next(&mut DenseCache::new(model.config()), tokens)])
}

/// A cache that a text was decided in.
fn cached(model: &DenseModel, tokens: &[u32]) -> DenseCache {
    let mut cache = DenseCache::new(model.config());
    extend(model, &mut cache, tokens);
    cache
}

/// The next tokens of a sequence, decided at once.
fn extend(model: &DenseModel, cache: &mut DenseCache, tokens: &[u32]) -> Vec<f32> {
    let logits = step(model, &mut [Part::next(cache, tokens)]);
    cache.commit(&(0..tokens.len()).collect::<Vec<_>>()).unwrap();
    logits
}

#[track_caller]
fn assert_close(a: &[f32], b: &[f32]) {
    let error = max_error(a, b);
    assert!(error <= CLOSE, "they are {error} apart");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        let reference = reference(name);
        let error = max_error(&whole(&load(name), &reference.tokens), &reference.logits);
        println!("{name}: {error:e}");
        assert!(error <= CLOSE, "{name}: logits are {error} apart");
    }
}

#[test]
fn half_precision_stays_near() {
    let reference = reference("llama_biases");
    let load = |dtype| DenseModel::load(&checkpoint("llama_biases"), &Device::Cpu, dtype).unwrap();
    // The mantissa has 10 bits and the logits reach 10: errors of a few hundredths, not of ones.
    let error = max_error(&whole(&load(DType::F16), &reference.tokens), &reference.logits);
    assert!(error > CLOSE && error < 0.1, "{error}");
    let error = max_error(&whole(&load(DType::F64), &reference.tokens), &reference.logits);
    assert!(error <= CLOSE, "{error}");
}

#[test]
fn a_text_may_come_in_pieces() {
    for name in MODELS {
        let (model, reference) = (load(name), reference(name));
        let mut cache = DenseCache::new(model.config());
        let mut logits = Vec::new();
        for piece in [&reference.tokens[..7], &reference.tokens[7..8], &reference.tokens[8..]] {
            logits.extend(extend(&model, &mut cache, piece));
        }
        assert_eq!(cache.len(), reference.tokens.len());
        assert_close(&logits, &reference.logits);
    }
}

#[test]
fn sequences_of_one_step_do_not_see_each_other() {
    let (model, text) = (load("qwen2_untied"), reference("qwen2_untied").tokens);
    let vocab = model.config().vocab_size;
    let (a, b) = (&text[..9], &text[4..]);
    let (alone_a, alone_b) = (whole(&model, a), whole(&model, b));
    let mut cache_a = cached(&model, &a[..5]);
    let mut cache_b = DenseCache::new(model.config());
    let mut cache_c = cached(&model, b);
    let mut parts = [
        Part::next(&mut cache_a, &a[5..]),
        Part { logits: LogitRows::None, ..Part::next(&mut cache_c, a) },
        Part { logits: LogitRows::These(&[0, 3, 19]), ..Part::next(&mut cache_b, b) },
    ];
    let logits = step(&model, &mut parts);
    let row = |logits: &[f32], i: usize| logits[i * vocab..(i + 1) * vocab].to_vec();
    let expected =
        [&alone_a[5 * vocab..], &row(&alone_b, 0), &row(&alone_b, 3), &row(&alone_b, 19)];
    assert_close(&logits, &expected.concat());
}

/// ```text
/// 0 - 1 - 3
///   \ 2 - 4 - 6
/// 5
/// ```
const PARENTS: [Option<u32>; 7] = [None, Some(0), Some(0), Some(1), Some(2), None, Some(4)];
const PATHS: [&[usize]; 3] = [&[0, 1, 3], &[0, 2, 4, 6], &[5]];

#[test]
fn a_row_of_a_tree_sees_its_ancestors_alone() {
    for name in MODELS {
        let (model, text) = (load(name), reference(name).tokens);
        let vocab = model.config().vocab_size;
        for cached_len in [0, 6] {
            let (prefix, tree) = text[..cached_len + 7].split_at(cached_len);
            let mut cache = if cached_len == 0 {
                DenseCache::new(model.config())
            } else {
                cached(&model, prefix)
            };
            let logits = step(&model, &mut [Part::tree(&mut cache, tree, &PARENTS)]);
            for path in PATHS {
                let branch: Vec<_> = path.iter().map(|&row| tree[row]).collect();
                let alone = whole(&model, &[prefix, &branch].concat());
                let in_tree: Vec<_> = path
                    .iter()
                    .flat_map(|&i| logits[i * vocab..(i + 1) * vocab].to_vec())
                    .collect();
                assert_close(&in_tree, &alone[cached_len * vocab..]);
            }
        }
    }
}

#[test]
fn a_committed_path_is_as_if_only_it_had_been_run() {
    let (model, text) = (load("llama_linear"), reference("llama_linear").tokens);
    let (prefix, tree, next) = (&text[..5], &text[5..12], &text[12..]);
    for path in PATHS {
        let mut cache = cached(&model, prefix);
        step(&model, &mut [Part::tree(&mut cache, tree, &PARENTS)]);
        cache.commit(path).unwrap();
        assert_eq!(cache.len(), prefix.len() + path.len());
        let branch: Vec<_> = path.iter().map(|&row| tree[row]).collect();
        let mut chain = cached(&model, &[prefix, &branch].concat());
        let (k, v) = cache.read(1).unwrap().unwrap();
        let (chain_k, chain_v) = chain.read(1).unwrap().unwrap();
        assert_close(&numbers(&k), &numbers(&chain_k));
        assert_close(&numbers(&v), &numbers(&chain_v));
        assert_close(&extend(&model, &mut cache, next), &extend(&model, &mut chain, next));
    }
}

#[test]
fn forgotten_positions_leave_no_trace() {
    let (model, text) = (load("llama_biases"), reference("llama_biases").tokens);
    let mut cache = cached(&model, &text[..10]);
    cache.truncate(4);
    cache.truncate(8);
    assert_eq!(cache.len(), 4);
    step(&model, &mut [Part::next(&mut cache, &text[10..])]);
    let fresh = whole(&model, &text);
    let vocab = model.config().vocab_size;
    assert_close(&extend(&model, &mut cache, &text[4..]), &fresh[4 * vocab..]);
}

#[test]
fn a_path_that_was_not_run_is_refused() {
    let (model, text) = (load("llama_biases"), reference("llama_biases").tokens);
    let mut cache = cached(&model, &text[..3]);
    step(&model, &mut [Part::next(&mut cache, &text[3..6])]);
    for path in [&[1, 0][..], &[0, 0], &[0, 3]] {
        let error = cache.commit(path).unwrap_err();
        assert!(matches!(error, Error::Step(_)), "{error}");
        assert_eq!(cache.len(), 3);
    }
    cache.commit(&[0]).unwrap();
    assert!(cache.commit(&[0]).is_err(), "rows are tentative once");
    assert!(cache.read(2).is_err(), "two layers");
}

/// Keeps what it is shown, and notes which addends it was asked for.
#[derive(Default)]
struct Recorder {
    seen: BTreeMap<String, Tensor>,
    asked: Vec<(LinearId, SegmentRows)>,
}

impl DenseHooks for Recorder {
    fn tap(&mut self, site: Site, rows: &Tensor) -> Result<(), Error> {
        self.seen.insert(format!("{site:?}"), rows.clone());
        Ok(())
    }

    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        assert_eq!(x.dims2()?.0, rows.rows);
        self.asked.push((linear, rows));
        Ok(None)
    }
}

/// Makes one matrix of variant 1 `W + s 1 1^T`: the sum of the inputs, `s` times, in every output.
struct Addend {
    linear: LinearId,
    width: usize,
    s: f64,
}

impl DenseHooks for Addend {
    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        if linear != self.linear || rows.variant != VariantId(1) {
            return Ok(None);
        }
        Ok(Some((x.sum_keepdim(1)?.broadcast_as((rows.rows, self.width))? * self.s)?))
    }
}

#[test]
fn taps_see_the_stream_after_each_block_and_the_final_norm() {
    let (model, text) = (load("llama_biases"), reference("llama_biases").tokens);
    let (mut cache, mut other) = (DenseCache::new(model.config()), DenseCache::new(model.config()));
    let mut hooks = Recorder::default();
    let mut parts = [Part::next(&mut cache, &text[..5]), Part::next(&mut other, &text[5..])];
    let logits = try_step(&model, &mut parts, &mut hooks).unwrap();
    let sites: Vec<_> = hooks.seen.keys().map(String::as_str).collect();
    assert_eq!(sites, ["Block(0)", "Block(1)", "Final"]);
    assert!(hooks.seen.values().all(|rows| rows.dims() == [text.len(), 40]));
    // The head is tied and has no bias, so the last two sites can be made from one another.
    let head = model.tensor("model.embed_tokens.weight").unwrap();
    let from_final = hooks.seen["Final"].matmul(&head.t().unwrap()).unwrap();
    assert_close(&numbers(&from_final), &numbers(&logits));
    let (stream, normed) = (numbers(&hooks.seen["Block(1)"]), numbers(&hooks.seen["Final"]));
    let weight = numbers(model.tensor("model.norm.weight").unwrap());
    for (x, y) in stream.chunks(40).zip(normed.chunks(40)) {
        let mean: f32 = x.iter().map(|x| x * x).sum::<f32>() / 40.0;
        let expected: Vec<_> =
            x.iter().zip(&weight).map(|(x, w)| x / (mean + 1e-5).sqrt() * w).collect();
        assert_close(&expected, y);
    }
}

/// A step of two segments, the second of variant 1.
fn two_variants(model: &DenseModel, text: &[u32], hooks: &mut dyn DenseHooks) -> Vec<f32> {
    let (mut a, mut b) = (DenseCache::new(model.config()), DenseCache::new(model.config()));
    let (base, variant) = (Part::next(&mut a, &text[..8]), Part::next(&mut b, &text[8..]));
    let mut parts = [base, Part { variant: 1, ..variant }];
    numbers(&try_step(model, &mut parts, hooks).unwrap())
}

#[test]
fn an_addend_is_a_change_of_the_weights_for_its_segments() {
    let (mut model, text) = (load("llama_biases"), reference("llama_biases").tokens);
    // Both kinds of product: one that is added to the stream, and one that is not.
    for name in ["model.layers.1.self_attn.o_proj", "model.layers.0.mlp.gate_proj"] {
        let mut recorder = Recorder::default();
        let plain = two_variants(&model, &text, &mut recorder);
        let specs = &model.blueprint().linears;
        assert_eq!(recorder.asked.len(), 2 * specs.len(), "every matrix, each segment");
        let is_named = |(linear, _): &&(LinearId, _)| specs[linear.index()].name == name;
        let (linear, rows) = *recorder.asked.iter().find(is_named).unwrap();
        assert_eq!(rows, SegmentRows { segment: 0, variant: VariantId(0), rows: 8 });

        let mut addend = Addend { linear, width: specs[linear.index()].rows, s: 0.05 };
        let logits = two_variants(&model, &text, &mut addend);
        let (weight, base) = (format!("{name}.weight"), whole(&model, &text[..8]));
        let unchanged = model.tensor(&weight).unwrap().clone();
        model.set(&weight, (&unchanged + 0.05).unwrap()).unwrap();
        assert_close(&logits, &[base, whole(&model, &text[8..])].concat());
        model.set(&weight, unchanged).unwrap();
        assert!(max_error(&logits, &plain) > 0.1, "the change is felt");
    }
}

/// A hook that fails in the middle of a step.
struct Broken;

impl DenseHooks for Broken {
    fn tap(&mut self, _: Site, _: &Tensor) -> Result<(), Error> {
        Err(Error::Step("no more".to_owned()))
    }
}

#[test]
fn a_step_that_fails_leaves_the_cache_as_it_was() {
    let (model, reference) = (load("qwen2_tied"), reference("qwen2_tied"));
    let (text, vocab) = (&reference.tokens, model.config().vocab_size);
    let mut cache = cached(&model, &text[..9]);
    let error = try_step(&model, &mut [Part::next(&mut cache, &text[5..])], &mut Broken);
    assert_eq!(error.unwrap_err().to_string(), "step: no more");
    assert!(cache.commit(&[0]).is_err(), "nothing is tentative");
    assert_close(&extend(&model, &mut cache, &text[9..]), &reference.logits[9 * vocab..]);
}

#[test]
fn malformed_steps_are_refused() {
    let model = load("llama_biases");
    let mut cache = DenseCache::new(model.config());
    let mut refuse = |change: fn(&mut Part<'_>), expected: &str| {
        let mut part = Part::next(&mut cache, &[1, 2]);
        change(&mut part);
        let error = try_step(&model, &mut [part], &mut NoHooks).unwrap_err().to_string();
        assert_eq!(error, format!("step: segment 0: {expected}"));
    };
    refuse(|p| p.tokens = &[1, 100], "token 100 of a vocabulary of 100");
    refuse(|p| p.tokens = &[], "no tokens");
    refuse(|p| p.parents = vec![Some(1), None], "row 0 stands before its parent");
    refuse(|p| p.logits = LogitRows::These(&[2]), "logits asked for rows [2] of 2, ascending");
    assert_eq!(step(&model, &mut []), [0.0; 0], "nothing asked, nothing given");
}

#[test]
fn positions_with_gaps_are_refused_where_a_window_counts_them() {
    for (name, counted) in [("mistral_window", true), ("llama_linear", false)] {
        let model = load(name);
        let mut cache = cached(&model, &[3, 4]);
        for (positions, wrong) in [
            (vec![2, 3, 3], None),
            (vec![2, 4, 3], Some((1, 4, 3))),
            (vec![3, 4, 4], Some((0, 3, 2))),
        ] {
            let parents = vec![None, Some(0), Some(0)];
            let next = Part::next(&mut cache, &[1, 2, 5]);
            let error = try_step(&model, &mut [Part { positions, parents, ..next }], &mut NoHooks);
            match wrong.filter(|_| counted) {
                None => assert!(error.is_ok(), "{name}"),
                Some((row, found, expected)) => {
                    let error = error.unwrap_err().to_string();
                    let what = format!("row {row} has position {found}, expected {expected},");
                    assert!(error.contains(&what), "{error}");
                }
            }
        }
    }
}
