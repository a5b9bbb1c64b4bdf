//! Writes the first inputs of the corpora: small sound files and the hostile ones of the tests.
//! Run it after a change of either, from this folder: `cargo run --bin seed`.

use std::path::Path;

#[path = "../crates/offshoot-models/tests/support/mod.rs"]
#[allow(dead_code)] // the crate's own tests use the rest
mod support;

/// Larger hostile files are sound models but for one key, which the fuzzer finds by itself.
const MAX_BYTES: usize = 4 << 10;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/gguf");
    std::fs::create_dir_all(&folder)?;
    let sound = [
        ("sound-llama", support::tiny::Tiny::smallest("llama").bytes()),
        ("sound-qwen2", support::tiny::Tiny::smallest("qwen2").bytes()),
    ];
    for (name, bytes) in sound {
        std::fs::write(folder.join(name), bytes)?;
    }
    for case in support::hostile::all() {
        if case.bytes.len() <= MAX_BYTES {
            std::fs::write(folder.join(case.name), case.bytes)?;
        }
    }
    Ok(())
}
