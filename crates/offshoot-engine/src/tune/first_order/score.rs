//! Evaluation of a model that is tuned, in whatever state it is. Sequences run one by one: on the dense
//! executor the rows beside a row change its last bits.

use offshoot_kernels::argmax;
use offshoot_models::{
    DenseAdapters, DenseCache, DenseHooks, DenseModel, DenseTuning, LogitRows, NoHooks, Segment,
    TextTarget, VariantId, chain,
};

use super::tensors;
use crate::Error;
use crate::tune::{Scored, Sequence};

/// Scores a sequence.
pub(super) fn one(tuning: &DenseTuning, sequence: &Sequence) -> Result<Scored, Error> {
    let wanted = sequence.trained.iter().enumerate().filter(|&(at, &trained)| trained && at > 0);
    let targets: Vec<TextTarget> = wanted
        .map(|(at, _)| TextTarget {
            text: 0,
            place: at - 1,
            token: sequence.tokens[at],
            weight: 1.0,
        })
        .collect();
    let Some(last) = targets.last() else {
        return Ok(Scored { logprob: 0.0, tokens: 0, greedy: 0 });
    };
    let text = &sequence.tokens[..=last.place];
    let logs = tuning.score(&[text], &targets)?;
    Ok(Scored {
        logprob: logs.iter().map(|(log, _)| log).sum(),
        tokens: logs.len(),
        greedy: logs.iter().filter(|(_, best)| *best).count(),
    })
}

/// The greedy answer to a prompt.
pub(super) fn answer(
    tuning: &DenseTuning,
    prompt: &[u32],
    max_tokens: usize,
    stops: &[u32],
) -> Result<Vec<u32>, Error> {
    let model = constant(tuning)?;
    let mut hooks: Box<dyn DenseHooks> = match tuning.adapter()? {
        Some(adapter) => Box::new(DenseAdapters::new(&model, &[adapter])?),
        None => Box::new(NoHooks),
    };
    let mut cache = DenseCache::new(model.config());
    let rope = model.config().rope_for(prompt.len() + max_tokens);
    let (mut answer, mut next) = (Vec::new(), prompt.to_vec());
    while answer.len() < max_tokens {
        let first = cache.len() as u32;
        let segment = Segment {
            cache: &mut cache,
            tokens: &next,
            parents: &chain(next.len()),
            positions: &(first..first + next.len() as u32).collect::<Vec<_>>(),
            rope,
            variant: VariantId(1),
            logits: LogitRows::Last,
        };
        let logits = model.step(&mut [segment], hooks.as_mut())?;
        cache.commit(&(0..next.len()).collect::<Vec<_>>())?;
        let logits = logits.flatten_all().and_then(|logits| logits.to_vec1::<f32>());
        let best = argmax(&logits.map_err(tensors)?);
        let best = best.ok_or_else(|| Error::Training("a logit is no number".to_owned()))? as u32;
        if stops.contains(&best) {
            break;
        }
        answer.push(best);
        next = vec![best];
    }
    Ok(answer)
}

/// The model with its weights as constants, so that a step keeps nothing for a way back.
fn constant(tuning: &DenseTuning) -> Result<DenseModel, Error> {
    let mut model = tuning.model().clone();
    if tuning.adapter()?.is_none() {
        for (name, variable) in tuning.variables() {
            model.set(name, variable.as_detached_tensor())?;
        }
    }
    Ok(model)
}
