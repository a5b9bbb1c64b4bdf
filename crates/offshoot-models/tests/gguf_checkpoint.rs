//! From a GGUF file to the canonical checkpoint and its identities.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::PathBuf;

use offshoot_kernels::BlockType;
use offshoot_models::gguf::Array;
use offshoot_models::{
    BaseId, Checkpoint, Error, Family, GenerationDefaults, ModelConfig, PreTokenizer, RopeId,
    RopeScaling, TemplateId, TokenKind, TokenizerId,
};

mod support;
use support::byte_level;
use support::tiny::{FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, TOKENS, Tiny, TinyTensor};
use support::{assert_one_line, hostile, walk};

/// A folder that goes away with its file.
struct Saved {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn save(bytes: &[u8]) -> Saved {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Saved { _dir: dir, path }
}

fn open(tiny: &Tiny) -> Checkpoint {
    // The map outlives the file's name.
    Checkpoint::open(&save(&tiny.bytes()).path).unwrap()
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.require(name).unwrap();
    let mut out = vec![0.0; tensor.len()];
    for (row, out) in out.chunks_exact_mut(tensor.cols()).enumerate() {
        tensor.read_row(row, out).unwrap();
    }
    out
}

/// Canonical rows to stored ones as llama.cpp's converter does it, by axes rather than by index:
/// `[heads, 2, head_dim / 2]` becomes `[heads, head_dim / 2, 2]`.
fn interleaved<T: Copy>(rows: &[T]) -> Vec<T> {
    let heads = rows.chunks_exact(HEAD_DIM);
    heads
        .flat_map(|head| {
            let (first, second) = head.split_at(HEAD_DIM / 2);
            first.iter().zip(second).flat_map(|(a, b)| [*a, *b])
        })
        .collect()
}

#[test]
fn a_llama_file_opens_under_canonical_names() {
    let checkpoint = open(&Tiny::llama());
    let expected = ModelConfig {
        family: Family::Llama,
        hidden_size: HIDDEN,
        intermediate_size: FFN,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        num_key_value_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        rotary_dim: HEAD_DIM,
        vocab_size: TOKENS.len(),
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_magnitude: 1.0,
        sliding_window: None,
        rope_local_base_freq: None,
        query_pre_attn_scalar: 8.0,
        final_logit_softcapping: None,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        experts: None,
    };
    assert_eq!(checkpoint.config(), &expected);
    assert_eq!(checkpoint.name(), Some("Tiny"));
    assert!(checkpoint.unused().is_empty());
    let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect();
    assert_eq!(names.len(), 2 + 9 * LAYERS);
    let down = checkpoint.require("model.layers.1.mlp.down_proj.weight").unwrap();
    assert_eq!((&down.info.shape[..], down.info.block), (&[HIDDEN, FFN][..], BlockType::Iq4Nl));
    assert!(checkpoint.get("lm_head.weight").is_none());
    let missing = checkpoint.require("lm_head.weight").unwrap_err();
    assert!(missing.to_string().starts_with("tensor lm_head.weight: missing from"), "{missing}");
}

#[test]
fn a_qwen2_file_has_biases_and_a_head_of_its_own() {
    let checkpoint = open(&Tiny::qwen2());
    let config = checkpoint.config();
    assert_eq!(config.family, Family::Qwen2);
    assert!(config.attention_bias && !config.mlp_bias && !config.tie_word_embeddings);
    assert_eq!(checkpoint.tensors().count(), 3 + 12 * LAYERS);
    let head = checkpoint.require("lm_head.weight").unwrap();
    assert_eq!(head.info.shape, [TOKENS.len(), HIDDEN]);
    let bias = checkpoint.require("model.layers.0.self_attn.k_proj.bias").unwrap();
    assert_eq!(bias.info.shape, [KV_HEADS * HEAD_DIM]);
    assert!(checkpoint.unused().is_empty());
}

#[test]
fn a_gemma3_file_has_norms_after_each_half_of_a_block_and_local_layers() {
    let checkpoint = open(&Tiny::gemma3());
    let config = checkpoint.config();
    assert_eq!((config.family, config.tie_word_embeddings), (Family::Gemma3, true));
    let windows = [config.window(0), config.window(1)].map(|window| window.map(|w| w.get()));
    assert_eq!(windows, [Some(3), None]);
    assert_eq!((config.rope_local_base_freq, config.query_pre_attn_scalar), (Some(10_000.0), 8.0));
    assert_eq!(config.final_logit_softcapping, Some(30.0));
    assert_eq!(checkpoint.tensors().count(), 2 + 13 * LAYERS);
    assert!(checkpoint.unused().is_empty());
    // A file stores the weights of norms, not these less 1.
    assert_eq!(values(&checkpoint, "model.norm.weight")[8], 1.0);
    let mut tiny = Tiny::gemma3();
    tiny.keys.remove("gemma3.attention.sliding_window_pattern");
    assert_eq!(open(&tiny).config().sliding_window.clone().unwrap().layers, [true; 2]);
    tiny.set("gemma3.attn_logit_softcapping", 50f32);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("softcapped attention is not supported"), "{error}");
    let mut tiny = Tiny::llama();
    tiny.set("llama.final_logit_softcapping", 30f32);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("softcapped logits are not supported"), "{error}");
}

