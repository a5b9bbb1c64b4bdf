//! Parses bytes as a file of draft heads, as a torch checkpoint and as a tree of ranks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_methods::draft::medusa::DraftTree;
use offshoot_models::medusa::{HeadsFile, parse_torch};

fuzz_target!(|bytes: &[u8]| {
    match HeadsFile::parse(bytes) {
        // What is let through can be written and read again.
        Ok(file) => {
            let written = file.bytes(file.layout());
            let again = HeadsFile::parse(&written).expect("what was written is sound");
            assert_eq!(again, file);
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

fn one_line(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
}
