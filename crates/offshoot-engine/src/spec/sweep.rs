//! Drafting with guesses that come true with a chance that is forced, on step times that are given:
//! what trees promise, how large they are and what they cost, in counts and never by a clock.
//!
//! vLLM's "synthetic" rule of acceptance, <https://github.com/vllm-project/vllm>, is the model.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use offshoot_methods::draft::{BINS, CLASSES, Guess, Prior, StepTimes, TokenTree};
use offshoot_methods::{Sampler, SamplingOptions};

use super::sampling_class::SamplingClass;
use super::{Acceptance, Behind, Drafter, Speculator, View};
use crate::Error;

const VOCAB: u32 = 1000;
/// Seconds of a plain step, so many that drafting's own are nothing beside them.
const PLAIN_S: f64 = 10.0;
const DEPTH: usize = 40;

/// The text that will come.
fn text(at: usize) -> u32 {
    (at as u32).wrapping_mul(0x9e37_79b9) >> 8 & 511
}

/// Whether a guess at the token at this place comes true.
fn comes_true(at: usize, chance: f64) -> bool {
    offshoot_methods::uniform(11, 0, at as u64) < chance
}

/// Knows the text, and guesses right as often as it is told.
#[derive(Debug)]
struct Forced {
    /// The chance at each place of the text.
    chance: fn(usize, f64) -> f64,
    argument: f64,
    /// Guesses behind each node, of which the first may be right.
    width: u32,
    score: f32,
    /// Place of the pending token.
    at: usize,
    /// Whether each node of the tree is right.
    right: Vec<bool>,
}

impl Drafter for Forced {
    fn name(&self) -> &'static str {
        "forced"
    }

    fn prior(&self) -> Prior {
        [[(0.0, 0.0); BINS]; CLASSES]
    }

    fn begin(&mut self, text: &[u32]) {
        self.at = text.len() - 1;
    }

    fn extend(&mut self, tokens: &[u32]) {
        self.at += tokens.len();
    }

    fn prepare(&mut self, _: View<'_>) -> Result<(), Error> {
        self.right.clear();
        Ok(())
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let place = self.at + tree.depths()[node] as usize;
        let right = match tree.parents()[node] {
            None => true,
            Some(parent) => self.right[parent as usize] && tree.tokens()[node] == text(place),
        };
        self.right.push(right);
        let next = place + 1;
        let true_one = right && comes_true(next, (self.chance)(next, self.argument));
        for i in 0..self.width {
            let wrong = 512 + i;
            let token = if true_one && i == 0 { text(next) } else { wrong };
            out.push(Guess { token, score: self.score / (1 + i) as f32, class: i as u8 });
        }
    }
}

/// Sums over steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    steps: usize,
    tokens: usize,
    guesses: usize,
    promised: f64,
    /// In plain steps.
    cost: f64,
    /// A digest of all trees so far.
    trees: u64,
}

impl Sums {
    fn since(self, earlier: Self) -> Self {
        Self {
            steps: self.steps - earlier.steps,
            tokens: self.tokens - earlier.tokens,
            guesses: self.guesses - earlier.guesses,
            promised: self.promised - earlier.promised,
            cost: self.cost - earlier.cost,
            trees: self.trees,
        }
    }
}

/// Makes the tokens of `all` behind the first `prompt`; gives the sums at half of them and at the
/// end.
fn write(
    speculator: &mut Speculator,
    times: &StepTimes,
    all: &[u32],
    prompt: usize,
) -> (Sums, Sums) {
    let greedy = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    let mut sampler = Sampler::new(greedy).unwrap();
    let kind = (Acceptance::Exact, SamplingClass::Greedy);
    speculator.begin(&all[..prompt], VOCAB as usize, kind);
    let (mut sums, mut half) = (Sums::default(), None);
    let (mut at, last) = (prompt - 1, all.len() - 1);
    while at < last {
        let view = View { text: &all[..=at], hidden: None };
        let (sampler, position) = (&mut sampler, (at + 1 - prompt) as u64);
        let behind = Behind { view, filtering: None, sampler, choice: 0, position };
        speculator.draft(behind, (last - at - 1).min(DEPTH)).unwrap();
        let tree = speculator.tree();
        let (mut node, mut made) = (0, 1);
        while at + made < last
            && let Some(child) = tree.child(node, all[at + made])
        {
            (node, made) = (child, made + 1);
        }
        let mut hasher = DefaultHasher::new();
        (sums.trees, tree.tokens(), tree.parents()).hash(&mut hasher);
        sums.trees = hasher.finish();
        let cost = times.ratio(tree.len());
        sums.steps += 1;
        sums.tokens += made;
        sums.guesses += tree.guesses();
        sums.cost += cost;
        let check = Duration::from_secs_f64(PLAIN_S * cost);
        speculator.note(&all[at + 1..=at + made], check, Duration::ZERO);
        sums.promised = speculator.stats().promised;
        at += made;
        if at - prompt >= (last - prompt) / 2 {
            half.get_or_insert(sums);
        }
    }
    (half.unwrap_or_default(), sums)
}