#[test]
fn a_llama_file_with_a_window_is_a_mistral() {
    let config = open(&Tiny::mistral()).config().clone();
    assert_eq!(config.family, Family::Mistral);
    assert_eq!(config.window(1).map(|window| window.get()), Some(3));
    let mut tiny = Tiny::mistral();
    tiny.set("llama.attention.sliding_window", 0u32);
    let config = open(&tiny).config().clone();
    assert_eq!((config.family, config.window(0)), (Family::Llama, None));
    // A window that nothing reaches is none; another would be of layers that the file does not name.
    let mut tiny = Tiny::qwen2();
    tiny.set("qwen2.attention.sliding_window", 64u32);
    assert_eq!(open(&tiny).config().sliding_window, None);
    tiny.set("qwen2.attention.sliding_window", 63u32);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("sliding_window\": 63, but the file does not say"), "{error}");
    let mut tiny = Tiny::mistral();
    tiny.vector("blk.0.ffn_up.bias", FFN);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("sliding_window\": not supported beside biases"), "{error}");
}

#[test]
fn a_phi3_file_is_read_as_the_parts_of_its_matrices() {
    let tiny = Tiny::phi3();
    let checkpoint = open(&tiny);
    let config = checkpoint.config();
    assert_eq!((config.family, config.rope_magnitude), (Family::Phi3, 1.2f64.sqrt() as f32));
    assert_eq!(config.window(1).map(|window| window.get()), Some(5));
    let RopeScaling::Long { short, long, trained: 32 } = &config.rope_scaling else {
        panic!("{:?}", config.rope_scaling)
    };
    assert_eq!((short[3], long[3]), (0.6875, 8.0));
    assert_eq!((config.rope_for(32), config.rope_for(33)), (RopeId(0), RopeId(1)));
    assert!(checkpoint.unused().is_empty());
    assert_eq!(checkpoint.tensors().count(), 2 + 9 * LAYERS);
    let whole = |name: &str| {
        let TinyTensor { shape, block, bytes } = &tiny.tensors[name];
        let mut out = vec![0.0; shape.iter().product()];
        block.dequantize(bytes, &mut out).unwrap();
        out
    };
    let name = |part: &str| format!("model.layers.1.{part}_proj.weight");
    let parts = |parts: &[&str]| -> Vec<f32> {
        parts.iter().flat_map(|part| values(&checkpoint, &name(part))).collect()
    };
    let qkv = parts(&["self_attn.q", "self_attn.k", "self_attn.v"]);
    assert_eq!(qkv, whole("blk.1.attn_qkv.weight"));
    assert_eq!(parts(&["mlp.gate", "mlp.up"]), whole("blk.1.ffn_up.weight"));
    let mut half = Tiny::phi3();
    half.tensors.remove("rope_factors_long.weight");
    let error = walk(&half.bytes()).unwrap_err().to_string();
    assert!(error.contains("expected both"), "{error}");
    // Of heads of 8 the first 6 elements are rotated, by three factors. Files give no width of a
    // head.
    let mut part = Tiny::phi3();
    part.set("phi3.rope.dimension_count", 6u32);
    part.vector("rope_factors_short.weight", 3);
    part.floats("rope_factors_long.weight", &[3], &[1.0, 2.0, 4.0]);
    let config = open(&part).config().clone();
    assert_eq!((config.head_dim, config.rotary_dim), (HEAD_DIM, 6));
    for (rotary_dim, expected) in [
        (0u32, "rotary_dim is 0, expected 1 to 8"),
        (5, "rotary_dim 5 is odd"),
        (8, "F32 of shape [3], expected F32 of [4]"),
        (10, "rotary_dim is 10, expected 1 to 8"),
    ] {
        part.set("phi3.rope.dimension_count", rotary_dim);
        let error = walk(&part.bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut narrow = Tiny::phi3();
    narrow.matrix("blk.1.attn_qkv.weight", HEADS * HEAD_DIM, HIDDEN, BlockType::F16);
    let error = walk(&narrow.bytes()).unwrap_err().to_string();
    assert!(error.contains("shape [32, 32], expected [64, 32]"), "{error}");
}

#[test]
fn a_qwen3_file_has_norms_of_heads() {
    let checkpoint = open(&Tiny::qwen3());
    let config = checkpoint.config();
    assert_eq!((config.family, config.attention_bias), (Family::Qwen3, false));
    assert_eq!(checkpoint.tensors().count(), 2 + 11 * LAYERS);
    let norm = checkpoint.require("model.layers.1.self_attn.k_norm.weight").unwrap();
    assert_eq!(norm.info.shape, [HEAD_DIM]);
    assert!(checkpoint.unused().is_empty());
    assert_eq!(byte_level::pre(checkpoint.tokenizer().unwrap()), PreTokenizer::Qwen2);
    let mut tiny = Tiny::qwen3();
    tiny.tensors.remove("blk.1.attn_q_norm.weight");
    let error = walk(&tiny.bytes()).unwrap_err();
    assert!(error.to_string().contains("\"blk.1.attn_q_norm.weight\": missing"), "{error}");
}

#[test]
fn qwen2_without_a_bias_is_an_error_that_names_it() {
    let mut tiny = Tiny::qwen2();
    tiny.tensors.remove("blk.1.attn_k.bias");
    let error = walk(&tiny.bytes()).unwrap_err();
    assert!(error.to_string().contains("\"blk.1.attn_k.bias\": missing"), "{error}");
}

#[test]
fn rows_of_llamas_q_and_k_come_out_in_canonical_order() {
    let (rows, mut tiny) = (HEADS * HEAD_DIM, Tiny::llama());
    let canonical: Vec<[f32; HIDDEN]> = (0..rows).map(|r| [r as f32; HIDDEN]).collect();
    let stored: Vec<f32> = interleaved(&canonical).into_iter().flatten().collect();
    tiny.floats("blk.0.attn_q.weight", &[rows, HIDDEN], &stored);
    let numbers: Vec<f32> = (0..rows).map(|r| r as f32).collect();
    for part in ["attn_q", "attn_output"] {
        for layer in 0..LAYERS {
            tiny.floats(&format!("blk.{layer}.{part}.bias"), &[rows], &interleaved(&numbers));
        }
    }
    for (part, layer) in [("k", 0), ("k", 1), ("v", 0), ("v", 1)] {
        tiny.vector(&format!("blk.{layer}.attn_{part}.bias"), KV_HEADS * HEAD_DIM);
    }
    let checkpoint = open(&tiny);
    assert!(checkpoint.config().attention_bias);
    let q = values(&checkpoint, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q, canonical.concat());
    assert_eq!(values(&checkpoint, "model.layers.0.self_attn.q_proj.bias"), numbers);
    // Only q and k are stored so.
    let o = values(&checkpoint, "model.layers.0.self_attn.o_proj.bias");
    assert_eq!(o, interleaved(&numbers));
}

#[test]
fn rows_and_places_that_do_not_fit_are_errors() {
    let checkpoint = open(&Tiny::llama());
    let norm = checkpoint.require("model.norm.weight").unwrap();
    let mut out = [0.0; HIDDEN];
    norm.read_row(0, &mut out).unwrap();
    assert_eq!(out[16], 1.5);
    assert_one_line(&norm.read_row(1, &mut out).unwrap_err(), "row 1 of a vector");
    assert_one_line(&norm.read_row(0, &mut out[1..]).unwrap_err(), "31 places");
}

#[test]
fn mlp_biases_are_taken_where_llama_has_them() {
    let mut tiny = Tiny::llama();
    for layer in 0..LAYERS {
        for (part, len) in [("gate", FFN), ("up", FFN), ("down", HIDDEN)] {
            tiny.vector(&format!("blk.{layer}.ffn_{part}.bias"), len);
        }
    }
    let checkpoint = open(&tiny);
    assert!(checkpoint.config().mlp_bias && !checkpoint.config().attention_bias);
    assert_eq!(values(&checkpoint, "model.layers.1.mlp.down_proj.bias").len(), HIDDEN);
}

#[test]
fn tensors_that_the_architecture_lacks_are_listed() {
    let mut tiny = Tiny::qwen2();
    tiny.vector("blk.2.attn_norm.weight", HIDDEN);
    tiny.vector("rope_freqs.weight", HEAD_DIM / 2);
    let checkpoint = open(&tiny);
    assert_eq!(checkpoint.unused(), ["blk.2.attn_norm.weight"]);
    let expected = RopeScaling::Factors(vec![0.5, 0.5625, 0.625, 0.6875]);
    assert_eq!(checkpoint.config().rope_scaling, expected);
}

#[test]
fn rope_scaling_is_read_from_keys() {
    let mut tiny = Tiny::llama();
    tiny.set("llama.rope.scaling.type", "linear");
    tiny.set("llama.rope.scaling.factor", 4f32);
    tiny.set("llama.rope.freq_base", 500_000f32);
    let config = open(&tiny).config().clone();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(config.rope_theta, 500_000.0);
    tiny.set("llama.rope.scaling.type", "yarn");
    let refused = |tiny: &Tiny| walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(matches!(open(&tiny).config().rope_scaling, RopeScaling::Factors(_)));
    assert_eq!(open(&tiny).config().max_position_embeddings, 4 * 64);
    tiny.set("llama.rope.scaling.original_context_length", 32u32);
    let config = open(&tiny).config().clone();
    assert!(matches!(config.rope_scaling, RopeScaling::Factors(factors) if factors[3] == 4.0));
    assert_eq!(config.max_position_embeddings, 4 * 32);
    tiny.set("llama.rope.scaling.original_context_length", 8u32);
    assert_eq!(open(&tiny).config().max_position_embeddings, 64, "the file's own is more");
    tiny.set("llama.rope.scaling.original_context_length", 32u32);
    assert!((config.rope_magnitude - 1.138_629_4).abs() < 1e-6, "{}", config.rope_magnitude);
    tiny.set("llama.rope.scaling.attn_factor", 0.5f32);
    assert!((open(&tiny).config().rope_magnitude - 0.569_314_7).abs() < 1e-6);
    // What config.json gives in the place of the rule's.
    tiny.set("llama.rope.scaling.yarn_attn_factor", 1.5f32);
    assert_eq!(open(&tiny).config().rope_magnitude, 0.75);
    tiny.set("llama.rope.scaling.yarn_log_multiplier", 0.1f32);
    assert!(refused(&tiny).contains("yarn_log_multiplier\": 0.1"), "{}", refused(&tiny));
    tiny.set("llama.rope.scaling.type", "none");
    assert_eq!(open(&tiny).config().rope_scaling, RopeScaling::None);
}

#[test]
fn what_stretches_without_a_type_is_linear() {
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        for (value, expected) in [
            (4f32, RopeScaling::Linear { factor: 4.0 }),
            (1.0, RopeScaling::None),
            (0.0, RopeScaling::None),
        ] {
            let mut tiny = Tiny::llama();
            tiny.set(key, value);
            assert_eq!(open(&tiny).config().rope_scaling, expected, "{key} {value}");
        }
    }
}

#[test]
fn tensors_that_would_change_the_result_are_refused() {
    let mut tiny = Tiny::qwen2();
    tiny.vector("blk.0.attn_q_norm.weight", HEAD_DIM);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q_norm.weight\": not one of a qwen2 model"), "{error}");
    let mut tiny = Tiny::llama();
    tiny.vector("output.bias", HEAD_DIM);
    let error = walk(&tiny.bytes()).unwrap_err().to_string();
    assert!(error.contains("output.bias\": not one of a llama model"), "{error}");
}

