//! Weights that lie in a file: the same bits as in memory, by every method.
#![cfg(unix)]

use std::path::Path;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, TRAJECTORY_FILE, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_methods::tune::{METHODS, RateOptions};
use serde_json::json;

use crate::setting::{cpu, full, texts, values};

/// All weights of model `name`, in memory or on the disk of a folder.
fn trainer(name: &str, method: &str, folder: Option<&Path>, threads: usize) -> ZerothOrderTrainer {
    let cpu = cpu(threads);
    let space = FullOptions { folder: folder.map(Path::to_owned), ..FullOptions::default() };
    let options = ZerothOrderOptions {
        method: method.to_owned(),
        options: json!({"eps": 1e-3, "directions": 2}),
        decay: 0.01,
        auto_rate: Some(RateOptions { probes: 4, interval: 3, ..RateOptions::default() }),
        ..ZerothOrderOptions::default()
    };
    let space = Box::new(full(name, &cpu, &space));
    ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) {
    let all = texts(8);
    for step in steps {
        let first = step as usize * 3 % 6;
        let batch: Vec<&Example> = all[first..first + 2].iter().collect();
        trainer.step(step, 0.0, &batch).unwrap();
    }
}

#[test]
fn every_method_makes_the_same_run_as_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut methods = 0;
    for card in METHODS.iter().filter(|card| card.space.is_none()) {
        let mut here = trainer("qwen2_tied", card.name, None, 2);
        let mut there = trainer("qwen2_tied", card.name, Some(dir.path()), 3);
        let first = values(there.space());
        run(&mut here, 0..5);
        run(&mut there, 0..5);
        assert!(here.trajectory() == there.trajectory(), "{}", card.name);
        assert!(values(here.space()) == values(there.space()), "{}", card.name);
        assert!(values(there.space()) != first, "{} changes nothing", card.name);
        methods += 1;
    }
    assert!(methods >= 12, "{methods} methods");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing has a name there");
}

/// Embeddings of their own, norms behind products, experts, biases, and the form of Phi-3.
#[test]
fn every_kind_of_model_scores_writes_and_goes_on_as_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama_linear", "gemma3_linear", "qwen3_moe", "phi3_short"] {
        let mut here = trainer(name, "mezo", None, 2);
        let mut there = trainer(name, "mezo", Some(dir.path()), 2);
        run(&mut here, 0..3);
        run(&mut there, 0..2);
        let (state, variant) = (dir.path().join("state"), dir.path().join("variant"));
        std::fs::create_dir(&state).unwrap();
        there.save(&state).unwrap();
        drop(there);
        // What was on disk goes on in memory, and the other way round.
        let mut between = trainer(name, "mezo", None, 1);
        between.restore(&state).unwrap();
        run(&mut between, 2..3);
        let mut again = trainer(name, "mezo", Some(dir.path()), 2);
        again.restore(&state).unwrap();
        run(&mut again, 2..3);
        for other in [&between, &again] {
            assert!(values(other.space()) == values(here.space()), "{name}");
        }
        let text = Sequence::of(&[1, 2, 3], &[4, 5, 6]);
        assert_eq!(here.score(&[&text]).unwrap(), again.score(&[&text]).unwrap(), "{name}");
        let prompt = [7, 8, 9];
        let made = again.generate(&[&prompt], 4).unwrap();
        assert_eq!(here.generate(&[&prompt], 4).unwrap(), made, "{name}");
        let files = [&here, &again].map(|trainer| {
            std::fs::create_dir(&variant).unwrap();
            trainer.write_variant(&variant).unwrap();
            let read = |file: &str| std::fs::read(variant.join(file)).unwrap();
            let files = ["model.safetensors", "config.json", TRAJECTORY_FILE].map(read);
            std::fs::remove_dir_all(&variant).unwrap();
            files
        });
        assert!(files[0] == files[1], "{name}");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
