//! From a Hugging Face folder to the same checkpoint that a GGUF file of its numbers gives.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use candle_core::{DType, Device};
use logits::{MODELS, max_error, packed, reference};
use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::{
    BaseId, Checkpoint, DenseCache, DenseModel, LogitRows, ModelConfig, NoHooks, RopeScaling,
    Segment, VariantId, chain,
};
use serde_json::{Value, json};
use support::folder::{Folder, safetensors};
use support::tiny::Tiny;

/// As in the test of the packed executor.
const CLOSE: f32 = 2.5e-3;

/// Llama 3's rule as the script of the reference logits has it.
fn factors() -> Value {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    })
}

/// YaRN, as the script of the reference logits has it.
fn yarn() -> Value {
    json!({
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0,
        "original_max_position_embeddings": 64,
    })
}

/// The folder of one of the models that transformers computed logits of.
fn folder(name: &str) -> Folder {
    let mut folder = Folder::of(&logits::checkpoint(name));
    match name {
        "llama_factors" => folder.set("rope_scaling", factors()),
        "qwen3_yarn" => folder.set("rope_scaling", yarn()),
        _ => {}
    }
    folder
}

fn open_gguf(tiny: &Tiny) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny.bytes()).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// A small model with all that a checkpoint has.
fn tiny(family: &str) -> Folder {
    Folder::of(&open_gguf(&Tiny::smallest(family)))
}

/// Logits of all of `tokens`.
fn run(checkpoint: Checkpoint, tokens: &[u32]) -> Vec<f32> {
    packed(checkpoint, Cpu::new(Isa::best(), 2), tokens, tokens.len())
}