#[test]
fn a_head_may_be_wider_than_its_share() {
    let mut tiny = Tiny::llama();
    tiny.set("llama.attention.key_length", 16u32);
    tiny.set("llama.attention.value_length", 16u32);
    tiny.set("llama.rope.dimension_count", 16u64);
    for layer in 0..LAYERS {
        tiny.matrix(&format!("blk.{layer}.attn_q.weight"), HEADS * 16, HIDDEN, BlockType::Q4_1);
        tiny.matrix(&format!("blk.{layer}.attn_k.weight"), KV_HEADS * 16, HIDDEN, BlockType::F32);
        tiny.matrix(&format!("blk.{layer}.attn_v.weight"), KV_HEADS * 16, HIDDEN, BlockType::F16);
        tiny.matrix(&format!("blk.{layer}.attn_output.weight"), HIDDEN, HEADS * 16, BlockType::F16);
    }
    assert_eq!(open(&tiny).config().head_dim, 16);
}

#[test]
fn the_tokenizer_is_read_whole() {
    let checkpoint = open(&Tiny::llama());
    let spec = checkpoint.tokenizer().unwrap();
    assert_eq!(spec.tokens, TOKENS);
    assert_eq!(spec.kinds[2..4], [TokenKind::Control, TokenKind::Normal]);
    assert_eq!(byte_level::merges(spec)[2], ("ab".to_owned(), "cd".to_owned()));
    assert_eq!(byte_level::pre(spec), PreTokenizer::SmolLm);
    assert_eq!((spec.bos, spec.eos, spec.pad, spec.unk), (Some(1), Some(2), Some(0), None));
    assert!(!spec.add_bos && !spec.add_eos);
    assert_eq!(checkpoint.chat_template(), Some("{{ messages[0].content }}"));
}

