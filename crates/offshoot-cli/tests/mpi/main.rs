//! Runs that processes make together, as `mpirun` starts them. Built with the feature `mpi` alone; see
//! `scripts/test_mpi`.

#![expect(clippy::unwrap_used, reason = "what the tests stand on may fail like a test does")]

#[path = "../cli/home.rs"]
#[allow(dead_code)] // the other tests use the rest
mod home;
#[path = "../../../offshoot-models/tests/support/mod.rs"]
#[allow(dead_code)]
mod models;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use home::{Home, Left, run};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Texts in the language of the small model.
const TEXTS: [&str; 2] = [
    "{\"text\": \"abab\"}\n{\"text\": \"abba\"}\n{\"text\": \"aabb\"}\n{\"text\": \"baba\"}\n\
     {\"text\": \"abab\"}\n{\"text\": \"bbaa\"}\n{\"text\": \"aaab\"}\n{\"text\": \"babb\"}\n",
    "{\"text\": \"bbbb\"}\n{\"text\": \"bbab\"}\n{\"text\": \"abaa\"}\n",
];

fn home() -> Home {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file("texts.jsonl", TEXTS[0]);
    home.file("others.jsonl", TEXTS[1]);
    home
}

const FIXED: [&str; 9] =
    ["tune", "long.gguf", "--batch", "3", "--no-cache", "--threads", "1", "--steps", "8"];

/// The words of a run, in the folder `output`.
fn words<'w>(more: &[&'w str], output: &'w str) -> Vec<&'w str> {
    [&FIXED[..], more, &["--output", output]].concat()
}

/// Runs `mpirun` with processes of these words, so many of each.
fn mpirun(home: &Home, each: &[(usize, &[&str])]) -> Left {
    run(mpirun_command(home, each))
}

fn mpirun_command(home: &Home, each: &[(usize, &[&str])]) -> Command {
    let program = home.offshoot([""; 0]);
    let mut command = Command::new("mpirun");
    home.settle(&mut command);
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        // Who waits lets others run.
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        // Between processes of one machine, without what a container may forbid.
        .env("OMPI_MCA_btl", "self,vader")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .env("OMPI_MCA_plm_rsh_agent", "true");
    for (place, (count, words)) in each.iter().enumerate() {
        if place > 0 {
            command.arg(":");
        }
        command.args(["-n", &count.to_string()]).arg(program.get_program()).args(*words);
    }
    command
}

fn learned(home: &Home, output: &str, file: &str) -> Vec<u8> {
    std::fs::read(home.path().join(output).join("variant").join(file)).unwrap()
}

fn steps(folder: &Path) -> usize {
    let log = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    log.matches("\"event\":\"step\"").count()
}

#[test]
fn two_processes_leave_the_trajectory_of_one_byte_for_byte() {
    let home = home();
    let held_out = ["--data", "texts.jsonl", "--eval-fraction", "0.25", "--eval-every", "4"];
    for (method, share) in [("mezo", "examples"), ("mezo", "points"), ("fzoo", "points")] {
        let more =
            [&held_out[..], &["--method", method, "--lr", "0.01", "--share", share]].concat();
        let (one, two) = (format!("{method}-{share}-1"), format!("{method}-{share}-2"));
        run(home.offshoot(words(&more, &one))).ended_with(0);
        let left = mpirun(&home, &[(2, &words(&more, &two))]).ended_with(0);
        assert_eq!(left.stdout.lines().count(), 1, "{}", left.stdout);
        assert_eq!(steps(&home.path().join(&two)), 8);
        for file in ["trajectory.traj", "adapter_model.safetensors"] {
            assert!(learned(&home, &two, file) == learned(&home, &one, file), "{two}: {file}");
        }
    }
}

#[test]
fn gradients_of_two_processes_are_those_of_one() {
    let home = home();
    let more = ["--data", "texts.jsonl", "--accumulation", "2", "--lr", "0.01"];
    run(home.offshoot(words(&more, "one"))).ended_with(0);
    mpirun(&home, &[(2, &words(&more, "two"))]).ended_with(0);
    let file = "adapter_model.safetensors";
    assert!(learned(&home, "two", file) == learned(&home, "one", file));
    let left = mpirun(&home, &[(2, &words(&more[..2], "none"))]).ended_with(2);
    assert!(left.stderr.contains("2 processes: with gradients"), "{}", left.stderr);
}

