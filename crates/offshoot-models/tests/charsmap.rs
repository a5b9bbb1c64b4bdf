//! What text is rewritten to before it becomes pieces, by tables of characters and without extra spaces:
//! in GGUF files, in folders, by the `tokenizers` library, and broken tables.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod support;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::gguf::{Array, Export, ExportOptions};
use offshoot_models::huggingface::{FolderExport, FolderOptions};
use offshoot_models::{
    Charsmap, Checkpoint, ExtraSpaces, Recipe, Special, Tokenizer, TokenizerId, TokenizerModel,
    TokenizerSpec,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::assert_one_line;
use support::pieces::{texts, vocabulary};
use support::tiny::Tiny;
use tokenizers::Tokenizer as Library;

const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
/// By merges and by likelihood.
const FAMILIES: [&str; 2] = ["llama", "unigram"];
/// Some of NFKC's rules, and others: texts that begin with another, of several characters, written
/// as none, and one whose grapheme is too long to be looked at whole.
const RULES: [(&str, &str); 10] = [
    ("\t", " "),
    ("\u{200b}", ""),
    ("½", "1/2"),
    ("Ａ", "A"),
    ("ﬁ", "fi"),
    ("ﬁ\u{301}", "fí"),
    ("e\u{301}", "é"),
    ("th", "\u{2581}the"),
    ("か\u{3099}", "が"),
    ("…", "..."),
];

/// The table of `rules`, a double array that is filled place by place.
fn table(rules: &[(&str, &str)]) -> Vec<u8> {
    let (mut texts, mut places) = (String::new(), BTreeMap::new());
    for (text, instead) in rules {
        places.insert(text.as_bytes().to_vec(), texts.len() as u32);
        texts.extend([instead, "\0"]);
    }
    let mut units: Vec<Option<u32>> = vec![None; 1 << 12];
    units[0] = Some(0);
    let mut open = vec![(0usize, Vec::new())];
    while let Some((at, prefix)) = open.pop() {
        let mut bytes: Vec<u8> = places
            .keys()
            .filter(|text| text.starts_with(&prefix) && **text != prefix)
            .map(|text| text[prefix.len()])
            .collect();
        bytes.dedup();
        let value = places.get(&prefix);
        let next = value.map(|_| 0).into_iter().chain(bytes.iter().copied());
        let next: Vec<usize> = next.map(usize::from).collect();
        let free = |offset: &usize| {
            next.iter().all(|byte| units[at ^ offset ^ byte].is_none() && at ^ offset ^ byte != 0)
        };
        let offset = (1..1usize << 11).find(free).unwrap();
        let leaf = u32::from(value.is_some()) << 8;
        units[at] = Some(units[at].unwrap() | (offset as u32) << 10 | leaf);
        if let Some(value) = value {
            units[at ^ offset] = Some(value | 1 << 31);
        }
        for byte in bytes {
            let place = at ^ offset ^ usize::from(byte);
            units[place] = Some(u32::from(byte));
            open.push((place, [&prefix[..], &[byte]].concat()));
        }
    }
    let units: Vec<u8> = units.iter().flat_map(|unit| unit.unwrap_or(0xff).to_le_bytes()).collect();
    [&(units.len() as u32).to_le_bytes()[..], &units, texts.as_bytes()].concat()
}

/// A family's file with a table.
fn tiny(family: &str, bytes: &[u8]) -> Tiny {
    let mut tiny = vocabulary(family).tiny(family);
    tiny.set(KEY, bytes.iter().copied().collect::<Array<'_>>());
    tiny
}

/// A family's `tokenizer.json` with a table.
fn tokenizer_json(family: &str, table: &str) -> Value {
    let mut json = vocabulary(family).tokenizer_json;
    let others = match &json["normalizer"] {
        Value::Null => Vec::new(),
        other => other["normalizers"].as_array().cloned().unwrap_or(vec![other.clone()]),
    };
    let first = json!({ "type": "Precompiled", "precompiled_charsmap": table });
    let all = [vec![first], others].concat();
    json["normalizer"] = json!({ "type": "Sequence", "normalizers": all });
    json
}

fn open(tiny: &Tiny) -> Result<Checkpoint, offshoot_models::Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny.bytes()).unwrap();
    Checkpoint::open(file.path())
}