fn bits(logits: Vec<f32>) -> Vec<u32> {
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_folder_gives_the_logits_of_transformers_and_the_bits_of_the_gguf_file() {
    for name in MODELS {
        let reference = reference(name);
        let ours = run(folder(name).open().unwrap(), &reference.tokens);
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = max_error(&ours, &reference.logits);
        assert!(error < CLOSE * greatest, "{name}: {error} of {greatest}");
        let gguf = run(logits::checkpoint(name), &reference.tokens);
        if name == "llama_factors" {
            // The file's factors are no rounded powers, but quotients of rounded frequencies.
            let error = max_error(&ours, &gguf);
            assert!(error < 1e-3 * greatest, "{name}: {error} of {greatest}");
        } else {
            assert!(bits(ours) == bits(gguf), "{name}");
        }
    }
}

/// What a GGUF file does not say: the folder of another model with some fields, and its logits.
fn only_folders() -> Vec<(&'static str, Folder)> {
    let like = |name: &str, fields: &[(&str, Value)]| {
        let mut folder = folder(name);
        fields.iter().for_each(|(field, value)| folder.set(field, value.clone()));
        folder
    };
    let first_whole = json!(["full_attention", "sliding_attention"]);
    let in_qwen = [("use_sliding_window", true.into()), ("sliding_window", 4.into())];
    let [used, size] = in_qwen.clone();
    let by_number = [used, size, ("max_window_layers", 1.into())];
    let [used, size] = in_qwen;
    let by_name = [used, size, ("layer_types", first_whole)];
    let by_experts = [
        ("use_sliding_window", true.into()),
        ("sliding_window", 4.into()),
        ("norm_topk_prob", true.into()),
    ];
    let with = |mut scaling: Value, fields: &[(&str, f64)]| {
        fields.iter().for_each(|(field, value)| scaling[*field] = (*value).into());
        scaling
    };
    let short = folder("phi3_short").config["rope_scaling"].clone();
    // The text is longer than this trained context.
    let mut long = short.clone();
    long["original_max_position_embeddings"] = 16.into();
    let factor = with(long.clone(), &[("factor", 3.0)]);
    let magnitude = with(short, &[("attention_factor", 1.5)]);
    let mut partial_old = folder("phi3_partial").config["rope_scaling"].clone();
    partial_old["original_max_position_embeddings"] = 16.into();
    let partial_new = [
        ("rope_parameters", with(partial_old.clone(), &[("partial_rotary_factor", 0.75)])),
        ("rope_scaling", Value::Null),
        ("partial_rotary_factor", Value::Null),
    ];
    let slow = with(yarn(), &[("beta_slow", 2.5), ("attention_factor", 0.9)]);
    let weighed = with(yarn(), &[("mscale", 3.0), ("mscale_all_dim", 0.5)]);
    let kinds: Vec<_> =
        (0..7).map(|i| if i % 2 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    let gemma_old = [
        ("query_pre_attn_scalar", 40.into()),
        ("final_logit_softcapping", Value::Null),
        ("sliding_window_pattern", Value::Null),
        ("layer_types", json!(kinds)),
        ("rope_scaling", Value::Null),
        ("rope_theta", 1_000_000.0.into()),
        ("rope_local_base_freq", 500.0.into()),
    ];
    let mut gemma_new = gemma_old.to_vec();
    gemma_new.truncate(5);
    for (name, value) in [
        ("rope_theta", Value::Null),
        ("rope_local_base_freq", Value::Null),
        (
            "rope_parameters",
            json!({
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }),
        ),
    ] {
        gemma_new.push((name, value));
    }
    vec![
        ("mistral_whole", like("mistral_window", &[("sliding_window", Value::Null)])),
        ("phi3_long", like("phi3_short", &[("rope_scaling", long)])),
        ("phi3_factor", like("phi3_short", &[("rope_scaling", factor)])),
        ("phi3_magnitude", like("phi3_short", &[("rope_scaling", magnitude)])),
        ("phi3_partial_long", like("phi3_partial", &[("rope_scaling", partial_old)])),
        ("phi3_partial_long", like("phi3_partial", &partial_new)),
        ("qwen3_yarn_slow", like("qwen3_yarn", &[("rope_scaling", slow)])),
        ("qwen3_yarn_mscale", like("qwen3_yarn", &[("rope_scaling", weighed)])),
        ("mistral_tied", like("mistral_window", &[("tie_word_embeddings", true.into())])),
        ("qwen3_moe_mixed_window", like("qwen3_moe_mixed", &by_experts)),
        ("qwen2_window", like("qwen2_tied", &by_number)),
        ("qwen3_window", like("qwen3_tied", &by_number)),
        ("qwen3_window", like("qwen3_tied", &by_name)),
        ("gemma3_scalar", like("gemma3_linear", &gemma_old)),
        ("gemma3_scalar", like("gemma3_linear", &gemma_new)),
    ]
}

#[test]
fn what_only_a_folder_says_gives_the_logits_of_transformers() {
    for (name, folder) in only_folders() {
        let reference = reference(name);
        let checkpoint = folder.open().unwrap();
        let dense = DenseModel::load(&checkpoint, &Device::Cpu, DType::F32).unwrap();
        let mut cache = DenseCache::new(dense.config());
        let positions: Vec<u32> = (0..reference.tokens.len() as u32).collect();
        let segment = Segment {
            cache: &mut cache,
            tokens: &reference.tokens,
            parents: &chain(positions.len()),
            positions: &positions,
            rope: dense.config().rope_for(positions.len()),
            variant: VariantId::default(),
            logits: LogitRows::All,
        };
        let logits = dense.step(&mut [segment], &mut NoHooks).unwrap();
        let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let error = max_error(&logits, &reference.logits);
        // As in the test of the dense executor.
        assert!(error <= 1e-4, "{name}: {error}");
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = max_error(&run(checkpoint, &reference.tokens), &reference.logits);
        assert!(error < CLOSE * greatest, "{name}: {error} of {greatest}");
    }
}

#[test]
fn the_text_model_beside_a_vision_tower_is_the_text_model() {
    let alone = folder("gemma3_linear");
    let tokens = reference("gemma3_linear").tokens;
    let expected = alone.open().unwrap();
    let id = BaseId::of(&expected).unwrap();
    for (text, vision) in [("language_model.model.", ""), ("model.language_model.", "model.")] {
        let mut both = alone.beside_vision(text, vision);
        both.config["text_config"]["eos_token_id"] = 1.into();
        both.set("eos_token_id", json!([1, 7]));
        let found = both.open().unwrap();
        assert_eq!((found.config(), found.unused().len()), (expected.config(), 2));
        assert!(found.unused().iter().all(|name| !name.contains("language_model")));
        assert_eq!(found.stop_tokens(), [1, 7]);
        assert_eq!(BaseId::of(&found).unwrap(), id);
        assert!(bits(run(found, &tokens)) == bits(run(alone.open().unwrap(), &tokens)));
        // As published files of 4 billion weights have it, whose text_config leaves these out.
        for name in ["num_attention_heads", "vocab_size", "rms_norm_eps"] {
            both.config["text_config"].as_object_mut().unwrap().remove(name);
        }
        let error = both.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("expected [262208, 32]"), "{error}");
        both.config["quantization_config"] = json!({"bits": 4});
        let error = both.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("quantised weights are not read"), "{error}");
        // What stands there under both names is there once too often.
        let mut twice = alone.beside_vision(text, vision);
        let norm = alone.tensors["model.norm.weight"].clone();
        twice.tensors.insert("model.norm.weight".to_owned(), norm);
        let error = twice.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("{text}norm.weight\": not one of")), "{error}");
    }
}