#[test]
fn every_pre_tokenizer_name_maps_to_its_rule() {
    for (name, pre, add_bos) in [
        ("gpt-2", PreTokenizer::Gpt2, false),
        ("default", PreTokenizer::Gpt2, false),
        ("smollm", PreTokenizer::SmolLm, false),
        ("qwen2", PreTokenizer::Qwen2, false),
        ("llama-bpe", PreTokenizer::Llama3, true),
        ("llama3", PreTokenizer::Llama3, true),
        ("llama-v3", PreTokenizer::Llama3, true),
        ("tekken", PreTokenizer::Tekken, true),
        ("gpt-4o", PreTokenizer::Gpt4o, false),
        ("deepseek-r1-qwen", PreTokenizer::Qwen2, false),
        ("qwen35", PreTokenizer::Qwen35, false),
        ("starcoder", PreTokenizer::SmolLm, false),
        ("refact", PreTokenizer::SmolLm, false),
        ("command-r", PreTokenizer::CommandR, false),
        ("falcon3", PreTokenizer::Llama3, true),
        ("llama4", PreTokenizer::Gpt4o, false),
        ("deepseek-llm", PreTokenizer::DeepSeekLlm, false),
        ("deepseek-coder", PreTokenizer::DeepSeekCoder, false),
        ("deepseek-v3", PreTokenizer::DeepSeekV3, false),
    ] {
        let mut tiny = Tiny::llama();
        tiny.set("tokenizer.ggml.pre", name);
        let checkpoint = open(&tiny);
        let spec = checkpoint.tokenizer().unwrap();
        assert_eq!((byte_level::pre(spec), spec.add_bos), (pre, add_bos), "{name}");
    }
}

