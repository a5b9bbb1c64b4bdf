//! A run is its trajectory: made again from it, gone on with after an interruption, and what is refused.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, PrefixOptions, PromptOptions,
    Space, TRAJECTORY_FILE, VirtualSpace, ZerothOrderOptions, ZerothOrderTrainer, carry_out,
    promised_end, quantized, space_of, weights_hash,
};
use offshoot_engine::tune::{Example, Trainer};
use offshoot_kernels::Cpu;
use offshoot_methods::tune::{METHODS, MethodCard, RateOptions, Trajectory};
use offshoot_models::{Adapter, LoraAdapter, Recipe, VirtualKind};
use serde_json::{Value, json};

use crate::setting::{checkpoint, cpu, full, model, spaces, texts, values};

const NAME: &str = "qwen2_tied";

fn lora(cpu: &Cpu) -> LoraSpace {
    let targets = ["q_proj", "down_proj"].map(str::to_owned).to_vec();
    let options = LoraOptions { rank: 3, targets, seed: 11, ..LoraOptions::default() };
    LoraSpace::new(cpu, model(NAME, cpu), &options).unwrap()
}

fn prefix(cpu: &Cpu) -> VirtualSpace {
    let options = PrefixOptions { tokens: 3, seed: 11, ..PrefixOptions::default() };
    VirtualSpace::prefix(cpu, model(NAME, cpu), &options).unwrap()
}

fn prompt(cpu: &Cpu) -> VirtualSpace {
    let options = PromptOptions { tokens: 4, seed: 11, ..PromptOptions::default() };
    VirtualSpace::prompt(cpu, model(NAME, cpu), &options).unwrap()
}

fn trainer(cpu: &Cpu, space: Box<dyn Space>, method: &str, options: Value) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        method: method.to_owned(),
        options,
        decay: 0.01,
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

/// Steps `steps` on batches that change, at rates that do.
fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) {
    let all = texts(8);
    for step in steps {
        let first = step as usize * 3 % 6;
        let batch: Vec<&Example> = all[first..first + 2].iter().collect();
        let rate = 1e-3 * (1 + step / 5) as f64;
        trainer.step(step, rate, &batch).unwrap();
    }
}

/// The weights that the trajectory of `trainer` makes of the base, on `threads` threads.
fn made_again(trainer: &ZerothOrderTrainer, threads: usize) -> Vec<Vec<u32>> {
    let cpu = cpu(threads);
    let trajectory = Trajectory::from_bytes(&trainer.trajectory()).unwrap();
    let base = match quantized(&trajectory).unwrap() {
        Some(recipe) => checkpoint(NAME).quantized(recipe),
        None => checkpoint(NAME),
    };
    let mut space = space_of(&cpu, Arc::new(base), &trajectory.parts[0].header).unwrap();
    carry_out(&trajectory, &mut *space).unwrap();
    values(&*space)
}

/// Runs `steps` steps of `method` in every space among `only`, all if there are none, and asserts that
/// each run is made again to the bit.
fn is_made_again(method: &MethodCard, only: &[&str], steps: u64) {
    let cpu = cpu(2);
    for (name, space) in spaces(NAME, &cpu) {
        let refused = method.name == "lezo" && name == "prompt";
        let elsewhere = method.space.is_some_and(|kind| kind != space.kind());
        if refused || elsewhere || !(only.is_empty() || only.contains(&name)) {
            continue; // A prompt has no layers to choose from.
        }
        let first = values(&*space);
        let mut options = json!({"eps": 1e-3, "directions": 2, "clip_g": 30.0});
        // Short enough that what is kept for some steps is drawn anew within the run.
        for known in ["interval", "resample"] {
            if method.names().iter().any(|name| name == known) {
                options[known] = json!(5);
            }
        }
        let mut trainer = trainer(&cpu, space, method.name, options);
        run(&mut trainer, 0..steps);
        let last = values(trainer.space());
        assert!(first != last, "{} in {name} changes nothing", method.name);
        for threads in [1, 3] {
            assert!(made_again(&trainer, threads) == last, "{} in {name}", method.name);
        }
    }
}

