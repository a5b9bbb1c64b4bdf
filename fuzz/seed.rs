//! Writes the first inputs of the corpora: small sound files and the hostile ones of the tests.
//! Run it after a change of either, from this folder: `cargo run --bin seed`.

use std::fs;
use std::io;
use std::path::Path;

use offshoot_engine::Control;
use offshoot_engine::tune::data::{DataOptions, Renderer, prepare};
use offshoot_kernels::BlockType;
use offshoot_methods::draft::medusa::Calibrator;
use offshoot_methods::tune::{
    Hash, Header, METHODS, MethodChoice, Part, Record, SpaceChoice, Step, Trajectory,
};
use offshoot_models::gguf::parse;
use offshoot_models::medusa::{Head, HeadLayout, HeadMatrix, HeadsCard, HeadsFile, ResBlock};
use offshoot_models::{BaseId, Checkpoint, TokenizerId};

#[path = "../crates/offshoot-engine/tests/support/catalogues.rs"]
mod catalogues;
#[path = "../crates/offshoot-engine/tests/support/stores.rs"]
mod stores;
#[path = "../crates/offshoot-models/tests/support/mod.rs"]
mod support;

/// Larger hostile files are sound models but for one key, which the fuzzer finds by itself.
const MAX_BYTES: usize = 4 << 10;
/// A sound folder has some 5 KB; longer ones are long to no purpose of the fuzzer.
const FOLDER_BYTES: usize = 8 << 10;
/// How often the hostile texts repeat what they repeat: enough to pass every limit on depth.
const REPEATS: usize = 1000;

/// The templates that are held against transformers' own.
const TEMPLATES: &str = include_str!("../crates/offshoot-models/tests/data/templates.json");
const CATALOGUE: &str = include_str!("../crates/offshoot-engine/src/store/catalogue.json");

fn main() -> io::Result<()> {
    gguf_files()?;
    split_models()?;
    model_folders()?;
    weight_files()?;
    tokenizer_files()?;
    chat_templates()?;
    model_catalogues()?;
    draft_heads()?;
    adapters()?;
    trajectories()?;
    prepared_examples()?;
    datastores()
}

/// A run with a skipped step, a rate set anew and its end, and one cut off within a block.
fn trajectories() -> io::Result<()> {
    let card = &METHODS[0];
    let method = MethodChoice { name: card.name.to_owned(), options: card.defaults() };
    let space = SpaceChoice { name: "full".to_owned(), options: serde_json::json!({}) };
    let number = |i: u8| Record { skipped: false, numbers: vec![f32::from(i) / 8.0] };
    let mut steps: Vec<Step> = (0..5).map(|i| Step { record: number(i), rate: None }).collect();
    steps[2] = Step { record: Record { skipped: true, numbers: Vec::new() }, rate: Some(0.5) };
    let end = Some(Hash::default());
    let run = Trajectory { parts: vec![Part { header: Header::new(method, space), steps, end }] };
    let bytes = run.to_bytes().map_err(io::Error::other)?;
    // Behind the magic and its own length stands the header; behind its checksum the first frame, a
    // kind, a length and a payload.
    let behind = 12 + u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    let header = bytes[12..behind].to_vec();
    let frame = [&bytes[behind + 4..behind + 5], &bytes[behind + 9..bytes.len() - 45]].concat();
    let cut = bytes[..bytes.len() - 50].to_vec();
    let inputs = [("sound", bytes), ("cut", cut), ("header", header), ("steps", frame)];
    write("trajectory", inputs.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)))
}

