//! Each exit code of the help, from a situation that really brings it about. 130 is in
//! `interrupts.rs`.

use crate::home::{Home, run};
use crate::models::hostile;

#[test]
fn the_help_explains_every_code() {
    let help = run(Home::new().offshoot(["--help"])).ended_with(0).stdout;
    assert!(help.starts_with("Grow many language models"), "{help}");
    for code in ["0  done", "1  failure", "2  usage", "3  data", "4  model", "5  out of", "130  "] {
        assert!(help.contains(code), "{code}: {help}");
    }
}

#[test]
fn what_works_ends_with_0() {
    let home = Home::new();
    home.tiny();
    run(home.offshoot(["show", "tiny.gguf"])).ended_with(0);
    run(home.offshoot(["run", "tiny.gguf", "ab", "-n", "3"])).ended_with(0);
}

#[test]
fn a_file_that_is_not_there_ends_with_1() {
    let home = Home::new();
    home.tiny();
    run(home.offshoot(["perplexity", "tiny.gguf", "--file", "absent.txt"]))
        .ended_with(1)
        .complained(&["absent.txt: No such file"]);
    run(home.offshoot(["run", "absent.gguf", "ab"]))
        .ended_with(1)
        .complained(&["absent.gguf: No such file", "check the path"]);
    run(home.offshoot(["run", "tiny.gguf", "ab", "-n", "1", "-o", "no/such/folder"]))
        .ended_with(1)
        .complained(&["no/such/folder: No such file"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_takes_nothing_ends_with_1() {
    let home = Home::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut list = home.offshoot(["list"]);
    list.stdout(full);
    run(list).ended_with(1).complained(&["standard output: No space left"]);
}

#[test]
fn a_wrong_command_line_ends_with_2_and_suggests_the_right_one() {
    let home = Home::new();
    home.tiny();
    for (args, says) in [
        (&["rum", "tiny.gguf"][..], "'run'"),
        (&["run", "tiny.gguf", "--temprature", "0"], "'--temperature'"),
        (&["run", "tiny.gguf", "a", "--temperature", "-1"], "temperature is -1, but must be"),
        (&["run", "tiny.gguf", "a", "--logprobs", "2"], "--json"),
        (&["run", "tiny.gguf", "a", "--acceptance", "most"], "rejection, typical"),
        (&["run", "tiny.gguf", "a", "--typical-epsilon", "0.6"], "epsilon is 0.6, but must be"),
        (&["run", "tiny.gguf", "a", "--typical-delta", "0"], "delta is 0, but must be"),
        (&["run", "tiny.gguf", "--ctx-size", "0"], "--ctx-size"),
        (&["run", "tiny.gguf", "a", "--ctx-size", "65"], "expected 1 to 64"),
        (&["generate", "tiny.gguf"], "no prompt"),
        (&["run", "smolm2", "a"], "did you mean `smollm2`?"),
        (&["rm", "smollm2"], "is not in the store"),
        (&["run", "hf:org", "a"], "`hf:org/repo`"),
    ] {
        let left = run(home.offshoot(args)).ended_with(2);
        assert!(left.stderr.contains(says), "{args:?}: {}", left.stderr);
        assert_eq!(left.stdout, "", "{args:?}");
    }
}

#[test]
fn a_wrong_setting_ends_with_2() {
    let home = Home::new();
    let mut list = home.offshoot(["list"]);
    list.env("HF_ENDPOINT", "mirror");
    run(list).ended_with(2).complained(&["HF_ENDPOINT is `mirror`"]);
    home.tiny();
    let mut isa = home.offshoot(["run", "tiny.gguf", "a"]);
    isa.env("OFFSHOOT_ISA", "mmx");
    run(isa).ended_with(2).complained(&["OFFSHOOT_ISA=mmx", "portable"]);
}

#[test]
fn a_text_that_cannot_be_used_ends_with_3() {
    let home = Home::new();
    home.tiny();
    home.file("latin1.txt", b"caf\xe9");
    run(home.offshoot(["tokenize", "tiny.gguf", "--file", "latin1.txt"]))
        .ended_with(3)
        .complained(&["latin1.txt: byte 3 is not UTF-8"]);
    let mut piped = home.offshoot(["run", "tiny.gguf", "-"]);
    piped.stdin(std::fs::File::open(home.path().join("latin1.txt")).unwrap());
    run(piped).ended_with(3).complained(&["standard input is not UTF-8"]);
    run(home.offshoot(["run", "tiny.gguf", &"ab".repeat(99)]))
        .ended_with(3)
        .complained(&["the prompt has 99 tokens, the context 64", "--ctx-size"]);
}

#[test]
fn every_broken_model_ends_with_4_and_one_line() {
    let home = Home::new();
    for case in hostile::all() {
        home.file("broken.gguf", &case.bytes);
        run(home.offshoot(["show", "broken.gguf", "--json"])).ended_with(4).complained(&[]);
    }
    home.file("broken.gguf", "<html>");
    run(home.offshoot(["run", "broken.gguf", "a"]))
        .ended_with(4)
        .complained(&["broken.gguf: begins with \"<htm\"", "GGUF"]);
}

#[test]
fn a_context_that_no_memory_holds_ends_with_5_before_it_is_taken() {
    let home = Home::new();
    home.tiny_with_context(1 << 28);
    let huge = ["run", "long.gguf", "ab", "--ctx-size", "268000000"];
    let left = run(home.offshoot(huge)).ended_with(5).complained(&["268000000 tokens", " free"]);
    let longest = left.stderr.split("--ctx-size ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(longest.parse::<u32>().unwrap() < 268_000_000, "{longest}");
    run(home.offshoot(["run", "long.gguf", "ab", "--ctx-size", "4096", "-n", "2"])).ended_with(0);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_the_process_may_not_take_is_not_counted_on() {
    let home = Home::new();
    let model = home.tiny();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -v 50000 && exec \"$0\" run \"$1\" ab"]);
    limited.arg(env!("CARGO_BIN_EXE_offshoot")).arg(model);
    home.settle(&mut limited);
    run(limited).ended_with(5).complained(&["smaller model"]);
}

#[test]
fn doctor_says_what_fits_and_agrees_with_loading() {
    let home = Home::new();
    home.tiny_with_context(1 << 28);
    let fits = |args: &[&str]| run(home.offshoot(args)).ended_with(0).json()["fits"].clone();
    let catalogue = fits(&["doctor", "--json"]);
    let names: Vec<_> = catalogue.as_array().unwrap().iter().map(|fit| &fit["name"]).collect();
    assert_eq!(names, ["smollm2", "qwen2.5-coder"]);
    let long = fits(&["doctor", "long.gguf", "--json"])[0].clone();
    let longest = long["longest_context"].as_u64().unwrap();
    assert!(longest < long["context"].as_u64().unwrap(), "{long}");
    let text = run(home.offshoot(["doctor", "long.gguf"])).ended_with(0).stdout;
    assert!(text.contains("long: ") && text.contains("with --ctx-size "), "{text}");
    run(home.offshoot(["doctor", "absent"])).ended_with(2).complained(&["no model `absent`"]);
}
