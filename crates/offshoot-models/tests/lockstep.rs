//! Steps side by side: each has the bits that it has alone, and all of them read weights on a disk once.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(unix)]

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use offshoot_kernels::{
    Change, Compute, Cpu, Distribution, Entries, FloatStore, Isa, KvCache, KvType, Noise, Rounding,
    RowScores, Term, Traffic, Wanted, tensor_id,
};
use offshoot_models::{
    Asked, Error, LogitRows, PackedExecutor, PackedModel, Segment, StagedStep, TrainableModel,
    VariantId, chain,
};

/// A direction of each tensor.
fn terms(model: &TrainableModel, step: u32, scale: f32) -> Vec<Vec<Term<'static>>> {
    let distribution = Distribution::GaussQ8;
    let of = |tensor| Noise { seed: 3, tensor, step, distribution, ..Noise::default() };
    let tensors = model.tensors().iter().map(|tensor| of(tensor_id(&tensor.name)));
    tensors.map(|noise| vec![Term { scale, entries: Entries::Noise(noise), mask: None }]).collect()
}

/// A text, and what a step on it needs beside a cache.
struct Text {
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
}

impl Text {
    fn of(tokens: &[u32]) -> Self {
        let (n, tokens) = (tokens.len(), tokens.to_vec());
        Self { tokens, parents: chain(n), positions: (0..n as u32).collect() }
    }

    fn segment<'s>(&'s self, model: &PackedModel, cache: &'s mut KvCache) -> Segment<'s, KvCache> {
        Segment {
            cache,
            tokens: &self.tokens,
            parents: &self.parents,
            positions: &self.positions,
            rope: model.config().rope_for(self.tokens.len()),
            variant: VariantId(1),
            logits: LogitRows::Last,
        }
    }
}

fn bits(scores: &RowScores) -> (Vec<u64>, String) {
    let logprobs = scores.logprobs.iter().map(|x| x.to_bits()).collect();
    (logprobs, format!("{:?}", scores.greatest))
}

#[test]
fn steps_side_by_side_have_the_bits_of_each_alone_and_read_and_write_a_file_once() {
    let dir = tempfile::tempdir().unwrap();
    let stores = FloatStore::ALL.into_iter();
    for (name, store) in stores.flat_map(|store| logits::MODELS.map(|name| (name, store))) {
        let cpu = Cpu::new(Isa::best(), 2);
        let checkpoint = Arc::new(logits::checkpoint(name));
        let load = |folder| TrainableModel::load_in(Arc::clone(&checkpoint), &cpu, store, folder);
        let mut here = load(None).unwrap();
        let mut there = load(Some(dir.path())).unwrap();
        let text = logits::reference(name).tokens;
        // Of other lengths, so that each step has rows of its own; and one without a row.
        let texts = [&text[..], &text[3..], &text[..2], &[]].map(Text::of);
        let points = [0.01, -0.01, 0.0, 0.5].map(|scale| terms(&here, 7, scale));
        let wanted = Wanted { outputs: &[5], ends: &[1] };
        let of = |text: &Text| {
            if text.tokens.is_empty() { Wanted { outputs: &[], ends: &[] } } else { wanted }
        };
        let cache = |model: &TrainableModel| model.model().passing_cache(KvType::Single, 64);
        let mut executor = PackedExecutor::new(cpu.clone(), here.model().config());
        let mut last = Traffic::default();
        let by = |tensor: usize, step: u32| Rounding { seed: 3, tensor: tensor as u32, step };
        for round in 0..3 {
            let update = terms(&here, round, 1e-3);
            for (tensor, terms) in update.iter().enumerate() {
                let (change, rounding) = (Change::Linear { decay: 0.0, terms }, by(tensor, round));
                here.update(&cpu, tensor, &change, &rounding).unwrap();
            }
            let alone: Vec<_> = texts
                .iter()
                .zip(&points)
                .map(|(text, point)| {
                    let (model, mut cache) = (here.model(), cache(&here));
                    let mut hooks = here.perturbed(point, Compute::Single);
                    let mut segments = vec![text.segment(model, &mut cache)];
                    segments.retain(|segment| !segment.tokens.is_empty());
                    let mut step = StagedStep::new(segments, Asked::Scores(of(text)));
                    executor.run_step(model, &mut step, &mut hooks).unwrap();
                    bits(step.scores())
                })
                .collect();
            let mut caches = [(); 4].map(|()| cache(&there));
            let mut steps: Vec<_> = texts
                .iter()
                .zip(&mut caches)
                .map(|(text, cache)| {
                    let mut segments = vec![text.segment(there.model(), cache)];
                    segments.retain(|segment| !segment.tokens.is_empty());
                    StagedStep::new(segments, Asked::Scores(of(text)))
                })
                .collect();
            let mut order = Vec::new();
            let each = points.each_ref().map(Vec::as_slice);
            let mut settle = |model: &mut TrainableModel, tensor: usize| {
                order.push(tensor);
                let change = Change::Linear { decay: 0.0, terms: &update[tensor] };
                model.update(&cpu, tensor, &change, &by(tensor, round))
            };
            let compute = Compute::Single;
            there.run::<Error>(&mut executor, &mut steps, &each, compute, &mut settle).unwrap();
            let beside: Vec<_> = steps.iter().map(|step| bits(step.scores())).collect();
            assert!(beside == alone, "{name} {store:?} in round {round}: {beside:?} {alone:?}");
            assert!(alone[0] != alone[1] && alone[0].0.len() == 1, "{name}");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..here.tensors().len()), "{name}: each once");
            let now = there.traffic().unwrap();
            let (read, written) = (now.read - last.read, now.written - last.written);
            last = now;
            if round == 0 {
                // That is with what loading did.
                continue;
            }
            let matrix = |tensor: &&offshoot_models::TrainableTensor| !tensor.vector;
            // Tiles of 16 rows; columns come in pairs in bfloat16.
            let each = |cols: usize| match store {
                FloatStore::F32 => 64 * cols,
                FloatStore::Bf16 => 64 * cols.div_ceil(2),
            };
            let padded = |rows: usize, cols: usize| (rows.div_ceil(16) * each(cols)) as u64;
            let size = |t: &offshoot_models::TrainableTensor| padded(t.rows, t.cols);
            let all: u64 = here.tensors().iter().filter(matrix).map(size).sum();
            let tied = here.model().config().tie_word_embeddings;
            let head = here.tensors().iter().find(|t| t.name.contains("embed_tokens")).unwrap();
            let again = if tied { size(head) } else { 0 };
            assert_eq!((read, written), (all + again, all), "{name} in round {round}");
        }
        for tensor in 0..here.tensors().len() {
            assert!(here.read(tensor).unwrap() == there.read(tensor).unwrap(), "{name} {tensor}");
        }
    }
}
