//! Training of small random models.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Isa};
use offshoot_methods::optim::{AdamW, Muon, OPTIMIZERS, OptimizerOptions, Sgd};
use offshoot_methods::tune::{FwdgradOptions, HybridOptions};
use offshoot_models::{
    Checkpoint, LoraAdapter, PackedAdapters, PackedExecutor, PackedModel, VariantId,
};

use super::*;
use steps::packed_step;

#[path = "../../../../offshoot-models/tests/support/steps.rs"]
mod steps;

const FAMILIES: [&str; 7] = [
    "llama_biases",
    "qwen2_tied",
    "qwen3_yarn",
    "mistral_window",
    "gemma3_linear",
    "phi3_short",
    "qwen3_moe",
];

pub(super) fn checkpoint(name: &str) -> Arc<Checkpoint> {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../offshoot-models/tests/data/logits");
    let path = Path::new(models).join(format!("{name}.gguf"));
    Arc::new(Checkpoint::open(&path).unwrap())
}

fn tuner(name: &str, options: &FirstOrderOptions) -> FirstOrder {
    FirstOrder::new(checkpoint(name), options.clone()).unwrap()
}

/// Texts of pseudo-random tokens below 60, that differ from their first token on.
pub(super) fn texts(count: u32, len: u32) -> Vec<Example> {
    let token =
        |text: u32, place: u32| ((text + 3) * 37 + place * (text * 5 + 11) + place * place) % 60;
    let text = |number: u32| {
        let tokens: Vec<u32> = (0..len).map(|place| token(number, place)).collect();
        Example::Text(Sequence::of(&tokens[..1], &tokens[1..]))
    };
    (0..count).map(text).collect()
}

pub(super) fn refs(examples: &[Example]) -> Vec<&Example> {
    examples.iter().collect()
}

pub(super) fn train(
    tuner: &mut FirstOrder,
    examples: &[Example],
    steps: std::ops::Range<u64>,
    rate: f64,
) -> f64 {
    let mut loss = f64::NAN;
    for step in steps {
        loss = tuner.step(step, rate, &refs(examples)).unwrap().loss;
    }
    loss
}

fn full() -> FirstOrderOptions {
    let space = FirstOrderSpace::Full(TensorNames::All);
    FirstOrderOptions { space, ..FirstOrderOptions::default() }
}

fn lora(options: LoraOptions) -> FirstOrderOptions {
    FirstOrderOptions { space: FirstOrderSpace::Lora(options), ..FirstOrderOptions::default() }
}

fn sequence(example: &Example) -> &Sequence {
    let Example::Text(sequence) = example else { panic!("a text") };
    sequence
}

#[test]
fn four_texts_are_learned_by_heart_and_said() {
    let texts = texts(4, 12);
    for options in [FirstOrderOptions::default(), full()] {
        let mut tuner = tuner("llama_linear", &options);
        let first = train(&mut tuner, &texts, 0..1, 1e-2);
        let last = train(&mut tuner, &texts, 1..150, 1e-2);
        assert!(first > 2.0 && last < 0.1, "{first} to {last}");
        for text in &texts {
            let sequence = sequence(text);
            let scored = tuner.score(&[sequence]).unwrap()[0];
            assert_eq!((scored.tokens, scored.greedy), (11, 11));
            let answer = tuner.generate(&[&sequence.tokens[..1]], 11).unwrap();
            assert_eq!(answer[0], sequence.tokens[1..]);
        }
    }
}

#[test]
fn a_forward_gradient_is_the_slope_along_its_direction_and_makes_the_loss_less() {
    let texts = texts(4, 12);
    let options = FirstOrderOptions {
        optimizer: OptimizerOptions::Sgd(Sgd { momentum: 0.0, ..Sgd::default() }),
        clip_norm: None,
        forward: Some(FwdgradOptions { directions: 4 }),
        seed: 5,
        ..full()
    };
    let run =
        |tuner: &mut FirstOrder, steps: std::ops::Range<u64>| train(tuner, &texts, steps, 2e-3);
    let mut ours = tuner("llama_linear", &options);
    let (gradients, _) = ours.gradients(0, &refs(&texts)).unwrap();
    let (mut gradients, _) = ours.numbers(gradients).unwrap();
    let exact = gradients.concat();
    let slopes = ours.projected(0, &mut gradients).unwrap();
    // A slope along an estimate of the gradient is never up: <g, ghat> = mean of s_j^2.
    let along: f64 =
        exact.iter().zip(gradients.concat()).map(|(a, b)| f64::from(*a) * f64::from(b)).sum();
    let squares = slopes.iter().map(|s| s * s).sum::<f64>() / 4.0;
    assert!((along / squares - 1.0).abs() < 1e-4, "{along} {squares}");
    let first = run(&mut ours, 0..1);
    let last = run(&mut ours, 1..120);
    assert!(last < 0.95 * first, "{first} to {last}");
    let mut again = tuner("llama_linear", &options);
    assert_eq!(run(&mut again, 0..120).to_bits(), last.to_bits());
}

