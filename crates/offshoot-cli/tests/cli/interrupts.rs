//! Ctrl-C, by a real signal and by a real key on a real terminal.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::home::{Home, Left};
use crate::server::{Answer, Server};

/// Longer than anything waited for here takes, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn interrupt(child: &Child) {
    // The shell's own: a program of that name is not on every machine.
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Arguments of an answer that would go on for minutes.
const ENDLESS: [&str; 7] =
    ["run", "long.gguf", "ab", "--ctx-size", "1000000", "--logit-bias", "2=-100"];

#[test]
fn an_interrupt_ends_an_answer_and_the_program() {
    let home = Home::new();
    home.tiny_with_context(1 << 20);
    for json in [false, true] {
        let mut command = home.offshoot(ENDLESS.iter().chain(json.then_some(&"--json")));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut text = [0; 8];
        if json {
            // Nothing shows before the end: give it time to begin.
            std::thread::sleep(Duration::from_secs(2));
        } else {
            child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
        }
        interrupt(&child);
        let left = Left::of(child.wait_with_output().unwrap()).ended_with(130);
        assert_eq!(left.stderr, "error: interrupted\n");
        if json {
            assert_eq!(left.json()["finish_reason"], "interrupted");
        }
    }
}

#[test]
fn an_interrupt_ends_the_reading_of_a_prompt() {
    let home = Home::new();
    home.tiny_with_context(1 << 20);
    let prompt = std::fs::File::open(home.file("prompt.txt", "ab ".repeat(200_000))).unwrap();
    let mut command = home.offshoot(["run", "long.gguf", "--ctx-size", "1000000", "--json"]);
    command.stdin(prompt).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    interrupt(&child);
    let left = Left::of(child.wait_with_output().unwrap()).ended_with(130);
    assert_eq!(left.json()["tokens"], serde_json::json!([]));
}

#[test]
fn an_interrupt_ends_a_measurement_at_once() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let mut command = home.offshoot(["bench", "long.gguf", "--rounds", "1000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Its first words, so that it is at work.
    child.stderr.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    interrupt(&child);
    let left = Left::of(child.wait_with_output().unwrap()).ended_with(130);
    assert_eq!(left.stdout, "");
}

#[test]
fn an_interrupted_pull_ends_with_130_and_is_continued_by_the_next() {
    let bytes = vec![7; 100_000];
    let listing = crate::pulls::tree("m.gguf", &bytes);
    let body = bytes.clone();
    let hub = Server::start(move |request, _| match request.path.contains("/tree/") {
        true => Answer::ok(&listing),
        false => {
            let stall = Duration::from_secs(if request.range_start().is_none() { 2 } else { 0 });
            Answer { stall, ..Answer::ranged(request, &body) }
        }
    });
    let home = Home::new();
    let mut command = home.offshoot(["pull", "hf:org/repo/m.gguf"]);
    command.env("HF_ENDPOINT", hub.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let begun = Instant::now();
    while hub.seen().len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "the file was not asked for");
        std::thread::sleep(Duration::from_millis(10));
    }
    interrupt(&child);
    let left = Left::of(child.wait_with_output().unwrap()).ended_with(130);
    assert!(left.stderr.contains("the next pull continues"), "{}", left.stderr);
    assert_eq!(left.stdout, "");
    assert_eq!(crate::pulls::ready(&home), Vec::<String>::new());
    command.args(["--json"]);
    let left = Left::of(command.output().unwrap()).ended_with(0);
    assert_eq!(std::fs::read(left.json()["path"].as_str().unwrap()).unwrap(), bytes);
}

/// What the program writes when it has given the terminal back to Ctrl-C: pastes are plain again.
const LINE_TAKEN: &str = "\x1b[?2004l";

/// A terminal with a program in it, made by Python's `pty`.
pub(crate) struct Terminal {
    child: Hosted,
    keys: ChildStdin,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

/// Ends with the test, also where that fails.
struct Hosted(Child);

impl Drop for Hosted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Terminal {
    pub(crate) fn open(home: &Home, args: &[&str]) -> Self {
        let mut command = Command::new("python3");
        let spawn = "import os, pty, sys; status = pty.spawn(sys.argv[1:]); \
                     sys.exit(os.waitstatus_to_exitcode(status))";
        command.args(["-c", spawn, env!("CARGO_BIN_EXE_offshoot")]).args(args);
        home.settle(&mut command);
        if args.contains(&"smollm2") {
            home.use_users_store(&mut command);
        }
        command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child: Hosted(child), keys, screen, seen: String::new() }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until the screen has shown `text` since the last wait.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => panic!("{e} before {text:?}; seen: {:?}", self.seen),
            }
        }
    }

    pub(crate) fn end(mut self) -> Option<i32> {
        drop(self.keys);
        self.child.0.wait().unwrap().code()
    }
}

#[test]
fn in_a_chat_an_interrupt_stops_the_answer_and_not_the_program() {
    let home = Home::new();
    home.tiny_with_context(1 << 20);
    let saved = home.path().join("talk.json");
    let options = ["--ctx-size", "1000000", "--logit-bias", "2=-100", "--stats"];
    let args = [&["run", "long.gguf"][..], &options].concat();
    let mut chat = Terminal::open(&home, &args);
    chat.wait_for(">>> ");
    for _ in 0..2 {
        chat.press("ab\r");
        chat.wait_for(LINE_TAKEN);
        // Some of the answer is there, and no one waits for the rest.
        chat.wait_for("b");
        chat.press("\x03");
        chat.wait_for("(stopped)");
        chat.wait_for("tokens/s");
        chat.wait_for(">>> ");
    }
    chat.press("/set max-tokens 3\r");
    chat.wait_for("max-tokens is 3");
    // Typed or pasted faster than it is read.
    chat.press("\"\"\"one\rtwo\"\"\"\r");
    chat.wait_for("tokens/s");
    chat.wait_for(">>> ");
    chat.press(&format!("/save {}\r", saved.display()));
    chat.wait_for("saved to");
    chat.press("/exit\r");
    assert_eq!(chat.end(), Some(0));
    let talk: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    let asked: Vec<_> = talk.as_array().unwrap().iter().step_by(2).map(|m| &m["content"]).collect();
    assert_eq!(asked, ["ab", "ab", "one\ntwo"]);
}

/// A step that is under way cannot be stopped, and who sees nothing happen presses again.
#[test]
fn in_a_chat_two_interrupts_of_one_long_step_do_not_end_the_program() {
    let home = Home::new();
    let mut chat = Terminal::open(&home, &["run", "smollm2", "--threads", "1"]);
    chat.wait_for(">>> ");
    chat.press(&"word ".repeat(400));
    chat.press("\r");
    chat.wait_for(LINE_TAKEN);
    std::thread::sleep(Duration::from_millis(20));
    chat.press("\x03");
    std::thread::sleep(Duration::from_millis(20));
    chat.press("\x03");
    chat.wait_for("(stopped)");
    chat.press("/exit\r");
    assert_eq!(chat.end(), Some(0));
}
