//! Where what `--output` names goes when that is a link, a device or a file that is open.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::process::Command;

use crate::home::{Home, run};
use crate::trajectory::tune;

/// Commands that write a file, up to its name.
const WRITERS: [&[&str]; 6] = [
    &["run", "tiny.gguf", "ab", "-n", "3", "--temperature", "0", "-o"],
    &["medusa", "import", "heads.pt", "-o"],
    &["trajectory", "slice", "run", "--to", "2", "-o"],
    &["trajectory", "merge", "run", "-o"],
    &["trajectory", "replay", "tiny.gguf", "run", "-o"],
    &["report", "log.jsonl", "-o"],
];

/// A home in which all of [`WRITERS`] work.
fn home() -> Home {
    let home = Home::new();
    home.tiny();
    tune(&home, "run", 3);
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let heads = data.join("../offshoot-models/tests/data/medusa/heads.pt");
    home.file("heads.pt", fs::read(heads).unwrap());
    home.file("log.jsonl", "{\"event\":\"resume\",\"step\":1,\"unix_s\":0}\n");
    home
}

fn write(home: &Home, writer: &[&str], output: &str) -> Command {
    home.offshoot(writer.iter().chain(&[output]))
}

#[test]
fn links_are_followed_and_stay_and_devices_stay_devices() {
    let home = home();
    for writer in WRITERS {
        run(write(&home, writer, "plain")).ended_with(0);
        let plain = fs::read(home.path().join("plain")).unwrap();
        assert!(!plain.is_empty(), "{writer:?}");
        let at = |name: &str| home.path().join(name);
        symlink("target", at("link")).unwrap();
        run(write(&home, writer, "link")).ended_with(0);
        assert!(at("link").symlink_metadata().unwrap().is_symlink(), "{writer:?}");
        assert!(fs::read(at("target")).unwrap() == plain, "{writer:?}");
        run(write(&home, writer, "/dev/null")).ended_with(0);
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device(), "{writer:?}");
        for name in ["plain", "link", "target"] {
            fs::remove_file(at(name)).unwrap();
        }
    }
}

/// What a shell's redirection opened takes what is written, behind what is in it.
#[test]
fn standard_output_is_written_to_and_not_replaced() {
    let home = home();
    for writer in WRITERS {
        run(write(&home, writer, "plain")).ended_with(0);
        let plain = fs::read(home.path().join("plain")).unwrap();
        for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            let path = home.path().join("redirected");
            let mut file = File::create(&path).unwrap();
            file.write_all(b"before\n").unwrap();
            let mut command = write(&home, writer, name);
            command.stdout(file.try_clone().unwrap());
            run(command).ended_with(0);
            let written = fs::read(&path).unwrap();
            let behind = written.strip_prefix(b"before\n").unwrap();
            assert!(behind.starts_with(&plain), "{writer:?} {name}");
            let (open, there) = (file.metadata().unwrap(), fs::metadata(&path).unwrap());
            assert_eq!(open.ino(), there.ino(), "{writer:?} {name}");
        }
    }
}

#[test]
fn a_file_that_a_shell_has_opened_is_written_to() {
    let home = home();
    let mut shell = Command::new("sh");
    let script = "exec \"$0\" run tiny.gguf ab -n 3 --temperature 0 -o /dev/fd/3 3>opened";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_offshoot")]);
    home.settle(&mut shell);
    run(shell).ended_with(0);
    run(write(&home, WRITERS[0], "plain")).ended_with(0);
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
    assert_eq!(read("opened"), read("plain"));
}

#[test]
fn a_model_that_is_read_back_goes_to_a_file_alone() {
    let home = home();
    for output in ["/dev/null", "/dev/stdout"] {
        let args = ["quantize", "tiny.gguf", "--to", "q8_0", "--requantize", "-o", output];
        run(home.offshoot(args)).ended_with(1).complained(&[output, "not a regular file"]);
    }
}