#[test]
fn a_hybrid_has_the_gradients_of_the_last_blocks_and_moves_the_first_along_a_direction() {
    let texts = texts(4, 12);
    let hybrid = Some(HybridOptions { blocks: 1, eps: 1e-2, directions: 1, share: 0.1 });
    for base in [full(), FirstOrderOptions::default()] {
        let decaying = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let optimizer = OptimizerOptions::AdamW(decaying);
        let base = FirstOrderOptions { seed: 3, optimizer, ..base };
        let options = FirstOrderOptions { hybrid, ..base.clone() };
        let mut ours = tuner("llama_linear", &options);
        let names: Vec<String> =
            ours.tuning.variables().iter().map(|(name, _)| name.clone()).collect();
        let deep = |name: &str| !name.contains("layers.0") && !name.contains("embed_tokens");
        let exact = tuner("llama_linear", &base).gradients(0, &refs(&texts)).unwrap().0;
        let (found, _) = ours.gradients(0, &refs(&texts)).unwrap();
        assert_eq!(found.loss.to_bits(), exact.loss.to_bits());
        for ((name, exact), found) in names.iter().zip(&exact.tensors).zip(&found.tensors) {
            match (exact, found) {
                (Some(exact), Some(found)) if deep(name) => {
                    assert!(read(exact).unwrap() == read(found).unwrap(), "{name}");
                }
                (_, found) => assert!(found.is_none() || !name.contains("layers"), "{name}"),
            }
        }
        let first = weights(&ours);
        let report = ours.step(0, 1e-2, &refs(&texts)).unwrap();
        let slope =
            report.numbers.iter().find(|(name, _)| *name == "projected_gradient").unwrap().1;
        for ((name, old), new) in names.iter().zip(&first).zip(weights(&ours)) {
            match deep(name) {
                true => assert!(*old != new || name.contains("lora_A"), "{name}"),
                false => assert!(moved(name, old, &[slope]) == new, "{name}"),
            }
        }
        let last = train(&mut ours, &texts, 1..80, 1e-2);
        assert!(last < 0.8 * report.loss, "{} to {last}", report.loss);
    }
    let wrong = FirstOrderOptions { hybrid, checkpointing: false, ..full() };
    let told = wrong.validate().unwrap_err().to_string();
    assert!(told.contains("hybrid: takes"), "{told}");
}

/// The numbers of all that is tuned.
fn weights(tuner: &FirstOrder) -> Vec<Vec<f32>> {
    let variables = tuner.tuning.variables().iter();
    variables.map(|(_, variable)| read(variable.as_tensor()).unwrap()).collect()
}

/// Direction `index` of step 0 of a run of seed 3, in the tensor `name`.
fn direction(name: &str, index: u32, len: usize) -> Vec<f32> {
    let mut z = vec![0.0; len];
    let noise = offshoot_kernels::Noise {
        seed: 3,
        tensor: offshoot_kernels::tensor_id(name),
        step: 0,
        index,
        purpose: offshoot_kernels::Purpose::Direction,
        distribution: offshoot_kernels::Distribution::GaussQ8,
    };
    noise.fill(Isa::best(), 0, &mut z);
    z
}

/// Where a shallow tensor goes from `old` by these slopes, at a rate of 1e-2 of which a tenth is its
/// share, and with a decay of 0.1.
fn moved(name: &str, old: &[f32], slopes: &[f64]) -> Vec<f32> {
    let rate = 1e-2 * 0.1;
    let is_vector = name.ends_with("norm.weight") || name.ends_with(".bias");
    let keep = if is_vector { 1.0 } else { (1.0 - rate * 0.1) as f32 };
    let mut new: Vec<f32> = old.iter().map(|w| w * keep).collect();
    for (index, slope) in (0..).zip(slopes) {
        let scale = (rate / slopes.len() as f64 * slope) as f32;
        let z = direction(name, index, old.len());
        new.iter_mut().zip(z).for_each(|(w, z)| *w -= scale * z);
    }
    new
}