#[test]
fn every_method_is_made_again_from_its_trajectory_in_every_space() {
    METHODS.iter().for_each(|method| is_made_again(method, &[], 12));
}

#[test]
fn runs_of_two_hundred_steps_are_made_again() {
    for name in ["mezo", "fzoo", "meazo", "mmt", "lozo", "sparse", "qzo"] {
        is_made_again(MethodCard::named(name).unwrap(), &["full", "lora", "prefix", "scales"], 200);
    }
}

#[test]
fn a_method_that_leaves_layers_out_refuses_a_prompt_which_has_none() {
    let cpu = cpu(1);
    let options = ZerothOrderOptions { method: "lezo".to_owned(), ..ZerothOrderOptions::default() };
    let space = Box::new(prompt(&cpu));
    let told = ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options);
    let told = told.unwrap_err().to_string();
    assert!(told.contains("must be of a space that has layers"), "{told}");
}

#[test]
fn a_run_that_was_interrupted_ends_as_if_it_had_not_been() {
    let cpu = cpu(2);
    for (method, with_snapshot) in
        [("mezo", true), ("adam", true), ("mmt", false), ("meazo", true), ("lozo-m", false)]
    {
        let start = || trainer(&cpu, Box::new(lora(&cpu)), method, json!({"probe": {"eps": 1e-3}}));
        let mut whole = start();
        run(&mut whole, 0..14);
        let folder = tempfile::tempdir().unwrap();
        let mut first = start();
        run(&mut first, 0..9);
        first.save(folder.path()).unwrap();
        if !with_snapshot {
            std::fs::remove_file(folder.path().join("tuned.safetensors")).unwrap();
        }
        let mut second = start();
        second.restore(folder.path()).unwrap();
        assert!(values(second.space()) == values(first.space()), "{method}");
        run(&mut second, 9..14);
        assert!(values(second.space()) == values(whole.space()), "{method}");
        assert!(second.trajectory() == whole.trajectory(), "{method}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
    let cpu = cpu(1);
    let folder = tempfile::tempdir().unwrap();
    let mut first = trainer(&cpu, Box::new(lora(&cpu)), "mezo", json!({"probe": {"eps": 1e-3}}));
    run(&mut first, 0..2);
    first.save(folder.path()).unwrap();
    let mut other = trainer(&cpu, Box::new(lora(&cpu)), "mezo", json!({"probe": {"eps": 1e-2}}));
    let told = other.restore(folder.path()).unwrap_err().to_string();
    assert!(told.contains("eps") && !told.contains('\n'), "{told}");
    let mut other = trainer(&cpu, Box::new(prefix(&cpu)), "mezo", json!({"probe": {"eps": 1e-3}}));
    let told = other.restore(folder.path()).unwrap_err().to_string();
    assert!(told.contains("another run's"), "{told}");
    // A snapshot that is cut changes nothing.
    let path = folder.path().join("tuned.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let mut again = trainer(&cpu, Box::new(lora(&cpu)), "mezo", json!({"probe": {"eps": 1e-3}}));
    let told = again.restore(folder.path()).unwrap_err().to_string();
    assert!(told.contains("tuned.safetensors"), "{told}");
}

#[test]
fn steps_are_made_in_order_and_at_rates_that_can_be_kept() {
    let cpu = cpu(1);
    let batch = texts(2);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut trainer = trainer(&cpu, Box::new(lora(&cpu)), "mezo", Value::Null);
    let told = trainer.step(3, 1e-3, &batch).unwrap_err().to_string();
    assert!(told.contains("step 0 comes next"), "{told}");
    trainer.step(0, 1e-3, &batch).unwrap();
}

#[test]
fn a_rate_that_is_found_is_kept_and_makes_the_loss_less() {
    let cpu = cpu(2);
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": 3e-2, "directions": 4}}),
        auto_rate: Some(RateOptions { interval: 20, ..RateOptions::default() }),
        ..ZerothOrderOptions::default()
    };
    let start = |space: LoraSpace| {
        ZerothOrderTrainer::new(&cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap()
    };
    let mut trainer = start(lora(&cpu));
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let before = trainer.losses(&[Default::default()], &batch).unwrap()[0];
    for step in 0..120 {
        trainer.step(step, f64::NAN, &batch).unwrap();
    }
    let after = trainer.losses(&[Default::default()], &batch).unwrap()[0];
    assert!(after < 0.97 * before, "{before} to {after}");
    let last = values(trainer.space());
    assert!(made_again(&trainer, 2) == last);
}

#[test]
fn what_is_served_is_what_was_tuned() {
    let cpu = cpu(2);
    let folder = tempfile::tempdir().unwrap();
    let space = lora(&cpu);
    let mut trainer = trainer(&cpu, Box::new(space), "mezo", json!({"probe": {"eps": 1e-2}}));
    run(&mut trainer, 0..5);
    trainer.write_variant(folder.path()).unwrap();
    let read = LoraAdapter::open(folder.path(), checkpoint(NAME).config()).unwrap();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let tuned = values(trainer.space());
    for (spec, tuned) in trainer.space().layout().tensors.iter().zip(&tuned) {
        let (matrix, half) = spec.name.split_once(".lora_").unwrap();
        let low = &read.matrices[matrix];
        let written = if half == "A.weight" { &low.a } else { &low.b };
        assert_eq!(&bits(written), tuned, "{}", spec.name);
        assert!((low.scale - 16.0 / 3.0).abs() < 1e-6);
    }
    let bytes = std::fs::read(folder.path().join(TRAJECTORY_FILE)).unwrap();
    let trajectory = Trajectory::from_bytes(&bytes).unwrap();
    assert_eq!(promised_end(&trajectory), Some(weights_hash(trainer.space()).unwrap()));
}

#[test]
fn what_stands_before_texts_is_written_as_it_was_tuned() {
    let cpu = cpu(2);
    let spaces: [Box<dyn Space>; 2] = [Box::new(prefix(&cpu)), Box::new(prompt(&cpu))];
    for space in spaces {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(&cpu, space, "mezo", json!({"probe": {"eps": 1e-2}}));
        run(&mut trainer, 0..4);
        trainer.write_variant(folder.path()).unwrap();
        let read = Adapter::open(folder.path(), checkpoint(NAME).config()).unwrap();
        let read = read.virtual_tokens().unwrap().clone();
        let tuned = values(trainer.space());
        let specs = &trainer.space().layout().tensors;
        let tensor = |name: &str| {
            let at = specs.iter().position(|spec| spec.name == name).unwrap();
            (specs[at].cols, &tuned[at])
        };
        let names: Vec<String> = match read.kind() {
            VirtualKind::Prompt => vec!["prompt".to_owned()],
            VirtualKind::Prefix => (0..specs.len() / 2)
                .flat_map(|l| ["keys", "values"].map(|half| format!("prefix.layers.{l}.{half}")))
                .collect(),
        };
        let expected = (0..read.tokens()).flat_map(|position| {
            names.iter().flat_map(move |name| {
                let (cols, tuned) = tensor(name);
                tuned[position * cols..(position + 1) * cols].to_vec()
            })
        });
        let written = read.numbers().iter().map(|x| x.to_bits());
        assert!(written.eq(expected), "{:?}", read.kind());
    }
}

#[test]
fn a_tuned_model_is_a_folder_with_its_weights() {
    let cpu = cpu(2);
    // Phi-3's folders keep q, k and v, and gate and up, in one matrix.
    for name in ["llama_linear", "qwen2_tied", "gemma3_linear", "phi3_short", "qwen3_moe"] {
        let folder = tempfile::tempdir().unwrap();
        let space = full(name, &cpu, &FullOptions::default());
        let mut trainer = trainer(&cpu, Box::new(space), "mezo", json!({"probe": {"eps": 1e-3}}));
        run(&mut trainer, 0..3);
        trainer.write_variant(folder.path()).unwrap();
        let read = offshoot_models::Checkpoint::open(folder.path()).unwrap();
        let read = offshoot_models::TrainableModel::load(Arc::new(read), &cpu).unwrap();
        let tuned = values(trainer.space());
        for (i, tensor) in read.tensors().iter().enumerate() {
            let off = |(x, y): (&f32, &u32)| (x - f32::from_bits(*y)).abs();
            let numbers = read.read(i).unwrap();
            let worst = numbers.iter().zip(&tuned[i]).map(off).fold(0.0, f32::max);
            // Gemma's norms lose bits where 1 is taken from them.
            let close = if name == "gemma3_linear" { 1e-6 } else { 0.0 };
            assert!(worst <= close, "{name}: {} is off by {worst}", tensor.name);
        }
    }
}

/// The weights begin as those that the base was quantised to, so a trajectory has to know of it.
#[test]
fn a_run_over_a_base_that_was_quantised_on_load_is_made_again() {
    let cpu = cpu(2);
    let base = || checkpoint("llama_linear");
    let loaded = Arc::new(base().quantized(Recipe::Q8_0));
    let space = FullSpace::new(&cpu, loaded, &FullOptions::default()).unwrap();
    let mut trainer = trainer(&cpu, Box::new(space), "mezo", json!({"eps": 1e-3}));
    run(&mut trainer, 0..4);
    let trajectory = Trajectory::from_bytes(&trainer.trajectory()).unwrap();
    let header = &trajectory.parts[0].header;
    assert_eq!(quantized(&trajectory).unwrap(), Some(Recipe::Q8_0));
    let again = |checkpoint| {
        let mut space = space_of(&cpu, Arc::new(checkpoint), header).unwrap();
        carry_out(&trajectory, &mut *space).unwrap();
        values(&*space) == values(trainer.space())
    };
    assert!(again(base().quantized(Recipe::Q8_0)));
    assert!(!again(base()));
    let mut strange = trajectory.clone();
    strange.parts[0].header.quantized = Some("q\n9".to_owned());
    let told = quantized(&strange).unwrap_err().to_string();
    assert!(told.contains("\"q\\n9\": no such format"), "{told}");
}

#[test]
fn only_tensors_that_are_named_change() {
    let cpu = cpu(2);
    let options = FullOptions {
        train: Some(r"layers\.1\..*(norm|proj)".to_owned()),
        freeze: Some("mlp".to_owned()),
        ..FullOptions::default()
    };
    let space = full(NAME, &cpu, &options);
    let names: Vec<_> = space.layout().tensors.iter().map(|spec| spec.name.clone()).collect();
    assert!(names.iter().all(|name| name.contains("layers.1.") && !name.contains("mlp")));
    assert!(names.iter().any(|name| name.ends_with("layernorm.weight")), "{names:?}");
    let before: Vec<_> = (0..space.trainable().tensors().len())
        .map(|i| space.trainable().read(i).unwrap())
        .collect();
    let tensors = space.trainable().tensors().to_vec();
    let mut trainer = trainer(&cpu, Box::new(space), "mezo", json!({"probe": {"eps": 1e-3}}));
    run(&mut trainer, 0..3);
    let folder = tempfile::tempdir().unwrap();
    trainer.write_variant(folder.path()).unwrap();
    let read = offshoot_models::Checkpoint::open(folder.path()).unwrap();
    let read = offshoot_models::TrainableModel::load(Arc::new(read), &cpu).unwrap();
    for ((i, tensor), before) in tensors.iter().enumerate().zip(before) {
        let changed = read.read(i).unwrap() != before;
        assert_eq!(changed, names.contains(&tensor.name), "{}", tensor.name);
    }
    for (train, what) in [("(", "no regular expression"), ("nothing like it", "no tensor to tune")]
    {
        let options = FullOptions { train: Some(train.to_owned()), ..FullOptions::default() };
        let checkpoint = Arc::new(checkpoint(NAME));
        let told = offshoot_engine::tune::zeroth_order::FullSpace::new(&cpu, checkpoint, &options);
        assert!(told.unwrap_err().to_string().contains(what));
    }
}