#[test]
fn windows_are_read_as_transformers_reads_them() {
    let window = |change: &dyn Fn(&mut Folder)| {
        let mut folder = folder("mistral_window");
        change(&mut folder);
        let window = folder.open().unwrap().config().sliding_window.clone();
        window.map(|window| (window.size.get(), window.layers))
    };
    let without = |folder: &mut Folder| {
        folder.config.as_object_mut().unwrap().remove("sliding_window");
    };
    assert_eq!(window(&|_| {}), Some((5, vec![true; 2])));
    assert_eq!(window(&|folder| folder.set("sliding_window", Value::Null)), None);
    assert_eq!(window(&without), Some((4096, vec![true; 2])));
    // Gemma's layers in turns of six, or of what the file says.
    let turns = |pattern: Value| {
        let mut folder = folder("gemma3_linear");
        folder.set("layer_types", Value::Null);
        folder.set("sliding_window_pattern", pattern);
        folder.open().unwrap().config().sliding_window.clone().map(|window| window.layers)
    };
    let local = |whole: &[usize]| Some((0..7).map(|i| !whole.contains(&i)).collect());
    assert_eq!(turns(Value::Null), local(&[5]));
    assert_eq!(turns(3.into()), local(&[2, 5]));
    assert_eq!(turns(1.into()), None);
    // Llama has none, and Qwen only where a flag says so.
    for name in ["llama_linear", "qwen3_tied"] {
        let mut folder = folder(name);
        folder.set("sliding_window", 5);
        folder.set("use_sliding_window", false);
        assert_eq!(folder.open().unwrap().config().sliding_window, None, "{name}");
    }
}

#[test]
fn configuration_tensors_and_base_id_are_those_of_the_gguf_file() {
    for name in MODELS {
        let gguf = logits::checkpoint(name);
        let folder = folder(name).open().unwrap();
        assert!(folder.tensors().map(|t| t.name).eq(gguf.tensors().map(|t| t.name)));
        assert_eq!(BaseId::of(&folder).unwrap(), BaseId::of(&gguf).unwrap(), "{name}");
        let plain = |config: &ModelConfig| ModelConfig {
            rope_scaling: RopeScaling::None,
            ..config.clone()
        };
        assert_eq!(plain(folder.config()), plain(gguf.config()));
        match (&folder.config().rope_scaling, &gguf.config().rope_scaling) {
            (RopeScaling::Factors(ours), RopeScaling::Factors(theirs))
                if name == "llama_factors" =>
            {
                assert!(ours.iter().any(|f| *f > 1.0 && *f < 8.0) && ours.contains(&8.0));
                let error = ours.iter().zip(theirs).map(|(a, b)| (a / b - 1.0).abs());
                // Four roundings, each of 2^-24.
                assert!(error.fold(0.0, f32::max) < 4e-7, "{ours:?}, {theirs:?}");
            }
            (ours, theirs) => assert_eq!(ours, theirs),
        }
    }
}

