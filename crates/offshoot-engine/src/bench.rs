//! How fast a model is on this machine, beside what the machine could do.

use std::time::Instant;

use offshoot_kernels::{Buffer, dot_rate, stream_fill, stream_read};
use offshoot_methods::SamplingOptions;
use offshoot_models::LogitRows;
use serde::Serialize;

use crate::machine::cache_bytes;
use crate::{Control, Error, GenerateOptions, Model, Session, available_memory};

/// Batch sizes whose step time is measured.
const WIDTHS: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64];

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens made.
    pub decode: usize,
    /// Tokens cached while step times are taken.
    pub depth: usize,
    /// Repetitions; medians are given.
    pub rounds: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { prompt: 512, decode: 128, depth: 512, rounds: 5 }
    }
}

/// The time of a step with `tokens` rows.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StepTime {
    /// Rows of the step, all with logits.
    pub tokens: usize,
    /// Median time.
    pub ms: f64,
    /// The time over that of one row.
    pub over_one: f64,
}

/// A measurement. All times are medians.
#[derive(Debug, Clone, Serialize)]
pub struct Bench {
    /// The instruction set.
    pub isa: String,
    /// Threads of a step.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens read in a second.
    pub prompt_tokens_per_s: f64,
    /// Tokens made in a second by the whole loop: step, sampling, text.
    pub decode_tokens_per_s: f64,
    /// Tokens cached while step times were taken.
    pub depth: usize,
    /// Step times by number of rows.
    pub steps: Vec<StepTime>,
    /// Bytes of weights that a step of one row reads.
    pub step_bytes: usize,
    /// Bytes of keys and values that it reads at `depth`.
    pub kv_bytes: usize,
    /// Memory bandwidth, streaming reads, 10^9 bytes a second.
    pub read_bandwidth_gb_s: f64,
    /// Bytes of a one-row step over its time, over the bandwidth.
    pub share_of_bandwidth: f64,
    /// Rate of the integer dot instructions, 10^9 operations a second (a multiply-add is two).
    pub dot_gop_s: f64,
    /// Operations of the prompt's products over their time, over the dot rate.
    pub share_of_dot_rate: f64,
    /// Most memory the process had resident.
    pub peak_rss_bytes: Option<u64>,
}

/// Measures `model` in `session`, which loses its conversation.
pub fn measure(
    model: &Model,
    session: &mut Session,
    options: &BenchOptions,
    mut progress: impl FnMut(&str),
) -> Result<Bench, Error> {
    let packed = model.packed()?;
    let widest = WIDTHS[WIDTHS.len() - 1];
    let need = options.prompt.max(options.depth + widest).max(options.decode + 16);
    if need > session.context() {
        return Err(Error::Context { asked: need, limit: session.context() });
    }
    let rounds = options.rounds.max(1);
    progress("memory bandwidth");
    let read_bandwidth_gb_s = bandwidth(session, rounds);
    let dot_gop_s = dot(session, rounds);
    progress("prompt");
    let vocab = model.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..need as u32)
        .map(|i| 100 % vocab + i.wrapping_mul(7919) % (vocab - 100 % vocab))
        .collect();
    let prompt_s = median_of(rounds, || {
        session.truncate(0);
        let start = Instant::now();
        session.read(model, &tokens[..options.prompt])?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    progress("decode");
    let generate = GenerateOptions {
        sampling: SamplingOptions::greedy(),
        max_tokens: Some(options.decode),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let decode_s = median_of(rounds, || {
        session.truncate(0);
        let answer = session.generate(model, &tokens[..8], &generate, |_| Control::Continue)?;
        Ok(answer.timings.decode.as_secs_f64() / (answer.tokens.len() - 1).max(1) as f64)
    })?;
    progress("steps");
    session.truncate(0);
    session.read(model, &tokens[..options.depth])?;
    let mut steps: Vec<StepTime> = Vec::new();
    for width in WIDTHS {
        let seconds = median_of(rounds.max(3) * 3, || {
            session.truncate(options.depth);
            let start = Instant::now();
            session.feed(model, &tokens[options.depth..options.depth + width], LogitRows::All)?;
            Ok(start.elapsed().as_secs_f64())
        })?;
        let one = steps.first().map_or(seconds * 1e3, |step| step.ms);
        steps.push(StepTime { tokens: width, ms: seconds * 1e3, over_one: seconds * 1e3 / one });
    }
    session.truncate(0);
    let step_bytes = packed.step_bytes();
    let kv_bytes = options.depth * session.cache_bytes_per_position();
    let weights = packed.weights() as f64;
    Ok(Bench {
        isa: session.cpu().isa().to_string(),
        threads: session.cpu().team().threads(),
        prompt_tokens: options.prompt,
        prompt_tokens_per_s: options.prompt as f64 / prompt_s,
        decode_tokens_per_s: 1.0 / decode_s,
        depth: options.depth,
        share_of_bandwidth: (step_bytes + kv_bytes) as f64
            / (steps[0].ms * 1e-3)
            / (read_bandwidth_gb_s * 1e9),
        steps,
        step_bytes,
        kv_bytes,
        read_bandwidth_gb_s,
        dot_gop_s,
        share_of_dot_rate: 2.0 * weights * options.prompt as f64 / prompt_s / (dot_gop_s * 1e9),
        peak_rss_bytes: peak_rss_bytes(),
    })
}

fn median_of(rounds: usize, mut run: impl FnMut() -> Result<f64, Error>) -> Result<f64, Error> {
    let all = (0..rounds).map(|_| run()).collect::<Result<Vec<f64>, Error>>()?;
    Ok(median(&all))
}

/// The median, the upper one of an even number; of nothing it is no number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Streaming read bandwidth in 10^9 bytes a second, over four times as much as the caches hold, of a
/// quarter of the free memory at most, and of memory that lies where it is read from.
fn bandwidth(session: &Session, rounds: usize) -> f64 {
    let wanted = (4 * cache_bytes().unwrap_or(0)).max(512 << 20);
    let room = available_memory().map_or(u64::MAX, |bytes| bytes / 4);
    let bytes = wanted.min(room).max(1 << 20) >> 20 << 20;
    let mut buffer = Buffer::zeroed(bytes as usize);
    stream_fill(session.cpu(), &mut buffer);
    let best = (0..rounds.max(3)).map(|_| {
        let start = Instant::now();
        std::hint::black_box(stream_read(session.cpu(), &buffer));
        start.elapsed().as_secs_f64()
    });
    buffer.len() as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}

fn dot(session: &Session, rounds: usize) -> f64 {
    let best = (0..rounds.max(3)).map(|_| {
        let start = Instant::now();
        let done = dot_rate(session.cpu(), 200_000);
        2.0 * done as f64 / start.elapsed().as_secs_f64()
    });
    best.fold(0.0, f64::max) / 1e9
}

/// Most memory that this process had resident, in bytes; `None` where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
