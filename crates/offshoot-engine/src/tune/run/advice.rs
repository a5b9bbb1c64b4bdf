//! What is advised before a run: which way to take, and how large a rank is enough.
//!
//! The way. Gradients get further in a step than losses do, by far, so LoRA by its gradients is advised
//! wherever what it takes fits; with smaller batches first, and without gradients only where even one
//! example at a time does not fit.
//!
//! The rank. For N examples and K outputs that the loss looks at, a rank r with `r (r + 1) / 2 > K N` is
//! enough ([`sufficient_rank`], whose file says of what and of what not). K is known where a choice is made
//! between candidates; where a text is written it would be the vocabulary, and the bound says nothing.

use offshoot_methods::tune::sufficient_rank;
use offshoot_models::{Architecture, Checkpoint};
use serde::Serialize;

use super::{Examples, Method, RunConfig, Space, TuneNeed};
use crate::Error;
use crate::tune::Example;

/// A way of tuning and what it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Way {
    /// The flags that ask for it.
    pub flags: String,
    /// What it takes.
    pub memory: TuneNeed,
    /// Whether that is there; `None` if nobody knows what is.
    pub fits: Option<bool>,
}

/// What is advised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// Ways, the better first.
    pub ways: Vec<Way>,
    /// The place of the one to take among them: the first that fits.
    pub way: Option<usize>,
    /// N: examples.
    pub examples: u64,
    /// K: candidates of a choice, if all examples are choices.
    pub outputs: Option<u64>,
    /// The least rank that is enough for these.
    pub sufficient_rank: Option<u64>,
    /// The greatest rank that any of the model's matrices can have, beyond which none is of use.
    pub full_rank: u64,
}

impl Advice {
    /// For a run of `config`, whatever its method, on the model of `checkpoint` with `examples`, where
    /// `available` bytes of memory are free.
    ///
    /// # Errors
    /// Those of the examples.
    pub fn of(
        checkpoint: &Checkpoint,
        config: &RunConfig,
        examples: &dyn Examples,
        available: Option<u64>,
    ) -> Result<Self, Error> {
        let way = |(flags, config): (String, RunConfig)| {
            let memory = TuneNeed::of(checkpoint, &config);
            Way { flags, memory, fits: available.map(|free| memory.total <= free) }
        };
        let ways: Vec<Way> = ways(config).into_iter().map(way).collect();
        let way = ways.iter().position(|way| way.fits != Some(false));
        let outputs = outputs(examples)?;
        let count = examples.count() as u64;
        let linears = Architecture::new(checkpoint.config()).1.linears;
        let greatest = linears.iter().map(|linear| linear.rows.min(linear.cols)).max();
        Ok(Self {
            ways,
            way,
            examples: count,
            outputs,
            sufficient_rank: outputs.map(|outputs| sufficient_rank(count, outputs)),
            full_rank: greatest.unwrap_or(0) as u64,
        })
    }
}

/// Ways to tune a model as `config` says, the better first, and how they are asked for.
fn ways(config: &RunConfig) -> [(String, RunConfig); 3] {
    let lora = RunConfig { method: Method::Lora, space: Space::Lora, ..config.clone() };
    let one = RunConfig {
        batch: 1,
        accumulation: config.batch.saturating_mul(config.accumulation),
        gradient_checkpointing: true,
        ..lora.clone()
    };
    let mezo = RunConfig {
        method: Method::ZerothOrder("mezo"),
        medusa_heads: 0,
        medusa_from: None,
        ..lora.clone()
    };
    let small = format!("--method lora --batch 1 --accumulation {}", one.accumulation);
    [("--method lora".to_owned(), lora), (small, one), ("--method mezo".to_owned(), mezo)]
}

/// The most candidates of an example, if all examples are choices.
fn outputs(examples: &dyn Examples) -> Result<Option<u64>, Error> {
    let mut most = None;
    for index in 0..examples.count() {
        match examples.example(index)? {
            Example::Choice { candidates, .. } => most = most.max(Some(candidates.len() as u64)),
            _ => return Ok(None),
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Sequence;

    fn checkpoint() -> Checkpoint {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../offshoot-models/tests/data/logits");
        Checkpoint::open(format!("{models}/qwen3_tied.gguf").as_ref()).unwrap()
    }

    fn choices(count: usize) -> Vec<Example> {
        let choice = |candidates: u32| Example::Choice {
            prompt: vec![1],
            candidates: (0..candidates).map(|token| vec![token]).collect(),
            answers: vec![0],
        };
        (0..count).map(|i| choice(2 + u32::from(i == 3))).collect()
    }

    fn advice(examples: &[Example], available: Option<u64>) -> Advice {
        let config = RunConfig { batch: 16, max_length: Some(4096), ..RunConfig::default() };
        let examples = examples.to_vec();
        let all = super::super::Part::whole(&examples);
        Advice::of(&checkpoint(), &config, &all, available).unwrap()
    }

    #[test]
    fn gradients_are_advised_wherever_they_fit() {
        let unknown = advice(&choices(4), None);
        assert_eq!(unknown.way, Some(0));
        let [large, small, without] = [0, 1, 2].map(|way| unknown.ways[way].memory.total);
        assert!(large > small && small > without, "{large}, {small}, {without}");
        for (free, way) in [(large, Some(0)), (large - 1, Some(1)), (small - 1, Some(2)), (1, None)]
        {
            assert_eq!(advice(&choices(4), Some(free)).way, way, "{free}");
        }
        assert_eq!(unknown.ways[1].flags, "--method lora --batch 1 --accumulation 16");
    }

    #[test]
    fn the_rank_is_that_of_choices_alone() {
        let told = advice(&choices(4), None);
        // 3 candidates at most, 4 examples: 4 * 5 / 2 = 10 is not above 12, 5 * 6 / 2 is.
        assert_eq!((told.examples, told.outputs, told.sufficient_rank), (4, Some(3), Some(5)));
        let mut mixed = choices(4);
        mixed.push(Example::Text(Sequence::of(&[1], &[2])));
        let told = advice(&mixed, None);
        assert_eq!((told.examples, told.outputs, told.sufficient_rank), (5, None, None));
    }
}