#[test]
fn the_format_of_the_floats_does_not_change_the_base_id() {
    let half = folder("qwen2_untied");
    let id = BaseId::of(&half.open().unwrap()).unwrap();
    let single = half.rounded(BlockType::F32).open().unwrap();
    assert_eq!(BaseId::of(&single).unwrap(), id);
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(single.require(name).unwrap().info.block, BlockType::F32);
    let brain = half.rounded(BlockType::Bf16).open().unwrap();
    assert_eq!(brain.require(name).unwrap().info.block, BlockType::Bf16);
    assert_ne!(BaseId::of(&brain).unwrap(), id, "half precision has bits that this one lacks");
}

#[test]
fn every_float_format_gives_the_bits_and_the_id_of_the_gguf_file() {
    for (block, dtype) in
        [(BlockType::F32, "F32"), (BlockType::F16, "F16"), (BlockType::Bf16, "BF16")]
    {
        for mut tiny in Tiny::families() {
            let matrices: Vec<_> =
                tiny.tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
            for (name, tensor) in matrices {
                if let [ref outer @ .., cols] = tensor.shape[..]
                    && !outer.is_empty()
                {
                    tiny.matrix(&name, outer.iter().product(), cols, block);
                    tiny.tensors.get_mut(&name).unwrap().shape = tensor.shape;
                }
            }
            let gguf = open_gguf(&tiny);
            let folder = Folder::of(&gguf);
            assert_eq!(folder.tensors["model.layers.0.mlp.down_proj.weight"].dtype, dtype);
            let folder = folder.open().unwrap();
            assert_eq!(BaseId::of(&folder).unwrap(), BaseId::of(&gguf).unwrap());
            let tokens = [3, 7, 1, 11, 2];
            let logits = run(folder, &tokens);
            assert!(logits.iter().all(|x| x.is_finite()));
            assert!(bits(logits) == bits(run(gguf, &tokens)), "{dtype}");
        }
    }
}

#[test]
fn weights_in_several_files_are_the_weights_in_one() {
    let folder = folder("llama_linear");
    let one = folder.open().unwrap();
    let tokens = reference("llama_linear").tokens;
    let expected = bits(run(folder.open().unwrap(), &tokens));
    for count in [1, 2, 7] {
        let dir = tempfile::tempdir().unwrap();
        folder.save_shards(dir.path(), count);
        let shards = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(BaseId::of(&shards).unwrap(), BaseId::of(&one).unwrap());
        let names: Vec<_> = shards.files().iter().map(|p| p.file_name().unwrap()).collect();
        assert_eq!(names.len(), 1 + count);
        assert_eq!((names[0].to_str(), names.is_sorted()), (Some("config.json"), true));
        assert!(bits(run(shards, &tokens)) == expected, "{count} files");
    }
    assert_eq!(one.files().len(), 2);
    assert!(one.files()[1].ends_with("model.safetensors"));
}

#[test]
fn one_file_goes_before_an_index() {
    let folder = tiny("llama");
    let dir = tempfile::tempdir().unwrap();
    folder.save_shards(dir.path(), 2);
    folder.save(dir.path());
    let files = Checkpoint::open(dir.path()).unwrap().files().to_vec();
    assert!(files[1].ends_with("model.safetensors") && files.len() == 2, "{files:?}");
}

#[test]
fn the_files_are_those_that_the_safetensors_library_reads() {
    let folder = tiny("qwen2");
    let bytes = folder.weights();
    let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), folder.tensors.len());
    let tensor = read.tensor("model.norm.weight").unwrap();
    assert_eq!(tensor.data(), folder.tensors["model.norm.weight"].bytes);
    // And one of the library's own making, its tensors in another order.
    let views = folder.tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype {
            "F16" => ::safetensors::Dtype::F16,
            _ => ::safetensors::Dtype::F32,
        };
        let view =
            ::safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes);
        (name.clone(), view.unwrap())
    });
    let theirs = ::safetensors::serialize(views, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    folder.save(dir.path());
    let id = BaseId::of(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), theirs).unwrap();
    assert_eq!(BaseId::of(&Checkpoint::open(dir.path()).unwrap()).unwrap(), id);
}

