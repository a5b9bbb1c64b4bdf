//! Examples, wherever they are kept.

use std::collections::BTreeMap;

use super::order::permutation;
use super::{RunConfig, RunError};
use crate::Error;
use crate::tune::data::{DataOptions, Format, Length, Rename, Task, TokenFile, class_of};
use crate::tune::{Example, Sequence};

/// The rows of a data file as examples, by their numbers.
pub trait Examples {
    /// How many there are.
    fn count(&self) -> usize;

    /// Example `index`, below the count.
    ///
    /// # Errors
    /// If it cannot be read any more.
    fn example(&self, index: usize) -> Result<Example, Error>;
}

impl Examples for [Example] {
    fn count(&self) -> usize {
        self.len()
    }

    fn example(&self, index: usize) -> Result<Example, Error> {
        Ok(self[index].clone())
    }
}

impl Examples for Vec<Example> {
    fn count(&self) -> usize {
        self.len()
    }

    fn example(&self, index: usize) -> Result<Example, Error> {
        Ok(self[index].clone())
    }
}

impl Examples for TokenFile {
    fn count(&self) -> usize {
        self.len()
    }

    fn example(&self, index: usize) -> Result<Example, Error> {
        self.get(index).map_err(|what| Error::Training(format!("the examples' file: {what}")))
    }
}

impl RunConfig {
    /// How the files of examples are read.
    ///
    /// # Errors
    /// If there is no such format or task.
    pub fn data_options(&self) -> Result<DataOptions, Error> {
        let wrong = |what| RunError::Config { place: String::new(), what };
        let format = self.format.as_ref().map(|name| name.parse::<Format>());
        let format = format.transpose().map_err(|what| wrong(format!("format: {what}")))?;
        let task = self.task.as_ref().map(|name| Task::find(name)).transpose()?;
        let rename =
            |(name, field): (&String, &String)| Rename { name: name.clone(), field: field.clone() };
        let length = Length { max: self.length(), overlong: self.overlong };
        Ok(DataOptions { format, task, renames: self.map.iter().map(rename).collect(), length })
    }
}

/// Some of the examples of a source, in ascending order.
pub struct Part<'s> {
    source: &'s dyn Examples,
    indices: Vec<u32>,
}

impl<'s> Part<'s> {
    /// All of `source`.
    pub fn whole(source: &'s dyn Examples) -> Self {
        let indices = (0..source.count().min(u32::MAX as usize) as u32).collect();
        Self { source, indices }
    }

    /// Holds `fraction` of `source` out, and gives the rest and them. Of a choice, each class (the
    /// number of the right candidate) is held out equally often, as far as it gives no more than half
    /// of its examples, or than `fraction` of them where that is more; one is left in any case. Which
    /// they are follows from `seed`, the count and the classes.
    ///
    /// # Errors
    /// If an example cannot be read.
    pub fn split(
        source: &'s dyn Examples,
        fraction: f64,
        seed: u64,
    ) -> Result<(Self, Self), Error> {
        /// No epoch has this number, so that who is held out says nothing of any order.
        const EPOCH: u32 = u32::MAX;
        if fraction <= 0.0 {
            return Ok((Self::whole(source), Self { source, indices: Vec::new() }));
        }
        let count = source.count().min(u32::MAX as usize) as u32;
        let class = |i| source.example(i as usize).map(|example| class_of(&example));
        let classes = (0..count).map(class).collect::<Result<Vec<_>, _>>()?;
        let mut sizes = BTreeMap::<usize, u32>::new();
        classes.iter().for_each(|class| *sizes.entry(*class).or_default() += 1);
        let share = (fraction * f64::from(count) / sizes.len() as f64).round() as u32;
        let quota = |size: &u32| {
            let most = (size / 2).max((fraction * f64::from(*size)) as u32);
            share.max(1).min(most.max(1)).min(size - 1)
        };
        let mut left: BTreeMap<usize, u32> = sizes.iter().map(|(c, n)| (*c, quota(n))).collect();
        let (mut held, mut rest) = (Vec::new(), Vec::new());
        for index in permutation(seed, EPOCH, count) {
            match left.get_mut(&classes[index as usize]).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    held.push(index);
                }
                None => rest.push(index),
            }
        }
        let part = |mut indices: Vec<u32>| {
            indices.sort_unstable();
            Self { source, indices }
        };
        Ok((part(rest), part(held)))
    }
}

impl Examples for Part<'_> {
    fn count(&self) -> usize {
        self.indices.len()
    }

    fn example(&self, index: usize) -> Result<Example, Error> {
        self.source.example(self.indices[index] as usize)
    }
}

