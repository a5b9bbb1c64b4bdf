//! Files of Medusa heads: every layout there and back, broken and foreign ones, and what packed heads
//! compute.

#![allow(clippy::unwrap_used)] // test code

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::medusa::{
    HEADS_FILE, Head, HeadLayout, HeadMatrix, HeadsCard, HeadsFile, MedusaHeads, ResBlock,
    import_heads, parse_torch,
};
use offshoot_models::{BaseId, Checkpoint, PackedModel, TokenizerId};
use proptest::prelude::*;
use support::folder::{Folder, Stored};
use support::tiny::{HIDDEN, TOKENS, Tiny};

mod support;

/// Small numbers: the embedding of the small model is large, and logits of a few units are wanted.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) as f32 / 32_768.0 - 1.0) / 20.0
    };
    (0..n).map(next).collect()
}

/// `k` heads of `layers` blocks, of width `d`, with output matrices for `vocab` tokens if given.
fn heads(block: BlockType, k: usize, layers: usize, d: usize, vocab: Option<usize>) -> HeadsFile {
    let mut seed = 0;
    let mut matrix = |rows: usize, cols: usize| {
        seed += 1;
        HeadMatrix::new(block, (rows, cols), &values(rows * cols, seed))
    };
    let heads = (0..k).map(|_| Head {
        blocks: (0..layers)
            .map(|_| ResBlock { weight: matrix(d, d), bias: matrix(1, d) })
            .collect(),
        output: vocab.map(|vocab| matrix(vocab, d)),
    });
    HeadsFile { hidden_size: d, heads: heads.collect(), vocabulary: None, card: None }
}

/// The same heads with first blocks that see the chosen token too.
fn seeing(mut file: HeadsFile) -> HeadsFile {
    for (k, head) in file.heads.iter_mut().enumerate() {
        let (d, block) = (file.hidden_size, head.blocks[0].weight.block);
        let wide = values(2 * d * d, 500 + k as u32);
        head.blocks[0].weight = HeadMatrix::new(block, (d, 2 * d), &wide);
    }
    file
}

fn card() -> HeadsCard {
    let mut card = HeadsCard::new(BaseId::from_bytes([7; 32]), TokenizerId::from_bytes([9; 32]));
    card.recipe = Some(serde_json::json!({ "tokens": 12 }));
    card
}

#[test]
fn every_layout_comes_back_bit_for_bit() {
    for block in [BlockType::F32, BlockType::F16, BlockType::Bf16] {
        for (k, layers) in [(1, 1), (5, 1), (3, 2)] {
            let shared = heads(block, k, layers, 8, None);
            let own = heads(block, k, layers, 8, Some(12));
            for (file, layout) in
                [(&shared, HeadLayout::Shared), (&own, HeadLayout::Own), (&own, HeadLayout::Whole)]
            {
                let bytes = file.bytes(layout);
                let back = HeadsFile::parse(&bytes).unwrap();
                assert_eq!(&back, file, "{layout:?}");
                assert_eq!(back.bytes(layout), bytes);
                assert_eq!((back.heads.len(), back.layers()), (k, layers));
            }
        }
    }
    let mut ours = seeing(heads(BlockType::F16, 2, 2, 8, None));
    assert!(ours.sees_token() && !heads(BlockType::F16, 2, 1, 8, None).sees_token());
    (ours.vocabulary, ours.card) = (Some(vec![1, 4, 5]), Some(card()));
    assert_eq!(HeadsFile::parse(&ours.bytes(HeadLayout::Shared)).unwrap(), ours);
}

#[test]
fn a_whole_models_other_tensors_are_passed_over() {
    let file = heads(BlockType::F32, 2, 1, 4, Some(6));
    let text = String::from_utf8_lossy(&file.bytes(HeadLayout::Whole)).into_owned();
    assert!(text.contains("medusa_head.0.0.linear.weight"));
    let mut bytes = file.bytes(HeadLayout::Whole);
    // A tensor of the base among them, of a number type that heads do not have.
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let data = bytes.split_off(end);
    header["model.layers.0.mask"] = serde_json::json!({
        "dtype": "U8", "shape": [3], "data_offsets": [data.len(), data.len() + 3],
    });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes().chain(data).chain([1, 2, 3]));
    assert_eq!(HeadsFile::parse(&bytes).unwrap(), file);
}