#[test]
fn as_many_as_like_go_on_with_what_two_began() {
    let home = home();
    let fixed = ["--data", "texts.jsonl", "--method", "mezo", "--lr", "0.01"];
    let more = [&fixed[..], &["--save-every", "2", "--keep", "9"]].concat();
    run(home.offshoot(words(&more, "one"))).ended_with(0);
    mpirun(&home, &[(2, &words(&more, "two"))]).ended_with(0);
    for size in [1, 2, 3] {
        // As if all had been killed after step 5.
        for step in [6, 8] {
            let gone = home.path().join(format!("two/checkpoints/step-{step:08}"));
            std::fs::remove_dir_all(gone).unwrap();
        }
        let resume = ["tune", "--resume", "two", "--no-cache", "--threads", "1"];
        let left = mpirun(&home, &[(size, &resume)]).ended_with(0);
        assert!(left.stderr.contains("going on after step 4 of 8"), "{}", left.stderr);
        let file = "trajectory.traj";
        assert!(learned(&home, "two", file) == learned(&home, "one", file), "{size}");
    }
}

/// The process that is `rank` of those that `mpirun` started at this home.
fn process(home: &Home, rank: usize) -> Option<u32> {
    let said = format!("OMPI_COMM_WORLD_RANK={rank}");
    let is_it = |pid: &u32| {
        let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == home.path());
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        here && environment.split(|byte| *byte == 0).any(|word| word == said.as_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let mut ids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    ids.find(is_it)
}

/// Whichever is killed, wherever in a step it is, `mpirun` ends the others and says so, and the
/// run goes on to the bits of one that nobody was killed in.
#[test]
fn a_run_of_which_one_is_killed_goes_on_to_the_same_bits() {
    let home = home();
    let more = ["--data", "texts.jsonl", "--method", "mezo", "--lr", "0.01", "--save-every", "3"];
    let more = [&more[..], &["--steps", "100"]].concat();
    let long = |output| -> Vec<&str> {
        let fixed = FIXED.iter().copied().filter(|word| !["--steps", "8"].contains(word));
        fixed.chain(more.iter().copied()).chain(["--output", output]).collect()
    };
    run(home.offshoot(long("one"))).ended_with(0);
    for rank in [1, 0] {
        let output = ["of_0", "of_1"][rank];
        let folder = home.path().join(output);
        let mut command = mpirun_command(&home, &[(2, &long(output))]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !folder.join("log.jsonl").exists() || steps(&folder) < 10 {
            assert!(begun.elapsed() < PATIENCE, "no step was made");
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = process(&home, rank).unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let left = Left::of(child.wait_with_output().unwrap());
        assert!(left.code != Some(0) && left.stderr.contains("signal 9"), "{}", left.stderr);
        assert!(process(&home, 0).is_none() && process(&home, 1).is_none());
        assert!((10..100).contains(&steps(&folder)), "{}", steps(&folder));
        let resume = ["tune", "--resume", output, "--no-cache", "--threads", "1"];
        let left = mpirun(&home, &[(2, &resume)]).ended_with(0);
        assert!(left.stderr.contains("going on after step"), "{}", left.stderr);
        for file in ["trajectory.traj", "adapter_model.safetensors"] {
            assert!(learned(&home, output, file) == learned(&home, "one", file), "{rank}: {file}");
        }
    }
}

#[test]
fn each_may_have_examples_of_its_own_where_rounds_are_averaged() {
    let home = home();
    let fixed = ["--method", "fedkseed", "--lr", "0.01", "--accumulation", "4", "--data"];
    let data = |file| [&fixed[..], &[file]].concat();
    let (first, second) = (data("texts.jsonl"), data("others.jsonl"));
    let each = [(1, &words(&first, "out")[..]), (1, &words(&second, "out")[..])];
    mpirun(&home, &each).ended_with(0);
    let info = ["trajectory", "info", "out/variant/trajectory.traj", "--json"];
    let info = run(home.offshoot(info)).ended_with(0).json();
    assert_eq!(info["header"]["processes"], 2, "{info}");
    let replay = ["trajectory", "replay", "long.gguf", "out/variant/trajectory.traj", "--json"];
    let told = run(home.offshoot(replay)).ended_with(0).json();
    assert_eq!((&told["weights"], &told["steps"]), (&told["expected"], &8.into()), "{told}");
    // The same of any other method is refused.
    let (first, second) = (["--data", "texts.jsonl"], ["--data", "others.jsonl"]);
    let mezo = |data: &[&'static str]| words(&[data, &["--method", "mezo"]].concat(), "no");
    let each = [(1, &mezo(&first)[..]), (1, &mezo(&second)[..])];
    let left = mpirun(&home, &each).ended_with(2);
    assert!(left.stderr.contains("process 1 was started otherwise"), "{}", left.stderr);
}
