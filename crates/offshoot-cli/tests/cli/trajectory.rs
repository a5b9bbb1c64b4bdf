//! `trajectory`: what is told of a run, and the run made again.

use std::path::PathBuf;
use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, LoraOptions, LoraSpace, Origin, ZerothOrderOptions, ZerothOrderTrainer, base_hash,
};
use offshoot_engine::tune::{Example, Sequence, Trainer};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::{Checkpoint, PackedModel};
use serde_json::json;

use crate::home::{Home, run};

/// Tunes `tiny.gguf` for `steps` steps and leaves `name`, a variant with its trajectory.
pub(crate) fn tune(home: &Home, name: &str, steps: u64) -> PathBuf {
    let cpu = Cpu::new(Isa::best(), 2);
    let checkpoint = Arc::new(Checkpoint::open(&home.tiny()).unwrap());
    let base = base_hash(&checkpoint).unwrap();
    let model = Arc::new(PackedModel::load(checkpoint, &cpu, None).unwrap());
    let lora = LoraOptions { rank: 2, seed: 5, fixed_a: true, ..LoraOptions::default() };
    let space = Box::new(LoraSpace::new(&cpu, model, &lora).unwrap());
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": 1e-2}}),
        origin: Origin { base, ..Origin::default() },
        ..ZerothOrderOptions::default()
    };
    let objective = Box::new(CrossEntropy);
    let mut trainer = ZerothOrderTrainer::new(&cpu, space, objective, &options).unwrap();
    let text = Example::Text(Sequence::of(&[3, 4], &[5, 6, 3]));
    for step in 0..steps {
        trainer.step(step, 1e-2, &[&text]).unwrap();
    }
    let folder = home.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    trainer.write_variant(&folder).unwrap();
    folder.join("trajectory.traj")
}

#[test]
fn a_run_is_told_checked_and_made_again() {
    let home = Home::new();
    tune(&home, "run", 6);
    let file = "run/trajectory.traj";
    let told = run(home.offshoot(["trajectory", "info", file, "--json"])).ended_with(0).json();
    assert_eq!((told["steps"].as_u64(), told["skipped"].as_u64()), (Some(6), Some(0)), "{told}");
    assert_eq!(told["header"]["method"]["name"], "mezo");
    let shown = run(home.offshoot(["trajectory", "info", file])).ended_with(0).stdout;
    assert!(shown.contains("mezo") && shown.contains("lora"), "{shown}");
    let of_folder = run(home.offshoot(["trajectory", "info", "run"])).ended_with(0).stdout;
    assert_eq!(of_folder, shown, "a folder stands for its trajectory");
    let verified = run(home.offshoot(["trajectory", "verify", file])).ended_with(0).stdout;
    assert!(verified.contains("whole, 6 steps"), "{verified}");
    for threads in ["1", "3"] {
        let args = ["trajectory", "replay", "tiny.gguf", file, "--threads", threads, "--json"];
        let told = run(home.offshoot(args)).ended_with(0).json();
        assert!(told["weights"] == told["expected"] && told["steps"] == 6, "{told}");
    }
    let args = ["trajectory", "export", "tiny.gguf", file, "--output", "again"];
    run(home.offshoot(args)).ended_with(0);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let [made, tuned] = ["again", "run"].map(|folder| home.path().join(folder).join(name));
        assert!(std::fs::read(made).unwrap() == std::fs::read(tuned).unwrap(), "{name}");
    }
    let args = ["run", "tiny.gguf", "ab", "-n", "4", "--temperature", "0", "--adapter", "again"];
    run(home.offshoot(args)).ended_with(0);
}

#[test]
fn runs_are_cut_compared_and_added_up() {
    let home = Home::new();
    tune(&home, "long", 6);
    tune(&home, "short", 4);
    let (long, short) = ("long/trajectory.traj", "short/trajectory.traj");
    let args = ["trajectory", "slice", long, "--to", "4", "--output", "cut.traj"];
    run(home.offshoot(args)).ended_with(0);
    let hash = |file: &str| {
        let args = ["trajectory", "replay", "tiny.gguf", file, "--json"];
        run(home.offshoot(args)).ended_with(0).json()["weights"].clone()
    };
    assert_eq!(hash("cut.traj"), hash(short));
    assert_ne!(hash(long), hash(short));
    let diff = |a: &str, b: &str, code| {
        run(home.offshoot(["trajectory", "diff", a, b, "--json"])).ended_with(code)
    };
    assert_eq!(diff(long, long, 0).json()["same"], true);
    let told = diff(long, short, 1).json();
    assert_eq!(told["difference"]["first"], 4, "{told}");
    let merge = |weights: &str| {
        let files = ["trajectory", "merge", long, short, "--output", "sum.traj"];
        run(home.offshoot(files.iter().chain(&["--weights", weights])))
    };
    merge("1,0").ended_with(0);
    assert_eq!(hash("sum.traj"), hash(long));
    merge("1,0.5").ended_with(0);
    assert_ne!(hash("sum.traj"), hash(long));
    merge("1").ended_with(2).complained(&["--weights", "2 files"]);
}

#[test]
fn what_cannot_be_made_again_is_told() {
    let home = Home::new();
    let path = tune(&home, "run", 3);
    let file = "run/trajectory.traj";
    // Another base: one that was tuned as a whole.
    let mut other = crate::models::tiny::Tiny::llama();
    other.tensors.get_mut("output_norm.weight").unwrap().bytes[3] ^= 1;
    home.file("other.gguf", other.bytes());
    let args = ["trajectory", "replay", "other.gguf", file];
    run(home.offshoot(args)).ended_with(2).complained(&["another base", "--force"]);
    let args = ["trajectory", "replay", "other.gguf", file, "--force"];
    run(home.offshoot(args)).ended_with(0);
    let bytes = std::fs::read(&path).unwrap();
    home.file("cut.traj", &bytes[..bytes.len() - 3]);
    run(home.offshoot(["trajectory", "verify", "cut.traj"])).ended_with(4).complained(&[
        "cut.traj: ",
        "damaged",
        "3 steps before are whole",
    ]);
    home.file("no.traj", b"not at all");
    run(home.offshoot(["trajectory", "info", "no.traj"]))
        .ended_with(4)
        .complained(&["no.traj: this is no trajectory"]);
    let missing = run(home.offshoot(["trajectory", "info", "missing.traj"]));
    missing.ended_with(1).complained(&["missing.traj"]);
}

#[test]
fn what_sound_files_cannot_give_is_a_wrong_command_line() {
    let home = Home::new();
    tune(&home, "run", 3);
    let file = "run/trajectory.traj";
    for (from, to) in [("0", "9"), ("3", "2"), ("4", "4")] {
        let args = ["trajectory", "slice", file, "--from", from, "--to", to, "--output", "x.traj"];
        let has = "the trajectory has steps 0 to 3";
        run(home.offshoot(args)).ended_with(2).complained(&["not all there", has]);
    }
    for (weights, says) in [("nan", "NaN is no weight"), ("0", "nothing is left to merge")] {
        let args = ["trajectory", "merge", file, "--weights", weights, "--output", "x.traj"];
        run(home.offshoot(args)).ended_with(2).complained(&[says]);
    }
    assert!(!home.path().join("x.traj").exists());
}
