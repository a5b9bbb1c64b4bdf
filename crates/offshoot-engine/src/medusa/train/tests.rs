use super::*;
use crate::medusa::distill::DistilledAnswer;

/// `[n, d]` floats between -1 and 1.
fn floats(n: usize, seed: u64) -> Vec<f32> {
    let key = offshoot_methods::Philox::key(seed);
    let bits = |i: usize| offshoot_methods::Philox::block(key, [i as u32, 0, 0, 0])[0];
    (0..n).map(|i| bits(i) as f32 / 2f32.powi(31) - 1.0).collect()
}

fn options(heads: usize, layers: usize) -> TrainOptions {
    TrainOptions { heads, layers, see_token: false, ..TrainOptions::default() }
}

/// A trainer whose blocks are not zero.
fn started(options: &TrainOptions, d: usize, vocab: usize) -> Trainer {
    let output = floats(vocab * d, 1);
    let mut trainer = Trainer::new(options, output, d).unwrap();
    for (i, block) in trainer.heads.iter_mut().flatten().enumerate() {
        let n = block.weight.value.len();
        block.weight.value = floats(n, 10 + i as u64).iter().map(|x| 0.5 * x).collect();
        block.bias.value = floats(d, 50 + i as u64);
    }
    trainer
}

fn tensor(values: &[f32], d: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / d, d), &Device::Cpu).unwrap()
}

#[test]
fn the_gradients_are_those_of_finite_differences() {
    let (d, vocab, n) = (6, 9, 5);
    let targets = [3, NONE, 0, 8, 3];
    for (layers, see_token) in [(1, false), (2, false), (1, true), (2, true)] {
        let options = TrainOptions { see_token, ..options(1, layers) };
        let chosen = if see_token { floats(n * d, 3) } else { Vec::new() };
        let h = Batch::new(floats(n * d, 2), chosen, d).unwrap();
        let mut trainer = started(&options, d, vocab);
        let (_, gradients) = trainer.gradients(0, &h, &targets, 0.8).unwrap();
        let mut loss = |l: usize, bias: bool, at: usize, by: f32| {
            let block = &mut trainer.heads[0][l];
            let parameter = if bias { &mut block.bias } else { &mut block.weight };
            let old = parameter.value[at];
            parameter.value[at] = old + by;
            let loss = trainer.gradients(0, &h, &targets, 0.8).unwrap().0;
            let block = &mut trainer.heads[0][l];
            if bias {
                block.bias.value[at] = old
            } else {
                block.weight.value[at] = old
            }
            0.8 * loss
        };
        for (l, (weights, biases)) in gradients.iter().enumerate() {
            for (gradient, bias) in [(weights, false), (biases, true)] {
                for (at, g) in gradient.iter().enumerate() {
                    let step = 1e-2;
                    let slope = (loss(l, bias, at, step) - loss(l, bias, at, -step)) / (2.0 * step);
                    // Single precision leaves a loss of a few units some 1e-6 of noise, over 0.02.
                    assert!((slope - g).abs() < 2e-3, "block {l}, {at}: {slope} and {g}");
                }
            }
        }
    }
}

#[test]
fn heads_begin_as_the_output_head() {
    let (d, vocab, n) = (32, 40, 7);
    let output = floats(vocab * d, 1);
    let h = floats(n * d, 2);
    let base = tensor(&output, d).t().unwrap().contiguous().unwrap();
    let base = tensor(&h, d).matmul(&base).unwrap();
    let base: Vec<f32> = base.flatten_all().unwrap().to_vec1().unwrap();
    for (see_token, chosen) in [(false, Vec::new()), (true, floats(n * d, 3))] {
        let options = TrainOptions { see_token, ..options(3, 1) };
        let trainer = Trainer::new(&options, output.clone(), d).unwrap();
        let batch = Batch::new(h.clone(), chosen, d).unwrap();
        for k in 0..3 {
            assert_eq!(trainer.scores(k, &batch).unwrap().0, base);
        }
    }
}

