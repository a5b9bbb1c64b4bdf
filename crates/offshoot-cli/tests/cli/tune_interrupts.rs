//! Runs that are stopped, killed or run out of room, and go on to the same bits.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::home::{Home, Left, run};
use crate::interrupts::{PATIENCE, Terminal};
use crate::tune::learned;

/// Enough steps that a signal comes between two of them.
const STEPS: usize = 150;

fn home() -> Home {
    let home = Home::new();
    home.tiny_with_context(64);
    let texts: String = (0..16).map(|i| format!("{{\"text\": \"{}\"}}\n", word(i))).collect();
    home.file("texts.jsonl", texts);
    home
}

fn word(i: u32) -> String {
    (0..12)
        .map(|bit| if i.wrapping_mul(2_654_435_761) >> (31 - bit) & 1 == 1 { 'a' } else { 'b' })
        .collect()
}

fn words(method: &str) -> Vec<String> {
    let steps = STEPS.to_string();
    let words = [
        "tune",
        "long.gguf",
        "--data",
        "texts.jsonl",
        "--method",
        method,
        "--lr",
        "0.005",
        "--batch",
        "4",
        "--steps",
        &steps,
        "--save-every",
        "3",
        "--eval-fraction",
        "0.25",
        "--eval-every",
        "7",
        "--no-cache",
        "--threads",
        "1",
        "--output",
        "out",
    ];
    words.map(str::to_owned).to_vec()
}

