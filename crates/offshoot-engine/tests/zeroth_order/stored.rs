//! Weights that are stored in bfloat16 and rounded by chance: what holds in single precision holds there.

use std::path::Path;
use std::sync::Arc;

use half::bf16;
use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, Space, ZerothOrderOptions, ZerothOrderTrainer, carry_out,
    space_of, weights_hash,
};
use offshoot_engine::tune::{Example, Trainer};
use offshoot_kernels::{BlockType, Cpu, FloatStore};
use offshoot_methods::tune::{Direction, Term, Trajectory, Update};
use offshoot_models::{Checkpoint, TrainableModel};
use serde_json::{Value, json};

use crate::setting::{checkpoint, cpu, full, probe, texts, values};

const NAME: &str = "qwen2_tied";

fn space(name: &str, cpu: &Cpu, store: FloatStore) -> FullSpace {
    full(name, cpu, &FullOptions { store, ..FullOptions::default() })
}

fn trainer(cpu: &Cpu, space: FullSpace, method: &str, options: Value) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        method: method.to_owned(),
        options,
        decay: 0.01,
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap()
}

fn halves(cpu: &Cpu, method: &str) -> ZerothOrderTrainer {
    trainer(cpu, space(NAME, cpu, FloatStore::Bf16), method, json!({"eps": 1e-3}))
}

fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) {
    let all = texts(8);
    for step in steps {
        let first = step as usize * 3 % 6;
        let batch: Vec<&Example> = all[first..first + 2].iter().collect();
        trainer.step(step, 1e-4, &batch).unwrap();
    }
}

#[test]
fn two_hundred_steps_are_made_again_from_their_trajectory() {
    for (method, threads) in
        [("mezo", 2), ("sign", 1), ("mmt", 2), ("sparse", 3), ("lozo", 2), ("fzoo", 1), ("adam", 2)]
    {
        let here = cpu(threads);
        let mut trainer = halves(&here, method);
        let first = values(trainer.space());
        // Of Adam each step goes through the history.
        run(&mut trainer, 0..if method == "adam" { 20 } else { 200 });
        let last = values(trainer.space());
        assert!(last != first, "{method} changes nothing");
        let trajectory = Trajectory::from_bytes(&trainer.trajectory()).unwrap();
        let header = &trajectory.parts[0].header;
        assert_eq!(header.store, "bf16");
        for threads in [1, 3] {
            let there = cpu(threads);
            let mut space = space_of(&there, Arc::new(checkpoint(NAME)), header).unwrap();
            carry_out(&trajectory, &mut *space).unwrap();
            assert!(values(&*space) == last, "{method} on {threads} threads");
        }
    }
}

#[test]
fn matrices_are_bfloat16_and_vectors_are_not() {
    let cpu = cpu(2);
    let mut trainer = halves(&cpu, "mezo");
    run(&mut trainer, 0..10);
    let space = trainer.space();
    for (spec, values) in space.layout().tensors.iter().zip(values(space)) {
        let halves = values.iter().all(|bits| bits & 0xffff == 0);
        assert_eq!(halves, !spec.vector, "{}", spec.name);
    }
}

#[test]
fn a_store_that_nobody_knows_is_refused() {
    let cpu = cpu(1);
    let trajectory = Trajectory::from_bytes(&halves(&cpu, "mezo").trajectory()).unwrap();
    let mut header = trajectory.parts[0].header.clone();
    header.store = "f\n8".to_owned();
    let told = space_of(&cpu, Arc::new(checkpoint(NAME)), &header).unwrap_err().to_string();
    assert!(told.contains("stored as \"f\\n8\": f32 and bf16 are known"), "{told}");
}

