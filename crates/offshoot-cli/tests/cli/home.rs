//! A home of its own for each test, and a model of a few kilobytes in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use offshoot_engine::store::{ModelRef, PullPolicy, Quiet, Store};
use serde_json::Value;

use crate::models::tiny::Tiny;

/// Variables through which the surroundings would reach into a test.
const OTHERS: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The program with these arguments, at home here, without a network or a terminal.
    pub(crate) fn offshoot<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(args);
        self.settle(&mut command);
        command
    }

    /// Makes a command live here.
    pub(crate) fn settle(&self, command: &mut Command) {
        for (name, _) in std::env::vars() {
            if name.starts_with("OFFSHOOT_") || name.starts_with("HF_") {
                command.env_remove(name);
            }
        }
        for name in OTHERS {
            command.env_remove(name);
        }
        command
            .env("OFFSHOOT_HOME", self.path().join("offshoot"))
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            // Nothing listens on port 1.
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .current_dir(self.path())
            .stdin(Stdio::null());
    }

    /// Lets a command find `smollm2` in the user's store; pulls it if need be, and gives its path.
    pub(crate) fn use_users_store(&self, command: &mut Command) -> PathBuf {
        match std::env::var_os("OFFSHOOT_HOME") {
            Some(own) => command.env("OFFSHOOT_HOME", own),
            None => command.env_remove("OFFSHOOT_HOME"),
        };
        let name: ModelRef = "smollm2".parse().unwrap();
        let store = Store::from_env().unwrap();
        store.resolve(&name, PullPolicy::Allow, &Quiet).unwrap().path
    }

    /// Writes a file; gives its path.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A sound model of twelve tokens, `tiny.gguf`.
    pub(crate) fn tiny(&self) -> PathBuf {
        self.file("tiny.gguf", Tiny::llama().bytes())
    }

    /// The same with a context of `tokens`, `long.gguf`.
    pub(crate) fn tiny_with_context(&self, tokens: u32) -> PathBuf {
        let mut tiny = Tiny::llama();
        tiny.set("llama.context_length", tokens);
        self.file("long.gguf", tiny.bytes())
    }
}

/// What a finished program left.
pub(crate) struct Left {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Left {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Fails unless the program ended with `code`.
    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Forgets the lines before an error that tell where a model was looked for.
    pub(crate) fn after_looking(mut self) -> Self {
        let told = |line: &&str| line.starts_with("fetching from ");
        let lines = self.stderr.lines().skip_while(told);
        self.stderr = lines.map(|line| format!("{line}\n")).collect();
        self
    }

    /// Fails unless standard error is one line that begins as errors do and says all of `parts`.
    #[track_caller]
    pub(crate) fn complained(self, parts: &[&str]) -> Self {
        assert_eq!(self.stdout, "", "an error leaves no data");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {}", self.stderr);
        }
        self
    }

    /// Standard output as JSON, which must be all of it.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Left {
    Left::of(command.output().unwrap())
}