#[test]
fn each_head_learns_the_token_of_its_own_place() {
    // A cycle of tokens: the state of token t is row t of a table, and the answer goes on with t + 1.
    let (d, vocab, heads) = (16, 8, 3);
    let table = floats(vocab * d, 5);
    let options = TrainOptions { learning_rate: 3e-2, ..options(heads, 1) };
    let mut trainer = Trainer::new(&options, floats(vocab * d, 6), d).unwrap();
    // From the state that chose token t, head k owns the token k places behind it.
    let targets: Vec<u32> =
        (0..vocab).flat_map(|t| (1..=heads).map(move |k| ((t + k) % vocab) as u32)).collect();
    let h = Batch::new(table, Vec::new(), d).unwrap();
    for step in 1..=300 {
        trainer.step(&h, &targets, (step, 1e-2), &options).unwrap();
    }
    for k in 0..heads {
        let scores = trainer.scores(k, &h).unwrap().0;
        for (t, row) in scores.chunks(vocab).enumerate() {
            let best = offshoot_kernels::argmax(row).unwrap();
            assert_eq!(best, (t + k + 1) % vocab, "head {k} behind token {t}");
        }
    }
}

/// From answers to heads: of a text in which each token names the next, each head learns all that its
/// place has, and what stands behind an answer's end is nobody's.
#[test]
fn rows_of_answers_teach_each_head_the_token_of_its_own_place() {
    let (d, vocab, heads) = (16, 8, 3);
    let table = floats(vocab * d, 5);
    let answer = |index: usize, from: usize, len: usize, first_row: usize| DistilledAnswer {
        index,
        tokens: (0..len).map(|i| ((from + 3 * i) % vocab) as u32).collect(),
        first_row,
    };
    // The last is held out.
    let answers = vec![answer(0, 0, 12, 0), answer(3, 5, 7, 12), answer(9, 1, 9, 19)];
    let states: Vec<f32> = answers
        .iter()
        .flat_map(|answer| &answer.tokens)
        .flat_map(|&token| &table[token as usize * d..][..d])
        .copied()
        .collect();
    let data = Distilled::of(d, answers, &states);
    // Token 7 is not scored.
    let vocabulary: Vec<u32> = (0..7).collect();
    let rows = training_rows(&data, &vocabulary, vocab, heads);
    assert_eq!(rows.states, (0..11).chain(12..18).collect::<Vec<u32>>());
    assert_eq!((&rows.chosen[..4], &rows.chosen[11..13]), (&[0, 3, 6, 1][..], &[5, 0][..]));
    assert_eq!(rows.targets[..6], [3, 6, 1, 6, 1, 4]);
    let last = &rows.targets[10 * heads..11 * heads];
    assert_eq!(last, [1, NONE, NONE], "the answer ends with its token 33 % 8");
    assert!(rows.targets.iter().all(|&t| t < 7 || t == NONE), "{:?}", rows.targets);
    let options = TrainOptions { learning_rate: 3e-2, ..options(heads, 1) };
    let mut trainer = Trainer::new(&options, floats(vocabulary.len() * d, 6), d).unwrap();
    let mut h = vec![0.0; rows.states.len() * d];
    for (out, &row) in h.chunks_exact_mut(d).zip(&rows.states) {
        data.state(row as usize, out);
    }
    let h = Batch::new(h, Vec::new(), d).unwrap();
    for step in 1..=300 {
        trainer.step(&h, &rows.targets, (step, 1e-2), &options).unwrap();
    }
    for k in 0..heads {
        let scores = trainer.scores(k, &h).unwrap().0;
        for (row, &chosen) in scores.chunks(vocabulary.len()).zip(&rows.chosen) {
            let expected = (chosen as usize + 3 * (k + 1)) % vocab;
            if expected < 7 {
                let best = offshoot_kernels::argmax(row).unwrap();
                assert_eq!(best, expected, "head {k} behind token {chosen}");
            }
        }
    }
}