#[test]
fn a_hybrids_first_blocks_follow_the_mean_over_its_directions() {
    let texts = texts(4, 12);
    let hybrid = HybridOptions { blocks: 1, eps: 1e-3, directions: 3, share: 0.1 };
    for base in [full(), FirstOrderOptions::default()] {
        let optimizer = OptimizerOptions::AdamW(AdamW { weight_decay: 0.1, ..AdamW::default() });
        let base = FirstOrderOptions { seed: 3, optimizer, ..base };
        let ours = FirstOrderOptions { hybrid: Some(hybrid), ..base.clone() };
        let ours = tuner("llama_linear", &ours);
        let exact = tuner("llama_linear", &base).gradients(0, &refs(&texts)).unwrap().0;
        let exact = ours.numbers(exact).unwrap().0;
        let first = weights(&ours);
        let slopes = ours.shallow_step((0, 1e-2), hybrid, &refs(&texts)).unwrap();
        assert_eq!(slopes.len(), 3);
        let (mut along, mut square) = ([0.0; 3], 0.0);
        let names = ours.tuning.variables().iter().map(|(name, _)| name);
        for (i, (name, new)) in names.zip(weights(&ours)).enumerate() {
            if !ours.shallow[i] {
                assert!(new == first[i], "{name}");
                continue;
            }
            assert!(new == moved(name, &first[i], &slopes), "{name}");
            square += square_norm(&exact[i]);
            for (index, along) in (0..).zip(&mut along) {
                let z = direction(name, index, new.len());
                let each = exact[i].iter().zip(z).map(|(g, z)| f64::from(*g) * f64::from(z));
                *along += each.sum::<f64>();
            }
        }
        for (slope, along) in slopes.iter().zip(along) {
            assert!((slope - along).abs() < 0.05 * square.sqrt(), "{slope}, expected {along}");
        }
    }
}

#[test]
fn a_slope_that_is_no_number_leaves_every_bit_as_it_was() {
    let texts = texts(4, 12);
    let hybrid = HybridOptions { blocks: 1, ..HybridOptions::default() };
    for base in [full(), FirstOrderOptions::default()] {
        let mut ours = tuner("llama_linear", &FirstOrderOptions { hybrid: Some(hybrid), ..base });
        train(&mut ours, &texts, 0..2, 1e-2);
        let shallow = ours.shallow.iter().position(|shallow| *shallow).unwrap();
        // A zero whose sign is lost if nothing times a direction is added to it.
        change(&ours.tuning.variables()[shallow].1, |w| w.fill(-0.0)).unwrap();
        let bits = |ours: &FirstOrder| -> Vec<Vec<u32>> {
            let bits = |w: Vec<f32>| w.into_iter().map(f32::to_bits).collect();
            weights(ours).into_iter().map(bits).collect()
        };
        let (before, state) = (bits(&ours), ours.state.clone());
        // More than single precision holds.
        ours.options.hybrid = Some(HybridOptions { eps: 1e39, ..hybrid });
        let told = ours.step(2, 1e-2, &refs(&texts)).unwrap_err().to_string();
        assert!(told.contains("along a direction is no number"), "{told}");
        assert!(bits(&ours) == before && ours.state == state);
    }
}

#[test]
fn the_loss_falls_in_every_family_by_every_optimiser() {
    let texts = texts(4, 12);
    let rates = [
        (OptimizerOptions::AdamW(AdamW::default()), 1e-2),
        (OptimizerOptions::Sgd(Sgd::default()), 0.3),
        (OptimizerOptions::Muon(Muon::default()), 3e-2),
    ];
    for name in FAMILIES {
        for (optimizer, rate) in rates {
            let options = FirstOrderOptions { optimizer, ..FirstOrderOptions::default() };
            let mut tuner = tuner(name, &options);
            let first = train(&mut tuner, &texts, 0..1, rate);
            let last = train(&mut tuner, &texts, 1..25, rate);
            assert!(last < 0.8 * first, "{name}, {optimizer:?}: {first} to {last}");
        }
    }
}

