//! Folders and files that are written whole or not at all.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "../../offshoot-models/tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use offshoot_engine::{Error, ExportOptions, QuantizeOptions, export_folder, floats_of, quantize};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::{BaseId, Checkpoint, Recipe, RopeScaling};
use support::tiny::Tiny;

const OPTIONS: ExportOptions<'_> =
    ExportOptions { floats: None, shard_bytes: 4000, overwrite: false, variant: None };
const OVER: ExportOptions<'_> = ExportOptions { overwrite: true, ..OPTIONS };

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), 2)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_whole_or_not_there_and_takes_no_place_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tiny.gguf");
    fs::write(&source, Tiny::llama().bytes()).unwrap();
    let export =
        |output: &Path, options| export_folder(&cpu(), &source, output, options, &mut |_, _| true);
    let refused = |output: &Path, options, part: &str| match export(output, options) {
        Err(Error::Model(error @ offshoot_models::Error::Export(_))) => {
            assert!(error.to_string().contains(part), "{error}");
        }
        other => panic!("{other:?}"),
    };
    let out = dir.path().join("out");
    let stopped = export_folder(&cpu(), &source, &out, OPTIONS, &mut |done, all| done < all / 2);
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!(names(dir.path()), ["tiny.gguf"], "nothing is left behind");
    fs::create_dir(&out).unwrap();
    let done = export(&out, OPTIONS).unwrap();
    assert_eq!((done.floats, done.weight_files > 3), (Recipe::F16, true), "{done:?}");
    let bytes = fs::read_dir(&out).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
    assert_eq!(done.bytes, bytes.sum::<u64>());
    assert!(done.tokenizer.is_some() && !done.tokenizer_differs && done.template.is_some());
    refused(&out, OPTIONS, "--overwrite");
    fs::write(out.join("other.gguf"), "x").unwrap();
    refused(&out, OVER, "it holds other.gguf");
    fs::remove_file(out.join("other.gguf")).unwrap();
    fs::write(out.join("vocab.json"), "x").unwrap();
    let single = ExportOptions { floats: Some(Recipe::F32), shard_bytes: u64::MAX, ..OVER };
    assert_eq!(export(&out, single).unwrap().weight_files, 1);
    assert_eq!(
        names(&out),
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
            .into_iter()
            .chain(["tokenizer_config.json"])
            .collect::<Vec<_>>()
    );
    let same = |path: &Path| BaseId::of(&Checkpoint::open(path).unwrap()).unwrap();
    assert_eq!(same(&out), same(&source), "single precision holds what the blocks stand for");
    // What is no model's folder is nobody's to remove.
    for (name, inner) in [("mine", "letter.txt"), ("deep", "config.json")] {
        let mine = dir.path().join(name);
        fs::create_dir_all(mine.join("more")).unwrap();
        fs::write(mine.join(inner), "x").unwrap();
        refused(&mine, OVER, "no folder of a model");
        assert_eq!(names(&mine), [inner, "more"]);
    }
    let itself = export_folder(&cpu(), &out, &out, OVER, &mut |_, _| true).unwrap_err();
    assert!(itself.to_string().contains("the model itself"), "{itself}");
    let file = export(&source, OVER).unwrap_err();
    assert!(matches!(file, Error::Output { .. }), "{file:?}");
    assert_eq!(names(dir.path()), ["deep", "mine", "out", "tiny.gguf"]);
    assert_eq!(floats_of(&Checkpoint::open(&out).unwrap()), Recipe::F32);
}

#[test]
fn a_slash_behind_a_folder_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tiny.gguf");
    fs::write(&source, Tiny::llama().bytes()).unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let export = |name: &str, options| {
        export_folder(&cpu(), &source, &dir.path().join(name), options, &mut |_, _| true)
    };
    export("new/", OPTIONS).unwrap();
    export("empty/", OPTIONS).unwrap();
    assert!(export("new/", OPTIONS).unwrap_err().to_string().contains("--overwrite"));
    export("new/", OVER).unwrap();
    assert_eq!(names(&dir.path().join("new")), names(&dir.path().join("empty")));
    for nameless in ["empty/..", ".."] {
        let error = export(nameless, OVER).unwrap_err();
        assert!(error.to_string().contains("does not end in a name"), "{error}");
    }
    let options = QuantizeOptions { recipe: Recipe::F16, requantize: true, variant: None };
    let file = dir.path().join("file/");
    let error = quantize(&cpu(), &source, &file, options, &mut |_, _| true).unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error}");
    assert_eq!(names(dir.path()), ["empty", "new", "tiny.gguf"]);
}