/// A file of each kind of examples, and a task.
fn prepared_examples() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/seed_data");
    fs::create_dir_all(&folder)?;
    let model = folder.join("tiny.gguf");
    fs::write(&model, support::tiny::Tiny::smallest("llama").bytes())?;
    let checkpoint = Checkpoint::open(&model).map_err(io::Error::other)?;
    let renderer = Renderer::new(&checkpoint).map_err(io::Error::other)?;
    let mut inputs = vec![("task".to_owned(), TASK.as_bytes().to_vec())];
    for (name, row) in [
        ("text", r#"{"text": "abcd ab"}"#),
        ("choice", r#"{"prompt": "ab", "choices": ["c", "ab"], "answer": [0, 1]}"#),
        ("answer", r#"{"prompt": "ab", "answers": ["c", "abé"]}"#),
        ("preference", r#"{"prompt": "ab", "chosen": "c", "rejected": "d"}"#),
    ] {
        let rows = folder.join("rows.jsonl");
        fs::write(&rows, row)?;
        let made = prepare(&[rows], &renderer, &DataOptions::default(), &folder, &mut |_| {
            Control::Continue
        });
        inputs.push((name.to_owned(), fs::read(made.map_err(io::Error::other)?.path)?));
    }
    fs::remove_dir_all(&folder)?;
    write("dataset", inputs.into_iter())
}

const TASK: &str = r#"name = "t"
template = "{a|trim|upper_first} {b|before:_}"
words.a = { x = "y" }
verbalizers = [{ labels = ["0"], text = "n" }, { labels = ["1"], text = "y" }]
"#;

fn adapters() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/offshoot-models/tests/data/adapters/phi3_short");
    let mut bytes = fs::read(folder.join("adapter_config.json"))?;
    bytes.push(0);
    bytes.extend(fs::read(folder.join("adapter_model.safetensors"))?);
    write("adapter", [("sound".to_owned(), bytes)].into_iter())
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
    let sound = support::tiny::FAMILIES.into_iter();
    let sound = sound
        .map(|family| (format!("sound-{family}"), support::tiny::Tiny::smallest(family).bytes()));
    let pieces = ("sound-pieces".to_owned(), support::pieces::smallest().bytes());
    let mut spaces = support::pieces::smallest();
    spaces.set("tokenizer.ggml.remove_extra_whitespaces", true);
    let sound = sound.chain([pieces, ("sound-spaces".to_owned(), spaces.bytes())]);
    let hostile = support::hostile::all().into_iter();
    let hostile = hostile.map(|case| (case.name.to_owned(), case.bytes));
    write("gguf", sound.chain(hostile.filter(|(_, bytes)| bytes.len() <= MAX_BYTES)))
}

/// Sound parts of some families, and those that are not of one model.
fn split_models() -> io::Result<()> {
    let parts = |family: &str, count, first_is_empty| {
        support::parts::parts(&support::tiny::Tiny::smallest(family), count, first_is_empty)
    };
    let mut inputs = vec![
        ("sound-llama", parts("llama", 2, false)),
        ("sound-first-empty", parts("llama", 3, true)),
        ("sound-phi3", parts("phi3", 2, false)),
        ("sound-qwen3moe", parts("qwen3moe", 2, false)),
    ];
    let of_three: [(&str, fn(&mut Vec<support::tiny::Tiny>)); 6] = [
        ("swapped", |parts| parts.swap(1, 2)),
        ("twice", |parts| parts[2] = parts[1].clone()),
        ("one-left-out", |parts| drop(parts.pop())),
        ("keys-missing", |parts| parts[1].keys.clear()),
        ("count-max", |parts| parts[0].set("split.count", u64::MAX)),
        ("tensors-fewer", |parts| drop(parts[1].tensors.pop_first())),
    ];
    for (name, change) in of_three {
        let mut changed = parts("llama", 3, false);
        change(&mut changed);
        inputs.push((name, changed));
    }
    let joined = |parts: Vec<support::tiny::Tiny>| support::parts::joined(&parts);
    write("gguf_split", inputs.into_iter().map(|(name, parts)| (name.to_owned(), joined(parts))))
}

/// Weights of the smallest folder in each float format, and hostile ones.
fn weight_files() -> io::Result<()> {
    let sound = support::hostile_folders::smallest(false);
    let own = |folder: &support::folder::Folder| folder.weights();
    let mut inputs = vec![("sound-f16".to_owned(), own(&sound))];
    for (name, block) in [("sound-f32", BlockType::F32), ("sound-bf16", BlockType::Bf16)] {
        inputs.push((name.to_owned(), own(&sound.rounded(block))));
    }
    let others = sound.sections();
    let hostile = support::hostile_folders::all(REPEATS).into_iter().filter(|case| {
        let sections = &case.sections;
        let other = sections.weights.len() == 1 && sections.weights[0].1 != others.weights[0].1;
        sections.config == others.config && sections.index.is_none() && other
    });
    let hostile = hostile.map(|case| (case.name.to_owned(), case.sections.weights[0].1.clone()));
    let short = hostile.filter(|(_, bytes)| bytes.len() <= FOLDER_BYTES);
    write("safetensors", inputs.into_iter().chain(short))
}

/// GGUF's names of the rules by which text is cut.
const RULES: [&str; 11] = [
    "gpt-2",
    "smollm",
    "command-r",
    "qwen2",
    "llama-bpe",
    "tekken",
    "gpt-4o",
    "qwen35",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
];

/// A tokenizer of each rule and of pieces, and hostile ones.
fn tokenizer_files() -> io::Result<()> {
    let own = |folder: &support::folder::Folder| folder.files["tokenizer.json"].clone();
    let mut inputs = Vec::new();
    for rule in RULES {
        let mut tiny = support::tiny::Tiny::smallest("llama");
        tiny.set("tokenizer.ggml.pre", rule);
        let bytes = tiny.bytes();
        let contents = parse(&bytes).and_then(|file| file.contents()).map_err(io::Error::other)?;
        let spec = contents.tokenizer.map_err(io::Error::other)?;
        let json = support::tokenizer_files::tokenizer_json(&spec);
        inputs.push((format!("sound-{rule}"), json.to_string().into_bytes()));
    }
    let pieces = own(&support::hostile_folders::smallest_of_pieces());
    let mut spaces: serde_json::Value = serde_json::from_slice(&pieces)?;
    spaces["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [
        { "type": "Strip", "strip_left": false, "strip_right": true },
        { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "\u{2581}" },
    ] });
    spaces["pre_tokenizer"] = serde_json::json!({
        "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true,
    });
    inputs.push(("sound-pieces".to_owned(), pieces));
    inputs.push(("sound-spaces".to_owned(), spaces.to_string().into_bytes()));
    let sound = support::hostile_folders::smallest(false);
    let (others, sound) = (sound.sections(), own(&sound));
    let hostile = support::hostile_folders::all(REPEATS).into_iter().filter_map(|case| {
        let sections = case.sections;
        let tokenizer = sections.tokenizer.filter(|tokenizer| *tokenizer != sound)?;
        (sections.config == others.config).then(|| (case.name.to_owned(), tokenizer))
    });
    let short = hostile.filter(|(_, bytes)| bytes.len() <= FOLDER_BYTES);
    write("tokenizer", inputs.into_iter().chain(short))
}

