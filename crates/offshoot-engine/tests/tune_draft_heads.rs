//! A variant that brings its own draft heads: they draft where it is run and nowhere else, and change
//! no token.
#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_engine::medusa::{HeadsReport, ReadyHeads};
use offshoot_engine::spec::{Arm, Calibrated, SpecMode, SpecOptions};
use offshoot_engine::tune::{
    DraftHeads, Example, FirstOrder, FirstOrderOptions, Sequence, Trainer,
};
use offshoot_engine::{Answer, Control, Error, GenerateOptions, LoadOptions, Model, Session};
use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::StepTimes;
use offshoot_models::medusa::{HEADS_FILE, HeadsFile};
use offshoot_models::{Adapter, Checkpoint};
use tiny::Tiny;

const CONTEXT: usize = 200;

/// A text that nobody would guess, again and again.
fn example() -> Example {
    let token = |place: u32| [3, 7, 5, 9, 4, 6, 10][(place * place + place / 7) as usize % 7];
    let tokens: Vec<u32> = (0..40).map(token).collect();
    Example::Text(Sequence::of(&tokens[..2], &tokens[2..]))
}

struct Bench {
    dir: tempfile::TempDir,
    base: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let mut tiny = Tiny::qwen2();
        tiny.set("qwen2.context_length", CONTEXT as u32);
        Self::of(&tiny)
    }

    fn of(tiny: &Tiny) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.gguf");
        std::fs::write(&base, tiny.bytes()).unwrap();
        Self { dir, base }
    }

    fn tuner(&self) -> FirstOrder {
        let heads = DraftHeads { heads: 3, alone: 10, rise: 10, ..DraftHeads::default() };
        let options = FirstOrderOptions { heads: Some(heads), ..FirstOrderOptions::default() };
        let checkpoint = Arc::new(Checkpoint::open(&self.base).unwrap());
        FirstOrder::new(checkpoint, options).unwrap()
    }

    /// The folder of an adapter with heads that were trained for `steps` steps.
    fn tuned(&self, name: &str, steps: u64) -> PathBuf {
        let mut tuner = self.tuner();
        (0..steps).for_each(|step| drop(tuner.step(step, 1e-2, &[&example()]).unwrap()));
        tuner.measure(&mut [Ok(example())].into_iter()).unwrap();
        let folder = self.dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        tuner.write_variant(&folder).unwrap();
        folder
    }

    fn load(&self, adapter: Option<&Path>) -> (Model, Session) {
        let adapter = adapter.map(Path::to_owned);
        let options = LoadOptions { adapter, threads: 1, ..LoadOptions::default() };
        let (model, cpu) = Model::load(&self.base, &options).unwrap();
        let session = Session::new(&model, cpu, CONTEXT).unwrap();
        (model, session)
    }
}

/// Heads alone, where every tree pays.
fn by_heads(heads: Option<Arc<ReadyHeads>>) -> SpecOptions {
    let times = Some(StepTimes::new(&[(1, 1.0), (64, 1.001)]));
    SpecOptions {
        mode: SpecMode::Only(vec![Arm::Medusa]),
        heads,
        calibrated: Calibrated { times, ..Calibrated::default() },
        ..SpecOptions::default()
    }
}

fn answer(model: &Model, session: &mut Session, prompt: &[u32], temperature: f32) -> Answer {
    let sampling = SamplingOptions { temperature, seed: Some(5), ..SamplingOptions::default() };
    let options = GenerateOptions {
        sampling,
        ignore_eos: true,
        max_tokens: Some(100),
        ..GenerateOptions::default()
    };
    session.truncate(0);
    session.generate(model, prompt, &options, |_| Control::Continue).unwrap()
}

