//! A small model, a space over it and batches of nonsense.

use std::path::Path;
use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    FullOptions, FullSpace, LoraOptions, LoraSpace, Objective, PrefixOptions, PromptOptions,
    ScalesOptions, ScalesSpace, Space, StepLimits, VirtualSpace, ZerothOrderOptions,
    ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Sequence};
use offshoot_kernels::{Cpu, Distribution, Isa};
use offshoot_methods::tune::{Direction, Probe, TensorSpec, Term};
use offshoot_models::{Checkpoint, PackedModel, Recipe};

/// The checkpoint of a small random model.
pub(crate) fn checkpoint(name: &str) -> Checkpoint {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../offshoot-models/tests/data/logits");
    Checkpoint::open(&data.join(format!("{name}.gguf"))).unwrap()
}

pub(crate) fn model(name: &str, cpu: &Cpu) -> Arc<PackedModel> {
    Arc::new(PackedModel::load(Arc::new(checkpoint(name)), cpu, None).unwrap())
}

pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::best(), threads)
}

/// LoRA of rank 4 of queries, values and the way down, with a `B` that is not zero.
pub(crate) fn lora(name: &str, cpu: &Cpu) -> LoraSpace {
    let mut space = untuned_lora(name, cpu, false);
    fill(&mut space);
    space
}

/// The same as it begins, with an `A` that may be `fixed`.
fn untuned_lora(name: &str, cpu: &Cpu, fixed: bool) -> LoraSpace {
    let options = LoraOptions {
        rank: 4,
        alpha: 8.0,
        targets: ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec(),
        fixed_a: fixed,
        seed: 7,
        distribution: Distribution::GaussQ8,
        ..LoraOptions::default()
    };
    LoraSpace::new(cpu, model(name, cpu), &options).unwrap()
}

/// Makes every `B` of LoRA something other than zero.
pub(crate) fn fill(space: &mut dyn Space) {
    for tensor in 0..space.layout().tensors.len() {
        let spec = &space.layout().tensors[tensor];
        if spec.name.contains("lora_B") {
            let values: Vec<f32> =
                (0..spec.rows * spec.cols).map(|i| 0.1 * ((i * i + tensor) as f32).sin()).collect();
            space.write(tensor, &values).unwrap();
        }
    }
}

/// The weights of a model, drawn from as those of [`lora`] are.
pub(crate) fn full(name: &str, cpu: &Cpu, options: &FullOptions) -> FullSpace {
    let options = FullOptions { seed: 7, ..options.clone() };
    FullSpace::new(cpu, Arc::new(checkpoint(name)), &options).unwrap()
}

/// Every space there is, untuned, over the model `name`; scales are those of its weights in eight bits.
pub(crate) fn spaces(name: &str, cpu: &Cpu) -> [(&'static str, Box<dyn Space>); 8] {
    let some = r"layers\.0\..*(norm|proj)".to_owned();
    let some = FullOptions { train: Some(some), ..FullOptions::default() };
    let bfloat16 = FullOptions { bfloat16: true, ..FullOptions::default() };
    let prefix = PrefixOptions { tokens: 3, seed: 7, ..PrefixOptions::default() };
    let prompt = PromptOptions { tokens: 4, seed: 7, ..PromptOptions::default() };
    let quantised = Arc::new(checkpoint(name).quantized(Recipe::Q8_0));
    let quantised = Arc::new(PackedModel::load(quantised, cpu, None).unwrap());
    let targets = ["q_proj", "down_proj"].map(str::to_owned).to_vec();
    let scales = ScalesOptions { targets, seed: 7, ..ScalesOptions::default() };
    [
        ("full", Box::new(full(name, cpu, &FullOptions::default()))),
        ("full in bfloat16", Box::new(full(name, cpu, &bfloat16))),
        ("some of the weights", Box::new(full(name, cpu, &some))),
        ("lora", Box::new(untuned_lora(name, cpu, false))),
        ("lora-fa", Box::new(untuned_lora(name, cpu, true))),
        ("prefix", Box::new(VirtualSpace::prefix(cpu, model(name, cpu), &prefix).unwrap())),
        ("prompt", Box::new(VirtualSpace::prompt(cpu, model(name, cpu), &prompt).unwrap())),
        ("scales", Box::new(ScalesSpace::new(cpu, quantised, &scales).unwrap())),
    ]
}

pub(crate) fn trainer(
    cpu: &Cpu,
    space: impl Space + 'static,
    objective: impl Objective + 'static,
    limits: StepLimits,
) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions { limits, ..ZerothOrderOptions::default() };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(objective), &options).unwrap()
}

pub(crate) fn probe(step: u32, scale: f32) -> Probe {
    Probe { terms: vec![Term { scale, direction: Direction::dense(step, 0) }] }
}

/// The numbers of all that is tuned, to the bit.
pub(crate) fn values(space: &dyn Space) -> Vec<Vec<u32>> {
    let tensor = |(i, spec): (usize, &TensorSpec)| {
        let mut out = vec![0.0; spec.rows * spec.cols];
        space.read(i, &mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect()
    };
    space.layout().tensors.iter().enumerate().map(tensor).collect()
}

/// Tokens below 60 of no meaning.
pub(crate) fn tokens(seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((seed * 31 + i * i * 7 + i * 3) % 60) as u32).collect()
}

/// Texts of several lengths, of which the second half is trained on.
pub(crate) fn texts(n: usize) -> Vec<Example> {
    let text = |i: usize| {
        let (prompt, completion) = (tokens(i, 3 + i % 4), tokens(i + 50, 2 + i * 5 % 7));
        Example::Text(Sequence::of(&prompt, &completion))
    };
    (0..n).map(text).collect()
}

/// Choices with candidates of one token and of several, which begin alike.
pub(crate) fn choices() -> Vec<Example> {
    let choice = |i: usize, candidates: &[&[u32]], answer| Example::Choice {
        prompt: tokens(i, 4 + i),
        candidates: candidates.iter().map(|candidate| candidate.to_vec()).collect(),
        answers: vec![answer],
    };
    vec![
        choice(1, &[&[5], &[9], &[11]], 2),
        choice(2, &[&[5, 6], &[5, 7, 8], &[9]], 1),
        choice(3, &[&[1, 2, 3], &[4, 5, 6]], 0),
    ]
}
