//! Points stand beside the weights: whatever is measured, in whichever space and by however many
//! threads, neither what is tuned nor what stays as it is changes by a bit.

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, Space, StepLimits, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Trainer};
use offshoot_kernels::Cpu;
use offshoot_methods::tune::{Direction, METHODS, Probe, Term};
use offshoot_models::{NoHooks, PackedExecutor, VariantId};
use serde_json::{Value, json};

use crate::setting::{cpu, fill, probe, spaces, texts, values};
use crate::steps::packed_step;

const NAME: &str = "llama_linear";

/// The bits of the logits behind every token of the vocabulary, which every weight of the model has a
/// part in, and those of what is tuned.
fn bits(space: &dyn Space, cpu: &Cpu) -> (Vec<u32>, Vec<Vec<u32>>) {
    let model = space.model();
    let all: Vec<u32> = (0..model.config().vocab_size as u32).collect();
    let mut executor = PackedExecutor::new(cpu.clone(), model.config());
    let mut logits = Vec::new();
    for tokens in all.chunks(16) {
        let mut cache = model.new_cache(tokens.len());
        let text = (tokens, model.config().rope_for(tokens.len()), VariantId(0));
        let made = packed_step(&mut executor, model, &mut cache, &mut NoHooks, text);
        logits.extend(made.iter().map(|logit| logit.to_bits()));
    }
    (logits, values(space))
}

fn trainer(
    cpu: &Cpu,
    space: Box<dyn Space>,
    method: &str,
    options: Value,
    rows: usize,
) -> ZerothOrderTrainer {
    let limits = StepLimits { rows, ..StepLimits::default() };
    let method = method.to_owned();
    let options = ZerothOrderOptions { method, options, limits, ..ZerothOrderOptions::default() };
    ZerothOrderTrainer::new(cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

#[test]
fn points_touch_no_weight_in_any_space_on_any_number_of_threads() {
    let batch = texts(3);
    let batch: Vec<&Example> = batch.iter().collect();
    for threads in [1, 2, 7] {
        let cpu = cpu(threads);
        for (name, mut space) in spaces(NAME, &cpu) {
            fill(&mut *space);
            let before = bits(&*space, &cpu);
            // In one piece, and cut small.
            let mut trainer = trainer(&cpu, space, "mezo", Value::Null, [1024, 5][threads % 2]);
            let here = |trainer: &mut ZerothOrderTrainer| {
                trainer.losses(&[Probe::default()], &batch).unwrap()[0].to_bits()
            };
            let first = here(&mut trainer);
            for step in 0..4 {
                let term = |i| Term { scale: 0.05, direction: Direction::dense(step, i) };
                let several = Probe { terms: (0..3).map(term).collect() };
                let points = [probe(step, 0.1), probe(step, -0.1), several, Probe::default()];
                let losses = trainer.losses(&points, &batch).unwrap();
                assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "{name}: {losses:?}");
            }
            assert!(bits(trainer.space(), &cpu) == before, "{name}, {threads} threads");
            assert_eq!(here(&mut trainer), first, "{name}, {threads} threads");
        }
    }
}

/// Whatever forms of directions a method has, and whatever it does with the losses: at a rate of zero
/// nothing is left of it.
#[test]
fn a_rate_of_zero_leaves_every_bit_in_every_space_by_every_method() {
    let cpu = cpu(2);
    let batch = texts(2);
    let batch: Vec<&Example> = batch.iter().collect();
    for card in METHODS {
        for (name, space) in spaces(NAME, &cpu) {
            let of_layers = card.name == "lezo" && name == "prompt";
            if of_layers || card.space.is_some_and(|only| only != space.kind()) {
                continue; // These are refused, as other tests tell.
            }
            let before = bits(&*space, &cpu);
            let options = json!({"eps": 1e-2, "directions": 2});
            let mut trainer = trainer(&cpu, space, card.name, options, 1024);
            for step in 0..3 {
                trainer.step(step, 0.0, &batch).unwrap();
            }
            assert!(bits(trainer.space(), &cpu) == before, "{} in {name}", card.name);
        }
    }
}