/// As [`write`], of `tokens` tokens.
fn run(forced: Forced, times: &StepTimes, tokens: usize) -> (Sums, Sums) {
    let all: Vec<u32> = (0..=tokens).map(text).collect();
    let mut speculator = Speculator::new(vec![Box::new(forced)], times.clone());
    write(&mut speculator, times, &all, 1)
}

fn forced(chance: fn(usize, f64) -> f64, argument: f64, width: u32, score: f32) -> Forced {
    Forced { chance, argument, width, score, at: 0, right: Vec::new() }
}

/// A machine where rows are cheap, the one that is shipped, and one where they are dear.
fn machines() -> [StepTimes; 3] {
    let cheap = StepTimes::new(&[(1, 1.0), (8, 1.2), (32, 2.0), (64, 3.0)]);
    let dear = StepTimes::new(&[(1, 1.0), (2, 1.5), (8, 5.0), (64, 40.0)]);
    [cheap, StepTimes::default(), dear]
}

const CHANCES: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// A text that is guessable for `period` tokens, then for as many not, and so on.
fn by_turns(at: usize, period: f64) -> f64 {
    if (at / period as usize).is_multiple_of(2) { 0.95 } else { 0.0 }
}

/// The same with an eighth that is guessable.
fn now_and_then(at: usize, period: f64) -> f64 {
    if (at / period as usize).is_multiple_of(8) { 0.95 } else { 0.0 }
}

fn ends(at: usize, place: f64) -> f64 {
    if (at as f64) < place { 0.95 } else { 0.0 }
}

fn begins(at: usize, place: f64) -> f64 {
    0.95 - ends(at, place)
}

fn steady(_: usize, chance: f64) -> f64 {
    chance
}

#[test]
fn what_is_promised_comes_true_and_trees_grow_with_the_chance() {
    for (machine, times) in machines().iter().enumerate() {
        for width in [1, 3] {
            let mut sizes = Vec::new();
            for chance in CHANCES {
                let (half, end) = run(forced(steady, chance, width, 0.8), times, 20_000);
                let late = end.since(half);
                let (made, promised) = (late.tokens as f64, late.promised);
                let about = format!("machine {machine}, {width} wide, chance {chance}: {late:?}");
                assert!((promised / made - 1.0).abs() < 0.1, "{about}");
                sizes.push(late.guesses as f64 / late.steps as f64);
            }
            // Whole rows; what is learned of a chance is never exact.
            assert!(sizes.windows(2).all(|w| w[1] >= w[0] - 0.05), "{sizes:?}");
            assert!(sizes[0] < 0.01 && sizes[10] > 5.0, "{sizes:?}");
        }
    }
}

/// The whole cost, that of learning that guesses do not pay among it.
#[test]
fn guesses_that_come_true_or_not_or_no_more_never_slow_a_text_down() {
    let allowed = |sums: Sums, about: &dyn std::fmt::Debug| {
        assert!(sums.cost <= sums.tokens as f64 / 0.98, "{about:?}: {sums:?}");
    };
    for (machine, times) in machines().iter().enumerate() {
        for tokens in [500, 2000, 20_000] {
            for (chance, score) in CHANCES.into_iter().flat_map(|p| [(p, 0.5), (p, 0.95)]) {
                let (_, end) = run(forced(steady, chance, 1, score), times, tokens);
                allowed(end, &(machine, tokens, chance, score));
            }
            for period in [30.0, 100.0, 300.0, 1000.0, 3000.0] {
                for habit in [by_turns, now_and_then, ends, begins] {
                    let (_, end) = run(forced(habit, period, 1, 0.5), times, tokens);
                    allowed(end, &(machine, tokens, period));
                }
            }
        }
    }
}