#[test]
fn both_spellings_of_scaled_frequencies_are_read() {
    let scaling = |change: &dyn Fn(&mut Folder)| {
        let mut folder = tiny("llama");
        change(&mut folder);
        let config = folder.open().unwrap().config().clone();
        (config.rope_theta, config.rope_scaling)
    };
    let linear = |factor| RopeScaling::Linear { factor };
    assert_eq!(scaling(&|_| {}), (10_000.0, RopeScaling::None));
    for (spelling, value, expected) in [
        ("rope_scaling", json!({"type": "linear", "factor": 4}), (10_000.0, linear(4.0))),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 2.5}), (10_000.0, linear(2.5))),
        (
            "rope_parameters",
            json!({"rope_type": "linear", "type": "linear", "factor": 2, "rope_theta": 5e5}),
            (500_000.0, linear(2.0)),
        ),
        ("rope_scaling", json!({"type": "default"}), (10_000.0, RopeScaling::None)),
        ("rope_parameters", json!({"rope_theta": 1e6}), (1_000_000.0, RopeScaling::None)),
        ("rope_parameters", Value::Null, (10_000.0, RopeScaling::None)),
    ] {
        let set = |folder: &mut Folder| folder.set(spelling, value.clone());
        assert_eq!(scaling(&set), expected, "{spelling} {value}");
    }
    let stretched = scaling(&|folder| folder.set("rope_scaling", yarn()));
    assert!(matches!(stretched.1, RopeScaling::Factors(_)), "{stretched:?}");
    let mut long = tiny("llama");
    for (factor, reach) in [(4.0, 256), (0.5, 64)] {
        long.set("rope_scaling", yarn());
        long.config["rope_scaling"]["factor"] = factor.into();
        assert_eq!(long.open().unwrap().config().max_position_embeddings, reach);
    }
    long.config["rope_scaling"]["factor"] = 1e30.into();
    let error = long.open().unwrap_err().to_string();
    assert!(error.contains("max_position_embeddings is 18446744073709551615"), "{error}");
    let old = scaling(&|folder| folder.set("rope_scaling", factors()));
    let new = scaling(&|folder| folder.set("rope_parameters", factors()));
    let apart = scaling(&|folder| {
        let mut rule = factors();
        rule.as_object_mut().unwrap().remove("original_max_position_embeddings");
        folder.set("rope_scaling", rule);
        folder.set("original_max_position_embeddings", 64);
    });
    assert!(matches!(&old.1, RopeScaling::Factors(factors) if factors.len() == 4));
    assert_eq!((&new, &apart), (&old, &old));
}

#[test]
fn what_a_file_leaves_out_is_as_transformers_has_it() {
    let mut folder = tiny("llama");
    let fields = folder.config.as_object_mut().unwrap();
    for name in ["num_key_value_heads", "head_dim", "rope_theta", "mlp_bias", "attention_bias"] {
        fields.remove(name);
    }
    for name in ["rope_scaling", "architectures", "hidden_act", "tie_word_embeddings"] {
        fields.remove(name);
    }
    for part in ["k", "v"] {
        let name = |part: &str| format!("model.layers.0.self_attn.{part}_proj.weight");
        let q = folder.tensors[&name("q")].clone();
        folder.tensors.insert(name(part), q);
    }
    let head = folder.tensors["model.embed_tokens.weight"].clone();
    folder.tensors.insert("lm_head.weight".to_owned(), head);
    let checkpoint = folder.open().unwrap();
    let c = checkpoint.config();
    assert_eq!((c.num_key_value_heads, c.head_dim, c.rope_theta), (4, 8, 10_000.0));
    assert!(!c.tie_word_embeddings && !c.attention_bias && !c.mlp_bias);
    // Tied, the copy of the head is passed over.
    folder.set("tie_word_embeddings", true);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.unused(), ["lm_head.weight"]);
    assert!(checkpoint.get("lm_head.weight").is_none());
}

#[test]
fn frequencies_that_older_versions_wrote_are_passed_over() {
    let mut folder = tiny("llama");
    let norm = folder.tensors["model.norm.weight"].clone();
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    folder.tensors.insert(name.to_owned(), norm);
    assert_eq!(folder.open().unwrap().unused(), [name]);
}