#[test]
fn a_batch_is_the_sum_of_its_micro_batches() {
    let mut batch = texts(13, 9);
    batch.push(Example::Answer {
        gold: Sequence::of(&[1, 2, 3], &[4, 5]),
        prompt: 3,
        answers: vec!["x".to_owned()],
    });
    let choice = |answers: Vec<usize>| Example::Choice {
        prompt: vec![5, 6, 7],
        candidates: vec![vec![8], vec![9, 10], vec![11]],
        answers,
    };
    batch.extend([choice(vec![1]), choice(vec![0, 2])]);
    let dropped = LoraOptions { dropout: 0.3, ..LoraOptions::default() };
    let dropped = FirstOrderSpace::Lora(dropped);
    for (space, losses) in [
        (FirstOrderSpace::default(), &[ChoiceLoss::Language, ChoiceLoss::Candidates][..]),
        (dropped, &[ChoiceLoss::Language]),
    ] {
        for &choice in losses {
            let gradients = |micro_batch| {
                let options = FirstOrderOptions {
                    choice,
                    space: space.clone(),
                    ..FirstOrderOptions::default()
                };
                let mut tuner = tuner("qwen2_untied", &options);
                train(&mut tuner, &texts(2, 5), 0..3, 1e-2);
                // From here on: AdamW makes whole steps of gradients that are but rounding.
                tuner.options.micro_batch = micro_batch;
                let (gradients, tokens) = tuner.gradients(3, &refs(&batch)).unwrap();
                (gradients.loss, tuner.numbers(gradients).unwrap(), tokens)
            };
            let (loss, (whole, norm), tokens) = gradients(0);
            for size in [1, 4, 16] {
                let (other, (parts, _), same) = gradients(size);
                assert!(
                    (loss - other).abs() < 1e-6 * loss.abs(),
                    "{choice:?}, {size}: {loss} {other}"
                );
                assert_eq!(tokens, same);
                let off = whole.iter().zip(&parts).map(|(a, b)| {
                    let off: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
                    square_norm(&off)
                });
                let off = off.sum::<f64>().sqrt() / norm[0];
                // Sums of single precision in another order.
                assert!(off < 3e-6, "{size} at a time: off by {off}");
            }
        }
    }
}

#[test]
fn candidates_are_not_compared_under_dropout() {
    let space = FirstOrderSpace::Lora(LoraOptions { dropout: 0.3, ..LoraOptions::default() });
    let choice = ChoiceLoss::Candidates;
    let options = FirstOrderOptions { space, choice, ..FirstOrderOptions::default() };
    let told = options.validate().unwrap_err().to_string();
    assert!(told.contains("dropout"), "{told}");
}

pub(super) fn digest(tuner: &FirstOrder) -> String {
    let mut hash = blake3::Hasher::new();
    for (_, variable) in tuner.tuning.variables() {
        read(variable).unwrap().iter().for_each(|x| {
            hash.update(&x.to_le_bytes());
        });
    }
    hash.finalize().to_hex().to_string()
}

#[test]
fn a_run_that_is_taken_up_again_ends_in_the_same_bits() {
    let texts = texts(4, 10);
    let optimizers = OPTIMIZERS.map(|card| (card.default)());
    for space in [FirstOrderSpace::default(), FirstOrderSpace::Full(TensorNames::All)] {
        for optimizer in optimizers {
            let options = FirstOrderOptions {
                optimizer,
                space: space.clone(),
                ..FirstOrderOptions::default()
            };
            let mut whole = tuner("qwen3_tied", &options);
            train(&mut whole, &texts, 0..6, 3e-3);
            let folder = tempfile::tempdir().unwrap();
            let mut before = tuner("qwen3_tied", &options);
            train(&mut before, &texts, 0..3, 3e-3);
            before.save(folder.path()).unwrap();
            let mut after = tuner("qwen3_tied", &options);
            train(&mut after, &texts, 0..1, 1e-1);
            after.restore(folder.path()).unwrap();
            train(&mut after, &texts, 3..6, 3e-3);
            assert_eq!(digest(&after), digest(&whole), "{optimizer:?}");
            assert_ne!(digest(&before), digest(&whole));
        }
    }
}

