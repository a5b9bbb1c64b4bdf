//! `bench`: a model's speed beside what the machine could do.

use offshoot_engine::{BenchOptions, measure};

use crate::args::{BenchArgs, EngineArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::{bench_spec, models};

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if args.spec {
        return bench_spec::run(args);
    }
    let engine =
        EngineArgs { ctx_size: args.engine.ctx_size.or(Some(1024)), ..args.engine.clone() };
    let (model, mut session) = models::load(&args.adapter, &args.model, &engine)?;
    let options = BenchOptions { rounds: usize::from(args.rounds), ..BenchOptions::default() };
    let bench = measure(&model, &mut session, &options, |part| {
        note(format_args!("measuring {part}"));
    })?;
    if args.model.output.json {
        let value = serde_json::to_value(&bench).map_err(|e| Failure::Data(e.to_string()))?;
        return say_json(&value);
    }
    say(format_args!("{} with {} threads", bench.isa, bench.threads))?;
    say(format_args!(
        "prompt of {}     {:9.1} tokens/s   {:3.0} % of the dot rate of {:.0} GOP/s",
        bench.prompt_tokens,
        bench.prompt_tokens_per_s,
        100.0 * bench.share_of_dot_rate,
        bench.dot_gop_s
    ))?;
    say(format_args!(
        "decode            {:9.1} tokens/s   {:3.0} % of the bandwidth of {:.1} GB/s",
        bench.decode_tokens_per_s,
        100.0 * bench.share_of_bandwidth,
        bench.read_bandwidth_gb_s
    ))?;
    say(format_args!("step of k tokens behind {}:", bench.depth))?;
    for step in &bench.steps {
        say(format_args!(
            "  k = {:<3} {:9.2} ms   {:5.2} of one",
            step.tokens, step.ms, step.over_one
        ))?;
    }
    if let Some(peak) = bench.peak_rss_bytes {
        say(format_args!("peak memory       {:9} MB", peak / 1_000_000))?;
    }
    Ok(())
}
