//! A model whose weights change: steps beside its weights, and steps at changed weights.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use offshoot_kernels::{
    Change, Compute, Cpu, Distribution, Entries, FloatStore, Isa, Noise, Rounding, RowScores, Term,
    Wanted, log_softmax_rows, tensor_id,
};
use offshoot_models::{
    Hooks, LinearId, LogitRows, NoHooks, PackedExecutor, PackedModel, Recipe, Segment, SegmentRows,
    TrainableModel, VariantId, chain,
};

fn load(name: &str, cpu: &Cpu) -> TrainableModel {
    TrainableModel::load(Arc::new(logits::checkpoint(name)), cpu).unwrap()
}

/// The same with matrices stored as `store`.
fn stored(name: &str, cpu: &Cpu, store: FloatStore) -> TrainableModel {
    TrainableModel::load_in(Arc::new(logits::checkpoint(name)), cpu, store, None).unwrap()
}

/// A direction of each tensor, of each kind in turn, and the tensors' factors of low rank.
struct Directions {
    factors: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Directions {
    fn new(model: &TrainableModel) -> Self {
        let noise = Noise { seed: 5, ..Noise::default() };
        let draw = |n: usize, tensor| {
            let noise = Noise { tensor, ..noise };
            (0..n).map(|i| noise.at(i as u64)).collect::<Vec<f32>>()
        };
        let factors = model.tensors().iter().map(|t| (draw(2 * t.rows, 1), draw(2 * t.cols, 2)));
        Self { factors: factors.collect() }
    }

    fn terms(&self, model: &TrainableModel, scale: f32) -> Vec<Vec<Term<'_>>> {
        let each = model.tensors().iter().zip(&self.factors).enumerate();
        each.map(|(i, (tensor, (left, right)))| {
            let distribution = Distribution::ALL[i % 3];
            let tensor = tensor_id(&tensor.name);
            let noise = Noise { seed: 11, tensor, step: 4, distribution, ..Noise::default() };
            let entries = [
                Entries::Noise(noise),
                Entries::LowRank { left, right, rank: 2, factor: 0.5 },
                Entries::Noise(Noise { index: 1, ..noise }),
            ];
            let terms = entries.map(|entries| Term { scale, entries, mask: None });
            terms[..1 + i % 3].to_vec()
        })
        .collect()
    }
}

/// Logits of all of `tokens`.
fn run(model: &PackedModel, cpu: &Cpu, tokens: &[u32], hooks: &mut dyn Hooks) -> Vec<f32> {
    let mut executor = PackedExecutor::new(cpu.clone(), model.config());
    let mut cache = model.new_cache(tokens.len());
    segment(model, tokens, &mut cache, LogitRows::All, |segment| {
        executor.step(model, &mut [segment], hooks).unwrap().to_vec()
    })
}