/// A model's folder with `file` among its weights.
fn whole(file: &HeadsFile) -> Folder {
    let mut folder = Folder::of(&checkpoint());
    for (k, head) in file.heads.iter().enumerate() {
        let mut put = |name: String, matrix: &HeadMatrix, shape: Vec<usize>| {
            assert_eq!(matrix.block, BlockType::F16);
            let stored = Stored { dtype: "F16", shape, bytes: matrix.bytes.clone() };
            folder.tensors.insert(format!("medusa_head.{k}.{name}"), stored);
        };
        let (block, output) = (&head.blocks[0], head.output.as_ref().unwrap());
        put("0.linear.weight".into(), &block.weight, vec![block.weight.rows, block.weight.cols]);
        put("0.linear.bias".into(), &block.bias, vec![block.bias.cols]);
        put("1.weight".into(), output, vec![output.rows, output.cols]);
    }
    folder
}

#[test]
fn a_whole_model_in_several_files_gives_its_heads_and_is_a_model_as_well() {
    let file = heads(BlockType::F16, 2, 1, HIDDEN, Some(TOKENS.len()));
    let folder = whole(&file);
    for count in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        match count {
            1 => folder.save(dir.path()),
            _ => folder.save_shards(dir.path(), count),
        }
        assert_eq!(import_heads(dir.path()).unwrap(), file, "{count} files");
        if count > 1 {
            let index = dir.path().join("model.safetensors.index.json");
            assert_eq!(import_heads(&index).unwrap(), file);
            let renamed = dir.path().join("other.safetensors.index.json");
            std::fs::rename(index, &renamed).unwrap();
            assert_eq!(HeadsFile::open(&renamed).unwrap(), file);
            continue;
        }
        let unused = Checkpoint::open(dir.path()).unwrap().unused().to_vec();
        assert_eq!(unused.len(), 6);
        assert!(unused.iter().all(|name| name.starts_with("medusa_head.")), "{unused:?}");
        // A file of heads beside a model goes before what is among its weights.
        let one = heads(BlockType::F16, 1, 1, HIDDEN, None);
        one.save(&dir.path().join(HEADS_FILE)).unwrap();
        assert_eq!(import_heads(dir.path()).unwrap(), one);
    }
}

#[test]
fn an_index_that_does_not_give_its_heads_is_an_error_of_one_line() {
    let folder = whole(&heads(BlockType::F16, 2, 1, HIDDEN, Some(TOKENS.len())));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let index = path("model.safetensors.index.json");
    let error = || {
        let error = import_heads(dir.path()).unwrap_err();
        support::assert_one_line(&error, "heads of a whole model");
        error.to_string()
    };
    assert!(error().contains("model.safetensors: missing"), "{}", error());
    folder.save_shards(dir.path(), 2);
    let sound = std::fs::read_to_string(&index).unwrap();
    let second = "model-00002-of-00002.safetensors";
    let listed = |from: &str, to: &str| {
        let from = format!("\"{from}\":");
        assert!(sound.contains(&from));
        std::fs::write(&index, sound.replace(&from, &format!("\"{to}\":"))).unwrap();
        error()
    };
    let told = listed("medusa_head.1.1.weight", "medusa_head.2.1.weight");
    assert!(told.contains("medusa_head.2.1.weight is in none of"), "{told}");
    std::fs::write(&index, sound.replace("medusa_head", "medusa_tail")).unwrap();
    assert!(error().contains("index.json: weight_map: no tensor is named medusa_head.*"));
    for elsewhere in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".safetensors"] {
        std::fs::write(&index, sound.replace(second, elsewhere)).unwrap();
        assert!(error().contains("is no name of a .safetensors file"), "{}", error());
    }
    std::fs::write(&index, &sound).unwrap();
    std::fs::write(path(second), b"\x10\0\0\0\0\0\0\0{").unwrap();
    assert!(error().contains(second) && error().contains("no sound safetensors"), "{}", error());
    std::fs::remove_file(path(second)).unwrap();
    let missing = format!("{second}: missing, model.safetensors.index.json names it");
    assert!(error().contains(&missing), "{}", error());
    let gone = import_heads(&path("other.safetensors.index.json")).unwrap_err();
    support::assert_one_line(&gone, "an index that is not there");
}

#[test]
fn a_configuration_that_disagrees_is_told_and_no_error() {
    let file = heads(BlockType::F16, 5, 1, 4, None);
    let config = serde_json::json!({ "medusa_num_heads": 2, "medusa_num_layers": 1 });
    let told = file.disagreements(&config);
    assert_eq!(told, ["config.json says medusa_num_heads 2, the weights say 5"]);
    assert!(file.disagreements(&serde_json::json!({})).is_empty());
}

