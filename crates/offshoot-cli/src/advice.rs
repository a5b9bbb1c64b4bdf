//! What `tune --advise` says.

use offshoot_engine::tune::run::Advice;

use crate::failure::{Failure, say};

/// Ways to tune with what they take, and which rank is enough.
pub(crate) fn tell(advice: &Advice) -> Result<(), Failure> {
    for (place, way) in advice.ways.iter().enumerate() {
        let told = match (advice.way == Some(place), way.fits) {
            (true, _) => "take this",
            (false, Some(false)) => "does not fit",
            (false, _) => "",
        };
        let megabytes = |bytes: u64| bytes / 1_000_000;
        let device = match way.memory.device {
            0 => String::new(),
            bytes => format!("and {} MB on the device  ", megabytes(bytes)),
        };
        let total = megabytes(way.memory.total);
        let line = format!("{:<42} about {total:>7} MB  {device}{told}", way.flags);
        say(line.trim_end())?;
    }
    let Advice { examples, full_rank, .. } = advice;
    let (Some(outputs), Some(rank)) = (advice.outputs, advice.sufficient_rank) else {
        say(format_args!("{examples} examples, not all of them choices between candidates"))?;
        return say("no rank is known to be enough where a text is written; 8 to 64 are usual");
    };
    say(format_args!("{examples} examples of {outputs} candidates: rank {rank} is enough"))?;
    if rank >= *full_rank {
        say(format_args!("that is no low rank: the model's matrices have {full_rank} at most"))?;
    }
    for caveat in [
        "it is enough, not needed: smaller ranks usually do as well (arXiv 2402.11867)",
        "it holds near the first weights, with --weight-decay above 0",
        "raise the rank where seeds end at other losses; arXiv 2502.09376 says what lies beyond",
    ] {
        say(format_args!("  {caveat}"))?;
    }
    Ok(())
}