#[test]
fn a_model_that_came_to_the_place_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("tiny.gguf"), dir.path().join("out"));
    fs::write(&source, Tiny::llama().bytes()).unwrap();
    export_folder(&cpu(), &source, &out, OPTIONS, &mut |_, _| true).unwrap();
    let mut put = |_, _| fs::write(out.join("letter.txt"), "x").is_ok();
    let error = export_folder(&cpu(), &source, &out, OVER, &mut put).unwrap_err();
    assert!(error.to_string().contains("it holds letter.txt"), "{error}");
    assert!(out.join("letter.txt").is_file() && out.join("config.json").is_file());
    assert_eq!(names(dir.path()), ["out", "tiny.gguf"]);
}

#[test]
fn factors_of_a_published_rule_may_be_off_by_the_last_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::llama();
    tiny.set("llama.rope.freq_base", 10_000.0f32);
    // Three short waves, and one between: of 2 pi times 1000 positions, of which 8192 hold 1.3.
    let wave = std::f64::consts::TAU * 1000.0;
    let smooth = (8192.0 / wave - 1.0) / 3.0;
    let between = (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32;
    let scaling = |path: &Path| match &Checkpoint::open(path).unwrap().config().rope_scaling {
        RopeScaling::Factors(factors) => factors.clone(),
        other => panic!("{other:?}"),
    };
    let mut rules = Vec::new();
    for bits in [-2i32, 2] {
        let factor = f32::from_bits(between.to_bits().wrapping_add_signed(bits));
        tiny.floats("rope_freqs.weight", &[4], &[1.0, 1.0, 1.0, factor]);
        let source = dir.path().join("tiny.gguf");
        fs::write(&source, tiny.bytes()).unwrap();
        let out = dir.path().join("out");
        export_folder(&cpu(), &source, &out, OVER, &mut |_, _| true).unwrap();
        // One model: the file's are taken as the rule's, which the folder says.
        let (told, own) = (scaling(&source), scaling(&out));
        assert!(told == own && (factor / own[3] - 1.0).abs() < 1e-6, "{told:?}, {own:?}");
        rules.push(own);
    }
    assert_eq!(rules[0], rules[1]);
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hubs_cache_is_not_replaced_by_itself() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("tiny.gguf"), Tiny::llama().bytes()).unwrap();
    fs::create_dir_all(path("repo/snapshots/c0ffee")).unwrap();
    let export = |source: &str, output: &str| {
        export_folder(&cpu(), &path(source), &path(output), OVER, &mut |_, _| true)
    };
    export("tiny.gguf", "repo/blobs").unwrap();
    for name in names(&path("repo/blobs")) {
        let link = path("repo/snapshots/c0ffee").join(&name);
        symlink(Path::new("../../blobs").join(&name), link).unwrap();
    }
    symlink("repo/snapshots/c0ffee", path("link")).unwrap();
    let snapshot = names(&path("repo/snapshots/c0ffee"));
    for source in ["repo/snapshots/c0ffee", "link"] {
        for output in ["repo/snapshots/c0ffee", "repo/snapshots/c0ffee/", "link", "repo/blobs"] {
            let error = export(source, output).unwrap_err().to_string();
            assert!(error.contains("the model itself"), "{source} to {output}: {error}");
        }
    }
    assert_eq!(names(&path("repo/snapshots/c0ffee")), snapshot);
    Checkpoint::open(&path("link")).unwrap();
}

#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_the_output_is_followed_and_stays() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("tiny.gguf"), Tiny::llama().bytes()).unwrap();
    fs::create_dir(path("far")).unwrap();
    fs::write(path("far/old.gguf"), "old").unwrap();
    symlink("far/old.gguf", path("link.gguf")).unwrap();
    symlink("far/new.gguf", path("dangling.gguf")).unwrap();
    symlink("far/folder", path("folder")).unwrap();
    symlink("tiny.gguf", path("itself.gguf")).unwrap();
    let options = QuantizeOptions { recipe: Recipe::F16, requantize: true, variant: None };
    let write =
        |name: &str| quantize(&cpu(), &path("tiny.gguf"), &path(name), options, &mut |_, _| true);
    write("link.gguf").unwrap();
    write("dangling.gguf").unwrap();
    export_folder(&cpu(), &path("tiny.gguf"), &path("folder"), OPTIONS, &mut |_, _| true).unwrap();
    assert!(write("itself.gguf").unwrap_err().to_string().contains("the model itself"));
    for name in ["link.gguf", "dangling.gguf", "folder", "itself.gguf"] {
        assert!(fs::symlink_metadata(path(name)).unwrap().is_symlink(), "{name}");
        Checkpoint::open(&path(name)).unwrap();
    }
    assert_eq!(names(&path("far")), ["folder", "new.gguf", "old.gguf"]);
    assert_eq!(fs::read(path("far/new.gguf")).unwrap(), fs::read(path("far/old.gguf")).unwrap());
}