fn model_folders() -> io::Result<()> {
    let sound = support::hostile_folders::sound().into_iter();
    let sound = sound.map(|(name, sections)| (name.to_owned(), sections.join()));
    let hostile = support::hostile_folders::all(REPEATS).into_iter();
    let hostile = hostile.map(|case| (case.name.to_owned(), case.sections.join()));
    write("hf_directory", sound.chain(hostile.filter(|(_, bytes)| bytes.len() <= FOLDER_BYTES)))
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

fn draft_heads() -> io::Result<()> {
    let matrix =
        |rows, cols| HeadMatrix::new(BlockType::F16, (rows, cols), &vec![0.5; rows * cols]);
    let head = |own: bool| Head {
        blocks: vec![ResBlock { weight: matrix(2, 2), bias: matrix(1, 2) }],
        output: own.then(|| matrix(3, 2)),
    };
    let file = |own| HeadsFile {
        hidden_size: 2,
        heads: vec![head(own), head(own)],
        vocabulary: None,
        card: None,
    };
    let ours = HeadsFile {
        vocabulary: Some(vec![0, 2]),
        card: Some(HeadsCard::new(BaseId::from_bytes([7; 32]), TokenizerId::from_bytes([9; 32]))),
        ..file(false)
    };
    let mut counted = ours.clone();
    let mut calibrator = Calibrator::new(2, 3);
    let list = |first, second, third| [(first, 0.5), (second, 0.25), (third, 0.125)];
    calibrator.observe(&[list(0, 1, 2), list(2, 0, 1)].concat(), &[0, 2]);
    let calibration = serde_json::to_value(calibrator.finish()).ok();
    counted.card.iter_mut().for_each(|card| card.calibration = calibration.clone());
    let layouts = [
        ("shared", ours.bytes(HeadLayout::Shared)),
        ("counted", counted.bytes(HeadLayout::Shared)),
        ("own", file(true).bytes(HeadLayout::Own)),
        ("whole", file(true).bytes(HeadLayout::Whole)),
        ("cut", ours.bytes(HeadLayout::Shared)[..40].to_vec()),
        ("tree", b"[[0], [0, 0], [1], [0, 1, 2]]".to_vec()),
        ("tree-deep", b"[".repeat(REPEATS)),
        ("torch", include_bytes!("../crates/offshoot-models/tests/data/medusa/heads.pt").to_vec()),
        (
            "torch-command",
            include_bytes!("../crates/offshoot-models/tests/data/medusa/command.pt").to_vec(),
        ),
    ];
    write("heads", layouts.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)))
}

fn datastores() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/seed");
    let cases = stores::all(&folder);
    fs::remove_dir_all(&folder)?;
    write("store", cases.into_iter().map(|case| (case.name.to_owned(), case.short)))
}