fn folder(family: &str, json: &Value) -> Checkpoint {
    let vocabulary = vocabulary(family);
    vocabulary.folder(&open(&vocabulary.tiny(family)).unwrap(), json).open().unwrap()
}

fn charsmap(spec: &TokenizerSpec) -> Option<&Charsmap> {
    match &spec.model {
        TokenizerModel::SentencePiece(model) => model.charsmap.as_ref(),
        other => panic!("{other:?}"),
    }
}

/// Texts with and without what the rules rewrite.
fn all_texts() -> Vec<String> {
    let pieces: Vec<&str> = RULES.iter().map(|(text, _)| *text).collect();
    let gaps = ["", " ", "  ", "x", "\u{301}", "</s>", "\r\n", "e", "the name", "\u{3000}"];
    let mut all = texts();
    for (i, a) in pieces.iter().enumerate() {
        for (j, b) in pieces.iter().enumerate() {
            let gap = gaps[(i + 3 * j) % gaps.len()];
            all.extend([[*a, gap, *b].concat(), [gap, *a, *b, gap].concat()]);
        }
    }
    // The library takes these for control tokens and bytes even where they are plain text.
    all.retain(|text| !["<0x", "<s>", "<unk>"].iter().any(|it| text.contains(it)));
    all
}

#[test]
fn a_table_makes_the_same_ids_from_either_form_of_file_as_in_the_library() {
    let bytes = table(&RULES);
    assert_eq!(Charsmap::new(&bytes).unwrap().to_bytes(), bytes);
    for family in FAMILIES {
        let json = tokenizer_json(family, &STANDARD.encode(&bytes));
        let (gguf, folder) = (open(&tiny(family, &bytes)).unwrap(), folder(family, &json));
        let spec = gguf.tokenizer().unwrap();
        assert_eq!(folder.tokenizer().unwrap(), spec, "{family}");
        assert!(charsmap(spec).is_some());
        let plain = open(&vocabulary(family).tiny(family)).unwrap();
        assert_ne!(TokenizerId::of(plain.tokenizer().unwrap()), TokenizerId::of(spec));
        let tokenizer = Tokenizer::new(spec).unwrap();
        let library = Library::from_bytes(json.to_string()).unwrap();
        let mut rewritten = 0;
        for text in all_texts() {
            let ids = tokenizer.encode(&text, Special::Parse).unwrap();
            let theirs = library.encode(text.as_str(), false).unwrap();
            assert_eq!(ids, theirs.get_ids(), "{family}: {text:?}");
            let plain = Tokenizer::new(plain.tokenizer().unwrap()).unwrap();
            rewritten += usize::from(ids != plain.encode(&text, Special::Parse).unwrap());
        }
        assert!(rewritten > 100, "{family}: {rewritten}");
    }
}

#[test]
fn signed_bytes_are_a_table_too_and_an_empty_one_changes_nothing() {
    let bytes = table(&RULES);
    let mut signed = vocabulary("unigram").tiny("unigram");
    signed.set(KEY, bytes.iter().map(|byte| *byte as i8).collect::<Array<'_>>());
    let signed = open(&signed).unwrap();
    assert_eq!(charsmap(signed.tokenizer().unwrap()).unwrap().to_bytes(), bytes);
    let none = folder("unigram", &tokenizer_json("unigram", ""));
    assert_eq!(charsmap(none.tokenizer().unwrap()), None);
}

/// The folder that a model is written to.
fn as_folder(source: &Checkpoint) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let options =
        FolderOptions { floats: Recipe::F16, shard_bytes: 1 << 20, single_vectors: false };
    let mut create = |name: &str| {
        let file = std::fs::File::create_new(dir.path().join(name))?;
        Ok(Box::new(file) as Box<dyn std::io::Write>)
    };
    let export = FolderExport::new(source, &options).unwrap();
    export.write(&Cpu::new(Isa::best(), 1), &mut create, &mut |_| true).unwrap();
    Checkpoint::open(dir.path()).unwrap()
}