/// Fields of an example, with their lengths before them.
struct Digest(blake3::Hasher);

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn tokens(&mut self, tokens: &[u32]) {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.bytes(&bytes);
    }

    fn sequence(&mut self, sequence: &Sequence) {
        self.tokens(&sequence.tokens);
        let trained: Vec<u8> = sequence.trained.iter().map(|&t| u8::from(t)).collect();
        self.bytes(&trained);
    }

    fn example(&mut self, example: &Example) {
        match example {
            Example::Text(sequence) => {
                self.bytes(b"text");
                self.sequence(sequence);
            }
            Example::Choice { prompt, candidates, answers } => {
                self.bytes(b"choice");
                self.tokens(prompt);
                self.0.update(&(candidates.len() as u64).to_le_bytes());
                candidates.iter().for_each(|tokens| self.tokens(tokens));
                let answers: Vec<u32> = answers.iter().map(|&a| a as u32).collect();
                self.tokens(&answers);
            }
            Example::Answer { gold, prompt, answers } => {
                self.bytes(b"answer");
                self.sequence(gold);
                self.0.update(&(*prompt as u64).to_le_bytes());
                self.0.update(&(answers.len() as u64).to_le_bytes());
                answers.iter().for_each(|text| self.bytes(text.as_bytes()));
            }
            Example::Preference { chosen, rejected, rewards } => {
                self.bytes(b"preference");
                self.sequence(chosen);
                self.sequence(rejected);
                for reward in rewards.iter().flatten() {
                    self.bytes(&reward.to_le_bytes());
                }
            }
        }
    }
}

/// A name of the examples by all that is in them: tokens, what is trained on, and their order.
///
/// # Errors
/// If one cannot be read.
pub fn digest(examples: &dyn Examples) -> Result<String, Error> {
    let mut digest = Digest(blake3::Hasher::new());
    for index in 0..examples.count() {
        digest.example(&examples.example(index)?);
    }
    Ok(digest.0.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(n: u32) -> Vec<Example> {
        (0..n).map(|i| Example::Text(Sequence::of(&[i], &[i + 1]))).collect()
    }

    #[test]
    fn the_split_halves_are_the_whole_and_follow_from_the_seed() {
        let all = texts(50);
        let (rest, held) = Part::split(&all, 0.2, 9).unwrap();
        assert_eq!((rest.count(), held.count()), (40, 10));
        let mut both: Vec<u32> = rest.indices.iter().chain(&held.indices).copied().collect();
        both.sort_unstable();
        assert_eq!(both, (0..50).collect::<Vec<_>>());
        let held_by = |seed| Part::split(&all, 0.2, seed).unwrap().1.indices;
        assert_eq!(held_by(9), held.indices);
        assert_ne!(held_by(10), held.indices);
        for (n, fraction, expected) in [(50, 0.0, 0), (2, 0.001, 1), (2, 0.999, 1), (1, 0.5, 0)] {
            let all = texts(n);
            let held = Part::split(&all, fraction, 1).unwrap().1.count();
            assert_eq!(held, expected, "{n} {fraction}");
        }
    }

    #[test]
    fn classes_are_held_out_equally_and_a_rare_one_gives_half() {
        let held = |sizes: &[usize], fraction: f64| {
            let of = |class: usize| Example::Choice {
                prompt: vec![1],
                candidates: vec![vec![2]; sizes.len()],
                answers: vec![class],
            };
            let classes = sizes.iter().enumerate();
            let all: Vec<Example> =
                classes.flat_map(|(class, n)| std::iter::repeat_n(of(class), *n)).collect();
            let (rest, held) = Part::split(&all, fraction, 3).unwrap();
            assert_eq!(rest.count() + held.count(), all.len());
            let mut counts = vec![0; sizes.len()];
            for i in 0..held.count() {
                counts[class_of(&held.example(i).unwrap())] += 1;
            }
            counts
        };
        assert_eq!(held(&[40, 60], 0.2), [10, 10]);
        assert_eq!(held(&[90, 10, 20], 0.2), [8, 5, 8]);
        assert_eq!(held(&[90, 10], 0.8), [40, 8]);
        assert_eq!(held(&[20, 1], 0.1), [1, 0]);
        assert_eq!(held(&[3, 3], 0.01), [1, 1]);
    }

    #[test]
    fn a_digest_sees_every_token_every_mask_and_the_order() {
        let all = texts(3);
        let name = digest(&all).unwrap();
        assert_eq!(digest(&Part::whole(&all)).unwrap(), name);
        let mut swapped = all.clone();
        swapped.swap(0, 1);
        assert_ne!(digest(&swapped).unwrap(), name);
        let mut other = all.clone();
        other[2] = Example::Text(Sequence { trained: vec![false; 2], ..Sequence::of(&[2], &[3]) });
        assert_ne!(digest(&other).unwrap(), name);
        let choice = |prompt: &[u32], first: &[u32]| {
            let candidates = vec![first.to_vec(), vec![9]];
            Example::Choice { prompt: prompt.to_vec(), candidates, answers: vec![0] }
        };
        let of = |example| digest(&vec![example]).unwrap();
        assert_ne!(of(choice(&[1, 2], &[3])), of(choice(&[1], &[2, 3])));
    }
}
