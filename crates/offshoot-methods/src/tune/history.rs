//! The last steps of a method with memory, from which its state is made again.

use std::collections::VecDeque;

use super::{Direction, Term};

/// Steps and their numbers, the oldest first, at most so many of them.
#[derive(Debug)]
pub(crate) struct History {
    length: usize,
    steps: VecDeque<(u32, Vec<f32>)>,
}

impl History {
    pub(crate) fn new(length: u32) -> Self {
        Self { length: length as usize, steps: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, step: u32, numbers: &[f32]) {
        if self.steps.len() == self.length {
            self.steps.pop_front();
        }
        self.steps.push_back((step, numbers.to_vec()));
    }

    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// All directions, the oldest step first, each scaled by `weight(age, number)`, where the last
    /// step's age is 0.
    pub(crate) fn terms(
        &self,
        directions: impl Fn(u32) -> Vec<Direction>,
        weight: impl Fn(usize, f32) -> f32,
    ) -> Vec<Term> {
        let mut terms = Vec::new();
        for (place, (step, numbers)) in self.steps.iter().enumerate() {
            let age = self.steps.len() - 1 - place;
            for (direction, &number) in directions(*step).into_iter().zip(numbers) {
                terms.push(Term { scale: weight(age, number), direction });
            }
        }
        terms
    }
}

/// `base` to the power of `exponent`, by multiplying in order: the same bits everywhere.
pub(crate) fn power(base: f64, exponent: usize) -> f64 {
    (0..exponent).fold(1.0, |product, _| product * base)
}