#[test]
fn a_state_that_is_anothers_or_damaged_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = FirstOrderOptions::default();
    let mut own = tuner("llama_linear", &options);
    own.save(folder.path()).unwrap();
    let told = |tuner: &mut FirstOrder| tuner.restore(folder.path()).unwrap_err().to_string();
    let mut other = tuner("qwen2_untied", &options);
    assert!(told(&mut other).contains("belongs to another base"), "{}", told(&mut other));
    let mut other = tuner("llama_linear", &FirstOrderOptions { seed: 1, ..options.clone() });
    assert!(told(&mut other).contains("other options"), "{}", told(&mut other));
    train(&mut own, &texts(2, 5), 0..2, 1e-2);
    let before = digest(&own);
    let path = folder.path().join("first_order.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..bytes.len() - 4], &bytes[..3], &[]] {
        std::fs::write(&path, damaged).unwrap();
        let told = told(&mut own);
        assert!(told.contains("first_order.safetensors") && !told.contains('\n'), "{told}");
    }
    std::fs::write(folder.path().join("first_order.json"), "{").unwrap();
    assert!(told(&mut own).contains("first_order.json"), "{}", told(&mut own));
    assert_eq!(digest(&own), before);
}

/// Draft heads that learn alone for a step, then with the model, which is held to the base.
fn with_heads() -> FirstOrderOptions {
    let heads = DraftHeads { alone: 1, rise: 4, self_distillation: true, ..DraftHeads::default() };
    FirstOrderOptions { heads: Some(heads), ..FirstOrderOptions::default() }
}

/// Digest of some steps of a size at which the tensor library shares out its products, each of more than
/// 48 x 48 x 256 multiplications, and our operations their rows.
fn digest_of_training() -> String {
    let mut digests = String::new();
    for (name, options) in [
        ("gemma3_linear", lora(LoraOptions { dropout: 0.1, ..LoraOptions::default() })),
        ("llama_factors", full()),
        ("qwen2_tied", with_heads()),
    ] {
        let mut tuner = tuner(name, &options);
        train(&mut tuner, &texts(12, 60), 0..3, 1e-2);
        digests += &digest(&tuner);
    }
    digests
}

/// The library asks the environment for its threads, which a running program cannot change: each number of
/// threads is this test in a process of its own.
#[test]
fn the_number_of_threads_changes_no_bit() {
    const CHILD: &str = "OFFSHOOT_TEST_TUNING";
    const NAME: &str = "tune::first_order::tests::the_number_of_threads_changes_no_bit";
    if std::env::var_os(CHILD).is_some() {
        println!("digest {}", digest_of_training());
        return;
    }
    let digest = |threads: &str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]);
        child.env(CHILD, "1").env("RAYON_NUM_THREADS", threads);
        let said = String::from_utf8(child.output().unwrap().stdout).unwrap();
        let digest = said.lines().find_map(|line| line.split_once("digest "));
        digest.unwrap_or_else(|| panic!("no digest in {said}")).1.to_owned()
    };
    let one = digest("1");
    for threads in ["2", "3", "8"] {
        assert_eq!(digest(threads), one, "{threads} threads");
    }
}

/// Logits of the base with `adapter` on the executor that serves.
fn packed(base: &Arc<Checkpoint>, adapter: &LoraAdapter, tokens: &[u32]) -> Vec<f32> {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::clone(base), &cpu, None).unwrap();
    let adapters = std::slice::from_ref(adapter);
    let mut hooks = PackedAdapters::new(&cpu, model.blueprint(), adapters).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut cache = model.new_cache(tokens.len());
    let text = (tokens, model.config().rope_for(tokens.len()), VariantId(1));
    packed_step(&mut executor, &model, &mut cache, &mut hooks, text)
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let greatest = logits.iter().fold(f32::MIN, |m, &x| m.max(x));
    let total: f64 = logits.iter().map(|x| f64::from(x - greatest).exp()).sum();
    f64::from(logits[token as usize] - greatest) - total.ln()
}