fn begin(home: &Home, words: &[String]) -> Child {
    let mut command = home.offshoot(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn resume(home: &Home) -> Left {
    run(home.offshoot(["tune", "--resume", "out", "--no-cache", "--threads", "1"]))
}

fn steps(folder: &Path) -> usize {
    let log = std::fs::read_to_string(folder.join("log.jsonl")).unwrap_or_default();
    log.matches("\"event\":\"step\"").count()
}

/// What is told of each step but times and memory.
fn course(folder: &Path) -> Vec<(u64, String)> {
    let log = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let steps = lines.filter(|line| line["event"] == "step");
    steps.map(|line| (line["step"].as_u64().unwrap(), line["loss"].to_string())).collect()
}

/// Begins a run and sends `signal` once it has made `made` steps: it ends as interrupted, and tells the
/// command that goes on.
fn stopped(home: &Home, words: &[String], made: usize, signal: &str) {
    let folder = home.path().join("out");
    let child = begin(home, words);
    let begun = Instant::now();
    while steps(&folder) < made {
        assert!(begun.elapsed() < PATIENCE, "the steps were not made");
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = format!("kill -{signal} {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let left = Left::of(child.wait_with_output().unwrap()).ended_with(130);
    let told = &left.stderr;
    assert!(told.contains("go on with: offshoot tune --resume out\n"), "{told}");
}

#[test]
fn on_a_terminal_a_bar_shows_how_a_run_goes() {
    let home = home();
    let words = ["tune", "long.gguf", "--data", "texts.jsonl", "--steps", "20", "--no-cache"];
    let mut screen = Terminal::open(&home, &words);
    for shown in [" of 20 loss ", " tokens/s, ", " left", "all steps are made"] {
        screen.wait_for(shown);
    }
    assert_eq!(screen.end(), Some(0));
}

#[test]
fn a_signal_ends_a_run_after_its_step_and_the_command_that_is_told_goes_on() {
    let whole = home();
    run(whole.offshoot(words("mezo"))).ended_with(0);
    for signal in ["INT", "TERM"] {
        let home = home();
        let folder = home.path().join("out");
        stopped(&home, &words("mezo"), 5, signal);
        let made = steps(&folder);
        assert!(folder.join(format!("checkpoints/step-{made:08}/manifest.json")).exists());
        let left = resume(&home).ended_with(0);
        assert!(left.stderr.contains(&format!("going on after step {made} of")), "{}", left.stderr);
        assert_eq!(learned(&folder), learned(&whole.path().join("out")), "{signal}");
    }
}

/// How many examples are held out, so that scoring them takes longer than it takes to interrupt it.
const HELD_OUT: u32 = 8_000;
const MORE: [&str; 2] = ["--eval-data", "more.jsonl"];

#[test]
fn a_signal_within_the_last_evaluation_leaves_it_and_it_is_made_when_the_run_goes_on() {
    let mut words = words("mezo");
    for (flag, with) in [("--steps", ["--steps", "3"]), ("--eval-fraction", MORE)] {
        let at = words.iter().position(|word| word == flag).unwrap();
        words.splice(at..at + 2, with.map(str::to_owned));
    }
    let held_out = || {
        let home = home();
        let more = (0..HELD_OUT).map(|i| format!("{{\"text\": \"{}\"}}\n", word(i)));
        home.file("more.jsonl", more.collect::<String>());
        home
    };
    let whole = held_out();
    run(whole.offshoot(&words)).ended_with(0);
    let evaluations = |home: &Home| {
        let log = std::fs::read_to_string(home.path().join("out/log.jsonl")).unwrap();
        log.matches("\"event\":\"eval\"").count()
    };
    assert_eq!(evaluations(&whole), 1);
    let home = held_out();
    let folder = home.path().join("out");
    stopped(&home, &words, 3, "INT");
    assert_eq!((steps(&folder), evaluations(&home)), (3, 0));
    resume(&home).ended_with(0);
    assert_eq!(evaluations(&home), 1);
    assert_eq!(learned(&folder), learned(&whole.path().join("out")));
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits() {
    for method in ["lora", "mezo"] {
        let whole = home();
        run(whole.offshoot(words(method))).ended_with(0);
        let home = home();
        let folder = home.path().join("out");
        let mut child = begin(&home, &words(method));
        let mut killed = 0;
        for round in 0..12u64 {
            // Killed some time behind its next steps: early, late, and within a checkpoint.
            let (begun, before) = (Instant::now(), steps(&folder));
            let ended = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                if steps(&folder) != before && steps(&folder) > before.saturating_sub(3) {
                    break false;
                }
                assert!(begun.elapsed() < PATIENCE, "no step was made");
                std::thread::sleep(Duration::from_millis(1));
            };
            std::thread::sleep(Duration::from_millis(round * 37 % 50));
            if ended {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
            let resume = ["tune", "--resume", "out", "--no-cache", "--threads", "1"];
            child = begin(&home, &resume.map(str::to_owned));
        }
        let left = Left::of(child.wait_with_output().unwrap()).ended_with(0);
        assert!(killed >= 3, "{method} was killed {killed} times: {}", left.stderr);
        assert_eq!(course(&folder), course(&whole.path().join("out")), "{method}");
        assert_eq!(learned(&folder), learned(&whole.path().join("out")), "{method}");
    }
}

/// A limit of the size of files stands for a full disk: writing fails in the middle.
#[test]
fn a_full_disk_ends_a_run_with_a_reason_and_what_was_whole_goes_on() {
    let whole = home();
    run(whole.offshoot(words("mezo"))).ended_with(0);
    let home = home();
    let program = home.offshoot(words("mezo"));
    let mut command = std::process::Command::new("sh");
    home.settle(&mut command);
    // Of 512 bytes: the log grows beyond that within the run.
    command.args(["-c", "trap '' XFSZ; ulimit -f 80; exec \"$@\"", "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    let left = run(command).ended_with(1);
    assert!(left.stderr.contains("File too large"), "{}", left.stderr);
    assert!(
        left.stderr.contains("the run can go on: offshoot tune --resume out"),
        "{}",
        left.stderr
    );
    assert!(steps(&home.path().join("out")) < STEPS);
    resume(&home).ended_with(0);
    assert_eq!(learned(&home.path().join("out")), learned(&whole.path().join("out")));
}

/// What is said of a run of all weights that are kept there.
fn all_weights(place: &str) -> Vec<String> {
    let mut all = words("mezo");
    let rate = all.iter().position(|word| word == "0.005").unwrap();
    all[rate] = "0.0001".to_owned();
    all.extend(["--space", "full", "--offload", place].map(str::to_owned));
    all
}

fn weights(home: &Home) -> Vec<Vec<u8>> {
    let files = ["model.safetensors", "trajectory.traj"];
    files.map(|file| std::fs::read(home.path().join("out/variant").join(file)).unwrap()).into()
}

#[test]
fn weights_on_disk_are_made_again_after_a_kill_and_leave_no_file_behind() {
    let whole = home();
    run(whole.offshoot(all_weights("none"))).ended_with(0);
    let home = home();
    let folder = home.path().join("out");
    let mut child = begin(&home, &all_weights("disk"));
    let begun = Instant::now();
    while steps(&folder) < 10 {
        assert!(begun.elapsed() < PATIENCE, "no step was made");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Nobody else can be led to the file, nor to the run.
    let left = resume(&home).ended_with(1);
    assert!(left.stderr.contains("another run works here"), "{}", left.stderr);
    child.kill().unwrap();
    child.wait().unwrap();
    resume(&home).ended_with(0);
    assert_eq!(course(&folder), course(&whole.path().join("out")));
    assert!(weights(&home) == weights(&whole));
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("weights")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_disk_without_room_for_the_weights_is_told_before_a_run_begins() {
    let home = home();
    let program = home.offshoot(all_weights("disk"));
    let mut command = std::process::Command::new("sh");
    home.settle(&mut command);
    command.args(["-c", "trap '' XFSZ; ulimit -f 80; exec \"$@\"", "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    let left = run(command).ended_with(1);
    let told = "out: the weights that are kept here while the run goes on: File too large";
    assert!(left.stderr.contains(told), "{}", left.stderr);
    assert!(!home.path().join("out/run.json").exists(), "no run was begun");
}