/// Calls `f` with the segment of a text.
fn segment<T>(
    model: &PackedModel,
    tokens: &[u32],
    cache: &mut offshoot_kernels::KvCache,
    logits: LogitRows<'_>,
    f: impl FnOnce(Segment<'_, offshoot_kernels::KvCache>) -> T,
) -> T {
    f(Segment {
        cache,
        tokens,
        parents: &chain(tokens.len()),
        positions: &(0..tokens.len() as u32).collect::<Vec<_>>(),
        rope: model.config().rope_for(tokens.len()),
        variant: VariantId(1),
        logits,
    })
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn weights(model: &TrainableModel) -> Vec<Vec<u32>> {
    (0..model.tensors().len()).map(|i| bits(&model.read(i).unwrap())).collect()
}

#[test]
fn a_step_along_directions_is_a_step_of_weights_really_moved_and_moves_none() {
    for name in logits::MODELS {
        for store in FloatStore::ALL {
            along_directions(name, store);
        }
    }
}

fn along_directions(name: &str, store: FloatStore) {
    let text = logits::reference(name).tokens;
    let first = Cpu::new(Isa::best(), 1);
    let model = stored(name, &first, store);
    let directions = Directions::new(&model);
    let (ahead, back) = (directions.terms(&model, 0.01), directions.terms(&model, -0.01));
    let before = weights(&model);
    let mut moved = load(name, &first);
    for tensor in 0..model.tensors().len() {
        moved.write(&first, tensor, &model.read(tensor).unwrap()).unwrap();
    }
    let plain = run(moved.model(), &first, &text, &mut NoHooks);
    for (tensor, terms) in back.iter().enumerate() {
        let change = Change::Linear { decay: 0.0, terms };
        moved.update(&first, tensor, &change, &Rounding::default()).unwrap();
    }
    let expected = run(moved.model(), &first, &text, &mut NoHooks);
    assert!(expected != plain, "{name}: the directions are felt");
    for (tensor, (terms, spec)) in ahead.iter().zip(model.tensors()).enumerate() {
        let mut at = vec![0.0; spec.rows * spec.cols];
        let (head, rest) = at.split_at_mut(spec.rows / 2 * spec.cols);
        model.read_at(&first, tensor, terms, 0, head).unwrap();
        model.read_at(&first, tensor, terms, spec.rows / 2, rest).unwrap();
        assert!(bits(&at) == bits(&moved.read(tensor).unwrap()), "{name} {store:?}: {spec:?}");
        assert!(model.read_at(&first, tensor, terms, 1, &mut at).is_err());
        assert!(model.read_at(&first, tensor, terms, 0, &mut at[1..]).is_err() || spec.cols == 1);
    }
    for threads in [1, 2, 7] {
        let cpu = Cpu::new(Isa::best(), threads);
        let mut hooks = model.perturbed(&ahead, Compute::Single);
        let ours = run(model.model(), &cpu, &text, &mut hooks);
        assert!(bits(&ours) == bits(&expected), "{name} {store:?} on {threads} threads");
        assert!(weights(&model) == before, "{name} {store:?}: no stored weight changes");
        let none = vec![Vec::new(); model.tensors().len()];
        let mut hooks = model.perturbed(&none, Compute::Single);
        let ours = run(model.model(), &cpu, &text, &mut hooks);
        assert!(bits(&ours) == bits(&plain), "{name} {store:?}: no term is no change");
    }
    let mut hooks = model.perturbed(&ahead, Compute::Bfloat16);
    let rounded = run(model.model(), &first, &text, &mut hooks);
    let error = logits::max_error(&rounded, &expected);
    let greatest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    // bfloat16 rounds to 2^-9 of each number, over the layers of a sharp random model.
    assert!(error > 0.0 && error < 0.2 * greatest, "{name}: {error} of {greatest}");
}

#[test]
fn updates_are_their_definition_on_every_tensor() {
    for name in ["llama_biases", "qwen2_tied", "qwen3_moe"] {
        for store in FloatStore::ALL {
            updates(name, store);
        }
    }
}

fn updates(name: &str, store: FloatStore) {
    let cpu = Cpu::new(Isa::best(), 3);
    let mut model = stored(name, &cpu, store);
    let directions = Directions::new(&model);
    let terms = directions.terms(&model, 0.03);
    for (tensor, terms) in terms.iter().enumerate() {
        let spec = model.tensors()[tensor].clone();
        let before = model.read(tensor).unwrap();
        let change = Change::Linear { decay: 0.125, terms };
        let rounding = Rounding { seed: 9, tensor: tensor_id(&spec.name), step: 2 };
        let at = |(i, w): (usize, &f32)| {
            let shape = (spec.rows, spec.cols);
            let new = change.apply(shape, i / spec.cols, i % spec.cols, *w);
            match store == FloatStore::Bf16 && !spec.vector {
                true => rounding.round(i as u64, new).to_bits(),
                false => new.to_bits(),
            }
        };
        let expected: Vec<u32> = before.iter().enumerate().map(at).collect();
        model.update(&cpu, tensor, &change, &rounding).unwrap();
        assert!(bits(&model.read(tensor).unwrap()) == expected, "{name} {store:?} {}", spec.name);
        model.write(&cpu, tensor, &before).unwrap();
        assert!(bits(&model.read(tensor).unwrap()) == bits(&before));
    }
    let none = model.tensors().len();
    let change = Change::Linear { decay: 0.0, terms: &[] };
    assert!(model.update(&cpu, none, &change, &Rounding::default()).is_err());
    assert!(model.write(&cpu, 0, &[1.0]).is_err());
    assert!(model.read_row(0, 0, &mut []).is_err());
}

#[test]
fn tensors_are_those_of_the_checkpoint_each_once_in_order() {
    let cpu = Cpu::new(Isa::best(), 2);
    for name in logits::MODELS {
        let checkpoint = logits::checkpoint(name);
        let model = load(name, &cpu);
        let names: Vec<_> = model.tensors().iter().map(|t| t.name.as_str()).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {names:?}");
        for (i, tensor) in model.tensors().iter().enumerate() {
            let stored = checkpoint.require(&tensor.name).unwrap();
            assert_eq!(stored.info.shape.iter().product::<usize>(), tensor.rows * tensor.cols);
            let mut row = vec![0.0; tensor.cols];
            stored.read_row(tensor.rows - 1, &mut row).unwrap();
            let all = model.read(i).unwrap();
            assert_eq!(bits(&row), bits(&all[(tensor.rows - 1) * tensor.cols..]));
            assert_eq!(tensor.layer.is_some(), tensor.name.contains(".layers."));
        }
        let tied = model.model().config().tie_word_embeddings;
        assert_eq!(names.contains(&"lm_head.weight"), !tied, "{name}");
    }
}

/// Adds to the logits.
struct Adds<H>(H, LinearId);

impl<H: Hooks> Hooks for Adds<H> {
    fn adds(&self, linear: LinearId, _: VariantId) -> bool {
        linear == self.1
    }

    fn addend(&mut self, _: LinearId, rows: SegmentRows, _: &[f32], y: &mut [f32]) {
        let vocab = y.len() / rows.rows;
        y.iter_mut().enumerate().for_each(|(i, y)| *y += (i % vocab % 7) as f32);
    }

    fn forming(&self, linear: LinearId) -> Option<offshoot_kernels::Forming<'_>> {
        self.0.forming(linear)
    }
}

#[test]
fn scores_of_tokens_are_those_of_the_logits() {
    let cpu = Cpu::new(Isa::best(), 2);
    for name in ["llama_biases", "gemma3_linear", "qwen2_tied"] {
        let text = logits::reference(name).tokens;
        let model = load(name, &cpu);
        let (model, vocab) = (model.model(), model.model().config().vocab_size);
        let rows: Vec<u32> = (0..text.len() as u32 - 1).filter(|row| row % 3 != 1).collect();
        let mut outputs: Vec<u32> = Vec::new();
        let mut ends = Vec::new();
        for row in &rows {
            let next = &text[*row as usize + 1..];
            outputs.extend(&next[..next.len().min(1 + *row as usize % 2)]);
            ends.push(outputs.len());
        }
        let head = model.blueprint().linear_id(head_name(model)).unwrap();
        let wanted = Wanted { outputs: &outputs, ends: &ends };
        for adds in [false, true] {
            let mut hooks: Box<dyn Hooks> =
                if adds { Box::new(Adds(NoHooks, head)) } else { Box::new(NoHooks) };
            let dense = run(model, &cpu, &text, &mut *hooks);
            let asked: Vec<f32> = rows
                .iter()
                .flat_map(|row| dense[*row as usize * vocab..][..vocab].to_vec())
                .collect();
            let mut expected = RowScores::default();
            log_softmax_rows(cpu.isa(), &asked, vocab, wanted, &mut expected);
            let mut executor = PackedExecutor::new(cpu.clone(), model.config());
            let mut cache = model.new_cache(text.len());
            let scores = segment(model, &text, &mut cache, LogitRows::These(&rows), |segment| {
                executor.step_scores(model, &mut [segment], &mut *hooks, wanted).unwrap().clone()
            });
            let bits = |s: &RowScores| s.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&scores), bits(&expected), "{name} {adds}");
            assert_eq!(scores.greatest, expected.greatest);
            for (at, logprob) in scores.logprobs.iter().enumerate() {
                let row = ends.partition_point(|end| *end <= at);
                let row = &asked[row * vocab..][..vocab];
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                let exact = f64::from(row[outputs[at] as usize]) - sum.ln();
                assert!((logprob - exact).abs() < 1e-6, "{name}: {logprob} {exact}");
            }
        }
        let mut executor = PackedExecutor::new(cpu.clone(), model.config());
        let mut cache = model.new_cache(text.len());
        let wrong = Wanted { outputs: &[vocab as u32], ends: &[1] };
        let error = segment(model, &text, &mut cache, LogitRows::Last, |segment| {
            executor.step_scores(model, &mut [segment], &mut NoHooks, wanted).unwrap_err()
        });
        assert!(error.to_string().contains("rows of logits"), "{error}");
        let error = segment(model, &text, &mut cache, LogitRows::Last, |segment| {
            executor.step_scores(model, &mut [segment], &mut NoHooks, wrong).unwrap_err()
        });
        assert!(error.to_string().contains("is wanted of"), "{error}");
    }
}

fn head_name(model: &PackedModel) -> &str {
    &model.blueprint().linears.last().unwrap().name
}

#[test]
fn a_quantised_base_is_read_as_the_weights_that_it_stands_for() {
    let cpu = Cpu::new(Isa::best(), 2);
    let name = "qwen2_tied";
    let quantised = |name| logits::checkpoint(name).quantized(Recipe::Q8_0);
    let text = logits::reference(name).tokens;
    let singles = TrainableModel::load(Arc::new(quantised(name)), &cpu).unwrap();
    let packed = PackedModel::load(Arc::new(quantised(name)), &cpu, None).unwrap();
    let expected = run(singles.model(), &cpu, &text, &mut NoHooks);
    let none = vec![Vec::new(); singles.tensors().len()];
    let mut hooks = singles.perturbed(&none, Compute::Single);
    let ours = run(&packed, &cpu, &text, &mut hooks);
    assert!(bits(&ours) == bits(&expected), "float activations on quantised weights");
    let eight = run(&packed, &cpu, &text, &mut NoHooks);
    assert!(bits(&eight) != bits(&expected));
}