#[test]
fn an_adapter_that_was_trained_serves_on_the_packed_executor() {
    let texts = texts(4, 12);
    for name in FAMILIES {
        let options = LoraOptions {
            rslora: name == "qwen2_tied",
            rank_pattern: [("layers.0.self_attn.q_proj".to_owned(), 3)].into(),
            alpha_pattern: [("v_proj".to_owned(), 5.0)].into(),
            ..LoraOptions::default()
        };
        let mut tuner = tuner(name, &lora(options));
        let before = train(&mut tuner, &texts, 0..1, 1e-2);
        train(&mut tuner, &texts, 1..20, 1e-2);
        let folder = tempfile::tempdir().unwrap();
        tuner.write_variant(folder.path()).unwrap();
        assert!(folder.path().join("README.md").exists());
        let base = checkpoint(name);
        let adapter = LoraAdapter::open(folder.path(), base.config()).unwrap();
        if name != "phi3_short" {
            assert_eq!(Some(&adapter), tuner.tuning.adapter().unwrap().as_ref(), "{name}");
        }
        let vocab = base.config().vocab_size;
        let (mut served, mut tokens) = (0.0, 0);
        for text in &texts {
            let sequence = sequence(text);
            let logits = packed(&base, &adapter, &sequence.tokens);
            let ours = tuner.score(&[sequence]).unwrap()[0].logprob;
            let rows = logits.chunks_exact(vocab).zip(&sequence.tokens[1..]);
            let theirs: f64 = rows.map(|(row, &token)| log_probability(row, token)).sum();
            // The packed executor keeps keys and values in half precision.
            assert!((ours - theirs).abs() < 5e-3 * ours.abs(), "{name}: {ours} {theirs}");
            (served, tokens) = (served - theirs, tokens + sequence.targets());
        }
        assert!(served / (tokens as f64) < 0.8 * before, "{name}: {served} from {before}");
    }
}

#[test]
fn weights_that_were_trained_are_a_folder_that_opens() {
    for name in ["gemma3_linear", "phi3_short", "qwen3_moe", "llama_factors"] {
        let mut tuner = tuner(name, &full());
        train(&mut tuner, &texts(4, 12), 0..3, 1e-2);
        let folder = tempfile::tempdir().unwrap();
        if let Err(error) = tuner.write_variant(folder.path()) {
            // What rope factors a folder cannot say is refused, as when a model is exported.
            assert!(name == "llama_factors" && error.to_string().starts_with("export"), "{error}");
            continue;
        }
        let again = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(again.config().family, tuner.tuning.model().config().family);
        for (weight, variable) in tuner.tuning.variables() {
            let stored = again.require(weight).unwrap();
            let mut numbers = vec![0.0; stored.len()];
            for (row, out) in numbers.chunks_exact_mut(stored.cols()).enumerate() {
                stored.read_row(row, out).unwrap();
            }
            let tuned = read(variable).unwrap();
            // Norms of Gemma are stored less 1.
            let close = tuned.iter().zip(&numbers).all(|(a, b)| (a - b).abs() <= 1e-6);
            assert!(close, "{name}: {weight}");
        }
    }
}

#[test]
fn a_choice_is_learned_by_either_loss_and_scored_as_it_says() {
    let (right, wrong) = (vec![vec![8], vec![9]], vec![vec![8, 1], vec![9, 2, 3], vec![4]]);
    for candidates in [right, wrong] {
        let choice = |prompt: Vec<u32>, answer: usize| Example::Choice {
            prompt,
            candidates: candidates.clone(),
            answers: vec![answer],
        };
        let batch = [choice(vec![1, 2, 3], 0), choice(vec![4, 5], 1)];
        for loss in [ChoiceLoss::Candidates, ChoiceLoss::Language] {
            let options = FirstOrderOptions { choice: loss, ..FirstOrderOptions::default() };
            let mut tuner = tuner("qwen2_untied", &options);
            let told = tuner.gradients(0, &refs(&batch)).unwrap().0.loss;
            let expected = expected_loss(&mut tuner, &batch, loss);
            assert!((told - expected).abs() < 1e-5 * expected, "{loss:?}: {told} {expected}");
            train(&mut tuner, &batch, 0..40, 1e-2);
            let after = expected_loss(&mut tuner, &batch, ChoiceLoss::Candidates);
            assert!(after < 0.1, "{loss:?}: {after}");
        }
    }
}

/// The loss by scores of whole sequences.
fn expected_loss(tuner: &mut FirstOrder, batch: &[Example], loss: ChoiceLoss) -> f64 {
    let (mut language, mut tokens, mut choice) = (0.0, 0, 0.0);
    for example in batch {
        let Example::Choice { prompt, candidates, answers } = example else { panic!("a choice") };
        let sequences: Vec<Sequence> = candidates.iter().map(|c| Sequence::of(prompt, c)).collect();
        let scored = tuner.score(&sequences.iter().collect::<Vec<_>>()).unwrap();
        let means: Vec<f64> = scored.iter().map(|s| s.logprob / s.tokens as f64).collect();
        let total: f64 = means.iter().map(|m| m.exp()).sum();
        choice -= (means[answers[0]].exp() / total).ln() / batch.len() as f64;
        language -= scored[answers[0]].logprob;
        tokens += scored[answers[0]].tokens;
    }
    match loss {
        ChoiceLoss::Candidates => choice,
        ChoiceLoss::Language => language / tokens as f64,
    }
}