/// Times of a machine that was busy when they were learned: nothing seems to pay until a look is taken.
#[test]
fn rows_that_were_dear_and_are_not_are_found_out() {
    let [_, shipped, dear] = machines();
    let all: Vec<u32> = (0..=6000).map(text).collect();
    let guesses = |believed: &StepTimes, chance: f64, true_times: &StepTimes| {
        let forced = Box::new(forced(steady, chance, 1, 0.5));
        let mut speculator = Speculator::new(vec![forced], believed.clone());
        let (half, end) = write(&mut speculator, true_times, &all, 1);
        (end.since(half), speculator.times().ratio(2))
    };
    let (at_once, _) = guesses(&shipped, 0.45, &shipped);
    let (found, time) = guesses(&dear, 0.45, &shipped);
    assert!(3 * found.guesses > at_once.guesses && time < 1.3, "{found:?}, {at_once:?}, {time}");
    // They are dear.
    let (vain, time) = guesses(&dear, 0.45, &dear);
    assert!(vain.cost <= 1.005 * vain.tokens as f64 && time > 1.4, "{vain:?}, {time}");
}

/// A prompt of 300 tokens, some frequent and most seldom, and an answer of 128 that copies passages
/// of 6 to 40 tokens from it, with up to 8 tokens of its own between them.
fn copying(number: u32) -> (Vec<u32>, usize) {
    let mut draws = 0;
    let mut below = |n: u32| {
        draws += 1;
        let u = offshoot_methods::uniform(29, number, draws);
        (u * u * f64::from(n)) as u32
    };
    let mut all: Vec<u32> = (0..300).map(|_| below(VOCAB)).collect();
    let prompt = all.len();
    while all.len() < prompt + 128 {
        let (len, from) = (6 + below(35), below(250));
        all.extend_from_within(from as usize..prompt.min((from + len) as usize));
        (0..below(9)).for_each(|_| all.push(below(VOCAB)));
    }
    all.truncate(prompt + 128);
    (all, prompt)
}

/// With the first scores that are shipped, and what the answers so far taught. Where rows cost next
/// to nothing trees are so deep that eight answers teach too little of them: those are left out.
#[test]
fn what_is_promised_of_copies_comes_true() {
    let [_, shipped, dear] = machines();
    for times in [shipped, dear] {
        let suffix = super::SuffixDrafter::new();
        let mut speculator = Speculator::new(vec![Box::new(suffix)], times.clone());
        let (mut tokens, mut steps, mut promised) = (0, 0, 0.0);
        for number in 0..8 {
            let (all, prompt) = copying(number);
            let (_, sums) = write(&mut speculator, &times, &all, prompt);
            (tokens, steps) = (tokens + sums.tokens, steps + sums.steps);
            promised += sums.promised;
        }
        let about = format!("{promised} of {tokens} in {steps} steps");
        assert!((promised / tokens as f64 - 1.0).abs() < 0.1, "{about}");
        assert!(tokens > 2 * steps, "{about}");
    }
}

#[test]
fn beliefs_gone_back_to_are_those_of_the_time() {
    let times = StepTimes::default();
    let (all, prompt) = copying(3);
    let copies: Vec<Box<dyn Drafter>> = vec![Box::new(super::SuffixDrafter::new())];
    let mut speculator = Speculator::new(copies, times.clone());
    write(&mut speculator, &times, &all, prompt);
    let (then, taught) = (speculator.beliefs(), speculator.calibrations().to_vec());
    write(&mut speculator, &times, &all, prompt);
    assert_ne!(speculator.calibrations(), taught);
    speculator.go_back(&then);
    assert_eq!(speculator.calibrations(), taught);
}

/// Drafts depend on what was counted of the text and on the step times that are given, and on nothing
/// else: no clock, no order of a hash table, no address.
#[test]
fn the_same_texts_and_step_times_give_the_same_trees() {
    let sums = |times: &StepTimes| {
        let suffix = super::SuffixDrafter::new();
        let mut speculator = Speculator::new(vec![Box::new(suffix)], times.clone());
        let one = |number| {
            let (all, prompt) = copying(number);
            write(&mut speculator, times, &all, prompt).1
        };
        (0..4).map(one).collect::<Vec<_>>()
    };
    let of_machines = machines().map(|times| {
        let first = sums(&times);
        assert!(first.iter().all(|sums| sums.guesses > 0), "{first:?}");
        assert_eq!(sums(&times), first);
        first
    });
    assert!(of_machines[0] != of_machines[1] && of_machines[1] != of_machines[2]);
}