#[test]
fn heads_of_another_model_are_refused() {
    let mut file = heads(BlockType::F16, 2, 1, HIDDEN, None);
    let config = checkpoint().config().clone();
    file.check(&config).unwrap();
    let error = heads(BlockType::F16, 2, 1, 64, None).check(&config).unwrap_err();
    assert!(error.to_string().contains("the width is 64"), "{error}");
    let own = heads(BlockType::F16, 2, 1, HIDDEN, Some(13));
    assert!(own.check(&config).unwrap_err().to_string().contains("vocabulary"));
    file.vocabulary = Some(vec![0, TOKENS.len() as u32]);
    assert!(file.check(&config).is_err());
    file.check_base(BaseId::from_bytes([1; 32])).unwrap();
    file.card = Some(card());
    file.check_base(BaseId::from_bytes([7; 32])).unwrap();
    let error = file.check_base(BaseId::from_bytes([1; 32])).unwrap_err().to_string();
    assert!(error.contains("070707070707") && error.contains("010101010101"), "{error}");
}

#[test]
fn broken_files_are_errors_of_one_line() {
    let mut file = heads(BlockType::F16, 2, 1, 4, Some(6));
    file.card = Some(card());
    let sound = file.bytes(HeadLayout::Own);
    for n in 0..sound.len() {
        one_line(&sound[..n]);
    }
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = sound.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = sound.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, why) in [
        (replaced("0.0.linear.weight", "0.0.linear.heigth"), "named like none"),
        (replaced("0.0.linear.weight", "0.9.linear.weight"), "named like none"),
        (replaced("1.0.linear.bias", "4.0.linear.bias"), "heads [0, 1, 4]"),
        (replaced("0.1.weight", "0.0.weight"), "misplaced"),
        (replaced("\"shape\":[4,4]", "\"shape\":[2,8]"), "residual block"),
        (replaced("\\\"format\\\":1", "\\\"format\\\":9"), "format 9"),
        (u64::MAX.to_le_bytes().to_vec(), "header"),
        (b"{}".to_vec(), "header"),
    ] {
        let error = one_line(&bytes);
        assert!(error.contains(why), "{why}: {error}");
    }
    let mut unsorted = heads(BlockType::F16, 1, 1, 4, None);
    unsorted.vocabulary = Some(vec![3, 3]);
    assert!(one_line(&unsorted.bytes(HeadLayout::Shared)).contains("ascending"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heads.safetensors");
    std::fs::write(&path, &sound[..40]).unwrap();
    let error = HeadsFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("heads.safetensors") && !error.contains('\n'), "{error}");
}

fn one_line(bytes: &[u8]) -> String {
    let error = HeadsFile::parse(bytes).unwrap_err();
    support::assert_one_line(&error, "broken heads");
    error.to_string()
}

proptest! {
    #[test]
    fn bytes_changed_anywhere_give_heads_or_an_error(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = heads(BlockType::F16, 1, 1, 2, None).bytes(HeadLayout::Shared);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = HeadsFile::parse(&bytes) {
            support::assert_one_line(&error, "changed heads");
        }
    }
}

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/medusa").join(name)
}

#[test]
fn a_torch_checkpoint_gives_its_tensors() {
    // The second is written by torch itself, in two number types.
    let by_torch = import_heads(&data("heads_by_torch.pt")).unwrap();
    let blocks = [0, 1].map(|k| by_torch.heads[k].blocks[0].weight.block);
    assert_eq!(blocks, [BlockType::Bf16, BlockType::F32]);
    let file = import_heads(&data("heads.pt")).unwrap();
    for file in [&file, &by_torch] {
        assert_eq!((file.heads.len(), file.layers(), file.hidden_size), (2, 1, 4));
        for (k, head) in file.heads.iter().enumerate() {
            let expected = |n: usize| (0..n).map(|i| (k * 31 + i * 7) as f32 % 64.0 / 16.0 - 2.0);
            assert!(head.blocks[0].weight.values().into_iter().eq(expected(16)));
            assert!(head.blocks[0].bias.values().into_iter().eq(expected(4)));
            assert!(head.output.as_ref().unwrap().values().into_iter().eq(expected(24)));
        }
    }
    // The reader that serves does not open it, and says which command does.
    let error = HeadsFile::open(&data("heads.pt")).unwrap_err().to_string();
    assert!(error.contains("offshoot medusa import"), "{error}");
    let own = file.bytes(HeadLayout::Own);
    assert_eq!(HeadsFile::parse(&own).unwrap(), file);
}

#[test]
fn a_checkpoint_that_would_run_a_command_is_refused() {
    let error = import_heads(&data("command.pt")).unwrap_err().to_string();
    assert!(error.contains("system"), "{error}");
    assert!(error.contains("nothing was run") && !error.contains('\n'), "{error}");
    let sound = std::fs::read(data("heads.pt")).unwrap();
    for n in (0..sound.len()).step_by(7) {
        let error = parse_torch(&sound[..n]).unwrap_err();
        support::assert_one_line(&error, "a torch checkpoint cut off");
    }
}

