//! Writes the first inputs of the corpora: small sound files and the hostile ones of the tests.
//! Run it after a change of either, from this folder: `cargo run --bin seed`.

use std::fs;
use std::io;
use std::path::Path;

#[path = "../crates/offshoot-engine/tests/support/catalogues.rs"]
mod catalogues;
#[path = "../crates/offshoot-models/tests/support/mod.rs"]
mod support;

/// Larger hostile files are sound models but for one key, which the fuzzer finds by itself.
const MAX_BYTES: usize = 4 << 10;
/// How often the hostile texts repeat what they repeat: enough to pass every limit on depth.
const REPEATS: usize = 1000;

/// The templates that are held against transformers' own.
const TEMPLATES: &str = include_str!("../crates/offshoot-models/tests/data/templates.json");
const CATALOGUE: &str = include_str!("../crates/offshoot-engine/src/store/catalogue.json");

fn main() -> io::Result<()> {
    gguf_files()?;
    chat_templates()?;
    model_catalogues()
}

/// Writes the inputs that are short enough; the fuzzer replays each of them thousands of times.
fn write(target: &str, inputs: impl Iterator<Item = (String, Vec<u8>)>) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    for (name, bytes) in inputs {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

fn gguf_files() -> io::Result<()> {
    let sound = ["llama", "qwen2"].into_iter();
    let sound = sound.map(|family| {
        (format!("sound-{family}"), support::tiny::Tiny::smallest(family).bytes())
    });
    let hostile = support::hostile::all().into_iter();
    let hostile = hostile.map(|case| (case.name.to_owned(), case.bytes));
    write("gguf", sound.chain(hostile.filter(|(_, bytes)| bytes.len() <= MAX_BYTES)))
}

fn chat_templates() -> io::Result<()> {
    let reference: serde_json::Value = serde_json::from_str(TEMPLATES)?;
    let sound = reference["templates"].as_object().into_iter().flatten();
    let sound = sound.filter_map(|(name, template)| {
        Some((format!("sound-{name}"), template["source"].as_str()?.to_owned()))
    });
    let mut hostile = support::templates::hostile(REPEATS);
    hostile.extend(support::templates::deep(MAX_BYTES));
    let hostile = hostile.into_iter().map(|case| (case.name.to_owned(), case.source));
    write("template", sound.chain(hostile).map(|(name, source)| (name, source.into_bytes())))
}

fn model_catalogues() -> io::Result<()> {
    let sound = [("sound", CATALOGUE), ("sound-one", catalogues::SOUND)];
    let sound = sound.map(|(name, json)| (name.to_owned(), json.to_owned()));
    let hostile = catalogues::hostile(REPEATS).into_iter();
    let hostile = hostile.map(|case| (case.name.to_owned(), case.json));
    write(
        "catalogue",
        sound.into_iter().chain(hostile).map(|(name, json)| (name, json.into_bytes())),
    )
}
