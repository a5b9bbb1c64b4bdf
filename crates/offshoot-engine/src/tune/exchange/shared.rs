//! An evaluation that several processes share.

use super::{Exchange, ExchangeError, Pieces, Writer, joined, share};
use crate::Error;
use crate::tune::{Scored, Scorer, Sequence};

/// A scorer each of whose processes scores its share. The result is that of one alone, as a sequence
/// does not depend on the others.
pub(crate) struct SharedScorer<'s> {
    pub(crate) inner: &'s mut dyn Scorer,
    pub(crate) exchange: &'s dyn Exchange,
}

impl SharedScorer<'_> {
    /// What everybody sends, read piece by piece and put into the order of the whole.
    fn gather<T>(
        &self,
        own: &[u8],
        count: usize,
        piece: impl Fn(&mut Pieces<'_>) -> Result<T, ExchangeError>,
    ) -> Result<Vec<T>, Error> {
        let records = self.exchange.all_gather(own)?;
        let read = |(rank, record): (usize, &Vec<u8>)| {
            let mut pieces = Pieces::of(rank, record);
            let mut found = Vec::new();
            while !pieces.is_empty() {
                found.push(piece(&mut pieces)?);
            }
            Ok::<_, ExchangeError>(found)
        };
        joined(records.iter().enumerate().map(read).collect::<Result<_, _>>()?, count)
    }
}

impl Scorer for SharedScorer<'_> {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        let own: Vec<&Sequence> = share(self.exchange, sequences).into_iter().copied().collect();
        let mut record = Writer::default();
        for scored in self.inner.score(&own)? {
            record.f64(scored.logprob);
            record.u64(scored.tokens as u64);
            record.u64(scored.greedy as u64);
        }
        self.gather(&record.0, sequences.len(), |pieces| {
            Ok(Scored {
                logprob: pieces.f64()?,
                tokens: pieces.u64()? as usize,
                greedy: pieces.u64()? as usize,
            })
        })
    }

    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let own: Vec<&[u32]> = share(self.exchange, prompts).into_iter().copied().collect();
        let mut record = Writer::default();
        for answer in self.inner.generate(&own, max_tokens)? {
            record.u64(answer.len() as u64);
            answer.iter().for_each(|&token| record.u64(token.into()));
        }
        self.gather(&record.0, prompts.len(), |pieces| {
            let tokens = pieces.u64()?;
            (0..tokens).map(|_| pieces.u64().map(|token| token as u32)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Threads;
    use super::*;

    /// Scores by arithmetic, and counts what it was asked.
    struct Arithmetic(usize);

    impl Scorer for Arithmetic {
        fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
            self.0 += sequences.len();
            let scored = |s: &&Sequence| {
                let token = s.tokens[0];
                Scored { logprob: -f64::from(token) / 3.0, tokens: token as usize, greedy: 1 }
            };
            Ok(sequences.iter().map(scored).collect())
        }

        fn generate(&mut self, prompts: &[&[u32]], max: usize) -> Result<Vec<Vec<u32>>, Error> {
            self.0 += prompts.len();
            Ok(prompts.iter().map(|p| vec![p[0]; max.min(p[0] as usize)]).collect())
        }
    }

    #[test]
    fn a_shared_evaluation_is_that_of_one_and_its_work_is_shared() {
        let sequences: Vec<Sequence> = (0..7).map(|i| Sequence::of(&[i], &[1])).collect();
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let prompts: Vec<Vec<u32>> = (0..7).map(|i| vec![i]).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut alone = Arithmetic(0);
        let expected = (alone.score(&sequences).unwrap(), alone.generate(&prompts, 4).unwrap());
        for size in [1, 2, 3, 8] {
            let found = Threads::run(size, |own| {
                let mut inner = Arithmetic(0);
                let mut shared = SharedScorer { inner: &mut inner, exchange: &own };
                let found =
                    (shared.score(&sequences).unwrap(), shared.generate(&prompts, 4).unwrap());
                (found, inner.0)
            });
            assert_eq!(found.iter().map(|(_, asked)| asked).sum::<usize>(), 14);
            assert!(found.into_iter().all(|(found, _)| found == expected), "{size}");
        }
    }
}
