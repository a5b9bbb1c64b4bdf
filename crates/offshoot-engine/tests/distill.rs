//! What heads are trained on: answers of a real model to prompts of a list and of its own.

#![allow(clippy::unwrap_used)] // test code

use offshoot_engine::medusa::{DistillOptions, Distilled, DistilledAnswer, Flavour, SeedPrompts};
use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{Control, LoadOptions, Model};
use offshoot_models::PackedExecutor;

fn answers(threads: usize, own_prompts: u8) -> Vec<DistilledAnswer> {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let options = LoadOptions { threads, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let prompts = SeedPrompts::built_in(Flavour::Chat);
    let options = DistillOptions { tokens: 300, answer_tokens: 12, own_prompts, seed: 3 };
    let folder = tempfile::tempdir().unwrap();
    let seeds = (model.base_id().unwrap(), &prompts);
    let made = |_| Control::Continue;
    let data = Distilled::make(&model, &mut executor, seeds, &options, folder.path(), made);
    let data = data.unwrap();
    assert!(data.answers().iter().all(|answer| (1..=12).contains(&answer.tokens.len())));
    assert!(data.tokens() >= 300);
    data.answers().to_vec()
}

#[test]
fn a_model_writes_prompts_of_its_own_and_answers_them_the_same_on_any_threads() {
    let own = answers(1, 100);
    assert_eq!(own, answers(2, 100));
    let listed = answers(2, 0);
    let half = answers(2, 50);
    // Which are of the list goes by their number; all else of an answer does not change with it.
    let tokens_of = |answers: &[DistilledAnswer], index: usize| {
        answers.iter().find(|answer| answer.index == index).map(|answer| answer.tokens.clone())
    };
    let (mut of_list, mut of_own) = (0, 0);
    for answer in &half {
        let of = [&listed, &own].map(|answers| tokens_of(answers, answer.index));
        if let [Some(of_a_listed), Some(of_an_own)] = of {
            assert!(answer.tokens == of_a_listed || answer.tokens == of_an_own, "{answer:?}");
            of_list += usize::from(answer.tokens == of_a_listed);
            of_own += usize::from(answer.tokens == of_an_own);
        }
    }
    assert!(of_list >= 4 && of_own >= 4, "{of_list} {of_own}");
    let same = |answer: &&DistilledAnswer| {
        tokens_of(&listed, answer.index).is_some_and(|tokens| tokens == answer.tokens)
    };
    assert!(own.iter().filter(same).count() * 4 < own.len());
}