fn checkpoint() -> Arc<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, Tiny::llama().bytes()).unwrap();
    Arc::new(Checkpoint::open(&path).unwrap())
}

/// What a head gives, computed plainly in double precision.
fn naive(
    checkpoint: &Checkpoint,
    file: &HeadsFile,
    hidden: &[f32],
    token: u32,
) -> Vec<Vec<(u32, f64)>> {
    let ids = file.vocabulary.clone().unwrap_or((0..TOKENS.len() as u32).collect());
    let embedding = checkpoint.require("model.embed_tokens.weight").unwrap();
    let mut seen = vec![0.0; hidden.len()];
    embedding.read_row(token as usize, &mut seen).unwrap();
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let rms = (seen.iter().map(square).sum::<f64>() / seen.len() as f64).sqrt();
    let one = |head: &Head| {
        let mut z: Vec<f64> = hidden.iter().map(|&x| x.into()).collect();
        for block in &head.blocks {
            let (weight, bias) = (block.weight.values(), block.bias.values());
            let mut input = z.clone();
            if block.weight.cols > z.len() {
                input.extend(seen.iter().map(|&x| f64::from(x) / rms));
            }
            let product = |row: usize| -> f64 {
                let row = &weight[row * input.len()..(row + 1) * input.len()];
                row.iter().zip(&input).map(|(w, z)| f64::from(*w) * z).sum()
            };
            let sums: Vec<f64> = (0..z.len()).map(|i| product(i) + f64::from(bias[i])).collect();
            z.iter_mut().zip(sums).for_each(|(z, x)| *z += x / (1.0 + (-x).exp()));
        }
        let logit = |&id: &u32| {
            let mut row = vec![0.0; z.len()];
            match &head.output {
                Some(u) => row = u.values()[id as usize * z.len()..][..z.len()].to_vec(),
                None => embedding.read_row(id as usize, &mut row).unwrap(),
            }
            row.iter().zip(&z).map(|(u, z)| f64::from(*u) * z).sum::<f64>()
        };
        let logits: Vec<f64> = ids.iter().map(logit).collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        let share = |(&id, l): (&u32, &f64)| (id, (l - most).exp() / total);
        ids.iter().zip(&logits).map(share).collect()
    };
    file.heads.iter().map(one).collect()
}

#[test]
fn packed_heads_give_the_tokens_and_probabilities_of_the_equation() {
    let checkpoint = checkpoint();
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::clone(&checkpoint), &cpu, None).unwrap();
    let mut trimmed = heads(BlockType::F16, 3, 2, HIDDEN, None);
    trimmed.vocabulary = Some(vec![0, 2, 3, 5, 7, 8, 11]);
    let own = heads(BlockType::F32, 2, 1, HIDDEN, Some(TOKENS.len()));
    let seeing = seeing(heads(BlockType::F16, 3, 2, HIDDEN, None));
    for file in [heads(BlockType::Bf16, 4, 1, HIDDEN, None), trimmed, own, seeing] {
        let mut packed = MedusaHeads::new(&cpu, &model, &file, 5).unwrap();
        for seed in 0..4 {
            let hidden: Vec<f32> = values(HIDDEN, 90 + seed).iter().map(|x| x * 0.1).collect();
            let found = packed.evaluate(&cpu, &hidden, seed).unwrap().to_vec();
            assert_eq!(found.len(), file.heads.len() * 5);
            let expected = naive(&checkpoint, &file, &hidden, seed);
            for (list, expected) in found.chunks(5).zip(&expected) {
                assert!(list.is_sorted_by(|a, b| a.probability >= b.probability));
                for found in list {
                    let exact = expected.iter().find(|(id, _)| *id == found.token).unwrap().1;
                    // Weights and inputs are rounded to 8 bits: logits of a few units move by some
                    // hundredths of one.
                    let off = (f64::from(found.probability) / exact).ln().abs();
                    assert!(off < 0.25, "{found:?}, exactly {exact}");
                }
            }
        }
    }
}

#[test]
fn heads_give_the_same_bits_for_any_number_of_threads() {
    let checkpoint = checkpoint();
    let file = heads(BlockType::F16, 4, 1, HIDDEN, None);
    let hidden = values(HIDDEN, 3);
    let found = [1, 2, 3].map(|threads| {
        let cpu = Cpu::new(Isa::best(), threads);
        let model = PackedModel::load(Arc::clone(&checkpoint), &cpu, None).unwrap();
        MedusaHeads::new(&cpu, &model, &file, 4)
            .unwrap()
            .evaluate(&cpu, &hidden, 1)
            .unwrap()
            .to_vec()
    });
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
}