#[test]
fn points_touch_no_weight() {
    for threads in [1, 2, 7] {
        let cpu = cpu(threads);
        let mut trainer = halves(&cpu, "mezo");
        let before = weights_hash(trainer.space()).unwrap();
        let batch = texts(3);
        let batch: Vec<&Example> = batch.iter().collect();
        let probes: Vec<_> = (0..6).map(|step| probe(step, 0.1)).collect();
        let losses = trainer.losses(&probes, &batch).unwrap();
        assert!(losses.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(weights_hash(trainer.space()).unwrap(), before);
    }
}

/// With its snapshot, and from the trajectory alone; in memory, and on the disk of a folder.
#[test]
fn a_run_that_was_interrupted_ends_as_if_it_had_not_been() {
    let cpu = cpu(2);
    let folder = tempfile::tempdir().unwrap();
    let mut whole = halves(&cpu, "mmt");
    run(&mut whole, 0..14);
    let mut first = halves(&cpu, "mmt");
    run(&mut first, 0..9);
    first.save(folder.path()).unwrap();
    let snapshot = folder.path().join("tuned.safetensors");
    // Two bytes a weight of a matrix and four of a vector.
    let file = std::fs::read(&snapshot).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let specs = first.space().layout().tensors.iter();
    let bytes: usize = specs.map(|t| t.rows * t.cols * if t.vector { 4 } else { 2 }).sum();
    assert_eq!(file.len() - 8 - header, bytes);
    let on_disk = |folder: &Path| {
        let store = FloatStore::Bf16;
        let folder = Some(folder.to_owned());
        let space = full(NAME, &cpu, &FullOptions { store, folder, ..FullOptions::default() });
        trainer(&cpu, space, "mmt", json!({"eps": 1e-3}))
    };
    for from_snapshot in [true, false] {
        if !from_snapshot {
            std::fs::remove_file(&snapshot).unwrap();
        }
        let mut all = vec![halves(&cpu, "mmt")];
        if cfg!(unix) {
            all.push(on_disk(folder.path()));
        }
        for mut second in all {
            second.restore(folder.path()).unwrap();
            assert!(values(second.space()) == values(first.space()));
            run(&mut second, 9..14);
            second.settle().unwrap();
            assert!(values(second.space()) == values(whole.space()));
            assert!(second.trajectory() == whole.trajectory());
        }
    }
    let singles = space(NAME, &cpu, FloatStore::F32);
    let mut other = trainer(&cpu, singles, "mmt", json!({"eps": 1e-3}));
    let told = other.restore(folder.path()).unwrap_err().to_string();
    assert!(told.contains("store is \"bf16\", here \"f32\""), "{told}");
}

/// How far `space` went along `direction` from `before`, as a share of its length.
fn along(space: &FullSpace, before: &[Vec<u32>], direction: &[Vec<f32>]) -> f64 {
    let (mut product, mut length) = (0.0, 0.0);
    let moved = values(space);
    for ((after, before), z) in moved.iter().zip(before).zip(direction) {
        for ((after, before), z) in after.iter().zip(before).zip(z) {
            let step = f64::from(f32::from_bits(*after)) - f64::from(f32::from_bits(*before));
            product += step * f64::from(*z);
            length += f64::from(*z) * f64::from(*z);
        }
    }
    product / length
}

/// Steps of a ten-thousandth of the weights, far below half a step of the grid, which is a 256th.
#[test]
fn small_steps_move_weights_in_the_mean_where_rounding_to_nearest_loses_them() {
    let (cpu, steps, scale) = (cpu(2), 100, 1e-5);
    let update = |scale| Update::Linear {
        decay: 0.0,
        terms: vec![Term { scale, direction: Direction::dense(0, 0) }],
    };
    let mut singles = full(
        NAME,
        &cpu,
        &FullOptions { train: Some("proj.weight".to_owned()), ..FullOptions::default() },
    );
    let mut halves = full(
        NAME,
        &cpu,
        &FullOptions {
            train: Some("proj.weight".to_owned()),
            store: FloatStore::Bf16,
            ..FullOptions::default()
        },
    );
    let (first, rounded) = (values(&singles), values(&halves));
    // The direction is what a step of length 1 takes away.
    singles.apply(0, &update(1.0)).unwrap();
    let direction: Vec<Vec<f32>> = values(&singles)
        .iter()
        .zip(&first)
        .map(|(after, before)| {
            let pairs = after.iter().zip(before);
            pairs.map(|(a, b)| f32::from_bits(*b) - f32::from_bits(*a)).collect()
        })
        .collect();
    let mut nearest: Vec<Vec<f32>> =
        rounded.iter().map(|w| w.iter().map(|w| f32::from_bits(*w)).collect()).collect();
    for (tensor, first) in first.iter().enumerate() {
        let first: Vec<f32> = first.iter().map(|w| f32::from_bits(*w)).collect();
        singles.write(tensor, &first).unwrap();
    }
    for step in 0..steps {
        singles.apply(step, &update(scale)).unwrap();
        halves.apply(step, &update(scale)).unwrap();
        for (w, z) in nearest.iter_mut().flatten().zip(direction.iter().flatten()) {
            *w = bf16::from_f32(*w - scale * z).to_f32();
        }
    }
    let whole = -f64::from(scale) * f64::from(steps);
    let of_singles = along(&singles, &first, &direction) / whole;
    let by_chance = along(&halves, &rounded, &direction) / whole;
    for (tensor, values) in nearest.iter().enumerate() {
        halves.write(tensor, values).unwrap();
    }
    let to_nearest = along(&halves, &rounded, &direction) / whole;
    assert!((of_singles - 1.0).abs() < 0.01, "{of_singles}");
    assert!((by_chance - 1.0).abs() < 0.2, "{by_chance}");
    assert!(to_nearest < 0.5, "{to_nearest}");
}

#[test]
fn what_was_tuned_is_written_as_it_is_stored() {
    let cpu = cpu(2);
    for name in ["llama_linear", "qwen2_tied", "gemma3_linear", "phi3_short", "qwen3_moe"] {
        let folder = tempfile::tempdir().unwrap();
        let halves = space(name, &cpu, FloatStore::Bf16);
        let mut trainer = trainer(&cpu, halves, "mezo", json!({"eps": 1e-3}));
        run(&mut trainer, 0..3);
        trainer.write_variant(folder.path()).unwrap();
        let read = Checkpoint::open(folder.path()).unwrap();
        for tensor in read.tensors() {
            let is_vector = tensor.info.shape.len() == 1;
            let expected = if is_vector { BlockType::F32 } else { BlockType::Bf16 };
            assert_eq!(tensor.info.block, expected, "{name}: {}", tensor.name);
        }
        let read = TrainableModel::load(Arc::new(read), &cpu).unwrap();
        let tuned = values(trainer.space());
        for (i, tensor) in read.tensors().iter().enumerate() {
            let off = |(x, y): (&f32, &u32)| (x - f32::from_bits(*y)).abs();
            let numbers = read.read(i).unwrap();
            let worst = numbers.iter().zip(&tuned[i]).map(off).fold(0.0, f32::max);
            // Gemma's norms lose bits where 1 is taken from them.
            let close = if name == "gemma3_linear" && tensor.vector { 1e-6 } else { 0.0 };
            assert!(worst <= close, "{name}: {} is off by {worst}", tensor.name);
        }
    }
}