#[test]
fn a_tokenizer_that_cannot_be_built_is_an_error_only_when_asked_for() {
    for (key, value, expected) in [
        ("tokenizer.ggml.model", Some("bert"), r#"kind "bert"; byte-level BPE"#),
        ("tokenizer.ggml.model", None, r#"lacks key "tokenizer.ggml.model""#),
        ("tokenizer.ggml.pre", Some("viking"), r#""tokenizer.ggml.pre": "viking", expected gpt-2"#),
        ("tokenizer.ggml.pre", None, r#"lacks key "tokenizer.ggml.pre""#),
        ("tokenizer.ggml.tokens", None, "the file has no tokenizer"),
    ] {
        let mut tiny = Tiny::llama();
        match value {
            Some(value) => tiny.set(key, value),
            None => drop(tiny.keys.remove(key)),
        }
        let checkpoint = open(&tiny);
        let error = checkpoint.tokenizer().unwrap_err();
        assert_one_line(&error, key);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().starts_with(checkpoint.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn stop_tokens_are_the_union_of_ids_and_end_markers() {
    let mut tiny = Tiny::llama();
    assert_eq!(open(&tiny).stop_tokens(), [2]);
    tiny.set("tokenizer.ggml.eos_token_id", 9u32);
    tiny.set("tokenizer.ggml.eot_token_id", 4u32);
    tiny.set("tokenizer.ggml.eom_token_id", 4u32);
    let mut texts = TOKENS;
    texts[0] = "<|endoftext|>";
    texts[3] = "</s>"; // of kind Normal: a word of some markup
    tiny.set("tokenizer.ggml.tokens", texts.into_iter().collect::<Array<'_>>());
    let checkpoint = open(&tiny);
    assert_eq!(checkpoint.stop_tokens(), [0, 2, 4, 9]);
    assert_eq!(checkpoint.tokenizer().unwrap().end_of_turn, [4, 4]);
}

#[test]
fn a_generation_config_beside_the_file_adds_its_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, Tiny::llama().bytes()).unwrap();
    let json = r#"{"eos_token_id": [2, 1, 99], "temperature": 0.7}"#;
    std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().stop_tokens(), [1, 2]);
    std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("generation_config.json: "), "{error}");
}

#[test]
fn a_generation_config_among_several_models_is_that_of_those_whose_end_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let other = dir.path().join("other.GGUF");
    let beside = dir.path().join("generation_config.json");
    for path in [&path, &other] {
        std::fs::write(path, Tiny::llama().bytes()).unwrap();
    }
    let temperature = || Checkpoint::open(&path).unwrap().generation().temperature;
    for (json, taken) in [
        (r#"{"eos_token_id": [1, 2], "temperature": 0.5}"#, Some(0.5)),
        (r#"{"eos_token_id": 1, "temperature": 0.5}"#, None),
        (r#"{"eos_token_id": 128009, "temperature": 0.5}"#, None),
        (r#"{"temperature": 0.5}"#, None),
        ("{", None),
    ] {
        std::fs::write(&beside, json).unwrap();
        assert_eq!(temperature(), taken, "{json}");
        let ends = if taken.is_some() { &[1, 2][..] } else { &[2] };
        assert_eq!(Checkpoint::open(&path).unwrap().stop_tokens(), ends, "{json}");
    }
    std::fs::remove_file(&other).unwrap();
    std::fs::write(&beside, r#"{"temperature": 0.5}"#).unwrap();
    assert_eq!(temperature(), Some(0.5));
}

#[test]
fn settings_of_sampling_are_those_of_the_file_then_of_the_one_beside() {
    let mut tiny = Tiny::llama();
    tiny.set("general.sampling.temp", 0.6f32);
    tiny.set("general.sampling.top_k", -1i32);
    tiny.set("general.sampling.penalty_last_n", 256i32);
    tiny.set("general.sampling.sequence", "kpt");
    let saved = save(&tiny.bytes());
    let beside = saved.path.with_file_name("generation_config.json");
    std::fs::write(&beside, r#"{"temperature": 1.0, "top_p": 0.9, "top_k": 20}"#).unwrap();
    let expected = GenerationDefaults {
        temperature: Some(0.6),
        top_k: Some(0),
        top_p: Some(0.9),
        penalty_window: Some(256),
        ..GenerationDefaults::default()
    };
    assert_eq!(Checkpoint::open(&saved.path).unwrap().generation(), expected);
    assert_eq!(open(&Tiny::qwen2()).generation(), GenerationDefaults::default());
    // Advice is taken as it is meant.
    let mut odd = Tiny::llama();
    odd.set("general.sampling.temp", -1i32);
    odd.set("general.sampling.top_k", -7i32);
    let meant = open(&odd).generation();
    assert_eq!((meant.temperature, meant.top_k), (Some(0.0), Some(0)));
    let wrong: [(&str, offshoot_models::gguf::Value<'static>); 4] = [
        ("temp", "hot".into()),
        ("top_p", 1.5f32.into()),
        ("top_k", "many".into()),
        ("penalty_repeat", f32::NAN.into()),
    ];
    for (key, value) in wrong {
        let mut tiny = Tiny::llama();
        tiny.set(&format!("general.sampling.{key}"), value);
        let error = walk(&tiny.bytes()).unwrap_err();
        assert_one_line(&error, key);
        assert!(error.to_string().contains(&format!("general.sampling.{key}")), "{error}");
    }
}

#[test]
fn what_is_no_gguf_file_is_called_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for (bytes, expected) in [
        (
            &b"PK\x03\x04rest"[..],
            "a zip archive, as PyTorch writes; offshoot opens GGUF files and folders",
        ),
        (b"\x40\0\0\0\0\0\0\0{\"a\":", "a safetensors file; give the folder"),
        (b"tjgg\x03\0\0\0", "a GGML file from before GGUF"),
        (b"<htm", "begins with \"<htm\""),
        (b"\n", "begins with \"\\n\""),
    ] {
        let path = dir.path().join("model.bin");
        std::fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert_one_line(&error, expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let folder = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(folder.contains(": a folder without config.json; give a GGUF file"), "{folder}");
    let absent = Checkpoint::open(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(absent, Error::Io { .. }), "{absent}");
    let absent = hostile::all().into_iter().find(|case| case.name == "magic-only").unwrap();
    let saved = save(&absent.bytes);
    assert!(Checkpoint::open(&saved.path).unwrap_err().to_string().contains(absent.error));
}

/// The identity as its documentation defines it, with every tensor held whole.
fn base_id(checkpoint: &Checkpoint) -> [u8; 32] {
    let mut fields = Vec::new();
    for tensor in checkpoint.tensors() {
        fields.extend((tensor.name.len() as u64).to_le_bytes());
        fields.extend(tensor.name.as_bytes());
        fields.extend((tensor.info.shape.len() as u64).to_le_bytes());
        fields.extend(tensor.info.shape.iter().flat_map(|n| (*n as u64).to_le_bytes()));
        let bytes: Vec<u8> =
            values(checkpoint, tensor.name).iter().flat_map(|v| v.to_le_bytes()).collect();
        fields.extend(blake3::derive_key("offshoot 2026 tensor digest v1", &bytes));
    }
    blake3::derive_key("offshoot 2026 base id v1", &fields)
}

#[test]
fn the_base_id_is_the_hash_it_is_said_to_be() {
    for tiny in Tiny::families().into_iter().chain([Tiny::smallest("qwen2")]) {
        let checkpoint = open(&tiny);
        assert_eq!(BaseId::of(&checkpoint).unwrap().as_bytes(), &base_id(&checkpoint));
    }
}

#[test]
fn the_base_id_does_not_depend_on_the_file_but_on_the_weights() {
    let tiny = Tiny::llama();
    let id = BaseId::of(&open(&tiny)).unwrap();

    // The same weights in single precision, in a file laid out otherwise.
    let mut other = tiny.clone();
    other.alignment = 256;
    other.set("general.name", "Another");
    for tensor in other.tensors.values_mut() {
        *tensor = in_f32(tensor);
    }
    other.vector("extra.weight", 3);
    assert_eq!(BaseId::of(&open(&other)).unwrap(), id);

    // One bit of one weight.
    other.tensors.get_mut("blk.1.ffn_up.weight").unwrap().bytes[200] ^= 1;
    assert_ne!(BaseId::of(&open(&other)).unwrap(), id);
}

fn in_f32(tensor: &TinyTensor) -> TinyTensor {
    let mut weights = vec![0.0f32; tensor.shape.iter().product()];
    tensor.block.dequantize(&tensor.bytes, &mut weights).unwrap();
    let bytes = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
    TinyTensor { shape: tensor.shape.clone(), block: BlockType::F32, bytes }
}

#[test]
fn the_tokenizer_id_depends_on_every_field() {
    let spec = open(&Tiny::llama()).tokenizer().unwrap().clone();
    let id = TokenizerId::of(&spec);
    assert_eq!(id, TokenizerId::of(&spec.clone()));
    let changes: [fn(&mut offshoot_models::TokenizerSpec); 13] = [
        |spec| spec.tokens[3].push('x'),
        |spec| spec.kinds[3] = TokenKind::UserDefined,
        |spec| byte_level::parts(spec).0.swap(0, 1),
        |spec| byte_level::parts(spec).0[0] = ("ab".into(), String::new()),
        |spec| *byte_level::parts(spec).1 = PreTokenizer::Qwen2,
        |spec| spec.bos = None,
        |spec| spec.eos = Some(0),
        |spec| spec.pad = None,
        |spec| spec.unk = Some(0),
        |spec| spec.add_bos = true,
        |spec| spec.add_eos = true,
        |spec| spec.end_of_turn.push(2),
        |spec| std::mem::swap(&mut spec.bos, &mut spec.unk),
    ];
    let mut ids = vec![id];
    for change in changes {
        let mut changed = spec.clone();
        change(&mut changed);
        ids.push(TokenizerId::of(&changed));
    }
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn identities_do_not_change_from_version_to_version() {
    // Files carry these: a change here makes every one of them a stranger to its model.
    let checkpoint = open(&Tiny::llama());
    let ids = [
        BaseId::of(&checkpoint).unwrap().short(),
        TokenizerId::of(checkpoint.tokenizer().unwrap()).short(),
        TemplateId::of(checkpoint.chat_template().unwrap()).short(),
    ];
    assert_eq!(ids, ["591ad9cca3fd", "708692a397ab", "760104fd0703"]);
}

#[test]
fn identities_round_trip_through_text() {
    let id = TemplateId::of("{{ a }}");
    let text = id.to_string();
    assert_eq!(text.len(), 64);
    assert!(text.starts_with(&id.short()) && id.short().len() == 12);
    assert_eq!(text.parse::<TemplateId>().unwrap(), id);
    assert_eq!(TemplateId::from_bytes(*id.as_bytes()), id);
    let json = serde_json::to_string(&id).unwrap();
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(serde_json::from_str::<TemplateId>(&json).unwrap(), id);
    for wrong in ["", "abc", &text[1..], &format!("{text}0"), &text.replace(&text[..1], "g")] {
        let error = wrong.parse::<BaseId>().unwrap_err();
        assert_one_line(&error, wrong);
        assert!(error.to_string().contains("expected 64 hexadecimal digits"), "{error}");
    }
}
