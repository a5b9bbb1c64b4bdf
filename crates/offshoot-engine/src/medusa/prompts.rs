//! What a model is asked when it writes the text that its heads learn from.

use offshoot_methods::Philox;
use serde::Deserialize;

use crate::Error;
use crate::error::one_line;

/// A list of prompts: whole ones, and tasks that are combined with every subject.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedPrompts {
    /// Texts with `{}` where the subject stands.
    #[serde(default)]
    tasks: Vec<String>,
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    whole: Vec<String>,
}

/// The prompts that offshoot brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Questions, explanations, stories, letters.
    Chat,
    /// Programs in several languages, and questions about them.
    Code,
}

impl SeedPrompts {
    /// The prompts of `flavour`.
    pub fn built_in(flavour: Flavour) -> Self {
        let json = match flavour {
            Flavour::Chat => include_str!("../../data/prompts/chat.json"),
            Flavour::Code => include_str!("../../data/prompts/code.json"),
        };
        serde_json::from_str(json).expect("a test reads it")
    }

    /// The prompts of a file: one a line, or JSON with `tasks`, `subjects` and `whole`.
    ///
    /// # Errors
    /// [`Error::Prompts`] if there are none, or the JSON is of another form.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let prompts = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|e| Error::Prompts(one_line(&e)))?,
            false => {
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let whole = lines.map(str::to_owned).collect();
                Self { tasks: Vec::new(), subjects: Vec::new(), whole }
            }
        };
        match prompts.count() {
            0 => Err(Error::Prompts("there are none".to_owned())),
            _ => Ok(prompts),
        }
    }

    /// How many different prompts there are.
    pub fn count(&self) -> usize {
        self.whole.len() + self.tasks.len() * self.subjects.len()
    }

    /// The `index`-th prompt of `seed`'s order, in which each comes once before any comes again.
    pub fn get(&self, seed: u64, index: usize) -> String {
        let (count, round) = (self.count(), index / self.count());
        let place = shuffled_place(seed, round as u32, index % count, count);
        match self.whole.get(place) {
            Some(whole) => whole.clone(),
            None => {
                let place = place - self.whole.len();
                let (task, subject) = (place / self.subjects.len(), place % self.subjects.len());
                self.tasks[task].replace("{}", &self.subjects[subject])
            }
        }
    }
}

/// Where `index` of `count` goes in the order of (`seed`, `round`).
///
/// A walk along a Feistel network over the next power of four (Black & Rogaway 2002, "Ciphers with
/// arbitrary finite domains", section 3.3): places beyond `count` are mapped again until one is not.
pub(super) fn shuffled_place(seed: u64, round: u32, index: usize, count: usize) -> usize {
    let bits = usize::BITS - (count - 1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1usize << half) - 1;
    let mut place = index;
    loop {
        let (mut left, mut right) = (place >> half, place & mask);
        for step in 0..4 {
            let counter = [right as u32, step, round, 0x6d65_6475];
            let noise = Philox::block(Philox::key(seed), counter)[0] as usize & mask;
            (left, right) = (right, left ^ noise);
        }
        place = left << half | right;
        if place < count {
            return place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_prompts_are_many_and_come_once_each() {
        for flavour in [Flavour::Chat, Flavour::Code] {
            let prompts = SeedPrompts::built_in(flavour);
            let n = prompts.count();
            assert!(n > 1000);
            let mut all: Vec<String> = (0..n).map(|i| prompts.get(7, i)).collect();
            assert_ne!(all, (n..2 * n).map(|i| prompts.get(7, i)).collect::<Vec<_>>());
            assert!(all.iter().all(|text| !text.contains("{}") && !text.is_empty()));
            all.sort();
            all.dedup();
            assert_eq!(all.len(), n);
        }
    }

    #[test]
    fn every_count_is_shuffled_whole() {
        for count in [1, 2, 3, 4, 5, 17, 100] {
            let mut places: Vec<usize> =
                (0..count).map(|i| shuffled_place(1, 2, i, count)).collect();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn prompts_come_as_lines_or_as_json_and_none_are_refused() {
        let lines = SeedPrompts::parse("one\n\n  two \n").unwrap();
        assert_eq!(lines.count(), 2);
        let json = r#"{"tasks": ["Do {}."], "subjects": ["a", "b"], "whole": ["c"]}"#;
        assert_eq!(SeedPrompts::parse(json).unwrap().count(), 3);
        for wrong in ["", " \n", "{", r#"{"tasks": ["{}"]}"#, r#"{"prompts": []}"#] {
            let error = SeedPrompts::parse(wrong).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