/// BLAKE3 of heads after some steps, of sizes at which the tensor library shares out its products:
/// each is of more than 48 x 48 x 256 multiplications.
fn digest_of_training() -> String {
    let (d, vocab, n, heads) = (96, 1000, 150, 2);
    let options = TrainOptions { see_token: true, ..options(heads, 2) };
    let mut trainer = Trainer::new(&options, floats(vocab * d, 7), d).unwrap();
    let targets: Vec<u32> = (0..n * heads).map(|i| (i * i % vocab) as u32).collect();
    for step in 1..=4 {
        let chosen = floats(n * d, 60 + step as u64);
        let batch = Batch::new(floats(n * d, 20 + step as u64), chosen, d).unwrap();
        trainer.step(&batch, &targets, (step, 1e-2), &options).unwrap();
    }
    let mut hash = blake3::Hasher::new();
    for block in trainer.heads.iter().flatten() {
        for value in block.weight.value.iter().chain(&block.bias.value) {
            hash.update(&value.to_le_bytes());
        }
    }
    hash.finalize().to_hex().to_string()
}

/// The tensor library asks the environment for its threads, which a running program cannot change:
/// each number of threads is this test in a process of its own.
#[test]
fn the_number_of_threads_changes_no_bit_of_the_heads() {
    const CHILD: &str = "OFFSHOOT_TEST_TRAINING";
    const NAME: &str = "medusa::train::tests::the_number_of_threads_changes_no_bit_of_the_heads";
    if std::env::var_os(CHILD).is_some() {
        println!("digest {}", digest_of_training());
        return;
    }
    let digest = |threads: &str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]);
        child.env(CHILD, "1").env("RAYON_NUM_THREADS", threads);
        let said = String::from_utf8(child.output().unwrap().stdout).unwrap();
        let digest = said.lines().find_map(|line| line.split_once("digest "));
        digest.unwrap_or_else(|| panic!("no digest in {said}")).1.to_owned()
    };
    let one = digest("1");
    for threads in ["2", "3", "8"] {
        assert_eq!(digest(threads), one, "{threads} threads");
    }
}

#[test]
fn a_head_that_sees_the_chosen_token_learns_what_follows_it() {
    // One state for all tokens: what follows is in the chosen token alone.
    let (d, vocab) = (16, 8);
    let options = TrainOptions { see_token: true, ..options(1, 1) };
    let mut trainer = Trainer::new(&options, floats(vocab * d, 6), d).unwrap();
    let h: Vec<f32> = floats(d, 5).repeat(vocab);
    let batch = Batch::new(h, floats(vocab * d, 7), d).unwrap();
    let targets: Vec<u32> = (0..vocab).map(|t| ((t + 1) % vocab) as u32).collect();
    for step in 1..=300 {
        trainer.step(&batch, &targets, (step, 1e-2), &options).unwrap();
    }
    let scores = trainer.scores(0, &batch).unwrap().0;
    for (t, row) in scores.chunks(vocab).enumerate() {
        assert_eq!(offshoot_kernels::argmax(row), Some((t + 1) % vocab), "behind token {t}");
    }
}

#[test]
fn the_weights_and_rates_are_the_papers() {
    let options = TrainOptions::default();
    let weights: Vec<f64> = (0..3).map(|k| head_weight(&options, k)).collect();
    assert!(weights.iter().zip([0.8, 0.64, 0.512]).all(|(a, b)| (a - b).abs() < 1e-12));
    assert!((rate(&options, 20, 1000) - 5e-4).abs() < 1e-12);
    assert!((rate(&options, 40, 1000) - 1e-3).abs() < 1e-12);
    assert!((rate(&options, 520, 1000) - 5e-4).abs() < 1e-12);
    assert!(rate(&options, 1000, 1000).abs() < 1e-12);
}

#[test]
fn options_out_of_bounds_are_named() {
    for (options, field) in [
        (TrainOptions { heads: 0, ..TrainOptions::default() }, "heads"),
        (TrainOptions { vocabulary: 20_000, ..TrainOptions::default() }, "vocabulary"),
        (TrainOptions { learning_rate: f64::NAN, ..TrainOptions::default() }, "learning_rate"),
    ] {
        assert!(options.validate().unwrap_err().to_string().contains(field));
    }
}