#[test]
fn a_header_of_odd_length_moves_no_weight() {
    let folder = tiny("llama");
    let id = BaseId::of(&folder.open().unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    folder.save(dir.path());
    let tensors = folder.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let bytes = safetensors(tensors);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    for spaces in 1..5 {
        let header = [header, &b"    "[..spaces]].concat();
        let file = support::folder::with_header(std::str::from_utf8(&header).unwrap(), data);
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(BaseId::of(&checkpoint).unwrap(), id);
        assert_eq!(run(checkpoint, &[3, 4, 5]).len(), 3 * 12);
    }
}

#[test]
fn settings_that_a_family_has_no_place_for_are_refused() {
    let first_local = json!(["sliding_attention", "full_attention"]);
    let long = json!({
        "type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
        "original_max_position_embeddings": 64,
    });
    let apart = json!({"rope_type": "default", "partial_rotary_factor": 0.5});
    for (name, field, value, expected) in [
        ("gemma3_linear", "attn_logit_softcapping", 50.into(), "softcapped attention is not"),
        ("gemma3_linear", "use_bidirectional_attention", true.into(), "attention to what follows"),
        ("gemma3_linear", "hidden_activation", "gelu".into(), r#"only "gelu_pytorch_tanh""#),
        ("gemma3_linear", "sliding_window", Value::Null, "sliding_window: null, but there are"),
        (
            "gemma3_linear",
            "sliding_window_pattern",
            0.into(),
            "sliding_window_pattern: 0, expected",
        ),
        ("gemma3_linear", "query_pre_attn_scalar", 0.into(), "query_pre_attn_scalar is 0"),
        ("gemma3_linear", "rope_parameters", json!({"rope_theta": 1e6}), "only full_attention and"),
        ("mistral_window", "final_logit_softcapping", 30.into(), "softcapped logits are not"),
        ("mistral_window", "layer_types", first_local.clone(), r#"expected "sliding_attention""#),
        ("qwen3_tied", "layer_types", first_local, r#"layer 0 is "sliding_attention", expected"#),
        ("qwen3_tied", "hidden_act", "gelu_pytorch_tanh".into(), r#"only "silu""#),
        ("qwen3_tied", "rope_scaling", long.clone(), r#""longrope" is not supported"#),
        ("phi3_short", "rope_scaling", long, "short_factor: 1 of them, expected 6"),
        (
            "phi3_short",
            "partial_rotary_factor",
            0.75.into(),
            "0.75 of a head of 12, expected an even",
        ),
        ("phi3_short", "partial_rotary_factor", 0.into(), "0 of a head of 12, expected an even"),
        (
            "phi3_short",
            "partial_rotary_factor",
            1.5.into(),
            "1.5 of a head of 12, expected an even",
        ),
        ("phi3_short", "partial_rotary_factor", 0.5.into(), "short_factor: 6 of them, expected 3"),
        ("phi3_partial", "rope_scaling", apart, "0.5, but partial_rotary_factor is 0.75"),
        ("qwen3_tied", "partial_rotary_factor", 0.5.into(), "0.5 is not supported of this model"),
        ("phi3_short", "attention_bias", true.into(), "biases of attention are not supported"),
    ] {
        let mut folder = folder(name);
        folder.set(field, value);
        let error = folder.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{name} {field}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // As the published files have it: the class that transformers knows itself.
    let mut published = folder("phi3_short");
    let classes = json!({
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    });
    published.set("auto_map", classes);
    published.open().unwrap();
    // A part that stands beside the whole is one too many.
    let mut twice = folder("phi3_short");
    let part = "model.layers.0.self_attn.q_proj.weight";
    let whole = twice.tensors["model.layers.0.self_attn.qkv_proj.weight"].clone();
    twice.tensors.insert(part.to_owned(), whole);
    let error = twice.open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("q_proj.weight") || error.contains("qkv_proj.weight"), "{error}");
    // A matrix that is not as wide as its parts together is not taken apart.
    let mut folder = folder("phi3_short");
    let name = "model.layers.1.self_attn.qkv_proj.weight";
    let fused = folder.tensors.get_mut(name).unwrap();
    fused.shape[0] -= 1;
    fused.bytes.truncate(fused.bytes.len() - 2 * fused.shape[1]);
    let error = folder.open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.self_attn.q_proj.weight\": missing"), "{error}");
}
