//! A metric that another program computes.
//!
//! The program is started once for each point. It reads lines of JSON from its standard input, one for
//! each example of the batch, in order:
//! ```text
//! {"prompt":"...","answers":["..."],"generated":"..."}
//! ```
//! and prints one number, the greater the better; its negative is the loss.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use offshoot_models::{Controls, Tokenizer};

use super::metric::prompts;
use super::{Objective, Part, Points};
use crate::Error;
use crate::tune::Example;

/// Bytes of what a program prints that are quoted.
const QUOTED: usize = 100;

/// A program that prints a metric.
#[derive(Debug, Clone)]
pub struct MetricCommand {
    command: String,
    tokenizer: Arc<Tokenizer>,
    max_tokens: usize,
}

impl MetricCommand {
    /// The metric that `command` prints of answers of at most `max_tokens` tokens. The system's shell
    /// reads it.
    pub fn new(command: String, tokenizer: Arc<Tokenizer>, max_tokens: usize) -> Self {
        Self { command, tokenizer, max_tokens }
    }

    fn failed(&self, what: impl std::fmt::Display) -> Error {
        let shown: String = self.command.chars().take(QUOTED).collect();
        Error::Training(format!("metric command {shown:?}: {what}"))
    }

    /// What the program prints for these lines.
    fn run(&self, lines: Vec<u8>) -> Result<f64, Error> {
        let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut command = Command::new(shell);
        command.args([option, &self.command]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| self.failed(e))?;
        let input = child.stdin.take();
        // Written beside the reading, so that neither waits for the other with a full pipe.
        let writer = std::thread::spawn(move || {
            // A program that stops reading has seen enough.
            input.map(|mut input| input.write_all(&lines))
        });
        let output = child.wait_with_output().map_err(|e| self.failed(e))?;
        drop(writer.join());
        if !output.status.success() {
            return Err(self.failed(format_args!("ended with {}", output.status)));
        }
        let printed = String::from_utf8_lossy(&output.stdout);
        let number = printed.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| {
            let quoted: String = printed.trim().chars().take(QUOTED).collect();
            self.failed(format_args!("printed {quoted:?}, expected one number"))
        })
    }
}

impl Objective for MetricCommand {
    fn name(&self) -> &'static str {
        "command"
    }

    fn is_of_whole_batches(&self) -> bool {
        true
    }

    fn parts(&mut self, at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error> {
        let (prompts, answers) = prompts(batch, self.name())?;
        let made = at.generate(&prompts, self.max_tokens)?;
        let of_point = |texts: Vec<Option<Vec<u32>>>| {
            let Some(texts) = texts.into_iter().collect::<Option<Vec<_>>>() else {
                return Ok(vec![Part { sum: f64::NAN, weight: 1.0 }]);
            };
            let mut lines = Vec::new();
            for ((prompt, answers), tokens) in prompts.iter().zip(&answers).zip(texts) {
                let text = |tokens: &[u32]| self.tokenizer.decode(tokens, Controls::Skip);
                let line = serde_json::json!({
                    "prompt": text(prompt), "answers": answers, "generated": text(&tokens),
                });
                lines.extend_from_slice(line.to_string().as_bytes());
                lines.push(b'\n');
            }
            Ok(vec![Part { sum: -self.run(lines)?, weight: 1.0 }])
        };
        made.into_iter().map(of_point).collect()
    }
}
