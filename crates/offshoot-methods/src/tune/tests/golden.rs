//! What version 1 of the updates makes of given numbers, for all time and on every machine.

use serde_json::json;

use super::quadratic::{setting, weights};
use crate::tune::{Hash, MethodCard, Record, apply_update};

/// The weights after 12 steps of invented numbers, by method: the first digits of their SHA-256, as
/// `scripts/oracles/updates.py` works them out from the methods' pages. A change here makes old
/// trajectories end in other weights, so it is a new version of the update in their headers.
const WEIGHTS: [(&str, &str); 17] = [
    ("mezo", "9b481240dd1b27e2"),
    ("sign", "beae0782c45d7a16"),
    ("cons", "9b481240dd1b27e2"),
    ("mmt", "47118b89e93c6682"),
    ("adam", "92599ff86e781c31"),
    ("adamezo", "4152b1f0d2b8bc87"),
    ("fzoo", "f021824b1b007370"),
    ("meazo", "c76c15184f6a8590"),
    ("lozo", "51643760706d16c4"),
    ("lozo-m", "73cd8eb54993632c"),
    ("lezo", "a19607920e2460ae"),
    ("block", "d32e474ded3f6350"),
    ("sparse", "3aea7fc110f39aa6"),
    ("subzero", "b6d4d8b7c1c090d2"),
    ("adazeta", "9b481240dd1b27e2"),
    ("qzo", "9b481240dd1b27e2"),
    ("fedkseed", "4ef3959a6f2a5f1d"),
];

#[test]
fn given_numbers_make_the_weights_that_they_always_made() {
    let options = json!({"probe": {"directions": 2}});
    assert_eq!(WEIGHTS.len(), crate::tune::METHODS.len());
    for (name, expected) in WEIGHTS {
        let card = MethodCard::named(name).unwrap();
        let mut method = card.start(&options, &setting(0.1)).unwrap();
        let mut w = weights(card.distribution);
        // Every 10th of the first 120 steps: epochs change, and momentum is carried over them.
        for step in (0..120).step_by(10) {
            let count = method.forwards(step) / 2;
            let count = match name {
                "cons" | "fzoo" => 2,
                "fedkseed" => 4096,
                _ => count,
            };
            let number = |i: usize| (((step as usize + 7 * i) * 13 % 31) as f32 - 15.0) / 8.0;
            let numbers = (0..count).map(number).collect();
            let record = Record { skipped: false, numbers };
            let rate = 0.01 / f64::from(step + 1);
            apply_update(&method.replay(step, rate, &record).unwrap(), &mut w);
        }
        let bytes: Vec<u8> = w.tensors.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(&Hash::of(&bytes).to_string()[..16], expected, "{name}");
    }
}
