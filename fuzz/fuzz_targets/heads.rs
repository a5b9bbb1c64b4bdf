//! Parses bytes as a file of draft heads, with what was counted of them, as a torch checkpoint and as a
//! tree of ranks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_engine::medusa::{HeadsReport, ReadyHeads};
use offshoot_methods::draft::medusa::{Calibration, DraftTree, search};
use offshoot_models::medusa::{HeadsFile, parse_torch};

fuzz_target!(|bytes: &[u8]| {
    match HeadsFile::parse(bytes) {
        // What is let through can be written and read again.
        Ok(file) => {
            let written = file.bytes(file.layout());
            let again = HeadsFile::parse(&written).expect("what was written is sound");
            assert_eq!(again, file);
            match ReadyHeads::new(file) {
                Ok(ready) => ready.calibration.iter().for_each(use_calibration),
                Err(error) => one_line(&error),
            }
        }
        Err(error) => one_line(&error),
    }
    if let Err(error) = parse_torch(bytes) {
        one_line(&error);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = DraftTree::parse(text, 4, 10)
    {
        one_line(&error);
    }
});

/// What is done with a calibration that passed: reports, trees of any size, and corrections.
fn use_calibration(calibration: &Calibration) {
    HeadsReport::of(calibration);
    assert!(search(&calibration.shares(), 64).len() <= 64);
    assert!(calibration.counted_tree(64).len() <= 64);
    for head in 0..=calibration.places.len() {
        for probability in [0.0, 0.001, 0.5, 1.0] {
            let corrected = calibration.corrected(head, probability);
            assert!((0.0..=1.0).contains(&corrected), "{corrected}");
        }
    }
}

fn one_line(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
}