/// The GGUF file that a model is written to.
fn as_file(source: &Checkpoint) -> Result<Checkpoint, offshoot_models::Error> {
    let options = ExportOptions { recipe: Recipe::F16, requantize: false, name: None };
    let mut bytes = Vec::new();
    let export = Export::new(source, &options)?;
    export.write(&Cpu::new(Isa::best(), 1), &mut bytes, &mut |_| true).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Checkpoint::open(file.path())
}

#[test]
fn what_is_written_keeps_its_table_or_is_refused() {
    let bytes = table(&RULES);
    for family in FAMILIES {
        let vocabulary = vocabulary(family);
        let json = tokenizer_json(family, &STANDARD.encode(&bytes));
        let from = tempfile::tempdir().unwrap();
        vocabulary.folder(&open(&vocabulary.tiny(family)).unwrap(), &json).save(from.path());
        let source = Checkpoint::open(from.path()).unwrap();
        let spec = source.tokenizer().unwrap();
        assert_eq!(as_folder(&source).tokenizer().unwrap(), spec, "{family}");
        if family == "llama" {
            let error = as_file(&source).map(|_| ()).unwrap_err();
            assert_one_line(&error, "merges");
            assert!(error.to_string().contains("rewritten before merges"), "{error}");
            continue;
        }
        assert_eq!(as_file(&source).unwrap().tokenizer().unwrap(), spec);
    }
}

