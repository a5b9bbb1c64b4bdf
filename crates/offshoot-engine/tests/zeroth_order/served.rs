//! What was tuned scores the same inside its run and loaded again.

use offshoot_engine::tune::eval::PackedScorer;
use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, LoraOptions, LoraSpace, PrefixOptions, PromptOptions, Space, VirtualSpace,
    ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_engine::{GenerateOptions, LoadOptions, Model, Session};
use offshoot_kernels::BlockType;
use offshoot_methods::SamplingOptions;
use serde_json::json;

use crate::tiny::Tiny;

/// A small model with a tokenizer, whose weights are floats: products round nothing of their inputs.
fn floats() -> Vec<u8> {
    let mut tiny = Tiny::llama();
    for tensor in tiny.tensors.values_mut() {
        let mut numbers = vec![0.0f32; tensor.shape.iter().product()];
        tensor.block.dequantize(&tensor.bytes, &mut numbers).unwrap();
        tensor.bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor.block = BlockType::F32;
    }
    tiny.bytes()
}

#[test]
fn a_variant_scores_and_answers_as_the_run_that_tuned_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, floats()).unwrap();
    let load = |adapter| {
        let options = LoadOptions { threads: 2, adapter, ..LoadOptions::default() };
        Model::load(&path, &options).unwrap()
    };
    let (base, cpu) = load(None);
    let packed = || base.shared_packed().unwrap();
    let lora = LoraOptions { rank: 2, seed: 1, ..LoraOptions::default() };
    let prefix = PrefixOptions { tokens: 3, seed: 1, ..PrefixOptions::default() };
    let prompt = PromptOptions { tokens: 4, seed: 1, ..PromptOptions::default() };
    let spaces: [(&str, Box<dyn Space>); 3] = [
        ("lora", Box::new(LoraSpace::new(&cpu, packed(), &lora).unwrap())),
        ("prefix", Box::new(VirtualSpace::prefix(&cpu, packed(), &prefix).unwrap())),
        ("prompt", Box::new(VirtualSpace::prompt(&cpu, packed(), &prompt).unwrap())),
    ];
    let sequences = [
        Sequence::of(&[3, 4], &[5, 9, 4]),
        Sequence::of(&[3, 4], &[7]),
        Sequence::of(&[6], &[3, 3, 8, 10, 4]),
    ];
    let examples: Vec<Example> = sequences.iter().cloned().map(Example::Text).collect();
    let sequences: Vec<&Sequence> = sequences.iter().collect();
    let of_base = PackedScorer::new(&base, &cpu, 16).unwrap().score(&sequences).unwrap();
    for (name, space) in spaces {
        let options = ZerothOrderOptions {
            options: json!({"probe": {"eps": 1e-2}}),
            ..ZerothOrderOptions::default()
        };
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap();
        for step in 0..4 {
            trainer.step(step, 1e-2, &examples.iter().collect::<Vec<_>>()).unwrap();
        }
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        trainer.write_variant(&folder).unwrap();
        let (model, cpu) = load(Some(folder));
        // Whole, and in pieces of two rows.
        for rows in [64, 2] {
            let scorer = PackedScorer::new(&model, &cpu, 16).unwrap();
            let served = scorer.with_rows(rows, rows).score(&sequences).unwrap();
            let tuned = trainer.score(&sequences).unwrap();
            let mut changed = false;
            for ((served, tuned), of_base) in served.iter().zip(&tuned).zip(&of_base) {
                assert_eq!((served.tokens, served.greedy), (tuned.tokens, tuned.greedy), "{name}");
                // Where it serves, keys and values are kept in half precision.
                let close = 1e-4 * tuned.logprob.abs();
                let (served, tuned) = (served.logprob, tuned.logprob);
                assert!((served - tuned).abs() < close, "{name}: {served}, tuned to {tuned}");
                changed |= (served - of_base.logprob).abs() > 1e-6 * of_base.logprob.abs();
            }
            assert!(changed, "{name} changes nothing");
        }
        let prompts: [&[u32]; 2] = [&[3, 4], &[5, 9, 4, 3]];
        let made = trainer.generate(&prompts, 6).unwrap();
        let evaluated = PackedScorer::new(&model, &cpu, 16).unwrap().generate(&prompts, 6);
        assert_eq!(evaluated.unwrap(), made, "{name}");
        let mut session = Session::new(&model, cpu, 24).unwrap();
        for (prompt, made) in prompts.iter().zip(&made) {
            let options = GenerateOptions {
                max_tokens: Some(6),
                sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
                ..GenerateOptions::default()
            };
            let answer =
                session.generate(&model, prompt, &options, |_| offshoot_engine::Control::Continue);
            assert_eq!(&answer.unwrap().tokens, made, "{name}");
        }
    }
}