/// By finite differences of the loss, along the gradient.
#[test]
fn the_gradient_of_a_choice_is_the_slope_of_its_loss() {
    let batch = [Example::Choice {
        prompt: vec![1, 2, 3],
        candidates: vec![vec![8, 1], vec![9], vec![4, 5, 6]],
        answers: vec![2],
    }];
    let choice = ChoiceLoss::Candidates;
    let options = FirstOrderOptions { choice, ..FirstOrderOptions::default() };
    let mut tuner = tuner("qwen2_untied", &options);
    train(&mut tuner, &texts(2, 5), 0..3, 1e-2);
    let gradients = tuner.gradients(3, &refs(&batch)).unwrap().0;
    let (numbers, [norm, _]) = tuner.numbers(gradients).unwrap();
    let at = |step: f64| {
        let variables = tuner.tuning.variables().iter().zip(&numbers);
        let begin: Vec<Vec<f32>> = variables.clone().map(|((_, v), _)| read(v).unwrap()).collect();
        for ((_, variable), gradient) in variables {
            let along = |w: &mut [f32]| {
                let along = gradient.iter().map(|g| (step * f64::from(*g) / norm) as f32);
                w.iter_mut().zip(along).for_each(|(w, g)| *w += g);
            };
            change(variable, along).unwrap();
        }
        let loss = tuner.gradients(3, &refs(&batch)).unwrap().0.loss;
        for ((_, variable), begin) in tuner.tuning.variables().iter().zip(&begin) {
            change(variable, |w| w.copy_from_slice(begin)).unwrap();
        }
        loss
    };
    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    assert!((slope - norm).abs() < 1e-2 * norm, "{slope} {norm}");
}

#[test]
fn with_a_frozen_only_b_learns() {
    let mut tuner =
        tuner("llama_linear", &lora(LoraOptions { freeze_a: true, ..LoraOptions::default() }));
    let before = tuner.tuning.adapter().unwrap().unwrap();
    train(&mut tuner, &texts(4, 8), 0..3, 1e-2);
    let after = tuner.tuning.adapter().unwrap().unwrap();
    for (name, low) in &after.matrices {
        assert_eq!(low.a, before.matrices[name].a);
        assert_ne!(low.b, before.matrices[name].b);
    }
}

#[test]
fn a_gradient_longer_than_the_bound_moves_the_weights_by_the_bound() {
    let plain = OptimizerOptions::Sgd(Sgd { momentum: 0.0, ..Sgd::default() });
    let options = FirstOrderOptions { optimizer: plain, clip_norm: Some(1e-3), ..full() };
    let mut tuner = tuner("llama_linear", &options);
    let numbers = |tuner: &FirstOrder| {
        let variables = tuner.tuning.variables().iter();
        variables.flat_map(|(_, v)| read(v).unwrap()).collect::<Vec<f32>>()
    };
    let before = numbers(&tuner);
    let report = tuner.step(0, 1.0, &refs(&texts(2, 6))).unwrap();
    let moved: Vec<f32> = numbers(&tuner).iter().zip(&before).map(|(a, b)| a - b).collect();
    assert!(report.numbers[0].1 > 1e-2);
    assert!((square_norm(&moved).sqrt() - 1e-3).abs() < 2e-5);
}

#[test]
fn what_cannot_be_trained_is_told_by_its_name() {
    let told = |options: FirstOrderOptions| {
        FirstOrder::new(checkpoint("llama_linear"), options).unwrap_err().to_string()
    };
    let named = |name: &str| LoraMatrices::Named(vec![name.to_owned()]);
    assert!(told(lora(LoraOptions { rank: 0, ..LoraOptions::default() })).contains("rank"));
    assert!(told(lora(LoraOptions { dropout: 1.0, ..LoraOptions::default() })).contains("dropout"));
    let matrices = named("qq_proj");
    assert!(told(lora(LoraOptions { matrices, ..LoraOptions::default() })).contains("qq_proj"));
    let rank_pattern = [("k_proj".to_owned(), 4)].into();
    let matrices = named("q_proj");
    let odd = LoraOptions { matrices, rank_pattern, ..LoraOptions::default() };
    assert!(told(lora(odd)).contains("k_proj"));
    let options = FirstOrderOptions { clip_norm: Some(-1.0), ..FirstOrderOptions::default() };
    assert!(told(options).contains("clip_norm"));
    let mut tuner = tuner("llama_linear", &FirstOrderOptions::default());
    let before = digest(&tuner);
    let mut step = |example: Example| tuner.step(0, 1e-2, &[&example]).unwrap_err().to_string();
    let untrained = Sequence { tokens: vec![1, 2], trained: vec![false, false] };
    assert!(step(Example::Text(untrained.clone())).contains("no token"));
    let (chosen, rejected) = (untrained.clone(), untrained);
    let pair = Example::Preference { chosen, rejected, rewards: None };
    assert!(step(pair).contains("pairs of texts"));
    assert!(step(Example::Text(Sequence::of(&[1, 99_999_999], &[2]))).contains("99999999"));
    assert_eq!(digest(&tuner), before);
}