#[test]
fn broken_tables_are_errors_of_one_line() {
    let whole = table(&RULES);
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    let cases: [(Vec<u8>, &str); 7] = [
        (Vec::new(), "has no size"),
        (vec![1, 0], "has no size"),
        (changed(|bytes| bytes[..4].fill(0)), "says that its trie has 0 of"),
        (changed(|bytes| bytes[0] += 1), "says that its trie has 16385 of"),
        (changed(|bytes| bytes[..4].fill(0xfc)), "says that its trie has 4244438268 of"),
        (changed(|bytes| bytes.push(0xff)), "has texts not in UTF-8"),
        (changed(|bytes| bytes[4..8].fill(0xff)), "has a value that is no place in its texts"),
    ];
    for (bytes, expected) in cases {
        let error = open(&tiny("unigram", &bytes)).unwrap_err();
        assert_one_line(&error, KEY);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        let json = tokenizer_json("unigram", &STANDARD.encode(&bytes));
        if !bytes.is_empty() {
            let folder = folder("unigram", &json);
            let error = folder.tokenizer().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("precompiled_charsmap"), "{error}");
        }
    }
    let folder = folder("unigram", &tokenizer_json("unigram", "%"));
    assert!(folder.tokenizer().unwrap_err().to_string().contains("not base64"));
    let mut words = vocabulary("unigram").tiny("unigram");
    words.set(KEY, ["a"].into_iter().collect::<Array<'_>>());
    assert!(open(&words).unwrap_err().to_string().contains("expected an array of bytes"));
    words.set(KEY, [256i32].into_iter().collect::<Array<'_>>());
    assert!(open(&words).unwrap_err().to_string().contains("expected an array of bytes"));
}

const SPACES_KEY: &str = "tokenizer.ggml.remove_extra_whitespaces";
const SPACE: &str = "\u{2581}";

/// The stages by which a file of transformers leaves out spaces: in the newer form, and in the older
/// one, which keeps a space at the end.
fn space_stages(how: ExtraSpaces) -> Vec<Value> {
    let runs = |instead: &str| json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": instead });
    let strip = json!({ "type": "Strip", "strip_left": false, "strip_right": true });
    match how {
        ExtraSpaces::Keep => Vec::new(),
        ExtraSpaces::Merge => vec![runs(" ")],
        ExtraSpaces::Remove => vec![strip, runs(SPACE)],
    }
}

/// A family's `tokenizer.json` as transformers makes one of a model that leaves out spaces.
fn json_of_spaces(family: &str, table: Option<&str>, how: ExtraSpaces, scheme: &str) -> Value {
    let mut json = vocabulary(family).tokenizer_json;
    let table = table.map(|table| json!({ "type": "Precompiled", "precompiled_charsmap": table }));
    let stages: Vec<Value> = table.into_iter().chain(space_stages(how)).collect();
    json["normalizer"] = json!({ "type": "Sequence", "normalizers": stages });
    json["pre_tokenizer"] = json!({
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false,
    });
    json
}

fn extra_spaces(spec: &TokenizerSpec) -> ExtraSpaces {
    match &spec.model {
        TokenizerModel::SentencePiece(model) => model.extra_spaces,
        other => panic!("{other:?}"),
    }
}

/// SentencePiece's `Normalizer::Normalize` with `add_dummy_prefix` and `remove_extra_whitespaces`, as
/// its tests have it, less the space that is put before text.
#[test]
fn without_extra_spaces_a_text_is_what_sentencepiece_makes_of_it() {
    for family in FAMILIES {
        let mut file = vocabulary(family).tiny(family);
        let plain = Tokenizer::new(open(&file).unwrap().tokenizer().unwrap()).unwrap();
        file.set(SPACES_KEY, true);
        let removing = open(&file).unwrap();
        assert_eq!(extra_spaces(removing.tokenizer().unwrap()), ExtraSpaces::Remove);
        let removing = Tokenizer::new(removing.tokenizer().unwrap()).unwrap();
        for (text, expected) in [
            ("", ""),
            ("   ", ""),
            (" ", ""),
            ("ABC", "ABC"),
            (" ABC ", "ABC"),
            ("   ABC   ", "ABC"),
            ("  A  B  C  ", "A B C"),
            ("the  name   of the\tname ", "the name of the\tname"),
            ("  a  </s>  b  ", "a</s>b"),
            ("a\u{3000}\u{3000}b", "a\u{3000}\u{3000}b"),
        ] {
            let ids = removing.encode(text, Special::Parse).unwrap();
            assert_eq!(ids, plain.encode(expected, Special::Parse).unwrap(), "{family}: {text:?}");
        }
    }
}

#[test]
fn extra_spaces_are_left_out_of_either_form_of_file_as_in_the_library() {
    let bytes = table(&RULES);
    let encoded = STANDARD.encode(&bytes);
    let mut all = all_texts();
    let spaced =
        |text: &String| [format!("  {text}   "), format!("{text}  {text}\t "), format!(" {text}")];
    let more: Vec<String> = all.iter().flat_map(spaced).collect();
    all.extend(more);
    for family in FAMILIES {
        for with_table in [false, true] {
            let table = with_table.then_some(encoded.as_str());
            let mut seen = Vec::new();
            for how in [ExtraSpaces::Merge, ExtraSpaces::Remove] {
                for scheme in ["always", "first", "never"] {
                    let json = json_of_spaces(family, table, how, scheme);
                    let folder = folder(family, &json);
                    let spec = folder.tokenizer().unwrap();
                    assert_eq!(extra_spaces(spec), how);
                    let tokenizer = Tokenizer::new(spec).unwrap();
                    let library = Library::from_bytes(json.to_string()).unwrap();
                    for text in &all {
                        let ids = tokenizer.encode(text, Special::Parse).unwrap();
                        let theirs = library.encode(text.as_str(), false).unwrap();
                        let theirs = theirs.get_ids();
                        assert_eq!(ids, theirs, "{family} {how:?} {scheme}: {text:?}");
                    }
                    seen.push(TokenizerId::of(spec));
                    if (how, scheme) == (ExtraSpaces::Remove, "always") {
                        let mut file = match with_table {
                            true => tiny(family, &bytes),
                            false => vocabulary(family).tiny(family),
                        };
                        file.set(SPACES_KEY, true);
                        assert_eq!(open(&file).unwrap().tokenizer().unwrap(), spec, "{family}");
                    }
                }
            }
            seen.sort_unstable();
            assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{family}");
        }
    }
}

#[test]
fn what_is_written_leaves_out_the_same_spaces_or_is_refused() {
    let written = |family: &str, how, scheme| {
        let json = json_of_spaces(family, None, how, scheme);
        let vocabulary = vocabulary(family);
        let from = tempfile::tempdir().unwrap();
        vocabulary.folder(&open(&vocabulary.tiny(family)).unwrap(), &json).save(from.path());
        let source = Checkpoint::open(from.path()).unwrap();
        let spec = source.tokenizer().unwrap();
        assert_eq!(as_folder(&source).tokenizer().unwrap(), spec, "{family} {how:?} {scheme}");
        as_file(&source).map(|file| assert_eq!(file.tokenizer().unwrap(), spec, "{scheme}"))
    };
    written("unigram", ExtraSpaces::Remove, "always").unwrap();
    written("unigram", ExtraSpaces::Remove, "first").unwrap();
    for (family, how, scheme, expected) in [
        ("unigram", ExtraSpaces::Merge, "always", "runs of spaces that are one in this way"),
        ("llama", ExtraSpaces::Remove, "always", "left out before merges, as llama.cpp"),
    ] {
        let error = written(family, how, scheme).unwrap_err();
        assert_one_line(&error, "spaces");
        assert!(error.to_string().contains(expected), "{error}");
    }
    // A file has no tokenizer.json that could be copied.
    for family in FAMILIES {
        let mut file = tiny(family, &table(&RULES));
        file.set(SPACES_KEY, true);
        let file = open(&file).unwrap();
        assert_eq!(as_folder(&file).tokenizer().unwrap(), file.tokenizer().unwrap(), "{family}");
    }
}

#[test]
fn other_ways_to_leave_out_spaces_are_refused() {
    let changes: [fn(&mut Value); 4] = [
        |stages| stages[0]["strip_left"] = true.into(),
        |stages| stages[0]["strip_right"] = Value::Null,
        |stages| stages[1]["pattern"]["Regex"] = " {3,}".into(),
        |stages| stages[1]["content"] = "_".into(),
    ];
    for change in changes {
        let mut json = json_of_spaces("unigram", None, ExtraSpaces::Remove, "always");
        change(&mut json["normalizer"]["normalizers"]);
        let folder = folder("unigram", &json);
        let error = folder.tokenizer().unwrap_err();
        assert_one_line(&error, "spaces");
        assert!(error.to_string().contains(r#"normalizer: "Strip" is not supported"#), "{error}");
    }
}

/// A tokenizer of a table's bytes, if they are one.
fn with_table(bytes: &[u8]) -> Option<Tokenizer> {
    static SPEC: std::sync::OnceLock<TokenizerSpec> = std::sync::OnceLock::new();
    let plain =
        || open(&vocabulary("unigram").tiny("unigram")).unwrap().tokenizer().unwrap().clone();
    let mut spec = SPEC.get_or_init(plain).clone();
    let TokenizerModel::SentencePiece(model) = &mut spec.model else { panic!("no pieces") };
    model.charsmap = Some(Charsmap::new(bytes).ok()?);
    Some(Tokenizer::new(&spec).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn a_table_of_any_bytes_is_refused_or_gives_text(
        changes in proptest::collection::vec((4usize..16_384, any::<u8>()), 0..60),
        random in proptest::collection::vec(any::<u32>(), 1..64),
        texts in "[a-zé\u{200b}\u{301}½]{0,8}",
    ) {
        let mut bytes = table(&RULES);
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        // Units without the mark of a value, whose places may be anywhere.
        let units = random.iter().flat_map(|unit| (unit & !(1 << 31)).to_le_bytes());
        let head = (4 * random.len() as u32).to_le_bytes();
        let other: Vec<u8> = head.into_iter().chain(units).chain(texts.bytes()).collect();
        let built: Vec<Tokenizer> = [bytes, other].iter().filter_map(|b| with_table(b)).collect();
        prop_assert!(!built.is_empty());
        for tokenizer in built {
            for text in [&texts, "ﬁ\u{301}e\u{301} the…", "\0ab\u{ff}"] {
                tokenizer.encode(text, Special::Text).unwrap();
            }
        }
    }
}
