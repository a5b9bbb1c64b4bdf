//! Made-up drafters for a model of a few kilobytes, and what they saw of the trees.

use std::sync::{Arc, Mutex};

use offshoot_engine::spec::{Drafter, Speculator, View};
use offshoot_engine::{Error, ExecutorKind, LoadOptions, Model, Session};
use offshoot_methods::draft::{BINS, CLASSES, Guess, Prior, StepTimes, TokenTree};

use crate::tiny::{TOKENS, Tiny};

pub(crate) const CONTEXT: usize = 1100;
pub(crate) const N_VOCAB: u32 = TOKENS.len() as u32;
/// Step times with which every tree pays, so that trees are as large as may be.
pub(crate) const FREE: [(usize, f64); 2] = [(1, 1.0), (64, 1.001)];
/// Guesses that all come true, as the planner is told.
const SURE: Prior = [[(50.0, 50.0); BINS]; CLASSES];

/// `tiny` with room for long answers, on the packed executor.
pub(crate) fn load(tiny: Tiny, threads: usize) -> (Model, Session) {
    load_for(ExecutorKind::Packed, tiny, threads)
}

/// As [`load`], on any executor.
pub(crate) fn load_for(executor: ExecutorKind, mut tiny: Tiny, threads: usize) -> (Model, Session) {
    let dir = tempfile::tempdir().unwrap();
    let context = tiny.keys.keys().find(|key| key.ends_with(".context_length")).unwrap().clone();
    tiny.set(&context, CONTEXT as u32);
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny.bytes()).unwrap();
    let options = LoadOptions { executor, threads, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let session = Session::new(&model, cpu, CONTEXT).unwrap();
    (model, session)
}

/// What a made-up drafter guesses.
#[derive(Debug, Clone)]
pub(crate) enum Habit {
    /// The text that will come.
    Right,
    /// Anything but that.
    Wrong,
    /// Right up to a depth that changes from step to step.
    RightThenWrong,
    /// The same, with a wrong guess before each: what is kept stands behind rows that are not.
    RightSecond,
    /// Whatever a hash says, several at each node.
    Random { width: u32 },
    /// One token over and over.
    Same(u32),
}

impl Habit {
    /// One of each kind, and the end token over and over.
    pub(crate) fn all(end: u32) -> [Self; 8] {
        [
            Self::Right,
            Self::Wrong,
            Self::RightThenWrong,
            Self::RightSecond,
            Self::Random { width: 1 },
            Self::Random { width: 6 },
            Self::Same(3),
            Self::Same(end),
        ]
    }
}

/// The answer and a path of guesses behind it, for each node of each tree that was grown.
pub(crate) type Seen = Arc<Mutex<Vec<Vec<u32>>>>;

/// A drafter that knows what will come.
#[derive(Debug)]
pub(crate) struct Oracle {
    habit: Habit,
    text: Vec<u32>,
    prompt: usize,
    decided: Vec<u32>,
    seen: Seen,
}

/// The only drafter of a session: one of `habit` where `text` will come, and what it saw.
pub(crate) fn oracle(habit: &Habit, text: &[u32]) -> (Speculator, Seen) {
    oracle_at(habit, text, &FREE)
}

/// The same on a machine of these step times.
pub(crate) fn oracle_at(habit: &Habit, text: &[u32], times: &[(usize, f64)]) -> (Speculator, Seen) {
    let seen = Seen::default();
    let oracle = Oracle {
        habit: habit.clone(),
        text: text.to_vec(),
        prompt: 0,
        decided: Vec::new(),
        seen: Arc::clone(&seen),
    };
    (Speculator::new(vec![Box::new(oracle)], StepTimes::new(times)), seen)
}

impl Drafter for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn prior(&self) -> Prior {
        SURE
    }

    fn begin(&mut self, text: &[u32]) {
        self.prompt = text.len();
        self.decided.clear();
    }

    fn extend(&mut self, tokens: &[u32]) {
        self.decided.extend_from_slice(tokens);
    }

    fn prepare(&mut self, view: View<'_>) -> Result<(), Error> {
        assert_eq!(view.text[self.prompt..], self.decided, "told of every token");
        Ok(())
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let (mut path, mut at) = (Vec::new(), node);
        while let Some(parent) = tree.parents()[at] {
            path.push(tree.tokens()[at]);
            at = parent as usize;
        }
        let depth = path.len();
        let answer = self.decided.iter().chain(path.iter().rev());
        self.seen.lock().unwrap().push(answer.copied().collect());
        let decided = self.decided.len();
        let next = self.text.get(decided + depth).copied().unwrap_or(3);
        // Tokens that the model does not have are guessed as well; nobody may check them.
        out.push(Guess { token: N_VOCAB + depth as u32, score: 0.9, class: 1 });
        let mut say = |token: u32| out.push(Guess { token: token % N_VOCAB, score: 0.9, class: 0 });
        match self.habit {
            Habit::Right => say(next),
            Habit::Wrong => say(next + 1),
            Habit::RightThenWrong => say(next + u32::from(depth >= decided % 5)),
            Habit::RightSecond => {
                say(next + 1);
                say(next + 2 * u32::from(depth >= decided % 5));
            }
            Habit::Random { width } => (0..width).for_each(|i| {
                let hash = (decided as u32 * 31 + node as u32 * 7 + i).wrapping_mul(0x9e37_79b9);
                say(hash >> 16);
            }),
            Habit::Same(token) => say(token),
        }
    }
}