#[test]
fn a_variants_own_heads_draft_for_it_and_change_no_token() {
    let bench = Bench::new();
    let folder = bench.tuned("poet", 150);
    let (model, mut session) = bench.load(Some(&folder));
    assert!(model.heads().unwrap().calibration.is_some());
    for (prompt, temperature) in [(vec![3, 7], 0.0), (vec![5, 9, 4], 0.0), (vec![3, 7], 0.9)] {
        session.set_speculator(None);
        let plain = answer(&model, &mut session, &prompt, temperature);
        let speculator = by_heads(None).speculator(&model, &session).unwrap();
        session.set_speculator(speculator);
        let drafted = answer(&model, &mut session, &prompt, temperature);
        assert_eq!(drafted.tokens, plain.tokens, "{prompt:?} at {temperature}");
        assert_eq!(drafted.tokens.len(), 100);
        let spec = drafted.spec.unwrap();
        assert!(spec.guesses > 0, "nothing was drafted");
        if temperature == 0.0 && prompt == [3, 7] {
            assert!(spec.tokens_per_step() > 1.2, "{}", spec.tokens_per_step());
        }
    }
}

#[test]
fn heads_of_a_variant_are_refused_by_the_base_and_by_other_variants() {
    let bench = Bench::new();
    let (folder, other) = (bench.tuned("poet", 12), bench.tuned("other", 13));
    let told = |adapter: Option<&Path>, heads: &Path| {
        let (model, session) = bench.load(adapter);
        let file = HeadsFile::open(&heads.join(HEADS_FILE)).unwrap();
        let heads = Arc::new(ReadyHeads::new(file).unwrap());
        match by_heads(Some(heads)).speculator(&model, &session) {
            Ok(speculator) => speculator.map(|_| "drafts".to_owned()).unwrap(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(told(Some(&folder), &folder), "drafts");
    let (base, variant) = (told(None, &folder), told(Some(&other), &folder));
    assert!(base.contains("they belong to the variant") && base.contains("this is the base"));
    assert!(variant.contains("this is variant"), "{variant}");
    // Files that were mixed up are found out, too.
    std::fs::copy(folder.join(HEADS_FILE), other.join(HEADS_FILE)).unwrap();
    let (model, session) = bench.load(Some(&other));
    let mixed = by_heads(None).speculator(&model, &session);
    assert!(matches!(mixed, Err(Error::Model(_))), "{mixed:?}");
}

#[test]
fn heads_know_their_adapter_as_it_is_read_again() {
    // What Phi-3's folders keep in one matrix is written as one of the parts' ranks together.
    let bench = Bench::of(&Tiny::phi3());
    let folder = bench.tuned("poet", 12);
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let adapter = Adapter::open(&folder, checkpoint.config()).unwrap().digest();
    let heads = HeadsFile::open(&folder.join(HEADS_FILE)).unwrap();
    heads.check_adapter(Some(&adapter)).unwrap();
    assert_eq!(heads.card.unwrap().adapter, Some(adapter));
}

#[test]
fn what_was_counted_of_heads_is_forgotten_when_they_learn_on() {
    let bench = Bench::new();
    let mut tuner = bench.tuner();
    let written = |tuner: &FirstOrder| {
        let folder = tempfile::tempdir().unwrap();
        tuner.write_variant(folder.path()).unwrap();
        let file = HeadsFile::open(&folder.path().join(HEADS_FILE)).unwrap();
        ReadyHeads::new(file).unwrap().calibration
    };
    tuner.step(0, 1e-2, &[&example()]).unwrap();
    assert_eq!(written(&tuner), None);
    let told = tuner.measure(&mut [Ok(example())].into_iter()).unwrap();
    let accuracy = HeadsReport::of(&written(&tuner).unwrap()).accuracy;
    assert_eq!(told.iter().filter(|(name, _)| name.ends_with("top_1")).count(), 3);
    assert_eq!((&*told[0].0, told[0].1), ("draft_1_top_1", accuracy[0][0]));
    assert_eq!((&*told[1].0, told[1].1), ("draft_1_top_3", accuracy[0][2]));
    tuner.step(1, 1e-2, &[&example()]).unwrap();
    assert_eq!(written(&tuner), None);
}

#[test]
fn an_adapter_without_heads_of_its_own_has_none() {
    let bench = Bench::new();
    let folder = bench.tuned("poet", 12);
    std::fs::remove_file(folder.join(HEADS_FILE)).unwrap();
    let (model, session) = bench.load(Some(&folder));
    assert!(model.heads().is_none());
    assert!(by_heads(None).speculator(&model, &session).is_err());
}