#[test]
fn matrices_in_their_file_train_as_those_in_memory() {
    let texts = texts(3, 9);
    let after = |weights_in_file| {
        let options = FirstOrderOptions { weights_in_file, ..FirstOrderOptions::default() };
        let mut tuner = tuner("qwen2_untied", &options);
        let loss = train(&mut tuner, &texts, 0..8, 1e-2);
        (loss, tuner.generate(&[&[1, 2, 3]], 5).unwrap())
    };
    let (held, lean) = (after(false), after(true));
    assert!((held.0 - lean.0).abs() < 1e-4 * held.0, "{} {}", held.0, lean.0);
    assert_eq!(held.1, lean.1);
}

#[test]
fn options_are_read_as_they_are_written() {
    for options in [FirstOrderOptions::default(), full()] {
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<FirstOrderOptions>(&text).unwrap(), options);
    }
    assert!(serde_json::from_str::<FirstOrderOptions>(r#"{"rate": 1}"#).is_err());
    let named = r#"{"space": {"lora": {"rank": 4, "matrices": {"named": ["q_proj"]}}}}"#;
    let named: FirstOrderOptions = serde_json::from_str(named).unwrap();
    let FirstOrderSpace::Lora(lora) = named.space else { panic!("LoRA") };
    assert_eq!((lora.rank, lora.alpha), (4, 16.0));
}

/// What runs where the model is on another device than the processor, here on the processor.
#[test]
fn steps_by_the_librarys_operations_follow_those_of_our_own() {
    let texts = texts(4, 12);
    for name in FAMILIES {
        let dropped = lora(LoraOptions { dropout: 0.1, ..LoraOptions::default() });
        // Not AdamW, which makes whole steps of gradients that are but rounding.
        let optimizer = OptimizerOptions::Sgd(Sgd::default());
        for options in [FirstOrderOptions::default(), dropped, full(), with_heads()] {
            let options = FirstOrderOptions { optimizer, ..options };
            let (mut ours, mut theirs) = (tuner(name, &options), tuner(name, &options));
            theirs.tuning = theirs.tuning.by_library();
            // Heads that the model teaches begin at no divergence from it.
            let mut most = 0f64;
            for step in 0..20 {
                let all = [&mut ours, &mut theirs];
                let [ours, theirs] = all.map(|tuner| train(tuner, &texts, step..step + 1, 3e-2));
                most = most.max(ours.abs());
                assert!((ours - theirs).abs() <= 1e-3 * most, "{name}, {step}: {ours} {theirs}");
            }
            let sequence = sequence(&texts[0]);
            let scored = [&mut ours, &mut theirs].map(|t| t.score(&[sequence]).unwrap()[0].logprob);
            assert!((scored[0] - scored[1]).abs() < 1e-2 * scored[0].abs(), "{name}: {scored:?}");
        }
    }
}

#[test]
fn numbers_that_are_changed_by_way_of_a_copy_are_those_changed_in_place() {
    let numbers = || Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0], (2, 3), &Device::Cpu);
    let variable = || Var::from_tensor(&numbers().unwrap()).unwrap();
    let (here, copied) = (variable(), variable());
    let places = |x: &mut [f32]| x.iter_mut().enumerate().for_each(|(i, x)| *x *= 1.5 + i as f32);
    change(&here, places).unwrap();
    change_copy(&copied, places).unwrap();
    assert_eq!(read(&here).unwrap(), read(&copied).unwrap());
    assert_eq!(read(&here).unwrap()[..2], [1.5, 5.0]);
}
